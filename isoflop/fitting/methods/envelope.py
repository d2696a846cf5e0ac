"""The envelope method (Hoffmann et al. 2022, Approach 1): power laws through the best run at each
compute.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.intervals import Line, check_confidence
from isoflop.fitting.estimators.noise import estimate_noise
from isoflop.fitting.results.diagnostics_parametric import diagnose_envelope
from isoflop.fitting.results.envelope_fit import EnvelopeFit
from isoflop.fitting.tables.fit_table import ReadOptions, RunsTable, read_table
from isoflop.frames import column

MIN_FRONTIER_RUNS = 3
MIN_LN_FLOPS_RANGE = 0.1


def fit_envelope(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    confidence: float = 0.95,
    **columns: Unpack[ReadOptions],
) -> EnvelopeFit:
    """Fit power laws N*(C) and D*(C) through the frontier: the runs whose loss no other run reaches
    with as much compute or less.

    Only whole runs are compared: an intermediate loss, before the learning rate has decayed, is not
    the loss of a shorter run.

    Args:
        runs: a table of runs, its file, a sweep's directory, or a `RunsTable`; see `read_table`.
        confidence: level of the intervals, a share.
        **columns: columns and units of the table: `params, tokens, loss, flops, budget, n,
            loss_unit` of `ReadOptions`.

    Raises:
        FitError: input that can't be used; fewer than 3 runs on the frontier, or runs that differ
            by less than 10% in compute.
    """
    check_confidence(confidence)
    table = read_table(runs, **columns, need_budgets=False)
    frontier = find_frontier(table)
    if len(frontier) < MIN_FRONTIER_RUNS:
        raise FitError(
            f"{table.source}: {len(frontier)} runs lie on the frontier of loss and compute, "
            f"{MIN_FRONTIER_RUNS} are needed"
        )
    x = np.log(column(frontier, "flops"))
    if np.ptp(x) < MIN_LN_FLOPS_RANGE:
        raise FitError(
            f"{table.source}: the runs of the frontier differ by less than 10% in compute"
        )
    points = {name: np.log(column(frontier, name)) for name in ("params", "tokens")}
    lines = {name: Line.through(x, y) for name, y in points.items()}
    size_residuals, token_residuals = (
        points[k] - lines[k].middle - lines[k].slope * (x - x.mean()) for k in lines
    )
    fit = EnvelopeFit(
        runs=table,
        frontier=frontier,
        lines=lines,
        covariance=float(size_residuals @ token_residuals) / lines["params"].dof,
        noise=estimate_noise(table, float("nan"), 1),
        confidence=confidence,
    )
    return dataclasses.replace(fit, diagnostics=diagnose_envelope(fit))


def find_frontier(table: RunsTable) -> pd.DataFrame:
    """Return the configurations whose mean loss is below that of all others with as much compute or
    less, at most one of a budget; columns budget, flops, params, tokens, loss.
    """
    frame = table.configurations.sort_values(["budget", "loss"], kind="stable")
    best = frame.drop_duplicates("budget")
    below = best["loss"].to_numpy() < best["loss"].cummin().shift(fill_value=np.inf).to_numpy()
    return best.loc[below, ["budget", "flops", "params", "tokens", "loss"]].reset_index(drop=True)
