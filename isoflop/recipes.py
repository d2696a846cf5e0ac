"""Recipes: from a width and a compute budget to a complete training configuration.

"SODA's sweep" is the code of the IsoFLOP study of arXiv 2602.16687 (marin-community/marin,
experiments/audio).

A recipe is data (the constants of its rules, each with its source) and one small function (width to
depth). The planner uses only `name`, `version`, `shape` and `solve`, so a lab's own recipe is a
`Recipe` with other numbers, or any object with those four. A sweep names it as
`recipe: package.module:attribute`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Literal, Protocol, runtime_checkable

from isoflop.errors import ConfigError
from isoflop.shapes import ModelShape

Unit = Literal["sequences", "tokens"]


class DropReason(StrEnum):
    """Reason for dropping a candidate."""

    BATCH = "batch"
    STEPS = "steps"
    BUDGET = "budget"


@dataclass(frozen=True)
class Candidate:
    """A training configuration for one width at one budget, before seeds.

    Attributes:
        shape: the model.
        batch_size: sequences in a step.
        steps: optimizer updates.
        lr: peak learning rate.
        beta2: the optimizer's second decay rate.
    """

    shape: ModelShape
    batch_size: int
    steps: int
    lr: float
    beta2: float

    @property
    def tokens(self) -> int:
        """Training tokens: batch x seq_len x steps."""
        return self.batch_size * self.shape.seq_len * self.steps

    @property
    def train_flops(self) -> int:
        """Training FLOPs of the whole run (3 x forward)."""
        return self.tokens * self.shape.train_flops_per_token


@dataclass(frozen=True)
class Dropped:
    """A candidate that the rules exclude, with the reason and its text."""

    budget: float
    width: int
    reason: DropReason
    detail: str


@dataclass(frozen=True)
class Limits:
    """Limits of a run: at least `min_batch` sequences per step and fewer than `max_steps` steps."""

    min_batch: int = 1
    max_steps: int | None = None


@runtime_checkable
class RecipeLike(Protocol):
    """Interface of a recipe for the planner."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int | str: ...

    def shape(self, width: int, vocab_size: int, seq_len: int) -> ModelShape: ...

    def solve(
        self,
        budget: float,
        shape: ModelShape,
        limits: Limits = ...,
        *,
        lr_scale: float = ...,
        batch_scale: float = ...,
    ) -> Candidate | Dropped: ...


@dataclass(frozen=True)
class BatchRule:
    """Batch size that brings the steps of a budget near `target_steps`.

    It is a power of two, rounded `up` or to the `nearest`, or the nearest `whole` number, which
    varies the steps less.
    """

    target_steps: int
    rounding: Literal["up", "nearest", "whole"]
    source: str

    def __call__(self, budget: float, shape: ModelShape) -> int:
        """Return the sequences per step for `budget` training FLOPs."""
        exact = budget / (shape.train_flops_per_token * shape.seq_len * self.target_steps)
        if exact <= 1:
            return 1
        if self.rounding == "whole":
            return round(exact)
        exponent = math.log2(exact)
        return 2 ** (math.ceil(exponent) if self.rounding == "up" else round(exponent))


@dataclass(frozen=True)
class LearningRateRule:
    """lr = coefficient * batch ** batch_power * width ** width_power, at most `cap`.

    The batch is in `unit`. If the rule exceeds its cap, the batch is halved until it does not
    (`halve_batch`), or the cap is the learning rate.
    """

    coefficient: float
    batch_power: float
    width_power: float
    unit: Unit
    cap: float
    halve_batch: bool
    source: str

    def __call__(self, shape: ModelShape, batch_size: int) -> float:
        """Return the peak learning rate by the rule, without the cap."""
        batch = _in_unit(batch_size, shape, self.unit)
        return self.coefficient * batch**self.batch_power * shape.width**self.width_power

    def limit_batch(self, shape: ModelShape, batch_size: int) -> int:
        """Return the batch size, halved with `halve_batch` until its rate is at most `cap`."""
        while self.halve_batch and batch_size > 1 and self(shape, batch_size) > self.cap:
            batch_size //= 2
        return batch_size


