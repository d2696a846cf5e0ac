"""Outliers: runs far off the parametric law, dropped with the reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from isoflop.fitting.estimators.surface_estimate import Estimate, Sample, robust_sd
from isoflop.fitting.tables.fit_table import DroppedRows, RunsTable
from isoflop.frames import Floats, records, rows
from isoflop.text import count_text


def find_outliers(sample: Sample, estimate: Estimate, limit: float) -> np.ndarray:
    """Return a mask of configurations more than `limit` robust standard deviations off the
    estimate, (K,).
    """
    return np.abs(measure_distances(sample, estimate)) > limit


def measure_distances(sample: Sample, estimate: Estimate) -> Floats:
    """Return the distance of each configuration from the estimate, in robust standard deviations
    of one run, (K,); above the estimate is positive.
    """
    residuals = sample.residuals(estimate.theta[0])
    sd = float(robust_sd(residuals))
    return residuals / sd if sd > 0.0 else np.zeros(len(sample))


def remove_configurations(
    table: RunsTable, sample: Sample, estimate: Estimate, outlying: np.ndarray, limit: float
) -> RunsTable:
    """Return the table without the runs of the outlying configurations, listed in `dropped`."""
    config, distances = table.frame["config"].to_numpy(), measure_distances(sample, estimate)
    dropped = []
    farthest_first = np.argsort(-np.abs(distances[outlying]), kind="stable")
    for k in np.flatnonzero(outlying)[farthest_first]:
        runs = records(rows(table.frame, config == sample.config[k]))
        reason = f"{distances[k]:+.1f} robust standard deviations off the law (limit {limit:g})"
        dropped.append(DroppedRows(_name_runs(runs), reason))
    remaining = rows(table.frame, ~np.isin(config, sample.config[outlying]))
    return dataclasses.replace(
        table, frame=remaining.reset_index(drop=True), dropped=(*table.dropped, *dropped)
    )


def _name_runs(runs: list[dict[str, Any]]) -> str:
    """Return the ids of the runs of one configuration, or its N, D and loss without ids."""
    first = runs[0]
    if "run_id" in first:
        return ", ".join(sorted(str(run["run_id"]) for run in runs))
    size, data = count_text(first["params"]), count_text(first["tokens"])
    return f"N = {size}, D = {data}, loss {first['loss']:.4g}"


def select_remaining(table: RunsTable, remaining: RunsTable) -> RunsTable:
    """Return the rows of a table that remain in another one of the same runs, which may count N
    differently.
    """
    names = ["tokens", "loss", "flops"]
    keys = set(map(tuple, remaining.frame[names].to_numpy().tolist()))
    mask = np.array(
        [tuple(row) in keys for row in table.frame[names].to_numpy().tolist()], dtype=bool
    )
    frame = rows(table.frame, mask).reset_index(drop=True)
    return dataclasses.replace(table, frame=frame, dropped=remaining.dropped)
