"""Result of a joint fit of IsoFLOP profiles."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators import joint_estimate as joint
from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import (
    ClusteredCovariance,
    GroupedResiduals,
    combine_covariances,
)
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.intervals import Interval, exponential
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.results.base import interval_entry
from isoflop.fitting.results.profile_fit import NEAR_OPTIMAL_SHARES, ProfileFit
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import ENDS, EXPONENT_LETTERS, Axis, IntervalKind
from isoflop.frames import Bools, Floats

if TYPE_CHECKING:
    from isoflop.fitting.terms import Finding


@dataclass(frozen=True, eq=False)
class LogLine:
    """Line ln y = middle + slope (ln C - x_mean), with the gradients of both by theta, (5,)."""

    middle: float
    slope: float
    by_middle: Floats
    by_slope: Floats
    x_mean: float

    def at(self, x: float) -> tuple[float, Floats]:
        """Return ln y at ln C = x, and its gradient by theta."""
        distance = x - self.x_mean
        return self.middle + self.slope * distance, self.by_middle + self.by_slope * distance


@dataclass(frozen=True, eq=False)
class JointLawEstimate:
    """Straight lines of ln N* and ln D* on ln C, and the arms of the profiles.

    Attributes:
        laws: lines by quantity: `params` and `tokens`.
        theta: parameters of the shape and the law, (5,); see `joint_estimate.JointEstimate`.
        theta_covariance: its covariance, (5, 5).
        dof: number of configurations less number of parameters.
        clustered_covariance: covariance for noise shared within budgets or sizes; None if there is
            no evidence of it.
    """

    laws: dict[str, LogLine]
    theta: Floats
    theta_covariance: Floats
    dof: int
    clustered_covariance: ClusteredCovariance | None = None

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """Return value, low and high of a, b, ratio (b / a), k_params, k_tokens, and the exponents
        of the arms: `left` of the falling one (alpha of A/N^alpha), `right` of the rising one.

        Raises:
            FitError: percentiles: the joint fit draws no resamples.
        """
        if kind == "percentile":
            raise FitError("the joint fit has t intervals only: it draws no resamples")
        a, b = self.laws["params"], self.laws["tokens"]
        ratio = b.slope / a.slope
        unit = np.eye(len(joint.SHAPE_PARAMETERS))
        rows = {
            "a": self._t_interval(a.slope, a.by_slope, confidence),
            "b": self._t_interval(b.slope, b.by_slope, confidence),
            "ratio": self._t_interval(
                ratio, (b.by_slope - ratio * a.by_slope) / a.slope, confidence
            ),
            "k_params": exponential(self._t_interval(*a.at(0.0), confidence)),
            "k_tokens": exponential(self._t_interval(*b.at(0.0), confidence)),
            "left": self._t_interval(float(self.theta[1]), unit[1], confidence),
            "right": self._t_interval(float(self.theta[2]), unit[2], confidence),
        }
        return pd.DataFrame.from_dict(
            {k: list(v) for k, v in rows.items()}, orient="index", columns=ENDS
        )

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Return intervals of ln N* (`params`) and ln D* (`tokens`) at a budget in FLOPs."""
        return {
            name: self._t_interval(*self.laws[name].at(float(np.log(flops))), confidence)
            for name in EXPONENT_LETTERS
        }

    def _t_interval(self, value: float, gradient: Floats, confidence: float) -> Interval:
        se = float(np.sqrt(max(gradient @ self.theta_covariance @ gradient, 0.0)))
        half = float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * se
        if self.clustered_covariance is not None:
            half = max(half, self.clustered_covariance.half_width(gradient, confidence))
        return Interval(value, value - half, value + half)

    def to_dict(self) -> dict[str, Any]:
        """Return the lines, theta and its covariances as plain values for fit.json."""
        laws = {
            name: dataclasses.asdict(law)
            | {"by_middle": law.by_middle.tolist(), "by_slope": law.by_slope.tolist()}
            for name, law in self.laws.items()
        }
        numbers = {
            "lines": laws,
            "theta": self.theta.tolist(),
            "covariance": self.theta_covariance.tolist(),
            "dof": self.dof,
        }
        if self.clustered_covariance is None:
            return numbers
        return numbers | {"shared": self.clustered_covariance.to_dict()}