@dataclass(frozen=True)
class Beta2Rule:
    """beta2 = base ** (batch / reference) ** power, batch in `unit`.

    Power 1 keeps the memory in tokens the same at every batch, power 0 the memory in steps.
    """

    base: float
    reference: float
    unit: Unit
    source: str
    power: float = 1.0

    def __call__(self, shape: ModelShape, batch_size: int) -> float:
        """Return the optimizer's beta2 for a batch."""
        return self.base ** (
            (_in_unit(batch_size, shape, self.unit) / self.reference) ** self.power
        )


def _in_unit(batch_size: int, shape: ModelShape, unit: Unit) -> int:
    return batch_size * shape.seq_len if unit == "tokens" else batch_size


@dataclass(frozen=True)
class Recipe:
    """Rules from width and budget to a training configuration.

    Attributes:
        name: the name used in sweeps.
        version: increases with any change of a number, because it is part of a run's identity.
        depth: layers for a width.
        heads: query heads for a width; keys and values have as many.
        head_dim: size of a head.
        mlp_ratio: MLP width over width.
        batch, lr, beta2: the rules of the optimizer's settings, each with its source.
        sources: sources of the rules of the shape, by name.
        budget_tolerance: largest deviation of whole steps from the budget, as a share of it.
        rope_theta: RoPE's base; Llama 3's by default.
    """

    name: str
    version: int
    depth: Callable[[int], int]
    heads: Callable[[int], int]
    head_dim: int
    mlp_ratio: int
    batch: BatchRule
    lr: LearningRateRule
    beta2: Beta2Rule
    sources: dict[str, str] = field(default_factory=dict)
    budget_tolerance: float = 0.01
    rope_theta: float = 500_000.0

    def shape(self, width: int, vocab_size: int, seq_len: int) -> ModelShape:
        """Return the model of a width, with untied embeddings."""
        heads = self.heads(width)
        return ModelShape(
            width=width,
            layers=self.depth(width),
            heads=heads,
            kv_heads=heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_ratio * width,
            vocab_size=vocab_size,
            seq_len=seq_len,
            rope_theta=self.rope_theta,
        )

    def solve(
        self,
        budget: float,
        shape: ModelShape,
        limits: Limits = Limits(),
        *,
        lr_scale: float = 1.0,
        batch_scale: float = 1.0,
    ) -> Candidate | Dropped:
        """Return the training configuration of a shape at a budget, or the reason for none.

        Args:
            budget: training FLOPs (3 x forward).
            shape: the model, from `shape`.
            limits: limits of the batch and the steps.
            lr_scale: factor on the rule's learning rate, after its cap.
            batch_scale: factor on the rule's batch, a power of two; learning rate and beta2 follow
                the scaled batch.
        """

        def drop(reason: DropReason, detail: str) -> Dropped:
            return Dropped(budget, shape.width, reason, detail)

        batch_size = int(self.lr.limit_batch(shape, self.batch(budget, shape)) * batch_scale)
        if batch_size < limits.min_batch or batch_size < 1:
            return drop(DropReason.BATCH, f"batch {batch_size} under min_batch {limits.min_batch}")

        flops_per_step = shape.train_flops_per_token * batch_size * shape.seq_len
        steps = round(budget / flops_per_step)
        miss = abs(steps * flops_per_step - budget) / budget
        if miss > self.budget_tolerance:
            return drop(DropReason.BUDGET, f"{steps:,} steps miss the budget by {miss:.1%}")
        if limits.max_steps is not None and steps >= limits.max_steps:
            return drop(
                DropReason.STEPS, f"{steps:,} steps not under max_steps {limits.max_steps:,}"
            )

        lr = min(self.lr(shape, batch_size), self.lr.cap) * lr_scale
        return Candidate(shape, batch_size, steps, lr, self.beta2(shape, batch_size))


def soda_depth(width: int) -> int:
    """Return round(d / (64 + 4 log2(d) - 7)), at least 1. Source: SODA's sweep."""
    return max(1, round(width / (64 + 4 * math.log2(width) - 7)))


