"""Law L = E + A / N^alpha + B / D^beta: its numbers, intervals, optima and predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators.clustered_errors import ClusteredCovariance
from isoflop.fitting.estimators.intervals import Interval, exponential, percentile_interval
from isoflop.fitting.estimators.newton import PARAMETER_NAMES, Observations
from isoflop.fitting.estimators.surface_optimum import growth_exponents, optimum
from isoflop.fitting.estimators.token_cost import SIX_ND_COST, TokenCost
from isoflop.fitting.terms import ENDS, IntervalKind
from isoflop.frames import Floats

COVARIANCE_NAMES = ("E", "ln_A", "ln_B", "alpha", "beta")


@dataclass(frozen=True, eq=False)
class SurfaceLawEstimate:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token.

    Attributes:
        theta: ln E, ln A', ln B', alpha, beta, (5,), with A' and B' the terms at the mean ln N and
            ln D.
        theta_covariance: its covariance, (5, 5).
        dof: number of configurations less number of parameters.
        points: source of the mean ln N and ln D.
        draws: resamples of theta, (R, 5).
        clustered_covariance: covariance for noise shared within budgets or sizes; None if there is
            no evidence of it.
        cost: cost of a token, which the optimum at a budget depends on.
    """

    theta: Floats
    theta_covariance: Floats
    dof: int
    points: Observations
    draws: Floats
    clustered_covariance: ClusteredCovariance | None = None
    cost: TokenCost = SIX_ND_COST

    @property
    def params(self) -> pd.Series:
        """E, A, B (nats per token at N = D = 1), alpha, beta."""
        return pd.Series(self.points.natural(self.theta), index=list(PARAMETER_NAMES), name="value")

    @property
    def covariance(self) -> pd.DataFrame:
        """Covariance of E, ln A, ln B, alpha, beta."""
        turn, names = self._log_gradient(), list(COVARIANCE_NAMES)
        return pd.DataFrame(turn @ self.theta_covariance @ turn.T, index=names, columns=names)

    def _log_gradient(self) -> Floats:
        """Return d(E, ln A, ln B, alpha, beta) / d(theta), (5, 5)."""
        points, turn = self.points, np.eye(5)
        turn[0, 0] = float(np.exp(self.theta[0]))
        turn[1, 3], turn[2, 4] = points.x_mean, points.y_mean
        return turn

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """Return value, low and high of E, A, B, alpha, beta, a, b (see `growth_exponents`) and
        ratio (b / a), a row each.

        Kind `t` has t intervals of ln E, ln A, ln B (so that none of them is negative), alpha,
        beta, a, b, ratio. Kind `percentile` has percentiles of the resamples.

        Raises:
            FitError: percentiles without resamples.
        """
        rows = (
            self._percentiles(confidence) if kind == "percentile" else self._t_intervals(confidence)
        )
        return pd.DataFrame.from_dict(
            {k: list(v) for k, v in rows.items()}, orient="index", columns=ENDS
        )

    def _t_intervals(self, confidence: float) -> dict[str, Interval]:
        turn = self._log_gradient()
        turn[0, 0] = 1.0
        logs = turn @ self.theta
        rows = {
            name: self.t_interval(float(value), row, confidence)
            for name, value, row in zip(PARAMETER_NAMES, logs, turn, strict=True)
        }
        rows |= {name: exponential(rows[name]) for name in ("E", "A", "B")}
        (a, b), (by_a, by_b) = growth_exponents(self.points, self.theta, self.cost)
        return rows | {
            "a": self.t_interval(float(a), by_a, confidence),
            "b": self.t_interval(float(b), by_b, confidence),
            "ratio": self.t_interval(float(b / a), by_b / a - b / a**2 * by_a, confidence)
            if a != 0.0  # N* at one edge of the sizes at all budgets
            else Interval(np.inf, -np.inf, np.inf),
        }

    def t_interval(self, value: float, gradient: Floats, confidence: float) -> Interval:
        """Return the t interval of a function of theta, from its value and its gradient, (5,).

        It is the wider of the intervals with independent runs and, if runs share noise, with noise
        clustered by budget or size.
        """
        half = float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self._standard_error(gradient)
        if self.clustered_covariance is not None:
            half = max(half, self.clustered_covariance.half_width(gradient, confidence))
        return Interval(value, value - half, value + half)

    def a_standard_error(self) -> float:
        """Return the standard error of a, the larger of that with independent runs and, if runs
        share noise, that with clustered noise.
        """
        gradient = growth_exponents(self.points, self.theta, self.cost)[1][0]
        clustered = self.clustered_covariance
        clustered_error = 0.0 if clustered is None else clustered.error(gradient)
        return max(self._standard_error(gradient), clustered_error)

    def _standard_error(self, gradient: Floats) -> float:
        """Return the standard error of a function of theta, with independent runs."""
        return float(np.sqrt(max(gradient @ self.theta_covariance @ gradient, 0.0)))

    def _percentiles(self, confidence: float) -> dict[str, Interval]:
        if not len(self.draws):
            raise FitError(
                "there are no resamples to take percentiles of: fit with bootstrap=4000 or so"
            )
        points = self.points
        values: dict[str, Floats] = dict(
            zip(PARAMETER_NAMES, points.natural(self.theta), strict=True)
        )
        drawn: dict[str, Floats] = dict(
            zip(PARAMETER_NAMES, points.natural(self.draws).T, strict=True)
        )
        for table, theta in ((values, self.theta), (drawn, self.draws)):
            exponents = growth_exponents(points, theta, self.cost)[0]
            table["a"], table["b"] = exponents[..., 0], exponents[..., 1]
            with np.errstate(divide="ignore"):
                table["ratio"] = table["b"] / table["a"]
        return {
            name: percentile_interval(float(values[name]), drawn[name], confidence)
            for name in values
        }

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Return intervals of ln N*, ln D* and ln loss at a budget and the law's `cost`."""
        values, gradients = optimum(self.points, self.theta, flops, self.cost)
        names = ("params", "tokens", "loss")
        return {
            name: self.t_interval(float(value), gradient, confidence)
            for name, value, gradient in zip(names, values, gradients, strict=True)
        }

    def loss_at(self, params: Floats | float, tokens: Floats | float) -> Floats:
        """Return the loss in nats per token at N parameters and D tokens."""
        return np.exp(self.theta[0]) + self._term(1, params) + self._term(2, tokens)

    def tokens_for(self, params: float, loss: float) -> float:
        """Return the tokens with which N parameters reach a loss; NaN if no number is enough."""
        return self._invert_term(2, loss - float(np.exp(self.theta[0]) + self._term(1, params)))

    def params_for(self, tokens: float, loss: float) -> float:
        """Return the parameters with which D tokens reach a loss; NaN if no number is enough."""
        return self._invert_term(1, loss - float(np.exp(self.theta[0]) + self._term(2, tokens)))

    def _term(self, index: int, values: Floats | float) -> Floats:
        """Return A/N^alpha (index 1) or B/D^beta (2), from N and D about their means: A and B alone
        may overflow.
        """
        mean = (self.points.x_mean, self.points.y_mean)[index - 1]
        with np.errstate(over="ignore"):
            return np.exp(self.theta[index] - self.theta[index + 2] * (np.log(values) - mean))

    def _invert_term(self, index: int, term: float) -> float:
        """Return the N or D at which a term has a value; NaN if the value is not above 0."""
        if not term > 0.0:
            return float("nan")
        mean = (self.points.x_mean, self.points.y_mean)[index - 1]
        with np.errstate(over="ignore"):
            return float(np.exp(mean + (self.theta[index] - np.log(term)) / self.theta[index + 2]))

    def flops_for(self, params: float, tokens: float) -> float:
        """Return the training FLOPs of N parameters and D tokens at the runs' cost of a token."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.cost.ln_flops_for(np.log(params), np.log(tokens))))

    def to_dict(self) -> dict[str, Any]:
        """Return theta, its covariances, the centre and the cost of a token as plain values,
        without the draws.
        """
        numbers = {
            "theta": self.theta.tolist(),
            "covariance": self.theta_covariance.tolist(),
            "dof": self.dof,
            "centre": [float(self.points.x_mean), float(self.points.y_mean)],
            "cost": self.cost.to_dict(),
        }
        if self.clustered_covariance is None:
            return numbers
        return numbers | {"shared": self.clustered_covariance.to_dict()}
