"""Result of a parametric fit, L = E + A / N^alpha + B / D^beta: exponents, intervals, optima and
predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators.clustered_errors import (
    ClusteredCovariance,
    GroupedResiduals,
    combine_covariances,
)
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.influence import influence_table
from isoflop.fitting.estimators.intervals import Interval, exponential, percentile_interval
from isoflop.fitting.estimators.newton import EXPONENT_BOUNDS, PARAMETER_NAMES, Observations
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.residuals import residual_table
from isoflop.fitting.estimators.surface_estimate import (
    PARAMETER_COUNT,
    Estimate,
    Sample,
    jacobian,
    optimum,
    robust_sd,
)
from isoflop.fitting.results.base import Fit, interval_entry
from isoflop.fitting.results.summary import parameter_lines
from isoflop.fitting.tables.runs_table import RunsTable
from isoflop.fitting.terms import ENDS, IntervalKind, Quantity
from isoflop.frames import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.terms import Finding
    from isoflop.plotting.law_plots import LawPoints

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
    """

    theta: Floats
    theta_covariance: Floats
    dof: int
    points: Observations
    draws: Floats
    clustered_covariance: ClusteredCovariance | None = None

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
        """Return value, low and high of E, A, B, alpha, beta, a = beta / (alpha + beta), b = 1 - a,
        and ratio (b / a), a row each.

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
        alpha, beta = self.theta[3:]
        a, gradient = float(beta / (alpha + beta)), self.a_gradient()
        ratio_gradient = np.array([0.0, 0.0, 0.0, 1.0 / beta, -alpha / beta**2])
        return rows | {
            "a": self.t_interval(a, gradient, confidence),
            "b": self.t_interval(1.0 - a, gradient, confidence),
            "ratio": self.t_interval(float(alpha / beta), ratio_gradient, confidence),
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

    def a_gradient(self) -> Floats:
        """Return d(a) / d(theta), (5,)."""
        alpha, beta = self.theta[3:]
        return np.array([0.0, 0.0, 0.0, -beta, alpha]) / (alpha + beta) ** 2

    def a_standard_error(self) -> float:
        """Return the standard error of a, the larger of that with independent runs and, if runs
        share noise, that with clustered noise.
        """
        gradient, clustered = self.a_gradient(), self.clustered_covariance
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
        for table in (values, drawn):
            table["a"] = table["beta"] / (table["alpha"] + table["beta"])
            table["b"] = 1.0 - table["a"]
            table["ratio"] = table["alpha"] / table["beta"]
        return {
            name: percentile_interval(float(values[name]), drawn[name], confidence)
            for name in values
        }

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Return intervals of ln N*, ln D* and ln loss at C = 6ND."""
        values, gradients = optimum(self.points, self.theta, flops)
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

    def loss_interval(self, params: float, tokens: float, confidence: float) -> Interval:
        """Return the interval of ln loss at N parameters and D tokens, valid if the law is true."""
        point = Observations.from_counts(np.array([params]), np.array([tokens]), np.ones(1))
        x_mean, y_mean = self.points.x_mean, self.points.y_mean
        x, y = np.array([point.x_mean - x_mean]), np.array([point.y_mean - y_mean])
        centred = Observations(x, y, np.ones(1), x_mean, y_mean)
        ln_loss = float(np.log(centred.fitted(self.theta)[0]))
        return self.t_interval(ln_loss, centred.jacobian(self.theta)[0], confidence)

    def to_dict(self) -> dict[str, Any]:
        numbers = {
            "theta": self.theta.tolist(),
            "covariance": self.theta_covariance.tolist(),
            "dof": self.dof,
            "centre": [float(self.points.x_mean), float(self.points.y_mean)],
        }
        if self.clustered_covariance is None:
            return numbers
        return numbers | {"shared": self.clustered_covariance.to_dict()}


