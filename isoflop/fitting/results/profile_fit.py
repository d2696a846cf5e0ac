"""Fits that place an optimum in each budget: their profiles, curves and residuals."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from isoflop.fitting.results.base import Fit
from isoflop.fitting.terms import Axis, Quantity
from isoflop.frames import Bools, Floats, column, mask, records, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.plotting.law_plots import LawPoints

NEAR_OPTIMAL_SHARES = (0.001, 0.01)
"""Shares of the least loss that a size may cost and still be near-optimal."""


class ProfileFit(Fit):
    """A fit that places an optimum in each budget.

    Attributes:
        axis: quantity that the profiles are in: `params` or `tokens`.
        profiles: a row a budget: `budget` (label), `flops` (geometric mean of its runs),
            `params_opt, tokens_opt, loss_opt`, `low, high` (interval of the optimum on the axis),
            `curvature` (second derivative of the loss in ln(axis), nats), `near_0.1_low,
            near_0.1_high, near_1_low, near_1_high` (sizes on the axis that cost 0.1% and 1% of
            the least loss), `n_points` (configurations), `n_runs`, `status`, `used`, and columns
            that the method adds.
    """

    axis: Axis
    profiles: pd.DataFrame

    @abstractmethod
    def curve(self, budget: float, size: Floats) -> Floats:
        """Return the fitted loss of a budget's profile at sizes on the axis, nats per token."""

    @property
    @abstractmethod
    def coefficients(self) -> pd.DataFrame:
        """Rows N and D of k * C^exponent: value, low, high of k, and the exponent."""

    def _used_profiles(self) -> pd.DataFrame:
        return rows(self.profiles, mask(self.profiles, "used"))

    def _fitted(self, budgets: Floats) -> Bools:
        return np.isin(budgets, column(self._used_profiles(), "budget"))

    @property
    def fitted_flops(self) -> Floats:
        """Return the training FLOPs of the profiles that enter the laws, (profiles,)."""
        return column(self._used_profiles(), "flops")

    @cached_property
    def residuals(self) -> pd.DataFrame:
        """A row a configuration of the profiles used: budget, params, tokens, flops, loss,
        `residual` (of ln loss) and `sds`, the residual in robust standard deviations of one run.
        """
        from isoflop.fitting.estimators.residuals import residual_table

        table = self.runs.configurations
        table = rows(table, self._fitted(column(table, "budget")))
        budgets, sizes = column(table, "budget"), column(table, self.axis)
        fitted = np.empty(len(table))
        for budget in column(self._used_profiles(), "budget"):
            members = budgets == budget
            fitted[members] = self.curve(float(budget), sizes[members])
        parameters = len(table) - self.noise.residual_dof
        return residual_table(table, np.log(column(table, "loss") / fitted), parameters)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the profiles with their curves and optima."""
        from isoflop.plotting.profile_plots import ProfileData, plot_profiles

        data = ProfileData(
            profiles=self.profiles,
            runs=self.runs.configurations,
            axis=self.axis,
            curve=self.curve,
            confidence=self.confidence,
            n=self.n,
        )
        return plot_profiles(data, ax)

    def _law_points(self, quantity: Quantity) -> LawPoints:
        from isoflop.plotting.law_plots import Optima

        return Optima(self.profiles, self.axis)

    def plot_residuals(
        self,
        against: Literal["params", "tokens", "flops"] = "params",
        ax: Axes | None = None,
    ) -> Axes:
        """Draw the residuals about the profiles."""
        from isoflop.plotting.residual_plots import ResidualData, plot_residuals

        data = ResidualData(
            self.residuals, "log", self.n, budgets_are_flops=self.runs.budgets_are_flops
        )
        return plot_residuals(data, against, ax)

    def _facts(self) -> list[tuple[str, str]]:
        used = f"{len(self._used_profiles())} of {len(self.profiles)}"
        letter = "N" if self.axis == "params" else "D"
        return [*super()._facts(), ("Budgets used", used), ("Profiles in", f"ln {letter}")]

    def _details(self) -> list[str]:
        from isoflop.fitting.results.summary import profile_lines

        return profile_lines(self.profiles, self.axis)

    def _entry(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "coefficients": self.coefficients.to_dict("index"),
            "profiles": records(self.profiles),
            "runs_used": int(column(self._used_profiles(), "n_runs").sum()),
        }
