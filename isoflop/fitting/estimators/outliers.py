"""Runs that lie far off the parametric law, left out with the reason."""

from __future__ import annotations

import dataclasses

import numpy as np

from isoflop.fitting.estimators.surface_estimate import Estimate, Sample, robust_sd
from isoflop.fitting.tables.runs_table import Dropped, RunsTable
from isoflop.frames import records, rows

Floats = np.ndarray


def outliers(sample: Sample, estimate: Estimate, limit: float) -> np.ndarray:
    """Which configurations lie more than `limit` robust standard deviations off the estimate, (K,)."""
    return np.abs(distances(sample, estimate)) > limit


def distances(sample: Sample, estimate: Estimate) -> Floats:
    """Of each configuration from the estimate, in robust standard deviations of one run, (K,); above it is positive."""
    residuals = sample.residuals(estimate.theta[0])
    spread = float(robust_sd(residuals))
    return residuals / spread if spread > 0.0 else np.zeros(len(sample))


def without(
    table: RunsTable, sample: Sample, estimate: Estimate, far: np.ndarray, limit: float
) -> RunsTable:
    """The table without the runs of some configurations, which are named among `dropped`."""
    config, away = table.frame["config"].to_numpy(), distances(sample, estimate)
    gone = []
    for k in np.flatnonzero(far)[np.argsort(-np.abs(away[far]), kind="stable")]:
        mine = records(rows(table.frame, config == sample.config[k]))
        first = mine[0]
        place = f"N = {first['params']:.4g}, D = {first['tokens']:.4g}, loss {first['loss']:.4g}"
        what = ", ".join(sorted(str(row["run_id"]) for row in mine)) if "run_id" in first else place
        gone.append(
            Dropped(
                what, f"{away[k]:+.1f} robust standard deviations off the law (limit {limit:g})"
            )
        )
    kept = rows(table.frame, ~np.isin(config, sample.config[far])).reset_index(drop=True)
    return dataclasses.replace(table, frame=kept, dropped=(*table.dropped, *gone))


def same_rows(table: RunsTable, kept: RunsTable) -> RunsTable:
    """Those rows of a table that are kept in another one of the same runs, which may count N otherwise."""
    names = ["tokens", "loss", "flops"]
    keys = set(map(tuple, kept.frame[names].to_numpy().tolist()))
    mask = np.array(
        [tuple(row) in keys for row in table.frame[names].to_numpy().tolist()], dtype=bool
    )
    return dataclasses.replace(
        table, frame=rows(table.frame, mask).reset_index(drop=True), dropped=kept.dropped
    )
