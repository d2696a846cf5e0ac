"""What all fits share beside their laws: runs, findings, plots, printing and JSON."""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from isoflop.fitting.results.fitted_laws import Axis, Floats, Laws
from isoflop.fitting.tables.budgets import levels_of
from isoflop.fitting.tables.provenance import Origin
from isoflop.frames import column, mask, records, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.estimators.noise import Noise
    from isoflop.fitting.tables.runs_table import ParamCount, RunsTable

NEAR = (0.001, 0.01)
"""Shares of the least loss that a size may cost and still be near-optimal."""


class Fit(Laws):
    """Laws, and the runs that they were fitted to; see `Laws`.

    Attributes:
        runs: the table that was fitted.
        noise: of the runs.
    """

    runs: RunsTable
    noise: Noise

    @property
    def no_law(self) -> str:
        from isoflop.fitting.results.diagnostics import why_no_law

        return why_no_law(self)

    @property
    def at_bounds(self) -> list[str]:
        """Parameters that the search for them has at a bound."""
        return []

    def name_of(self, config: int) -> str:
        """A configuration in words: the run that has it, else its place."""
        table = self.runs.frame
        mine = records(rows(table, table["config"].to_numpy() == config))[0]
        return (
            str(mine["run_id"])
            if "run_id" in mine
            else f"N = {mine['params']:.4g}, D = {mine['tokens']:.4g}"
        )

    @property
    def n(self) -> ParamCount:
        return self.runs.n

    @property
    def loss_column(self) -> str:
        return self.runs.columns["loss"]

    @property
    def origin(self) -> Origin:
        return Origin.of(self.runs)

    @property
    def reach(self) -> tuple[float, float]:
        flops, budgets = self.runs.array("flops"), self.runs.array("budget")
        levels = levels_of(budgets, flops, np.ones_like(flops))[self._fitted(budgets)]
        return float(levels.min()), float(levels.max())

    def _fitted(self, budgets: Floats) -> np.ndarray:
        """Which runs, by their budgets, the law was fitted to."""
        return np.ones(len(budgets), dtype=bool)

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """The method's own picture of the fit."""

    def plot_law(
        self, quantity: Literal["params", "tokens", "loss"] = "params", ax: Axes | None = None
    ) -> Axes:
        """N*, D* or, where the law has it, the loss against compute, with both intervals of `predict`."""
        from isoflop.plotting.law_plots import plot_law

        return plot_law(self, quantity, ax)

    def plot_rollout(
        self, quantity: Literal["params", "tokens", "loss"] | None = None, ax: Axes | None = None
    ) -> Axes:
        """How far hidden budgets lie from what the smaller ones predict."""
        from isoflop.plotting.law_plots import plot_rollout

        return plot_rollout(self, quantity, ax)

    def summary(self) -> str:
        """The result as text for a terminal, no line wider than 92 characters."""
        from isoflop.fitting.results.summary import summary_text

        return summary_text(self)

    def to_dict(self) -> dict[str, Any]:
        """One entry of fit.json's `fits`; numbers with all digits, null for what isn't known or isn't bounded."""
        from isoflop.fitting.results.to_json import fit_entry

        return fit_entry(self)

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def _repr_html_(self) -> str:
        from isoflop.fitting.results.html import fit_html

        return fit_html(self)


class ProfileFit(Fit):
    """A fit that places an optimum in each budget.

    Attributes:
        axis: what the profiles are in: `params` or `tokens`.
        profiles: a row a budget: `budget` (label), `flops` (geometric mean of its runs), `params_opt, tokens_opt,
            loss_opt`, `low, high` (interval of the optimum on the axis), `curvature` (second derivative of the loss in
            ln(axis), nats), `near_0.1_low, near_0.1_high, near_1_low, near_1_high` (sizes on the axis that cost 0.1 %
            and 1 % of the least loss), `n_points` (configurations), `n_runs`, `status`, `used`, and what the method
            adds.
    """

    axis: Axis
    profiles: pd.DataFrame

    @abstractmethod
    def curve(self, budget: float, size: Floats) -> Floats:
        """Loss of a budget's profile as fitted, at sizes on the axis."""

    def _used(self) -> Floats:
        """Budgets of the profiles used."""
        return column(rows(self.profiles, mask(self.profiles, "used")), "budget")

    def _fitted(self, budgets: Floats) -> np.ndarray:
        return np.isin(budgets, self._used())

    @cached_property
    def residuals(self) -> pd.DataFrame:
        """A row a configuration of the profiles used: budget, params, tokens, flops, loss, `residual` (of ln loss) and
        `sds`, the residual in robust standard deviations of one run.
        """
        from isoflop.fitting.estimators.residuals import residual_table

        used = self._used()
        table = self.runs.configurations
        table = rows(table, self._fitted(column(table, "budget")))
        budgets, sizes, fitted = (
            column(table, "budget"),
            column(table, self.axis),
            np.empty(len(table)),
        )
        for budget in used:
            here = budgets == budget
            fitted[here] = self.curve(float(budget), sizes[here])
        return residual_table(
            table, np.log(column(table, "loss") / fitted), len(table) - self.noise.residual_dof
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Profiles with their curves and optima."""
        from isoflop.plotting.profile_plots import plot_profiles

        return plot_profiles(self, ax)

    def plot_residuals(
        self, against: Literal["params", "tokens", "flops"] = "params", ax: Axes | None = None
    ) -> Axes:
        """Residuals about the profiles."""
        from isoflop.plotting.residual_plots import plot_residuals

        return plot_residuals(self, against, ax)
