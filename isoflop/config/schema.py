"""The schema of a sweep file. The fields are its keys.

`scripts/reference_pages.py` makes `docs/reference/sweep.md` from the `Attributes` of the classes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from isoflop.config.validation import SchemaError, format_value, require, require_name

MAX_WIDTH = 1_000_000
MAX_BUDGET_FLOPS = 1e40
MAX_CANDIDATES = 1_000_000
"""Size of a grid above which its numbers are taken for a typing error."""

Composition = Literal["s", "s+a", "s+a+t", "text"]
Kind = Literal["all", "text", "semantic", "acoustic"]
Logger = Literal["tensorboard", "wandb"]
TOKEN_KINDS: dict[Composition, tuple[Kind, ...]] = {
    "s": ("semantic",),
    "s+a": ("semantic", "acoustic"),
    "s+a+t": ("text", "semantic", "acoustic"),
    "text": ("text",),
}
"""Kinds of token in each composition."""


@dataclass(frozen=True, kw_only=True)
class WidthRule:
    """Widths to try at some budgets: `values`, or `start` to `stop` by `step`.

    Attributes:
        until: largest budget of the rule in training FLOPs, itself included; `null` for all
            budgets.
        start: smallest width.
        stop: largest width; it is tried if a step falls on it.
        step: difference of two neighbouring widths.
        values: list of widths, instead of `start`, `stop` and `step`.
    """

    until: float | None = None
    start: int | None = None
    stop: int | None = None
    step: int | None = None
    values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        bounds = {"start": self.start, "stop": self.stop, "step": self.step}
        present = [name for name, value in bounds.items() if value is not None]
        if self.until is not None:
            require(self.until > 0, "until", f"expected a budget above 0, got {self.until:g}")
        if self.values is not None:
            require(
                not present,
                present[0] if present else "",
                "give either values or start, stop and step, not both",
            )
            require(bool(self.values), "values", "an empty list; give at least one width")
            _check_distinct("values", self.values)
        else:
            missing = [name for name in bounds if name not in present]
            if missing:
                raise SchemaError(missing[0], "missing; a rule has start, stop and step, or values")
        for name, width in [
            *bounds.items(),
            *((f"values[{i}]", width) for i, width in enumerate(self.values or ())),
        ]:
            if width is not None:
                require(
                    0 < width <= MAX_WIDTH,
                    name,
                    f"expected 1 to {MAX_WIDTH:,}, got {width:,}",
                )
        if self.start is not None and self.stop is not None:
            require(
                self.start <= self.stop,
                "stop",
                f"expected {self.start} (start) or more, got {self.stop}",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths in ascending order."""
        if self.values is not None:
            return tuple(sorted(self.values))
        return tuple(range(self.start or 0, (self.stop or 0) + 1, self.step or 1))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the grid.

    Attributes:
        budget: training FLOPs (3 x forward).
        width: width of the model.
    """

    budget: float
    width: int

    def __post_init__(self) -> None:
        _check_budget("budget", self.budget)
        require(
            0 < self.width <= MAX_WIDTH,
            "width",
            f"expected 1 to {MAX_WIDTH:,}, got {self.width:,}",
        )


@dataclass(frozen=True, kw_only=True)
class Replicate(Point):
    """Additional seeds at one point of the grid, which separate noise of runs from lack of fit.

    Attributes:
        seeds: the additional seeds.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seeds("seeds", self.seeds)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The training data.

    Attributes:
        codec: audio codec: `mimi`, `pocket` or a folder. Data can be prepared for `pocket` only, so
            far; the others serve for plans.
        text_tokenizer: `bytes`, or a Hugging Face tokenizer to plan with, such as
            `stanford-crfm/marin-tokenizer`.
        mixture: share of the training tokens by source; the shares add up to 1.
        composition: `s` (semantic tokens), `s+a` (semantic and acoustic), `s+a+t` (with text), or
            `text`.
        tokens: unique tokens by source, for the epochs in a plan; both orders of every document
            count. Leave out a source of unknown size.
        max_epochs: passes over a source above which a plan warns.
        seed: seed of the corpus and of its order.
        heldout_share: share of the documents kept for the held-out loss.
    """

    codec: str
    text_tokenizer: str
    mixture: dict[str, float]
    composition: Composition = "s+a+t"
    tokens: dict[str, float] = field(default_factory=dict)
    max_epochs: float = 4.0
    seed: int = 0
    heldout_share: float = 0.03

    def __post_init__(self) -> None:
        require(bool(self.codec.strip()), "codec", "empty; use mimi, pocket or a folder")
        require(
            bool(self.text_tokenizer.strip()),
            "text_tokenizer",
            "empty; use a Hugging Face tokenizer or bytes",
        )
        require(
            bool(self.mixture),
            "mixture",
            "empty; give at least one source, e.g. mixture: {pocket: 1.0}",
        )
        for source, share in self.mixture.items():
            require_name(f"mixture.{source}", source)
            require(
                0 < share <= 1,
                f"mixture.{source}",
                f"expected a share above 0 and up to 1, got {share:g}",
            )
        total = math.fsum(self.mixture.values())
        require(abs(total - 1) <= 1e-3, "mixture", f"the shares add up to {total:.5g}, not 1")
        for source, tokens in self.tokens.items():
            sources = ", ".join(self.mixture)
            require(
                source in self.mixture, f"tokens.{source}", f"no source of data.mixture ({sources})"
            )
            require(tokens >= 1, f"tokens.{source}", f"expected 1 token or more, got {tokens:g}")
        require(
            self.max_epochs > 0, "max_epochs", f"expected a number above 0, got {self.max_epochs:g}"
        )
        require(self.seed >= 0, "seed", f"expected 0 or more, got {self.seed}")
        share = self.heldout_share
        require(
            0 < share < 0.5,
            "heldout_share",
            f"expected a share above 0 and under 0.5, got {share:g}",
        )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Cautious AdamC. Its peak learning rate and beta2 come from the recipe.

    The defaults are those of SODA's sweep.

    Attributes:
        name: the optimizer; cautious AdamC.
        beta1: decay rate of the first moment.
        eps: constant that is added to the root of the second moment.
        weight_decay: factor of the decay of the weights.
        grad_clip: largest norm of the gradient.
    """

    name: Literal["cautious-adamc"] = "cautious-adamc"
    beta1: float = 0.95
    eps: float = 1e-15
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.beta1 < 1, "beta1", f"expected 0 or more and under 1, got {self.beta1:g}")
        require(self.eps > 0, "eps", f"expected a number above 0, got {self.eps:g}")
        require(
            self.weight_decay >= 0, "weight_decay", f"expected 0 or more, got {self.weight_decay:g}"
        )
        require(self.grad_clip > 0, "grad_clip", f"expected a norm above 0, got {self.grad_clip:g}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over a run.

    Attributes:
        name: linear warm-up, constant rate, linear decay.
        warmup: share of the steps with rising learning rate.
        decay: share of the steps with falling learning rate.
        min_lr_ratio: last learning rate as a share of the peak.
    """

    name: Literal["wsd"] = "wsd"
    warmup: float = 0.1
    decay: float = 0.2
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "min_lr_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, f"expected a share from 0 to 1, got {value:g}")
        total = self.warmup + self.decay
        require(
            total <= 1 + 1e-9,
            "decay",
            f"warmup and decay add up to {total:g}; they share one run, so at most 1",
        )


@dataclass(frozen=True, kw_only=True)
class Train:
    """Training of a model.

    Attributes:
        optimizer: the optimizer.
        schedule: the learning rate over a run.
        z_loss: weight of the squared log-partition term of the loss.
        trainer: `builtin`; `{command: "PROGRAM ..."}` for an external program; `{simulated: LAW}`
            for losses drawn from a law.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU and fp32 on a CPU.
        deterministic: use only kernels whose sums repeat bit for bit on a GPU (untested on GPUs).
            Not part of a run's identity; may be changed at any time.
        lr_scale: factor on the recipe's learning rate.
        batch_scale: factor on the recipe's batch, a power of two.
        evals: number of held-out measurements in a run; the last one follows the last step.
        log_points: rows of the loss log for each split.
        checkpoint_minutes: minutes between checkpoints. Not part of a run's identity; may be
            changed at any time.
        loggers: `tensorboard`, `wandb`: programs that also show the loss log of the builtin
            trainer. Not part of a run's identity; a change counts from the next start of a run.
    """

    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    z_loss: float = 0.0
    trainer: str = "builtin"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False
    lr_scale: float = 1.0
    batch_scale: float = 1.0
    evals: int = 4
    log_points: int = 200
    checkpoint_minutes: float = 10.0
    loggers: tuple[Logger, ...] = ()

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, "z_loss", f"expected 0 or more, got {self.z_loss:g}")
        kind, _, argument = self.trainer.partition(":")
        is_known = self.trainer == "builtin" or (
            kind in ("command", "simulated") and bool(argument.strip())
        )
        require(
            is_known,
            "trainer",
            'expected builtin, "command: PROGRAM ..." or "simulated: LAW", got '
            f"{format_value(self.trainer)}",
        )
        require(
            0 < self.lr_scale <= 1e6,
            "lr_scale",
            f"expected a factor above 0 and up to 1e6, got {self.lr_scale:g}",
        )
        is_power_of_two = (
            2**-20 <= self.batch_scale <= 2**20 and math.frexp(self.batch_scale)[0] == 0.5
        )
        require(
            is_power_of_two,
            "batch_scale",
            f"expected a power of two such as 0.5 or 2, got {self.batch_scale:g}",
        )
        require(self.evals >= 1, "evals", f"expected 1 or more, got {self.evals}")
        require(self.log_points >= 1, "log_points", f"expected 1 or more, got {self.log_points}")
        minutes = self.checkpoint_minutes
        require(minutes > 0, "checkpoint_minutes", f"expected a number above 0, got {minutes:g}")
        require(
            len(set(self.loggers)) == len(self.loggers),
            "loggers",
            "one is given twice; leave one out",
        )
        require(
            not (self.loggers and kind == "command"),
            "loggers",
            "an external program does its own logging; leave it out",
        )

    @property
    def program(self) -> tuple[str, str]:
        """Return the trainer and its argument, e.g. `("simulated", "soda")`."""
        kind, _, argument = self.trainer.partition(":")
        return kind, argument.strip()

    @property
    def starts_processes(self) -> bool:
        """Return True if the trainer is one process per node, which starts its own processes.

        The builtin trainer is one process per GPU.
        """
        return self.program[0] != "builtin"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The held-out loss that is fitted.

    Attributes:
        set: validation set.
        kind: kind of the target tokens: `all`, `text`, `semantic` or `acoustic`.
        tokens: number of target tokens that are measured.
    """

    set: str = "heldout"
    kind: Kind = "all"
    tokens: int = 65_536

    def __post_init__(self) -> None:
        require_name("set", self.set)
        require(
            self.set != "train",
            "set",
            "a loss on training batches can't be fitted; name a held-out set",
        )
        require(self.tokens >= 1, "tokens", f"expected 1 or more, got {self.tokens}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A study: its models, budgets, data and training. It is checked when it is made.

    Attributes:
        name: name of the study; with its folder, its identity.
        recipe: rules from width and budget to depth, heads, MLP, batch, learning rate, beta2 and
            steps: `soda`, `pocket`, or your own as `module:attribute`.
        seq_len: tokens in a training window.
        budgets: list of budgets in training FLOPs (3 x forward).
        widths: list of widths, or of rules. The first rule whose `until` is not below a budget
            gives its widths.
        data: the training data.
        schema: version of the file format.
        kind: kind of study.
        min_batch: candidates with fewer sequences in a step are dropped.
        max_steps: candidates with as many steps or more are dropped.
        extra: additional points, exempt from `min_batch` and `max_steps`.
        seeds: every point is run with each seed.
        replicates: additional seeds at chosen points.
        recipe_check: add runs that check the recipe: half and double learning rate and batch, at
            three sizes of one or two budgets.
        train: training of a model.
        metric: the held-out loss that is fitted.
    """

    name: str
    recipe: str
    seq_len: int
    budgets: tuple[float, ...]
    widths: tuple[WidthRule, ...]
    data: Data
    schema: Literal[1] = 1
    kind: Literal["isoflop"] = "isoflop"
    min_batch: int = 1
    max_steps: int | None = None
    extra: tuple[Point, ...] = ()
    seeds: tuple[int, ...] = (0,)
    replicates: tuple[Replicate, ...] = ()
    recipe_check: bool = False
    train: Train = field(default_factory=Train)
    metric: Metric = field(default_factory=Metric)

    def __post_init__(self) -> None:
        require_name("name", self.name)
        require(
            0 < self.seq_len <= 2**24,
            "seq_len",
            f"expected 1 to {2**24:,} tokens, got {self.seq_len:,}",
        )
        require(bool(self.budgets), "budgets", "an empty list; give at least one budget")
        for i, budget in enumerate(self.budgets):
            _check_budget(f"budgets[{i}]", budget)
        _check_distinct("budgets", self.budgets)
        require(self.min_batch >= 1, "min_batch", f"expected 1 or more, got {self.min_batch}")
        if self.max_steps is not None:
            require(self.max_steps >= 2, "max_steps", f"expected 2 or more, got {self.max_steps}")
        _check_seeds("seeds", self.seeds)
        composition, kind = self.data.composition, self.metric.kind
        kinds = TOKEN_KINDS[composition]
        message = f"data.composition {composition} has no {kind} tokens; take all or"
        require(kind in ("all", *kinds), "metric.kind", f"{message} {' or '.join(kinds)}")
        self._check_widths()

    def _check_widths(self) -> None:
        require(bool(self.widths), "widths", "an empty list; give widths or rules")
        limits = [math.inf if rule.until is None else rule.until for rule in self.widths]
        for i, (before, after) in enumerate(itertools.pairwise(limits), start=1):
            require(
                after > before,
                f"widths[{i}]",
                "never used: until of the rule before it is as large; order the rules by until",
            )
        largest = max(self.budgets)
        require(
            largest <= limits[-1],
            "widths",
            f"no rule for budget {largest:g}; leave until out of the last rule",
        )
        candidates = sum(len(self.widths_at(budget)) for budget in self.budgets) * len(self.seeds)
        require(
            candidates <= MAX_CANDIDATES,
            "widths",
            f"{candidates:,} candidates, more than {MAX_CANDIDATES:,}; use a larger step or fewer"
            " budgets",
        )

    def widths_at(self, budget: float) -> tuple[int, ...]:
        """Return the widths to try at a budget, by the first rule whose `until` is not below it."""
        return next(
            (rule.widths for rule in self.widths if rule.until is None or budget <= rule.until), ()
        )


def _check_budget(key: str, budget: float) -> None:
    require(
        0 < budget <= MAX_BUDGET_FLOPS,
        key,
        f"expected training FLOPs above 0 and up to {MAX_BUDGET_FLOPS:g}, got {budget:g}",
    )


def _check_seeds(key: str, seeds: tuple[int, ...]) -> None:
    require(bool(seeds), key, "an empty list; give at least one seed")
    for i, seed in enumerate(seeds):
        require(0 <= seed < 2**32, f"{key}[{i}]", f"expected 0 to {2**32 - 1:,}, got {seed:,}")
    _check_distinct(key, seeds)


def _check_distinct(key: str, values: tuple[float, ...] | tuple[int, ...]) -> None:
    distinct: set[float] = set()
    for value in values:
        require(value not in distinct, key, f"{value:g} is given twice; leave one out")
        distinct.add(value)
