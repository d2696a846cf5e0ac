"""The schema of a sweep file. The fields are its keys; README.md explains them to users."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from isoflop.config.validation import SchemaError, require, require_name, show

LARGEST_WIDTH = 1_000_000
LARGEST_BUDGET = 1e40
MOST_CANDIDATES = 1_000_000
"""A grid larger than this is taken for a slip of the keyboard."""

Composition = Literal["s", "s+a", "s+a+t", "text"]
Kind = Literal["all", "text", "semantic", "acoustic"]
Logger = Literal["tensorboard", "wandb"]
KINDS: dict[Composition, tuple[Kind, ...]] = {
    "s": ("semantic",),
    "s+a": ("semantic", "acoustic"),
    "s+a+t": ("text", "semantic", "acoustic"),
    "text": ("text",),
}
"""Kinds of token that a composition has."""


@dataclass(frozen=True, kw_only=True)
class WidthRule:
    """Widths to try at budgets up to `until` (all budgets without it): `values`, or `start` to `stop` by `step`.

    `stop` is tried too where a step falls on it. `until` is in training FLOPs and belongs to the rule.
    """

    until: float | None = None
    start: int | None = None
    stop: int | None = None
    step: int | None = None
    values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ends = {"start": self.start, "stop": self.stop, "step": self.step}
        given = [name for name, value in ends.items() if value is not None]
        if self.until is not None:
            require(self.until > 0, "until", f"expected a budget above 0, got {self.until:g}")
        if self.values is not None:
            require(
                not given,
                given[0] if given else "",
                "give either values or start, stop and step, not both",
            )
            require(bool(self.values), "values", "an empty list; give at least one width")
            _check_distinct("values", self.values)
        else:
            missing = [name for name in ends if name not in given]
            if missing:
                raise SchemaError(missing[0], "missing; a rule has start, stop and step, or values")
        for name, width in [
            *ends.items(),
            *((f"values[{i}]", width) for i, width in enumerate(self.values or ())),
        ]:
            if width is not None:
                require(
                    0 < width <= LARGEST_WIDTH,
                    name,
                    f"expected 1 to {LARGEST_WIDTH:,}, got {width:,}",
                )
        if self.start is not None and self.stop is not None:
            require(
                self.start <= self.stop,
                "stop",
                f"expected {self.start} (start) or more, got {self.stop}",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths in ascending order."""
        if self.values is not None:
            return tuple(sorted(self.values))
        return tuple(range(self.start or 0, (self.stop or 0) + 1, self.step or 1))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place of the grid: a budget in training FLOPs and a width."""

    budget: float
    width: int

    def __post_init__(self) -> None:
        _check_budget("budget", self.budget)
        require(
            0 < self.width <= LARGEST_WIDTH,
            "width",
            f"expected 1 to {LARGEST_WIDTH:,}, got {self.width:,}",
        )


@dataclass(frozen=True, kw_only=True)
class Replicate(Point):
    """More seeds at one place of the grid, which tell noise between runs from lack of fit."""

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seeds("seeds", self.seeds)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the models are trained on.

    Attributes:
        codec: audio codec, `mimi`, `pocket` or a folder.
        text_tokenizer: a Hugging Face tokenizer, or `bytes`.
        composition: semantic tokens only (`s`), all audio tokens (`s+a`), audio and text (`s+a+t`), or `text`.
        mixture: share of the training tokens by source; adds up to 1.
        tokens: unique tokens by source, both orders of every document counted, for the epochs column. A source
            whose size is not known is left out.
        max_epochs: passes over a source above which a plan warns.
        seed: of making the corpus and of its order.
        heldout_share: share of the documents kept for held-out loss.
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
    """Cautious AdamC; its peak learning rate and beta2 come from the recipe (defaults: those of SODA's sweep)."""

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
    """Learning rate over a run: linear warm-up, stable, linear decay. `warmup` and `decay` are shares of the steps."""

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
    """How a model is trained.

    Attributes:
        z_loss: weight of the squared log-partition term of the loss.
        trainer: `builtin`; `command: PROGRAM ...` for a program of your own; `simulated: LAW` for losses of a law.
        precision: `auto` is bf16 on a GPU and fp32 on a CPU.
        deterministic: take only kernels whose sums repeat bit for bit on a GPU; not part of a run's identity.
        lr_scale, batch_scale: factors on the recipe's learning rate and batch (a power of two), to check a recipe.
        evals: how many times held-out loss is measured, evenly over the run, the last after the last step.
        log_points: rows of the loss log for each split.
        checkpoint_minutes: time between checkpoints; not part of a run's identity.
        loggers: who shows the loss log too, beside its files; not part of a run's identity.
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
        known = self.trainer == "builtin" or (
            kind in ("command", "simulated") and bool(argument.strip())
        )
        require(
            known,
            "trainer",
            f'expected builtin, "command: PROGRAM ..." or "simulated: LAW", got {show(self.trainer)}',
        )
        fits = 0 < self.lr_scale <= 1e6
        require(fits, "lr_scale", f"expected a factor above 0 and up to 1e6, got {self.lr_scale:g}")
        power_of_two = (
            2**-20 <= self.batch_scale <= 2**20 and math.frexp(self.batch_scale)[0] == 0.5
        )
        require(
            power_of_two,
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
            "a program of your own logs by itself; leave it out",
        )

    @property
    def program(self) -> tuple[str, str]:
        """Which trainer it is, and what it is given: `("simulated", "soda")`."""
        kind, _, argument = self.trainer.partition(":")
        return kind, argument.strip()

    @property
    def starts_processes(self) -> bool:
        """Whether the trainer is one process a node, which starts what it needs itself, and not one for each GPU."""
        return self.program[0] != "builtin"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The held-out loss that is fitted: a validation set, the kind of its target tokens, and how many are measured."""

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
    """A study: which models are trained, at which budgets, on what and how. Checked when it is made.

    Attributes:
        name: by default the stem of the file; with its folder, the study's identity.
        recipe: a shipped recipe's name, or `module:attribute`.
        seq_len: tokens in a training window.
        budgets: training FLOPs (3 x forward).
        widths: the first rule whose `until` is not below the budget gives its widths. A plain list of widths is
            one rule for all budgets.
        min_batch: candidates with fewer sequences in a step are dropped.
        max_steps: candidates with as many steps or more are dropped.
        extra: points outside the rules, exempt from `min_batch` and `max_steps`.
        seeds: every point is run with each of them.
        replicates: more seeds at chosen points.
        recipe_check: more runs, at half and double learning rate and batch, at three sizes of one or two budgets.
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
        kind, there = self.metric.kind, KINDS[self.data.composition]
        message = f"data.composition {self.data.composition} has no {kind} tokens; take all or {' or '.join(there)}"
        require(kind in ("all", *there), "metric.kind", message)
        self._check_widths()

    def _check_widths(self) -> None:
        require(bool(self.widths), "widths", "an empty list; give widths or rules")
        limits = [math.inf if rule.until is None else rule.until for rule in self.widths]
        for i, (before, after) in enumerate(itertools.pairwise(limits), start=1):
            require(
                after > before,
                f"widths[{i}]",
                "never used: the rule before it reaches as far; order by until",
            )
        top = max(self.budgets)
        require(
            top <= limits[-1],
            "widths",
            f"no rule for budget {top:g}; let the last rule have no until",
        )
        candidates = sum(len(self.widths_at(budget)) for budget in self.budgets) * len(self.seeds)
        message = f"{candidates:,} candidates, more than {MOST_CANDIDATES:,}; use a larger step or fewer budgets"
        require(candidates <= MOST_CANDIDATES, "widths", message)

    def widths_at(self, budget: float) -> tuple[int, ...]:
        """Widths to try at a budget, by the first rule whose `until` is not below it."""
        return next(
            (rule.widths for rule in self.widths if rule.until is None or budget <= rule.until), ()
        )


def _check_budget(key: str, budget: float) -> None:
    fits = 0 < budget <= LARGEST_BUDGET
    require(
        fits, key, f"expected training FLOPs above 0 and up to {LARGEST_BUDGET:g}, got {budget:g}"
    )


def _check_seeds(key: str, seeds: tuple[int, ...]) -> None:
    require(bool(seeds), key, "an empty list; give at least one seed")
    for i, seed in enumerate(seeds):
        require(0 <= seed < 2**32, f"{key}[{i}]", f"expected 0 to {2**32 - 1:,}, got {seed:,}")
    _check_distinct(key, seeds)


def _check_distinct(key: str, values: tuple[float, ...] | tuple[int, ...]) -> None:
    seen: set[float] = set()
    for value in values:
        require(value not in seen, key, f"{value:g} is given twice; leave one out")
        seen.add(value)
