"""What is known of a study when its follow-up runs are chosen: the runs, the law that was fitted, and the options."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import fdtrc

from isoflop.fitting.estimators.fisher import Design
from isoflop.fitting.estimators.surface_estimate import Estimate, Sample
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.diagnostics import LACK
from isoflop.fitting.results.parametric_fit import optimum
from isoflop.fitting.tables.runs_table import ParamCount
from isoflop.followup.bracketing import ProfileSizes
from isoflop.followup.candidates import Place
from isoflop.followup.selection import Option
from isoflop.laws import Surface

Floats = np.ndarray
Key = tuple[float, int]
SURE = 0.5
"""A joint fit places an optimum where half its interval of ln N* is less; else the surface does."""

MOST_RISE = 0.12
"""A place may cost this share more than the least loss at its compute, as far as SODA's own grid goes: further from the
optima a law is trusted less."""

LEAST_NOISE = 1e-5
EFFICIENCY = 0.95  # of the adaptive Huber loss, see `estimate.EFFICIENT`


@dataclass(frozen=True, eq=False)
class Study:
    """Runs that are done or coming, the law by those that are done, and where more could be made.

    Attributes:
        sample: what was fitted, with budgets.
        law: the fitted surface; `noise` is the standard deviation of ln loss about it.
        coming: places with runs that are still to be made, and how many.
        done: budget and width of every run that is done, and how many there are.
        places: all that could be run.
        first: runs that a new place gets: the seeds of the sweep.
        n: the parameter count that the law is about.
    """

    sample: Sample
    law: Surface
    noise: float
    coming: Mapping[Place, int]
    done: Mapping[Key, int]
    places: Sequence[Place]
    first: int = 1
    n: ParamCount = "total"

    @classmethod
    def of(
        cls,
        sample: Sample,
        estimate: Estimate,
        coming: Mapping[Place, int],
        done: Mapping[Key, int],
        places: Sequence[Place],
        first: int = 1,
        n: ParamCount = "total",
        seeds: tuple[float, int] = (0.0, 0),
        banned: Collection[Key] = (),
    ) -> Study:
        """A study by the first estimate of a sample.

        Args:
            seeds: sum of squares of ln loss about the means of configurations, and its degrees of freedom: they tell
                of the noise too, unless the runs lie clearly further off the law than that.
            banned: places that are no options, such as those where a run has diverged.
        """
        e, a, b, alpha, beta = map(float, sample.points.natural(estimate.theta[0]))
        noise = max(
            float(np.sqrt(pooled(float(estimate.variance[0]), sample.dof, *seeds))), LEAST_NOISE
        )
        free = [place for place in places if place.key not in banned]
        return cls(sample, Surface(e, a, b, alpha, beta), noise, coming, done, free, first, n)

    @cached_property
    def design(self) -> Design:
        """The runs that are done."""
        return Design(self.law, self.sample.points, self.sample.seeds, self.noise)

    @cached_property
    def rows(self) -> Floats:
        """What the configurations tell that are done and coming, (K, 5)."""
        runs = np.sqrt(list(self.coming.values()))[:, None]
        return np.concatenate(
            [self.design.rows, self.design.rows_at(*self._counts(list(self.coming))) * runs]
        )

    @property
    def configurations(self) -> int:
        """How many there are once the coming runs are done."""
        return len(self.sample) + len({place.key for place in self.coming} - self.done.keys())

    def _counts(self, places: Sequence[Place]) -> tuple[Floats, Floats]:
        """Parameters and tokens."""
        params = np.array([place.params(self.n) for place in places], dtype=np.float64)
        return params, np.array([place.tokens for place in places], dtype=np.float64)

    @cached_property
    def optima(self) -> dict[float, float]:
        """ln N* of each budget by the law, over the places that can be run: their true cost is not 6ND."""
        params, tokens = self._counts(self.places)
        budgets, losses = (
            np.array([place.budget for place in self.places]),
            self.law.loss(params, tokens),
        )
        masks = {budget: budgets == budget for budget in dict.fromkeys(budgets.tolist())}
        return {
            budget: _lowest(np.log(params[here]), losses[here]) for budget, here in masks.items()
        }

    def options(self) -> list[Option]:
        """Places that are not too far from the optima, and those that have runs."""
        params, tokens = self._counts(self.places)
        rows, near = self.design.rows_at(params, tokens), self._rise(params, tokens) <= MOST_RISE
        known = dict(self.done)
        for place, runs in self.coming.items():
            known[place.key] = known.get(place.key, 0) + runs
        return [
            Option(
                place,
                row,
                float(np.log(size)) - self.optima[place.budget],
                known.get(place.key, 0),
                self.first,
            )
            for place, row, size, good in zip(self.places, rows, params, near, strict=True)
            if good or place.key in known
        ]

    def _rise(self, params: Floats, tokens: Floats) -> Floats:
        """ln of the law's loss over the least at the same N D."""
        least = optimum(self.sample.points, self.design.theta, 6.0 * params * tokens)[0][:, 2]
        return np.log(self.law.loss(params, tokens)) - least

    def profiles(self, joint: Fit | None) -> list[ProfileSizes]:
        """The budgets that have runs, their optima by the joint fit where it is sure of them."""
        points, found = self.sample.points, []
        coming = {
            budget: [p for p in self.coming if p.budget == budget] for budget, _ in self._keys()
        }
        for budget in sorted({budget for budget, _ in self._keys()} & self.optima.keys()):
            here = np.abs(np.log(self.sample.budget / budget)) < 1e-6
            sizes = points.x[here] + points.x_mean
            best = float(sizes[np.argmin(points.loss[here])]) if here.any() else np.nan
            sizes = np.append(sizes, np.log(self._counts(coming[budget])[0]))
            found.append(ProfileSizes(budget, np.unique(sizes), self._placed(joint, budget), best))
        return found

    def _keys(self) -> set[Key]:
        return {*self.done, *(place.key for place in self.coming)}

    def _placed(self, joint: Fit | None, budget: float) -> float:
        if joint is not None:
            interval = joint.law_at(budget, joint.confidence)["params"]
            if interval.width / 2.0 < SURE:
                return interval.value
        return self.optima[budget]


def pooled(variance: float, dof: int, squares: float, more: int) -> float:
    """Variance of one run about the law, by residuals (`dof`) and by what seeds differ by (`more`) where they agree.

    The estimate's variance has Huber's loss in it, which is `EFFICIENCY` as efficient as least squares.
    """
    if (
        not more
        or squares <= 0.0
        or fdtrc(dof, more, EFFICIENCY * variance / (squares / more)) < LACK
    ):
        return variance
    return (dof * variance + squares / EFFICIENCY) / (dof + more)


def _lowest(x: Floats, y: Floats) -> float:
    """Where y has its minimum over x: the vertex through the least point and its neighbours."""
    i = int(np.argmin(y))
    if not 0 < i < len(x) - 1:
        return float(x[i])
    c2, c1, _ = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
    return float(x[i] - 0.5 * c1 / c2) if c2 > 0.0 else float(x[i])