@dataclass(frozen=True, eq=False)
class ParametricFit(Fit):
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token; see `Fit`.

    Attributes:
        runs: the table that was fitted.
        sample: its configurations.
        estimate: theta, its covariance and the convergence of the search, one of each.
        draws: resamples of theta, (R, 5).
        huber_delta: Huber's delta as requested; `estimate.delta` is its value.
        resampling: `case` or `wild`.
        bootstrap: number of resamples.
        seed: seed of the resampling.
        drop_outliers: distance from the law, in robust standard deviations, beyond which
            configurations were left out.
    """

    runs: RunsTable
    sample: Sample
    estimate: Estimate
    draws: Floats
    noise: Noise
    rollout: HoldOut | None
    huber_delta: float | str
    resampling: str
    bootstrap: int
    confidence: float
    seed: int
    drop_outliers: float | None = None
    diagnostics: list[Finding] = field(default_factory=list)

    method = "parametric"

    @property
    def theta(self) -> Floats:
        """ln E, ln A', ln B', alpha, beta, with A' and B' the terms at the mean ln N and ln D
        (`newton.Observations`).
        """
        return self.estimate.theta[0]

    @property
    def objective(self) -> float:
        """Sum of Huber's loss at the minimum."""
        return float(self.estimate.objective[0])

    @property
    def law_estimate(self) -> SurfaceLawEstimate:
        return SurfaceLawEstimate(
            theta=self.theta,
            theta_covariance=self.estimate.covariance[0],
            dof=self.sample.dof,
            points=self.sample.points,
            draws=self.draws,
            clustered_covariance=combine_covariances(self.budget_residuals, self.size_residuals),
        )

    @property
    def at_bounds(self) -> list[str]:
        params: dict[Any, float] = self.params.to_dict()
        return [
            name
            for name in ("alpha", "beta")
            if not EXPONENT_BOUNDS[0] < params[name] < EXPONENT_BOUNDS[1]
        ]

    @cached_property
    def budget_residuals(self) -> GroupedResiduals | None:
        """Residuals within budgets; None for runs without budgets."""
        if self.runs.budgets_are_flops:
            return None
        sample, delta = self.sample, float(self.estimate.delta[0])
        group = np.unique(sample.budget, return_inverse=True)[1]
        no_columns = np.empty((len(sample), 0))
        return GroupedResiduals.from_groups(
            self._jacobian, sample.residuals(self.theta), delta, group, sample.points.x, no_columns
        )

    @cached_property
    def size_residuals(self) -> GroupedResiduals:
        """Residuals of the sizes that were run at several budgets."""
        sample, no_columns = self.sample, np.empty((len(self.sample), 0))
        residuals, delta = sample.residuals(self.theta), float(self.estimate.delta[0])
        return GroupedResiduals.from_sizes(
            self._jacobian, residuals, delta, sample.points.x, np.log(sample.flops), no_columns
        )

    @property
    def params(self) -> pd.Series:
        """E, A, B (nats per token at N = D = 1), alpha, beta."""
        return self.law_estimate.params

    @property
    def covariance(self) -> pd.DataFrame:
        """Covariance of E, ln A, ln B, alpha, beta."""
        return self.law_estimate.covariance

    def loss_at(self, params: Floats | float, tokens: Floats | float) -> Floats:
        """Return the loss in nats per token at N parameters and D tokens."""
        return self.law_estimate.loss_at(params, tokens)

    @cached_property
    def leverage(self) -> Floats:
        """Leverage of each configuration, (K,)."""
        q, _ = np.linalg.qr(self._jacobian)
        return np.einsum("ij,ij->i", q, q)

    @cached_property
    def _jacobian(self) -> Floats:
        return jacobian(self.sample, self.theta)

    @cached_property
    def condition(self) -> float:
        """Condition number of the Jacobian with columns of length 1."""
        lengths = np.linalg.norm(self._jacobian, axis=0)
        return float(np.linalg.cond(self._jacobian / np.maximum(lengths, 1e-300)))

    @cached_property
    def influence(self) -> pd.DataFrame:
        """Influence of each configuration, a row each: the law is fitted without it.

        Columns params, tokens, loss, residual (of ln loss, or nats), `sds` (the residual in
        standard deviations of one run about the law), leverage, a (without it), `a_shift` (in
        standard errors of a).
        """
        value, error = float(self.exponents.loc["a", "value"]), self.law_estimate.a_standard_error()
        return influence_table(self.sample, self.estimate, self.leverage, value, error)

    @cached_property
    def residuals(self) -> pd.DataFrame:
        """A row a configuration: budget, params, tokens, flops, loss, `residual` (of ln loss, or
        nats) and `sds`, the residual in robust standard deviations of one run.
        """
        points, sample = self.sample.points, self.sample
        columns = {
            "budget": sample.budget,
            "params": np.exp(points.x + points.x_mean),
            "flops": sample.flops,
            "tokens": np.exp(points.y + points.y_mean),
            "loss": points.loss,
            "seeds": sample.seeds,
        }
        table = pd.DataFrame(columns, index=pd.Index(sample.config, name="config"))
        residuals = sample.residuals(self.theta) / np.sqrt(sample.seeds)
        return residual_table(table, residuals, PARAMETER_COUNT)

    @property
    def fitted_flops(self) -> Floats:
        return self.runs.array("flops")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw contours of the loss over size and data, the runs, and the optimum over compute."""
        from isoflop.plotting.surface_plots import SurfaceData, plot_surface

        points, flops = self.sample.points, self.sample.flops
        data = SurfaceData(
            params=np.exp(points.x + points.x_mean),
            tokens=np.exp(points.y + points.y_mean),
            budget=self.sample.budget,
            min_flops=float(flops.min()),
            max_flops=float(flops.max()),
            optimum=lambda compute: optimum(points, self.theta, compute)[0],
            loss_at=self.loss_at,
            tokens_for=self.law_estimate.tokens_for,
            params_for=self.law_estimate.params_for,
            n=self.n,
            budgets_are_flops=self.runs.budgets_are_flops,
        )
        return plot_surface(data, ax)

    def _law_points(self, quantity: Quantity) -> LawPoints:
        from isoflop.plotting.law_plots import Runs

        return Runs(self.fitted_flops, self.runs.array(quantity))

    def plot_exponents(self, ax: Axes | None = None) -> Axes:
        """Draw resamples of alpha and beta with the t intervals of both and of a."""
        from isoflop.plotting.surface_plots import ExponentData, plot_exponents

        table = self.intervals(kind="t")
        data = ExponentData(
            alpha=float(self.theta[3]),
            beta=float(self.theta[4]),
            draws=self.draws[:, 3:],
            covariance=self.estimate.covariance[0][3:, 3:],
            dof=self.sample.dof,
            intervals={name: table.loc[name].to_dict() for name in ("alpha", "beta", "a")},
            confidence=self.confidence,
        )
        return plot_exponents(data, ax)

    def plot_residuals(
        self, against: Literal["params", "tokens", "flops"] = "params", ax: Axes | None = None
    ) -> Axes:
        """Draw the residuals about the surface."""
        from isoflop.plotting.residual_plots import ResidualData, plot_residuals

        scale = self.sample.points.scale
        data = ResidualData(self.residuals, scale, self.n, self.runs.budgets_are_flops)
        return plot_residuals(data, against, ax)

    def plot_influence(self, ax: Axes | None = None, *, runs: int = 12) -> Axes:
        """Draw a without each of the runs that change it most.

        Args:
            ax: axes to draw in; None for new ones.
            runs: number of runs to draw; `influence` has all.
        """
        from isoflop.plotting.residual_plots import plot_influence

        table = self.influence.assign(size=self.influence["a_shift"].abs())
        table = table.sort_values("size", kind="stable").tail(runs)
        names = [self.configuration_name(int(config)) for config in table.index]
        interval = self.intervals().loc["a"].to_dict()
        return plot_influence(table, names, interval, self.confidence, ax)

    def _facts(self) -> list[tuple[str, str]]:
        delta = float(self.estimate.delta[0])
        return [
            *super()._facts(),
            ("Huber's delta", f"{delta:.3g}"),
            ("Objective", f"{self.objective:.10g}"),
        ]

    def _details(self) -> list[str]:
        return parameter_lines(self.intervals())

    def _entry(self) -> dict[str, Any]:
        table, covariance = self.intervals(), self.covariance
        return {
            "params": self.params.to_dict(),
            "intervals": {
                name: interval_entry(table.loc[name].to_dict()) for name in self.params.index
            },
            "objective": self.objective,
            "covariance": {
                "of": list(covariance.index),
                "matrix": covariance.to_numpy().tolist(),
            },
            "huber_delta": float(self.estimate.delta[0]),
            "residual": self.sample.points.scale,
            "convergence": {
                "slope": float(self.estimate.gradient_cosine[0]),
                "starts_agreeing": self.estimate.agreeing,
                "condition": self.condition,
            },
            "flops_range": [float(self.sample.flops.min()), float(self.sample.flops.max())],
            "dof": self.sample.dof,
            "runs_used": len(self.runs),
        }

    @property
    def robust_sd(self) -> float:
        """Standard deviation of one run about the law, from the median absolute residual."""
        return float(robust_sd(self.sample.residuals(self.theta)))
