"""A study as the input of a selection: its runs, its fitted law and the points that may be run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import fdtrc

from isoflop.fitting.estimators.fisher import Design
from isoflop.fitting.estimators.surface_estimate import Estimate, Sample
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.diagnostics import FINDING_ALPHA
from isoflop.followup.bracketing import ProfileSizes
from isoflop.followup.candidates import CandidatePoint
from isoflop.followup.selection import Option
from isoflop.frames import Floats
from isoflop.laws import Surface
from isoflop.shapes import ParamCount

PointKey = tuple[float, int]
"""Budget and width."""
MAX_LN_HALF_WIDTH = 0.5
"""The joint fit gives an optimum if half its interval of ln N* is less; else the surface does."""
MAX_LN_LOSS_RISE = 0.11
"""Points with a larger rise of ln loss above the least at their compute are no options. SODA's grid
extends as far; further from the optima a law is trusted less."""
MIN_NOISE = 1e-5
HUBER_EFFICIENCY = 0.95
"""Efficiency of the adaptive Huber loss relative to least squares, see
`surface_estimate.HUBER_DELTA_SDS`."""


@dataclass(frozen=True, eq=False)
class FinishedStudy:
    """Finished and unfinished runs, the law of the finished ones, and points for more.

    Attributes:
        sample: the fitted configurations, with budgets.
        law: the fitted surface.
        noise: standard deviation of ln loss about the surface.
        unfinished: number of unfinished runs by point.
        done: number of finished runs by budget and width.
        points: all points that may be run.
        first_runs: number of runs of a new point: the seeds of the sweep.
        n: parameter count of the law.
    """

    sample: Sample
    law: Surface
    noise: float
    unfinished: Mapping[CandidatePoint, int]
    done: Mapping[PointKey, int]
    points: Sequence[CandidatePoint]
    first_runs: int = 1
    n: ParamCount = "total"

    @classmethod
    def from_estimate(
        cls,
        sample: Sample,
        estimate: Estimate,
        unfinished: Mapping[CandidatePoint, int],
        done: Mapping[PointKey, int],
        points: Sequence[CandidatePoint],
        first_runs: int = 1,
        n: ParamCount = "total",
        replicates: tuple[float, int] = (0.0, 0),
        excluded: Collection[PointKey] = (),
    ) -> FinishedStudy:
        """Return a study by the first estimate of a sample.

        Args:
            sample: the fitted configurations, with budgets.
            estimate: estimate of the surface.
            unfinished: number of unfinished runs by point.
            done: number of finished runs by budget and width.
            points: all points that may be run.
            first_runs: number of runs of a new point.
            n: parameter count of the law.
            replicates: sum of squares of ln loss about the means of configurations, and its degrees
                of freedom; pooled into the noise (see `pool_variance`).
            excluded: points that are no options, such as those of diverged runs.
        """
        e, a, b, alpha, beta = map(float, sample.points.natural(estimate.theta[0]))
        variance = pool_variance(float(estimate.variance[0]), sample.dof, *replicates)
        noise = max(float(np.sqrt(variance)), MIN_NOISE)
        law = Surface(e, a, b, alpha, beta)
        allowed = [point for point in points if point.key not in excluded]
        return cls(sample, law, noise, unfinished, done, allowed, first_runs, n)

    @cached_property
    def design(self) -> Design:
        """Design of the finished runs."""
        sample = self.sample
        return Design(self.law, sample.points, sample.seeds, self.noise, sample.cost)

    @cached_property
    def rows(self) -> Floats:
        """Information rows of the finished and unfinished configurations, (K, 5)."""
        runs = np.sqrt(list(self.unfinished.values()))[:, None]
        unfinished = self.design.rows_at(*self._counts(list(self.unfinished))) * runs
        return np.concatenate([self.design.rows, unfinished])

    @property
    def configurations(self) -> int:
        """Number of configurations, finished and unfinished."""
        return len(self.sample) + len({point.key for point in self.unfinished} - self.done.keys())

    def _counts(self, points: Sequence[CandidatePoint]) -> tuple[Floats, Floats]:
        """Return parameters and tokens of points, (K,) each."""
        params = np.array([point.params(self.n) for point in points], dtype=np.float64)
        return params, np.array([point.tokens for point in points], dtype=np.float64)

    @cached_property
    def optima(self) -> dict[float, float]:
        """ln N* by budget: the law's minimum over the points, whose compute is not 6ND."""
        params, tokens = self._counts(self.points)
        budgets = np.array([point.budget for point in self.points])
        losses = self.law.loss(params, tokens)
        masks = {budget: budgets == budget for budget in dict.fromkeys(budgets.tolist())}
        return {
            budget: _argmin(np.log(params[mask]), losses[mask]) for budget, mask in masks.items()
        }

    def options(self) -> list[Option]:
        """Return points with runs, and points not too far from the optima."""
        params, tokens = self._counts(self.points)
        rows = self.design.rows_at(params, tokens)
        flops = np.array([point.train_flops for point in self.points], dtype=np.float64)
        least = optimum(self.sample.points, self.design.theta, flops, self.sample.cost)[0][:, 2]
        is_near = np.log(self.law.loss(params, tokens)) - least <= MAX_LN_LOSS_RISE
        known = dict(self.done)
        for point, runs in self.unfinished.items():
            known[point.key] = known.get(point.key, 0) + runs
        options = []
        for point, row, size, near in zip(self.points, rows, params, is_near, strict=True):
            if near or point.key in known:
                offset = float(np.log(size)) - self.optima[point.budget]
                runs = known.get(point.key, 0)
                options.append(Option(point, row, offset, runs, self.first_runs))
        return options

    def profiles(self, joint: Fit | None) -> list[ProfileSizes]:
        """Return the profile of each budget with runs, by ascending budget.

        The joint fit gives an optimum if its interval is narrow enough; else the surface does.
        """
        observations, profiles = self.sample.points, []
        budgets = {budget for budget, _ in self.done} | {p.budget for p in self.unfinished}
        for budget in sorted(budgets & self.optima.keys()):
            mask = np.abs(np.log(self.sample.budget / budget)) < 1e-6
            sizes = observations.x[mask] + observations.x_mean
            best = float(sizes[np.argmin(observations.loss[mask])]) if mask.any() else np.nan
            unfinished = [point for point in self.unfinished if point.budget == budget]
            sizes = np.append(sizes, np.log(self._counts(unfinished)[0]))
            optimum = self._ln_optimum(joint, budget)
            profiles.append(ProfileSizes(budget, np.unique(sizes), optimum, best))
        return profiles

    def _ln_optimum(self, joint: Fit | None, budget: float) -> float:
        if joint is not None:
            interval = joint.law_at(budget, joint.confidence)["params"]
            if interval.width / 2.0 < MAX_LN_HALF_WIDTH:
                return interval.value
        return self.optima[budget]


def pool_variance(variance: float, dof: int, squares: float, seed_dof: int) -> float:
    """Return the variance of ln loss of one run about the law.

    Residuals and differences between seeds are pooled, unless an F test finds that residuals are
    larger. The estimate's variance contains the efficiency of Huber's loss; the squares do not.

    Args:
        variance: variance by residuals.
        dof: degrees of freedom of the residuals.
        squares: sum of squares of ln loss about the means of configurations.
        seed_dof: degrees of freedom of the squares.
    """
    if not seed_dof or squares <= 0.0:
        return variance
    ratio = HUBER_EFFICIENCY * variance / (squares / seed_dof)
    if fdtrc(dof, seed_dof, ratio) < FINDING_ALPHA:
        return variance
    return (dof * variance + squares / HUBER_EFFICIENCY) / (dof + seed_dof)


def _argmin(x: Floats, y: Floats) -> float:
    """Return the x of the minimum of y: the vertex through the least point and its neighbours."""
    i = int(np.argmin(y))
    if not 0 < i < len(x) - 1:
        return float(x[i])
    c2, c1, _ = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
    return float(x[i] - 0.5 * c1 / c2) if c2 > 0.0 else float(x[i])
