"""Power analysis: expected intervals of a plan, and the influence of its runs, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.fitting.estimators.fisher import Design, Target
from isoflop.fitting.estimators.intervals import Interval, exponential
from isoflop.fitting.methods.parametric import MIN_CONFIGURATIONS
from isoflop.laws import DEFAULT_RELATIVE_NOISE, ExpectedLaw
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import RunSpec

TARGET_FACTOR = 10.0
"""Default target of a loss prediction, in multiples of the largest budget."""
EQUAL_EXPONENT = 0.5
"""Exponent a of a law whose N* and D* grow at the same pace."""
MAX_LISTED = 5
MAX_REPLICATE_FLOPS_SHARE = 0.01
"""Largest share of the plan's FLOPs of a listed replicate."""


@dataclass(frozen=True)
class ConfigurationEffect:
    """Effect of a configuration of the plan on the interval of a.

    Attributes:
        run: its first run.
        seeds: number of its runs.
        without: relative change of the interval if the configuration is left out.
        replicate: relative change of the interval by one more seed, below 0.
    """

    run: RunSpec
    seeds: int
    without: float
    replicate: float


@dataclass(frozen=True)
class ExpectedIntervals:
    """Expected intervals of a plan if a law is true.

    Attributes:
        law: the law.
        noise: standard deviation of the loss between runs, as a share of it.
        confidence: level of the intervals.
        dof: degrees of freedom of the intervals.
        intervals: statistical intervals of `a` and `b`.
        losses: statistical intervals of the least loss, by training FLOPs.
        sds: standard deviations of a and b by name, and of ln loss by training FLOPs.
        power: probability of an interval of a without `EQUAL_EXPONENT`.
        configurations: effects of the configurations, in the plan's order.
        total_flops: training FLOPs of the plan.
    """

    law: ExpectedLaw
    noise: float
    confidence: float
    dof: int
    intervals: dict[str, Interval]
    losses: dict[float, Interval]
    sds: dict[str | float, float]
    power: float
    configurations: tuple[ConfigurationEffect, ...]
    total_flops: float

    @property
    def most_influential(self) -> list[ConfigurationEffect]:
        """Configurations without which the interval of a is widest, in descending order."""
        return sorted(self.configurations, key=lambda effect: -effect.without)[:MAX_LISTED]

    @property
    def best_replicates(self) -> list[ConfigurationEffect]:
        """Cheap configurations whose next seed narrows the interval of a most."""
        limit = MAX_REPLICATE_FLOPS_SHARE * self.total_flops
        cheap = [effect for effect in self.configurations if effect.run.train_flops <= limit]
        effects = cheap or self.configurations
        return sorted(effects, key=lambda effect: effect.replicate)[:MAX_LISTED]

    def to_dict(self) -> dict[str, Any]:
        """Return `expected` of `sweep-plan --json`."""
        surface = self.law.surface
        return {
            "law": {"name": self.law.name, "n": self.law.n, **vars(surface)},
            "noise": self.noise,
            "confidence": self.confidence,
            "dof": self.dof,
            "intervals": {
                name: {**row._asdict(), "sd": self.sds[name]}
                for name, row in self.intervals.items()
            },
            "loss": [
                {"flops": flops, **row._asdict(), "sd_ln": self.sds[flops]}
                for flops, row in self.losses.items()
            ],
            "power": {"a_is_not": EQUAL_EXPONENT, "probability": self.power},
            "configurations": [
                {
                    "run_id": effect.run.run_id,
                    "seeds": effect.seeds,
                    "without": effect.without if np.isfinite(effect.without) else None,
                    "replicate": effect.replicate,
                }
                for effect in self.configurations
            ],
        }


def expect_intervals(
    plan: Plan,
    law: ExpectedLaw,
    *,
    noise: float | None = None,
    targets: Sequence[float] = (),
    confidence: float = 0.95,
) -> ExpectedIntervals:
    """Return the expected intervals of a parametric fit of the plan, by Fisher information.

    See `fitting.estimators.fisher`.

    Args:
        plan: the plan; the law's parameter count and the tokens of its runs are used, and seeds
            count as replicates.
        law: the law, assumed true.
        noise: standard deviation of ln loss between runs; by default that of the law's own runs,
            else 0.3%.
        targets: training FLOPs at which to predict the least loss, besides `TARGET_FACTOR` times
            the largest budget of the plan.
        confidence: level of the intervals.

    Raises:
        FitError: the noise is no share, or the plan can't determine the law.
    """
    if noise is None:
        noise = law.noise or DEFAULT_RELATIVE_NOISE
    if not 0.0 < noise < 1.0:
        raise FitError(
            f"the noise is a share of the loss between 0 and 1, such as 0.003, not {noise:g}"
        )
    groups = group_by_configuration(plan)
    if len(groups) < MIN_CONFIGURATIONS:
        raise FitError(
            f"{plan.sweep.name}: {len(groups)} configurations can't determine a law of 5 "
            f"parameters with an interval: {MIN_CONFIGURATIONS} or more are needed"
        )
    firsts = [runs[0] for runs in groups]
    design = build_design(firsts, [len(runs) for runs in groups], law, noise)
    budgets = dict.fromkeys((TARGET_FACTOR * max(run.budget for run in firsts), *targets))
    a = design.exponent()
    losses = {flops: design.loss(flops) for flops in budgets}
    half = design.half_width(a, confidence)
    more = design.with_each(a, design.rows / np.sqrt(design.seeds)[:, None]) / design.sd(a) - 1.0
    less = design.without_each(a) / design.sd(a) - 1.0
    return ExpectedIntervals(
        law=law,
        noise=noise,
        confidence=confidence,
        dof=design.dof,
        intervals={
            "a": Interval(a.value, a.value - half, a.value + half),
            "b": Interval(1.0 - a.value, 1.0 - a.value - half, 1.0 - a.value + half),
        },
        losses={flops: _interval(design, loss, confidence) for flops, loss in losses.items()},
        sds={
            "a": design.sd(a),
            "b": design.sd(a),
            **{flops: design.sd(loss) for flops, loss in losses.items()},
        },
        power=design.power(a, EQUAL_EXPONENT, confidence),
        configurations=tuple(
            ConfigurationEffect(runs[0], len(runs), float(without), float(replicate))
            for runs, without, replicate in zip(groups, less, more, strict=True)
        ),
        total_flops=float(plan.total_flops),
    )


def group_by_configuration(plan: Plan) -> list[list[RunSpec]]:
    """Return the plan's runs without recipe checks, in groups that differ by their seeds only."""
    groups: dict[tuple[Any, ...], list[RunSpec]] = {}
    for run in (run for run in plan.runs if not run.check):
        groups.setdefault((run.budget, run.candidate), []).append(run)
    return list(groups.values())


def build_design(
    runs: Sequence[RunSpec], seeds: Sequence[int], law: ExpectedLaw, noise: float
) -> Design:
    """Return the design of K configurations, with the parameter count of the law.

    Args:
        runs: first run of each configuration.
        seeds: number of runs of each.
        law: the law.
        noise: standard deviation of ln loss between runs.
    """
    params = np.array([getattr(run, f"params_{law.n}") for run in runs], dtype=np.float64)
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    return Design.from_counts(law.surface, params, tokens, np.array(seeds, dtype=np.float64), noise)


def _interval(design: Design, loss: Target, confidence: float) -> Interval:
    """Return the interval of a loss from its logarithm."""
    half = design.half_width(loss, confidence)
    return exponential(Interval(loss.value, loss.value - half, loss.value + half))