@dataclass(frozen=True, eq=False)
class JointFit(ProfileFit):
    """Power laws N*(C) = k_N C^a and D*(C) = k_D C^b through all profiles at once; see `Fit` and
    `ProfileFit`.

    Attributes:
        curves: the fitted configurations.
        estimate: theta (ln curvature, the exponents of the two arms, the place of the optimum and
            its growth) and its covariance; see `joint_estimate`.
        laws: lines by quantity: `params` and `tokens`.
        raw_profiles: the configurations of each budget.
        x_mean, c_mean: means of ln(axis) and of ln C that are subtracted in `curves`.
        huber: True for Huber's loss with the adaptive delta, False for least squares.
    """

    axis: Axis
    runs: RunsTable
    curves: joint.Curves
    estimate: joint.JointEstimate
    laws: dict[str, LogLine]
    raw_profiles: list[para.Profile]
    x_mean: float
    c_mean: float
    noise: Noise
    rollout: HoldOut | None
    huber: bool
    confidence: float
    diagnostics: list[Finding] = field(default_factory=list)

    method = "joint"

    @property
    def law_estimate(self) -> JointLawEstimate:
        """Return the numbers of the laws, with noise shared within budgets or sizes."""
        dof = len(self.curves.x) - self.curves.parameter_count
        shared = combine_covariances(self.budget_residuals, self.size_residuals)
        return JointLawEstimate(
            self.laws, self.estimate.theta[0], self.estimate.covariance[0], dof, shared
        )

    @property
    def at_bounds(self) -> list[str]:
        """Return the names of the parameters that the optimiser left at a bound."""
        theta = self.estimate.theta[0]
        bound = (theta <= joint.LOWER_BOUNDS) | (theta >= joint.UPPER_BOUNDS)
        names = ("curvature", "left", "right", "k", EXPONENT_LETTERS[self.axis])
        return [name for name, is_bound in zip(names, bound, strict=True) if is_bound]

    @cached_property
    def budget_residuals(self) -> GroupedResiduals:
        """Residuals within budgets."""
        columns, floors, residuals, delta = self._fit_arrays
        return GroupedResiduals.from_groups(
            columns, residuals, delta, self.curves.group, self.curves.x, floors
        )

    @cached_property
    def size_residuals(self) -> GroupedResiduals:
        """Residuals of the sizes that were run at several budgets."""
        columns, floors, residuals, delta = self._fit_arrays
        size = np.concatenate(
            [p.x if self.axis == "params" else p.other for p in self.raw_profiles]
        )
        return GroupedResiduals.from_sizes(columns, residuals, delta, size, self.curves.c, floors)

    @cached_property
    def _fit_arrays(self) -> tuple[Floats, Floats, Floats, float]:
        """Columns of the Jacobian by theta and by the floors, residuals, and Huber's delta."""
        columns, floors = joint.compute_columns(self.curves, self.estimate.theta[0])
        return columns, floors, self.estimate.residuals[0], float(self.estimate.delta[0])

    @property
    def coefficients(self) -> pd.DataFrame:
        """Rows N and D of k * C^exponent: value, low, high of k, and the exponent; N in parameters,
        D in tokens, C in FLOPs.
        """
        table = self.intervals()
        rows = {
            letter: [*table.loc[f"k_{name}", ENDS], self.laws[name].slope]
            for letter, name in (("N", "params"), ("D", "tokens"))
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=[*ENDS, "exponent"])

    @cached_property
    def profiles(self) -> pd.DataFrame:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A row a budget; see `ProfileFit`."""
        other = "tokens" if self.axis == "params" else "params"
        c, floor = np.log([profile.flops for profile in self.raw_profiles]), self.estimate.floor[0]
        near = {share: self.sizes_at_rise(c, share * floor) for share in NEAR_OPTIMAL_SHARES}
        rows = []
        for k, profile in enumerate(self.raw_profiles):
            optimum = exponential(self.law_at(profile.flops, self.confidence)[self.axis])
            row: dict[str, Any] = {
                "budget": profile.budget,
                "flops": profile.flops,
                f"{self.axis}_opt": optimum.value,
                f"{other}_opt": float(np.exp(self.laws[other].at(c[k])[0])),
                "loss_opt": float(floor[k]),
                "low": optimum.low,
                "high": optimum.high,
                "curvature": self.curvature_at(c[k]),
            }
            for share, (low, high) in near.items():
                row |= {f"near_{100 * share:g}_low": low[k], f"near_{100 * share:g}_high": high[k]}
            status = para.classify_optimum(profile, float(np.log(optimum.value)))
            row |= {"n_points": len(profile.x), "n_runs": int(profile.weight.sum())}
            rows.append(row | {"status": status, "used": True})
        return pd.DataFrame(rows)

    def _entry(self) -> dict[str, Any]:
        table = self.intervals()
        return {
            **super()._entry(),
            "arms": {name: interval_entry(table.loc[name].to_dict()) for name in ("left", "right")},
            "theta": self.estimate.theta[0].tolist(),
            "covariance": self.estimate.covariance[0].tolist(),
            "objective": float(self.estimate.objective[0]),
            "huber_delta": float(self.estimate.delta[0]),
        }

    def curvature_at(self, c: float) -> float:
        """Return the second derivative of the loss in ln(axis) at the optimum of ln C = c, nats."""
        ln_q, alpha, _, _, exponent = self.estimate.theta[0]
        return float(np.exp(ln_q - alpha * exponent * (c - self.c_mean)))

    def curve(self, budget: float, size: Floats) -> Floats:
        """Return the loss (K,) of a budget's curve at sizes (K,) on the axis, nats per token.

        `budget` is a label of `profiles`.
        """
        k = next(k for k, profile in enumerate(self.raw_profiles) if profile.budget == budget)
        c = np.log(self.raw_profiles[k].flops) - self.c_mean
        phi = joint.evaluate_rise(
            self.estimate.theta, np.log(size) - self.x_mean, np.full(len(size), c)
        )
        return self.estimate.floor[0, k] + phi[0]

    def sizes_at_rise(self, c: Floats, rise: Floats) -> tuple[Floats, Floats]:
        """Return the sizes on either side of the optimum at which the loss is higher by `rise`
        nats, at each ln C; all (B,).
        """
        centre = np.array([self.laws[self.axis].at(x)[0] for x in c])
        sides = np.array([[-1.0], [1.0]])

        def is_below(distance: Floats) -> Bools:
            x = centre + sides * distance - self.x_mean
            return joint.evaluate_rise(self.estimate.theta, x, c - self.c_mean) < rise

        inner, outer = np.zeros((2, len(c))), np.full((2, len(c)), 0.1)
        while (below := is_below(outer) & (outer < 100.0)).any():
            inner, outer = np.where(below, outer, inner), np.where(below, 2.0 * outer, outer)
        for _ in range(50):
            middle = 0.5 * (inner + outer)
            below = is_below(middle)
            inner, outer = np.where(below, middle, inner), np.where(below, outer, middle)
        ends = np.exp(centre + sides * outer)
        return ends[0], ends[1]