def soda_heads(width: int) -> int:
    """Return max(1, d // 128). Source: SODA's sweep."""
    return max(1, width // 128)


SODA = Recipe(
    name="soda",
    version=1,
    depth=soda_depth,
    heads=soda_heads,
    head_dim=128,
    mlp_ratio=4,
    batch=BatchRule(
        target_steps=65_536, rounding="up", source="SODA's sweep: a power of two, ceiling"
    ),
    lr=LearningRateRule(
        coefficient=0.33,
        batch_power=0.5,
        width_power=-1.0,
        unit="sequences",
        cap=0.01,
        halve_batch=True,
        source="SODA's sweep: 0.33 sqrt(B) / d, B halved while above 0.01",
    ),
    beta2=Beta2Rule(
        base=0.98, reference=128, unit="sequences", source="SODA's sweep: 0.98^(B/128)"
    ),
    sources={
        "depth": "SODA's sweep: round(d / (64 + 4 log2 d - 7))",
        "heads": "SODA's sweep: d // 128 of size 128, as many for keys and values",
        "mlp_ratio": "SODA's sweep: m = 4d",
    },
)
"""The rules of SODA's IsoFLOP study and its 64 runs."""


def pocket_depth(width: int) -> int:
    """Return max(2, round(d / 64)).

    The models of a pocket study thus differ only in width, so that its profiles are smooth.
    """
    return max(2, round(width / 64))


def pocket_heads(width: int) -> int:
    """Return the number of heads of size 8 that are together at least as wide as the model."""
    return math.ceil(width / 8)


POCKET = Recipe(
    name="pocket",
    version=4,
    depth=pocket_depth,
    heads=pocket_heads,
    head_dim=8,
    mlp_ratio=4,
    batch=BatchRule(
        target_steps=1500,
        rounding="whole",
        source="near the best of 550 to 2200 steps, and even over sizes (analysis/NOTES.md)",
    ),
    lr=LearningRateRule(
        coefficient=0.022,
        batch_power=0.4,
        width_power=-0.5,
        unit="sequences",
        cap=0.03,
        halve_batch=False,
        source=(
            "tuned at nine points, widths 4 to 64, batches of 1 to 59 x 128 tokens"
            " (analysis/NOTES.md)"
        ),
    ),
    beta2=Beta2Rule(
        base=0.98,
        reference=1,
        unit="sequences",
        power=0,
        source="tuned at width 32 (analysis/NOTES.md)",
    ),
    sources={
        "depth": "two layers up to width 159: one family, without steps in depth",
        "heads": (
            "8 is the smallest head that RoPE serves well; fewer and wider ones lose"
            " (analysis/NOTES.md)"
        ),
        "mlp_ratio": "SODA's 4",
    },
    rope_theta=100.0,
)
"""Rules for small vocabularies and shallow models, which a CPU trains in minutes."""

RECIPES: dict[str, RecipeLike] = {recipe.name: recipe for recipe in (SODA, POCKET)}
"""The shipped recipes by name."""


def find_recipe(name: str) -> RecipeLike:
    """Return a shipped recipe by name, or a lab's own as `package.module:attribute`.

    Raises:
        ConfigError: an unknown name, or an attribute that can't be imported or is no recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" not in name:
        nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)
        hint = f"did you mean {nearest[0]}?" if nearest else f"use one of {', '.join(RECIPES)}"
        raise ConfigError(
            f"recipe {name!r} is not known; {hint} (or module:attribute for your own recipe)"
        )
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
        recipe = getattr(module, attribute, None)
    except Exception as problem:  # an import of a lab's module may raise anything
        is_absent = (
            isinstance(problem, ModuleNotFoundError)
            and problem.name == module_name.partition(".")[0]
        )
        mend = (
            "; is its folder installed or on PYTHONPATH? If not: export PYTHONPATH=FOLDER"
            if is_absent
            else ""
        )
        raise ConfigError(f"recipe {name!r} can't be imported ({problem}){mend}") from problem
    if recipe is None:
        names = [key for key, value in vars(module).items() if _is_recipe(value)]
        mend = (
            f"it has {', '.join(names)}"
            if names
            else "define it there: an object with name, version, shape and solve"
        )
        raise ConfigError(f"recipe {name!r}: {module_name} has no {attribute!r}; {mend}")
    if not _is_recipe(recipe):
        raise ConfigError(f"recipe {name!r} is no recipe: it needs name, version, shape and solve")
    return recipe


def _is_recipe(value: object) -> bool:
    return not isinstance(value, type) and isinstance(value, RecipeLike)
