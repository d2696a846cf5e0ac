"""The intervals to expect of a plan, and which of its runs matter most: a power analysis before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.fitting.estimators.fisher import Aim, Design
from isoflop.fitting.estimators.intervals import Interval, exponential
from isoflop.fitting.methods.parametric import MIN_CONFIGURATIONS
from isoflop.followup.expected_law import NOISE, ExpectedLaw
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import RunSpec

FURTHER = 10.0
"""The loss is predicted at so many times the largest budget, unless a target is given."""

EQUAL_PACE = 0.5
SHOWN = 5
CHEAP = 0.01
"""A replicate is cheap at this share of the plan's FLOPs or less."""


@dataclass(frozen=True)
class Part:
    """A configuration of the plan: its first run, how many there are, and how a's interval depends on them.

    Attributes:
        run: the first.
        seeds: how many runs.
        without: the interval of a without this configuration, over that with it, less 1.
        replicate: the interval of a with one more seed here, over that without, less 1: below 0.
    """

    run: RunSpec
    seeds: int
    without: float
    replicate: float


@dataclass(frozen=True)
class Expectation:
    """What a plan would tell if a law were true.

    Attributes:
        noise: standard deviation of the loss between runs, as a share of it.
        intervals: of `a`, `b` and, for each budget in FLOPs, `loss`: statistical ones, which are right if the law is.
        sds: standard deviation of the estimates of a (and b), and of ln loss.
        power: probability that the interval of a leaves out equal pace, a = .5.
        parts: the configurations, in the plan's order.
    """

    law: ExpectedLaw
    noise: float
    confidence: float
    dof: int
    intervals: dict[str, Interval]
    losses: dict[float, Interval]
    sds: dict[str | float, float]
    power: float
    parts: tuple[Part, ...]
    total_flops: float

    @property
    def matter_most(self) -> list[Part]:
        """Configurations without which the interval of a would be widest, that one first."""
        return sorted(self.parts, key=lambda part: -part.without)[:SHOWN]

    @property
    def best_replicates(self) -> list[Part]:
        """Cheap configurations of which one more seed narrows the interval of a most."""
        cheap = [part for part in self.parts if part.run.train_flops <= CHEAP * self.total_flops]
        return sorted(cheap or self.parts, key=lambda part: part.replicate)[:SHOWN]

    def to_dict(self) -> dict[str, Any]:
        """`expected` of `sweep-plan --json`."""
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
                {"flops": at, **row._asdict(), "sd_ln": self.sds[at]}
                for at, row in self.losses.items()
            ],
            "power": {"a_is_not": EQUAL_PACE, "probability": self.power},
            "configurations": [
                {
                    "run_id": part.run.run_id,
                    "seeds": part.seeds,
                    "without": part.without if np.isfinite(part.without) else None,
                    "replicate": part.replicate,
                }
                for part in self.parts
            ],
        }


def expect(
    plan: Plan,
    law: ExpectedLaw,
    *,
    noise: float | None = None,
    targets: Sequence[float] = (),
    confidence: float = 0.95,
) -> Expectation:
    """What the parametric fit of a plan's runs would tell, by Fisher information (`fitting.design`).

    Args:
        plan: its parameters (those that the law is about) and tokens are taken as they are, seeds as replicates.
        law: taken for true.
        noise: of ln loss between runs; by default that of the law's own runs, else 0.3 %.
        targets: budgets in FLOPs to predict the least loss at, besides 10 times the largest of the plan.
        confidence: of the intervals.

    Raises:
        FitError: a plan that can't fix the law.
    """
    if noise is None:
        noise = law.noise or NOISE
    if not 0.0 < noise < 1.0:
        raise FitError(
            f"the noise is a share of the loss between 0 and 1, such as 0.003, not {noise:g}"
        )
    groups = configurations(plan)
    if len(groups) < MIN_CONFIGURATIONS:
        raise FitError(
            f"{plan.sweep.name}: {len(groups)} configurations can't fix a law of 5 parameters with an interval: "
            f"{MIN_CONFIGURATIONS} or more are needed"
        )
    firsts = [runs[0] for runs in groups]
    design = design_of(firsts, [len(runs) for runs in groups], law, noise)
    budgets = dict.fromkeys((FURTHER * max(run.budget for run in firsts), *targets))
    a = design.exponent()
    losses = {at: design.loss(at) for at in budgets}
    half = design.half_width(a, confidence)
    more = design.with_each(a, design.rows / np.sqrt(design.seeds)[:, None]) / design.sd(a) - 1.0
    less = design.without_each(a) / design.sd(a) - 1.0
    return Expectation(
        law=law,
        noise=noise,
        confidence=confidence,
        dof=design.dof,
        intervals={
            "a": Interval(a.value, a.value - half, a.value + half),
            "b": Interval(1.0 - a.value, 1.0 - a.value - half, 1.0 - a.value + half),
        },
        losses={at: _interval(design, aim, confidence) for at, aim in losses.items()},
        sds={
            "a": design.sd(a),
            "b": design.sd(a),
            **{at: design.sd(aim) for at, aim in losses.items()},
        },
        power=design.power(a, EQUAL_PACE, confidence),
        parts=tuple(
            Part(run, len(runs), float(gone), float(again))
            for run, runs, gone, again in zip(firsts, groups, less, more, strict=True)
        ),
        total_flops=float(plan.total_flops),
    )


def configurations(plan: Plan) -> list[list[RunSpec]]:
    """The plan's runs by configuration: those of one differ by their seeds only. Checks of the recipe are left out."""
    groups: dict[tuple[Any, ...], list[RunSpec]] = {}
    for run in (run for run in plan.runs if not run.check):
        groups.setdefault((run.budget, run.candidate), []).append(run)
    return list(groups.values())


def design_of(
    runs: Sequence[RunSpec], seeds: Sequence[int], law: ExpectedLaw, noise: float
) -> Design:
    """The design of K configurations; a law about another parameter count takes that of theirs."""
    params = np.array([getattr(run, f"params_{law.n}") for run in runs], dtype=np.float64)
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    return Design.of(law.surface, params, tokens, np.array(seeds, dtype=np.float64), noise)


def _interval(design: Design, aim: Aim, confidence: float) -> Interval:
    half = design.half_width(aim, confidence)
    return exponential(Interval(aim.value, aim.value - half, aim.value + half))
