"""A fitted surface L = E + A / N^alpha + B / D^beta: exponents, intervals, optima and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators.clustered_errors import Neighbours, Shared, shared_of
from isoflop.fitting.estimators.holdout import RollOut
from isoflop.fitting.estimators.influence import influence_table
from isoflop.fitting.estimators.intervals import Interval, exponential, percentile_interval
from isoflop.fitting.estimators.newton import EXPONENTS, NAMES, Points
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.residuals import residual_table
from isoflop.fitting.estimators.surface_estimate import (
    PARAMETERS,
    Estimate,
    Sample,
    jacobian,
    optimum,
    robust_sd,
)
from isoflop.fitting.results.base import Fit, interval_entry
from isoflop.fitting.results.summary import parameter_lines
from isoflop.fitting.tables.budgets import OWN
from isoflop.fitting.tables.runs_table import RunsTable
from isoflop.fitting.terms import ENDS, IntervalKind, Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.terms import Finding
    from isoflop.plotting.law_plots import LawPoints

Floats = np.ndarray
LOGS = ("E", "ln_A", "ln_B", "alpha", "beta")


@dataclass(frozen=True, eq=False)
class SurfaceCore:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token.

    Attributes:
        theta: ln E, ln A', ln B', alpha, beta, (5,), with A' and B' the terms at the mean ln N and ln D.
        spread: its covariance, (5, 5).
        dof: configurations less parameters.
        points: has the means.
        draws: resamples of theta, (R, 5).
        shared: the covariance if runs of a budget or of a size share noise; None where they don't.
    """

    theta: Floats
    spread: Floats
    dof: int
    points: Points
    draws: Floats
    shared: Shared | None = None

    @property
    def params(self) -> pd.Series:
        """E, A, B (nats per token at N = D = 1), alpha, beta."""
        return pd.Series(self.points.natural(self.theta), index=list(NAMES), name="value")

    @property
    def covariance(self) -> pd.DataFrame:
        """Of E, ln A, ln B, alpha, beta."""
        turn = self._log_gradient()
        return pd.DataFrame(turn @ self.spread @ turn.T, index=list(LOGS), columns=list(LOGS))

    def _log_gradient(self) -> Floats:
        """d(E, ln A, ln B, alpha, beta) / d(theta)."""
        points, turn = self.points, np.eye(5)
        turn[0, 0] = float(np.exp(self.theta[0]))
        turn[1, 3], turn[2, 4] = points.x_mean, points.y_mean
        return turn

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """Value, low and high of E, A, B, alpha, beta, a = beta / (alpha + beta), b = 1 - a, and ratio (b / a).

        `t`: of ln E, ln A, ln B (so none of them can be negative), alpha, beta, a, b. `percentile`: of the resamples.
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
            name: self.t(float(value), row, confidence)
            for name, value, row in zip(NAMES, logs, turn, strict=True)
        }
        rows |= {name: exponential(rows[name]) for name in ("E", "A", "B")}
        alpha, beta = self.theta[3:]
        slope = self.gradient_of_a()
        share = float(beta / (alpha + beta))
        ratio = np.array([0.0, 0.0, 0.0, 1.0 / beta, -alpha / beta**2])
        return rows | {
            "a": self.t(share, slope, confidence),
            "b": self.t(1.0 - share, slope, confidence),
            "ratio": self.t(float(alpha / beta), ratio, confidence),
        }

    def t(self, value: float, gradient: Floats, confidence: float) -> Interval:
        """The t interval of a function of theta, from its value and its gradient, (5,); the wider of that by runs and,
        where they share noise, that by budgets or sizes.
        """
        half = float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self._error(gradient)
        if self.shared is not None:
            half = max(half, self.shared.half(gradient, confidence))
        return Interval(value, value - half, value + half)

    def gradient_of_a(self) -> Floats:
        """d(a) / d(theta), (5,)."""
        alpha, beta = self.theta[3:]
        return np.array([0.0, 0.0, 0.0, -beta, alpha]) / (alpha + beta) ** 2

    def error_of_a(self) -> float:
        """Standard error of a; where runs share noise, the larger of that by runs and that by budgets or sizes."""
        gradient = self.gradient_of_a()
        return max(
            self._error(gradient), 0.0 if self.shared is None else self.shared.error(gradient)
        )

    def _error(self, gradient: Floats) -> float:
        """Standard error of a function of theta, by runs."""
        return float(np.sqrt(max(gradient @ self.spread @ gradient, 0.0)))

    def _percentiles(self, confidence: float) -> dict[str, Interval]:
        if not len(self.draws):
            raise FitError(
                "there are no resamples to take percentiles of: fit with bootstrap=4000 or so"
            )
        points = self.points
        values: dict[str, Floats] = dict(zip(NAMES, points.natural(self.theta), strict=True))
        drawn: dict[str, Floats] = dict(zip(NAMES, points.natural(self.draws).T, strict=True))
        for table in (values, drawn):
            table["a"] = table["beta"] / (table["alpha"] + table["beta"])
            table["b"] = 1.0 - table["a"]
            table["ratio"] = table["alpha"] / table["beta"]
        return {
            name: percentile_interval(float(values[name]), drawn[name], confidence)
            for name in values
        }

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """ln N*, ln D* and ln loss at C = 6ND."""
        values, gradients = optimum(self.points, self.theta, flops)
        names = ("params", "tokens", "loss")
        return {
            k: self.t(float(v), g, confidence)
            for k, v, g in zip(names, values, gradients, strict=True)
        }

    def loss_at(self, params: Floats | float, tokens: Floats | float) -> Floats:
        """Loss in nats per token at N parameters and D tokens."""
        return np.exp(self.theta[0]) + self._term(1, params) + self._term(2, tokens)

    def tokens_for(self, params: float, loss: float) -> float:
        """Tokens with which N parameters reach a loss; NaN where no number of them is enough."""
        return self._of_term(2, loss - float(np.exp(self.theta[0]) + self._term(1, params)))

    def params_for(self, tokens: float, loss: float) -> float:
        """Parameters with which D tokens reach a loss; NaN where no number of them is enough."""
        return self._of_term(1, loss - float(np.exp(self.theta[0]) + self._term(2, tokens)))

    def _term(self, which: int, values: Floats | float) -> Floats:
        """A/N^alpha (1) or B/D^beta (2), from N and D about their means: A and B alone may be too large for numbers."""
        mean = (self.points.x_mean, self.points.y_mean)[which - 1]
        with np.errstate(over="ignore"):
            return np.exp(self.theta[which] - self.theta[which + 2] * (np.log(values) - mean))

    def _of_term(self, which: int, term: float) -> float:
        """The N or D that makes such a term; NaN where it is not above 0."""
        if not term > 0.0:
            return float("nan")
        mean = (self.points.x_mean, self.points.y_mean)[which - 1]
        with np.errstate(over="ignore"):
            return float(np.exp(mean + (self.theta[which] - np.log(term)) / self.theta[which + 2]))

    def loss_interval(self, params: float, tokens: float, confidence: float) -> Interval:
        """Of ln loss at N parameters and D tokens, if the law is true."""
        points = Points.of(np.array([params]), np.array([tokens]), np.ones(1))
        moved = np.array([points.x_mean - self.points.x_mean, points.y_mean - self.points.y_mean])
        here = Points(moved[:1], moved[1:], np.ones(1), self.points.x_mean, self.points.y_mean)
        return self.t(
            float(np.log(here.fitted(self.theta)[0])), here.jacobian(self.theta)[0], confidence
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "theta": self.theta.tolist(),
            "covariance": self.spread.tolist(),
            "dof": self.dof,
            "centre": [float(self.points.x_mean), float(self.points.y_mean)],
        } | ({} if self.shared is None else {"shared": self.shared.to_dict()})


@dataclass(frozen=True, eq=False)
class ParametricFit(Fit):
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token; see `Fit`.

    Attributes:
        runs: the table that was fitted.
        sample: its configurations.
        estimate: theta, its covariance and how it was reached, one of each.
        draws: resamples of theta, (R, 5).
        huber_delta: what was asked for; `estimate.delta` is what it came to.
        drop_outliers: robust standard deviations off the law beyond which configurations were left out.
    """

    runs: RunsTable
    sample: Sample
    estimate: Estimate
    draws: Floats
    noise: Noise
    rollout: RollOut | None
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
        """ln E, ln A', ln B', alpha, beta, with A' and B' the terms at the mean ln N and ln D (`solver.Points`)."""
        return self.estimate.theta[0]

    @property
    def objective(self) -> float:
        """The sum of Huber's loss that was minimised."""
        return float(self.estimate.objective[0])

    @property
    def core(self) -> SurfaceCore:
        spread, points = self.estimate.spread[0], self.sample.points
        shared = shared_of(self.neighbours, self.recurring)
        return SurfaceCore(self.theta, spread, self.sample.dof, points, self.draws, shared)

    @property
    def at_bounds(self) -> list[str]:
        params: dict[Any, float] = self.params.to_dict()
        return [
            name for name in ("alpha", "beta") if not EXPONENTS[0] < params[name] < EXPONENTS[1]
        ]

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Residuals within budgets; None where the runs fall into none."""
        if self.runs.columns.get("budget") == OWN:
            return None
        sample, delta = self.sample, float(self.estimate.delta[0])
        group = np.unique(sample.budget, return_inverse=True)[1]
        nothing = np.empty((len(sample), 0))
        return Neighbours.of(
            self._jacobian, sample.residuals(self.theta), delta, group, sample.points.x, nothing
        )

    @cached_property
    def recurring(self) -> Neighbours:
        """Residuals of sizes that were run at several budgets."""
        sample, nothing = self.sample, np.empty((len(self.sample), 0))
        residuals, delta = sample.residuals(self.theta), float(self.estimate.delta[0])
        return Neighbours.of_sizes(
            self._jacobian, residuals, delta, sample.points.x, np.log(sample.flops), nothing
        )

    @property
    def params(self) -> pd.Series:
        """E, A, B (nats per token at N = D = 1), alpha, beta."""
        return self.core.params

    @property
    def covariance(self) -> pd.DataFrame:
        """Of E, ln A, ln B, alpha, beta."""
        return self.core.covariance

    def loss_at(self, params: Floats | float, tokens: Floats | float) -> Floats:
        """Loss in nats per token at N parameters and D tokens."""
        return self.core.loss_at(params, tokens)

    @cached_property
    def leverage(self) -> Floats:
        """Of each configuration, (K,)."""
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
        """Each configuration left out in turn, the law fitted anew (see `influence.without_each`): a row each.

        Columns params, tokens, loss, residual (of ln loss, or nats), `sds` (the residual in standard deviations of one
        run about the law), leverage, a (without it), `a_shift` (in standard errors of a).
        """
        value = float(self.exponents.loc["a", "value"])
        return influence_table(
            self.sample, self.estimate, self.leverage, value, self.core.error_of_a()
        )

    @cached_property
    def residuals(self) -> pd.DataFrame:
        """A row a configuration: budget, params, tokens, flops, loss, `residual` (of ln loss, or nats) and `sds`, the
        residual in robust standard deviations of one run.
        """
        points, sample = self.sample.points, self.sample
        columns = {
            "budget": sample.budget,
            "params": np.exp(points.x + points.x_mean),
            "flops": sample.flops,
        }
        columns |= {
            "tokens": np.exp(points.y + points.y_mean),
            "loss": points.loss,
            "seeds": sample.seeds,
        }
        gap = sample.residuals(self.theta) / np.sqrt(sample.seeds)
        return residual_table(
            pd.DataFrame(columns, index=pd.Index(sample.config, name="config")), gap, PARAMETERS
        )

    @property
    def fitted_flops(self) -> Floats:
        return self.runs.array("flops")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw contours of the loss over size and data, the runs, and the optimum for each compute."""
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
            tokens_for=self.core.tokens_for,
            params_for=self.core.params_for,
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
            covariance=self.estimate.spread[0][3:, 3:],
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
        """Draw a without each of the runs that move it most.

        Args:
            runs: how many are shown; `influence` has all.
        """
        from isoflop.plotting.residual_plots import plot_influence

        table = self.influence.assign(size=self.influence["a_shift"].abs())
        table = table.sort_values("size", kind="stable").tail(runs)
        names = [self.name_of(int(config)) for config in table.index]
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
                "slope": float(self.estimate.slope[0]),
                "starts_agreeing": self.estimate.agreeing,
                "condition": self.condition,
            },
            "flops_range": [float(self.sample.flops.min()), float(self.sample.flops.max())],
            "dof": self.sample.dof,
            "runs_used": len(self.runs),
        }

    @property
    def robust_sd(self) -> float:
        """Of one run about the law, from the median absolute residual."""
        return float(robust_sd(self.sample.residuals(self.theta)))
