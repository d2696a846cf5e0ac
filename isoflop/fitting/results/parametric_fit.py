"""Result of a parametric fit, L = E + A / N^alpha + B / D^beta: the law, residuals, influence of
the runs, figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from isoflop.fitting.estimators.clustered_errors import GroupedResiduals, combine_covariances
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.influence import influence_table
from isoflop.fitting.estimators.newton import EXPONENT_BOUNDS
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.residuals import residual_table
from isoflop.fitting.estimators.surface_estimate import (
    PARAMETER_COUNT,
    Estimate,
    Sample,
    jacobian,
    robust_sd,
)
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.fitting.estimators.token_cost import SIX_ND_COST
from isoflop.fitting.results.base import Fit, interval_entry
from isoflop.fitting.results.summary import parameter_lines
from isoflop.fitting.results.surface_law import SurfaceLawEstimate
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import Quantity
from isoflop.frames import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.terms import Finding
    from isoflop.plotting.law_plots import LawPoints


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
        """Return the numbers of the law, with noise shared within budgets or sizes."""
        return SurfaceLawEstimate(
            theta=self.theta,
            theta_covariance=self.estimate.covariance[0],
            dof=self.sample.dof,
            points=self.sample.points,
            draws=self.draws,
            clustered_covariance=combine_covariances(self.budget_residuals, self.size_residuals),
            cost=self.sample.cost,
        )

    @property
    def at_bounds(self) -> list[str]:
        """Return the names of the exponents that the optimiser left at a bound."""
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
        """Return the training FLOPs of the runs, (runs,)."""
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
            optimum=lambda compute: optimum(points, self.theta, compute, self.sample.cost)[0],
            ln_tokens=self.sample.cost.ln_tokens,
            ln_flops=self.sample.cost.ln_flops_for,
            is_six_nd=self.sample.cost.is_six_nd,
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
        """Draw resamples of alpha and beta with the t intervals of both and of beta / (alpha +
        beta).
        """
        from isoflop.plotting.surface_plots import ExponentData, plot_exponents

        law = replace(self.law_estimate, cost=SIX_ND_COST)
        table = law.intervals(self.confidence, "t")
        data = ExponentData(
            alpha=float(self.theta[3]),
            beta=float(self.theta[4]),
            draws=self.draws[:, 3:],
            covariance=self.estimate.covariance[0][3:, 3:],
            dof=self.sample.dof,
            intervals={name: table.loc[name].to_dict() for name in ("alpha", "beta", "a")},
            a_name="a" if self.sample.cost.is_constant else "beta / (alpha + beta)",
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
