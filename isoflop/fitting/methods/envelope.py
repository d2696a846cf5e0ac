"""The envelope of the runs (Hoffmann et al. 2022, Approach 1): power laws through the best run at each compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.intervals import Line, check_confidence
from isoflop.fitting.estimators.noise import noise_of
from isoflop.fitting.results.diagnostics_parametric import diagnose_envelope
from isoflop.fitting.results.envelope_fit import EnvelopeFit
from isoflop.fitting.tables.runs_table import ReadOptions, RunsTable, read_table
from isoflop.frames import column

Floats = np.ndarray
MIN_POINTS = 3


def fit_envelope(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    confidence: float = 0.95,
    **columns: Unpack[ReadOptions],
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
    table = read_table(runs, **columns, need_budgets=False)
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
    return dataclasses.replace(fit, diagnostics=diagnose_envelope(fit))


def frontier_of(table: RunsTable) -> pd.DataFrame:
    """Configurations whose mean loss is below that of all with as much compute or less; of one budget, the best."""
    frame = table.configurations.sort_values(["budget", "loss"], kind="stable")
    best = frame.drop_duplicates("budget")
    below = best["loss"].to_numpy() < best["loss"].cummin().shift(fill_value=np.inf).to_numpy()
    return best.loc[below, ["budget", "flops", "params", "tokens", "loss"]].reset_index(drop=True)
