"""Rules of a recipe: from a width and a compute budget to a training configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

from isoflop.shapes import ModelShape
from isoflop.text import percent_text

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
    def name(self) -> str:
        """Return the recipe's name, which is part of every run's identity."""
        ...

    @property
    def version(self) -> int | str:
        """Return the version; another one gives every run another identity.

        Raise it with every change of a rule.
        """
        ...

    def shape(self, width: int, vocab_size: int, seq_len: int) -> ModelShape:
        """Return the model of a width.

        Args:
            width: width of the residual stream, from the sweep's `widths`.
            vocab_size: number of token ids, from the sweep's codec and tokenizer.
            seq_len: tokens in a training window.

        Raises:
            Exception: no model has this width. Any type: the planner reports it as a ConfigError
                that names the recipe and the width.
        """
        ...

    def solve(
        self,
        budget: float,
        shape: ModelShape,
        limits: Limits = ...,
        *,
        lr_scale: float = ...,
        batch_scale: float = ...,
    ) -> Candidate | Dropped:
        """Return the training configuration of a model at a budget, or the reason for none.

        Args:
            budget: training FLOPs (3 x forward), which those of whole steps should come near.
            shape: the model, from `shape`.
            limits: least batch in sequences, and the number of steps to stay under.
            lr_scale: factor on the recipe's peak learning rate.
            batch_scale: factor on the recipe's batch, a power of two.

        Returns:
            A `Candidate` of this shape: batch in sequences, whole steps, peak learning rate and
            beta2. A `Dropped` with its reason if the limits or the budget can't be met.

        Raises:
            Exception: the rules fail, reported as for `shape`.
        """
        ...


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
            detail = f"{steps:,} steps miss the budget by {percent_text(miss)}"
            return drop(DropReason.BUDGET, detail)
        if limits.max_steps is not None and steps >= limits.max_steps:
            return drop(
                DropReason.STEPS, f"{steps:,} steps not under max_steps {limits.max_steps:,}"
            )

        lr = min(self.lr(shape, batch_size), self.lr.cap) * lr_scale
        return Candidate(shape, batch_size, steps, lr, self.beta2(shape, batch_size))
