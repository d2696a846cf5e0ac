"""The result of a joint fit of IsoFLOP profiles."""

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
from isoflop.fitting.estimators.clustered_errors import Neighbours, Shared, shared_of
from isoflop.fitting.estimators.holdout import RollOut
from isoflop.fitting.estimators.intervals import Interval, exponential
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.results.base import NEAR_OPTIMAL_SHARES, ProfileFit, interval_entry
from isoflop.fitting.tables.runs_table import RunsTable
from isoflop.fitting.terms import ENDS, EXPONENT_LETTERS, Axis, IntervalKind

if TYPE_CHECKING:
    from isoflop.fitting.terms import EXPONENT_LETTERS, Finding

Floats = np.ndarray


@dataclass(frozen=True, eq=False)
class Law:
    """ln y = middle + slope (ln C - x_mean), with the gradients of both by theta, (5,)."""

    middle: float
    slope: float
    by_middle: Floats
    by_slope: Floats
    x_mean: float

    def at(self, x: float) -> tuple[float, Floats]:
        """ln y at ln C = x, and its gradient."""
        off = x - self.x_mean
        return self.middle + self.slope * off, self.by_middle + self.by_slope * off


@dataclass(frozen=True, eq=False)
class JointCore:
    """Straight lines of ln N* and ln D* on ln C, and the arms of the profiles.

    Attributes:
        laws: of `params` and `tokens`.
        theta: see `profiles.JointEstimate`, (5,).
        spread: its covariance, (5, 5).
        dof: configurations less parameters.
        shared: the covariance if runs of a budget or of a size share noise; None where they don't.
    """

    laws: dict[str, Law]
    theta: Floats
    spread: Floats
    dof: int
    shared: Shared | None = None

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """Value, low and high of a, b, ratio (b / a), k_params, k_tokens, and the exponents of the arms: `left` of the
        falling one (alpha of A/N^alpha), `right` of the rising one.
        """
        if kind == "percentile":
            raise FitError("the joint fit has t intervals only: it draws no resamples")
        a, b = self.laws["params"], self.laws["tokens"]
        ratio = b.slope / a.slope
        unit = np.eye(len(joint.SHAPE))
        rows = {
            "a": self._t(a.slope, a.by_slope, confidence),
            "b": self._t(b.slope, b.by_slope, confidence),
            "ratio": self._t(ratio, (b.by_slope - ratio * a.by_slope) / a.slope, confidence),
            "k_params": exponential(self._t(*a.at(0.0), confidence)),
            "k_tokens": exponential(self._t(*b.at(0.0), confidence)),
            "left": self._t(float(self.theta[1]), unit[1], confidence),
            "right": self._t(float(self.theta[2]), unit[2], confidence),
        }
        return pd.DataFrame.from_dict(
            {k: list(v) for k, v in rows.items()}, orient="index", columns=ENDS
        )

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        return {
            name: self._t(*self.laws[name].at(float(np.log(flops))), confidence)
            for name in EXPONENT_LETTERS
        }

    def _t(self, value: float, gradient: Floats, confidence: float) -> Interval:
        se = float(np.sqrt(max(gradient @ self.spread @ gradient, 0.0)))
        half = float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * se
        if self.shared is not None:
            half = max(half, self.shared.half(gradient, confidence))
        return Interval(value, value - half, value + half)

    def to_dict(self) -> dict[str, Any]:
        laws = {
            name: dataclasses.asdict(law)
            | {"by_middle": law.by_middle.tolist(), "by_slope": law.by_slope.tolist()}
            for name, law in self.laws.items()
        }
        own = {
            "lines": laws,
            "theta": self.theta.tolist(),
            "covariance": self.spread.tolist(),
            "dof": self.dof,
        }
        return own | ({} if self.shared is None else {"shared": self.shared.to_dict()})


