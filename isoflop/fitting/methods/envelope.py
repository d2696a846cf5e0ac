"""The envelope of the runs (Hoffmann et al. 2022, Approach 1): power laws through the best run at each compute."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.holdout import RollOut
from isoflop.fitting.estimators.intervals import Line, check_confidence
from isoflop.fitting.estimators.noise import Noise, noise_of
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.isoflop_fit import LinesCore
from isoflop.fitting.tables.runs_table import LossUnit, ParamCount, RunsTable, read_table
from isoflop.frames import column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.results.diagnostics import Diagnostic

Floats = np.ndarray
MIN_POINTS = 3


@dataclass(frozen=True, eq=False)
class EnvelopeFit(Fit):
    """Power laws through the frontier: the configurations that no other one beats with as much compute or less.

    The sizes are those that were run, so the optimum is known no better than they lie apart, and noise chooses among
    them: the method is here to be compared with. See `Fit`.

    Attributes:
        frontier: budget, flops, params, tokens and loss of the configurations, by ascending compute.
        lines: of ln N and ln D on ln C.
        covariance: of the residuals of the two.
    """

    runs: RunsTable
    frontier: pd.DataFrame
    lines: dict[str, Line]
    covariance: float
    noise: Noise
    confidence: float
    rollout: RollOut | None = None
    diagnostics: list[Diagnostic] = field(default_factory=list)

    method = "envelope"

    @property
    def core(self) -> LinesCore:
        return LinesCore(self.lines, self.covariance)

    def plot(self, ax: Axes | None = None) -> Axes:
        """All runs and the frontier."""
        from isoflop.plotting.profile_plots import plot_frontier

        return plot_frontier(self, ax)


def fit_envelope(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    n: ParamCount = "total",
    loss: str | None = None,
    params: str | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    budget: str | None = None,
    loss_unit: LossUnit = "nats",
    confidence: float = 0.95,
) -> EnvelopeFit:
    """Fits N*(C) and D*(C) through the runs that no other one beats with as much compute or less.

    Only whole runs are compared: a loss on the way, before the learning rate has decayed, is no loss of a shorter run.

    Args:
        runs: a table (see `read_table`, which takes `params, tokens, loss, flops, budget, n, loss_unit`).
        confidence: of the intervals.

    Raises:
        FitError: input that can't be used; fewer than 3 runs on the frontier.
    """
    check_confidence(confidence)
    table = read_table(
        runs, params=params, tokens=tokens, loss=loss, flops=flops, budget=budget, n=n, loss_unit=loss_unit,
        need_budgets=False,
    )  # fmt: skip
    frontier = frontier_of(table)
    if len(frontier) < MIN_POINTS:
        raise FitError(
            f"{table.source}: {len(frontier)} runs lie on the frontier of loss and compute, {MIN_POINTS} are needed"
        )
    x = np.log(column(frontier, "flops"))
    if np.ptp(x) < 0.1:
        raise FitError(
            f"{table.source}: the runs of the frontier differ by less than 10 % in compute"
        )
    points = {name: np.log(column(frontier, name)) for name in ("params", "tokens")}
    lines = {name: Line.through(x, y) for name, y in points.items()}
    left, right = (points[k] - lines[k].middle - lines[k].slope * (x - x.mean()) for k in lines)
    fit = EnvelopeFit(
        runs=table,
        frontier=frontier,
        lines=lines,
        covariance=float(left @ right) / lines["params"].dof,
        noise=noise_of(table, float("nan"), 1),
        confidence=confidence,
    )
    from isoflop.fitting.results.diagnostics_parametric import diagnose_envelope

    return dataclasses.replace(fit, diagnostics=diagnose_envelope(fit))


def frontier_of(table: RunsTable) -> pd.DataFrame:
    """Configurations whose mean loss is below that of all with as much compute or less; of one budget, the best."""
    frame = table.configurations.sort_values(["budget", "loss"], kind="stable")
    best = frame.drop_duplicates("budget")
    below = best["loss"].to_numpy() < best["loss"].cummin().shift(fill_value=np.inf).to_numpy()
    return best.loc[below, ["budget", "flops", "params", "tokens", "loss"]].reset_index(drop=True)
