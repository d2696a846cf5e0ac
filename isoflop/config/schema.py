"""The schema of a sweep file. The fields are its keys.

`scripts/reference_pages.py` makes `docs/reference/sweep.md` from the `Attributes` of the classes,
those of `grid_schema` and `training_schema` included.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from isoflop.config.grid_schema import (
    Point,
    Replicate,
    WidthRule,
    check_budget,
    check_distinct,
    check_seeds,
)
from isoflop.config.training_schema import Train
from isoflop.config.validation import require, require_name
from isoflop.text import flops_text

MAX_CANDIDATES = 1_000_000
"""Size of a grid above which its numbers are taken for a typing error."""

Composition = Literal["s", "s+a", "s+a+t", "text"]
Kind = Literal["all", "text", "semantic", "acoustic"]
TOKEN_KINDS: dict[Composition, tuple[Kind, ...]] = {
    "s": ("semantic",),
    "s+a": ("semantic", "acoustic"),
    "s+a+t": ("text", "semantic", "acoustic"),
    "text": ("text",),
}
"""Kinds of token in each composition."""


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
            check_budget(f"budgets[{i}]", budget)
        check_distinct("budgets", self.budgets)
        require(self.min_batch >= 1, "min_batch", f"expected 1 or more, got {self.min_batch}")
        if self.max_steps is not None:
            require(self.max_steps >= 2, "max_steps", f"expected 2 or more, got {self.max_steps}")
        check_seeds("seeds", self.seeds)
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
            f"no rule for budget {flops_text(largest, 6)}; leave until out of the last rule",
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