@dataclass(frozen=True, eq=False)
class JointFit(ProfileFit):
    """Power laws N*(C) = k_N C^a and D*(C) = k_D C^b through all profiles at once; see `Fit` and `ProfileFit`.

    Attributes:
        curves: the configurations that were fitted.
        estimate: theta (ln curvature, the exponents of the two arms, where the optimum is and how it grows) and its
            covariance; see `profiles`.
        laws: of `params` and `tokens`.
        raw: the budgets' configurations.
        x_mean, c_mean: means of ln(axis) and of ln C that `curves` are about.
        huber: whether Huber's loss was minimised, with the adaptive delta.
    """

    axis: Axis
    runs: RunsTable
    curves: joint.Curves
    estimate: joint.JointEstimate
    laws: dict[str, Law]
    raw: list[para.Profile]
    x_mean: float
    c_mean: float
    noise: Noise
    rollout: RollOut | None
    huber: bool
    confidence: float
    diagnostics: list[Finding] = field(default_factory=list)

    method = "joint"

    @property
    def core(self) -> JointCore:
        dof = len(self.curves.x) - self.curves.parameters
        shared = shared_of(self.neighbours, self.recurring)
        return JointCore(self.laws, self.estimate.theta[0], self.estimate.spread[0], dof, shared)

    @property
    def at_bounds(self) -> list[str]:
        theta = self.estimate.theta[0]
        bound = (theta <= joint.LOW) | (theta >= joint.HIGH)
        names = ("curvature", "left", "right", "k", EXPONENT_LETTERS[self.axis])
        return [name for name, here in zip(names, bound, strict=True) if here]

    @cached_property
    def neighbours(self) -> Neighbours:
        """Residuals within budgets."""
        columns, floors, residuals, delta = self._fitted_parts
        return Neighbours.of(columns, residuals, delta, self.curves.group, self.curves.x, floors)

    @cached_property
    def recurring(self) -> Neighbours:
        """Residuals of sizes that were run at several budgets."""
        columns, floors, residuals, delta = self._fitted_parts
        size = np.concatenate([p.x if self.axis == "params" else p.other for p in self.raw])
        return Neighbours.of_sizes(columns, residuals, delta, size, self.curves.c, floors)

    @cached_property
    def _fitted_parts(self) -> tuple[Floats, Floats, Floats, float]:
        """Columns of theta and of the floors, residuals, and delta."""
        columns, floors = joint.columns_of(self.curves, self.estimate.theta[0])
        return columns, floors, self.estimate.residuals[0], float(self.estimate.delta[0])

    @property
    def coefficients(self) -> pd.DataFrame:
        """Rows N and D of k * C^exponent: value, low, high of k, and the exponent. In parameters, tokens, FLOPs."""
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
        c, floor = np.log([profile.flops for profile in self.raw]), self.estimate.floor[0]
        near = {share: self.near(c, share * floor) for share in NEAR_OPTIMAL_SHARES}
        rows = []
        for k, profile in enumerate(self.raw):
            optimum = exponential(self.law_at(profile.flops, self.confidence)[self.axis])
            row: dict[str, Any] = {
                "budget": profile.budget,
                "flops": profile.flops,
                f"{self.axis}_opt": optimum.value,
            }
            row |= {
                f"{other}_opt": float(np.exp(self.laws[other].at(c[k])[0])),
                "loss_opt": float(floor[k]),
            }
            row |= {"low": optimum.low, "high": optimum.high, "curvature": self.curvature_at(c[k])}
            for share, (low, high) in near.items():
                row |= {f"near_{100 * share:g}_low": low[k], f"near_{100 * share:g}_high": high[k]}
            row |= {"n_points": len(profile.x), "n_runs": int(profile.weight.sum())}
            rows.append(
                row
                | {"status": para.status_at(profile, float(np.log(optimum.value))), "used": True}
            )
        return pd.DataFrame(rows)

    def _entry(self) -> dict[str, Any]:
        table = self.intervals()
        return {
            **super()._entry(),
            "arms": {name: interval_entry(table.loc[name].to_dict()) for name in ("left", "right")},
            "theta": self.estimate.theta[0].tolist(),
            "covariance": self.estimate.spread[0].tolist(),
            "objective": float(self.estimate.objective[0]),
            "huber_delta": float(self.estimate.delta[0]),
        }

    def curvature_at(self, c: float) -> float:
        """Second derivative of the loss in ln(axis) at the optimum of ln C = c, nats."""
        ln_q, alpha, _, _, exponent = self.estimate.theta[0]
        return float(np.exp(ln_q - alpha * exponent * (c - self.c_mean)))

    def curve(self, budget: float, size: Floats) -> Floats:
        profile = next(k for k, profile in enumerate(self.raw) if profile.budget == budget)
        c = np.log(self.raw[profile].flops) - self.c_mean
        phi, _ = joint.shape(self.estimate.theta, np.log(size) - self.x_mean, np.full(len(size), c))
        return self.estimate.floor[0, profile] + phi[0]

    def near(self, c: Floats, rise: Floats) -> tuple[Floats, Floats]:
        """Sizes on either side of the optimum at which the loss is higher by `rise` nats, at each ln C; all (B,)."""
        centre = np.array([self.laws[self.axis].at(x)[0] for x in c])

        def short(off: Floats) -> np.ndarray:
            return (
                joint.shape(self.estimate.theta, centre + off - self.x_mean, c - self.c_mean)[0][0]
                < rise
            )

        ends = []
        for sign in (-1.0, 1.0):
            inner, outer = np.zeros_like(c), np.full_like(c, 0.1)
            while (on := short(sign * outer) & (outer < 100.0)).any():
                inner, outer = np.where(on, outer, inner), np.where(on, 2.0 * outer, outer)
            for _ in range(50):
                middle = 0.5 * (inner + outer)
                on = short(sign * middle)
                inner, outer = np.where(on, middle, inner), np.where(on, outer, middle)
            ends.append(np.exp(centre + sign * outer))
        return ends[0], ends[1]
