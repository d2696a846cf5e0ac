"""Result of the envelope method: power laws through the best run at each compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.intervals import Line
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.isoflop_fit import LineLawEstimate
from isoflop.fitting.results.summary import frontier_lines
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import Finding, Quantity
from isoflop.frames import Floats, column, records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.plotting.law_plots import LawPoints


@dataclass(frozen=True, eq=False)
class EnvelopeFit(Fit):
    """Power laws through the frontier: the configurations whose loss no other reaches with as much
    compute or less.

    Each optimum is one of the sizes that were run, so it is known only as well as these lie apart,
    and noise chooses among them. The method serves for comparison. See `Fit`.

    Attributes:
        frontier: budget, flops, params, tokens and loss of the configurations, by ascending
            compute.
        lines: lines of ln N and ln D on ln C, `params` and `tokens`.
        covariance: covariance of the residuals of the two lines.
    """

    runs: RunsTable
    frontier: pd.DataFrame
    lines: dict[str, Line]
    covariance: float
    noise: Noise
    confidence: float
    rollout: HoldOut | None = None
    diagnostics: list[Finding] = field(default_factory=list)

    method = "envelope"

    @property
    def law_estimate(self) -> LineLawEstimate:
        """Return the numbers of the laws: two lines, without draws."""
        return LineLawEstimate(self.lines, self.covariance)

    @property
    def fitted_flops(self) -> Floats:
        """Return the training FLOPs of the frontier's configurations, (configurations,)."""
        return column(self.frontier, "flops")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw all runs and the frontier."""
        from isoflop.plotting.profile_plots import plot_frontier

        return plot_frontier(self.runs.configurations, self.frontier, ax)

    def _law_points(self, quantity: Quantity) -> LawPoints:
        from isoflop.plotting.law_plots import Frontier

        return Frontier(self.fitted_flops, column(self.frontier, quantity))

    def _details(self) -> list[str]:
        return frontier_lines(self.frontier)

    def _entry(self) -> dict[str, Any]:
        return {"frontier": records(self.frontier), "runs_used": len(self.frontier)}
