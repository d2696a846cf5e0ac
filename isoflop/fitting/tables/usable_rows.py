"""Usable rows of a table: runs that are done, follow the recipe, have all numbers, and are no
copies.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.columns import SIX_ND, bad_cells_message, read_numbers, split_factor
from isoflop.fitting.tables.rows import DroppedRows, as_text, dropped_text, name_rows
from isoflop.frames import column, rows

FINISHED_STATES = frozenset({"done", "finished", "completed", "complete", "succeeded", "success"})
_MAX_BAD_SHARE = 0.5  # of a column's cells: beyond it the column is wrong, not some runs


def select_finished(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[DroppedRows]]:
    """Return the rows that are done, if a column has the state, and the rows left out.

    Raises:
        FitError: no rows, or none that is done.
    """
    if len(raw) == 0:
        raise FitError(f"{where}: has no rows")
    name = next((c for c in ("state", "State") if c in raw.columns), None)
    if name is None:
        return raw, []
    states = as_text(raw, name).where(raw[name].notna(), "unknown")
    keep = states.str.strip().str.lower().isin(FINISHED_STATES).to_numpy(dtype=bool)
    if not keep.any():
        counts = ", ".join(
            f"{count} {state}" for state, count in states.value_counts(sort=True).items()
        )
        raise FitError(f"{where}: no run is done ({counts})")
    dropped = []
    for state in dict.fromkeys(states[~keep]):
        names = name_rows(raw, (states == state).to_numpy(dtype=bool))
        dropped.append(DroppedRows(names, f"state is {state}, not done"))
    return rows(raw, keep), dropped


def select_planned(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[DroppedRows]]:
    """Return the rows that follow the recipe, and the rows left out.

    Runs that check the recipe (column `check`) are no points of a profile.

    Raises:
        FitError: all runs check the recipe.
    """
    if not {"check", "run_id"} <= set(raw.columns):
        return raw, []
    checks = as_text(raw, "check").where(raw["check"].notna(), "").str.strip()
    keep = (checks == "").to_numpy(dtype=bool)
    if keep.all():
        return raw, []
    if not keep.any():
        raise FitError(
            f"{where}: all runs check the recipe (column check): none is a point of a profile"
        )
    reason = "checks the recipe at another learning rate or batch size"
    return rows(raw, keep), [DroppedRows(name_rows(raw, ~keep), reason)]


def select_numeric(
    raw: pd.DataFrame, names: dict[str, str], where: str
) -> tuple[pd.DataFrame, list[DroppedRows]]:
    """Return canonical columns as positive, finite float64, and the rows left out.

    Raises:
        FitError: a column of which at least half is bad, or no row with all its numbers.
    """
    frame = pd.DataFrame(
        {key: read_numbers(raw, name, where) for key, name in names.items() if name != SIX_ND},
        index=raw.index,
    )
    if SIX_ND in names.values():
        frame["flops"] = 6.0 * column(frame, "params") * column(frame, "tokens")
    gone, dropped = np.zeros(len(frame), dtype=bool), list[DroppedRows]()
    for key, name in names.items():
        values = column(frame, key)
        bad = ~(np.isfinite(values) & (values > 0.0))
        if bad.mean() >= _MAX_BAD_SHARE:
            source_name, _ = split_factor(raw, names["params"] if name == SIX_ND else name)
            raise FitError(bad_cells_message(raw, source_name, where, bad))
        defects = (
            ("missing", np.isnan(values)),
            ("infinite", np.isinf(values)),
            ("zero or negative", values <= 0.0),
        )
        for defect, mask in defects:
            if (mask & bad & ~gone).any():
                dropped.append(
                    DroppedRows(name_rows(raw, mask & bad & ~gone), f"{name} is {defect}")
                )
                gone |= mask
    if gone.all():
        raise FitError(f"{where}: no row has all its numbers: {dropped_text(dropped)}")
    return rows(frame, ~gone), dropped


def drop_copies(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[DroppedRows]]:
    """Return the frame without copies of rows, and the rows left out.

    A row that repeats another in every column is one run listed twice, not a second seed.
    """
    copies = frame.duplicated().to_numpy(dtype=bool)
    if not copies.any():
        return frame, []
    dropped = DroppedRows(name_rows(frame, copies), "repeats another row in every column")
    return rows(frame, ~copies), [dropped]
