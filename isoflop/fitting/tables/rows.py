"""Excluded rows and names of rows, for all readers of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from isoflop.frames import Bools

RUN_COLUMNS = ("run_id", "run", "run_name", "Name", "name", "ID")
"""Usual names of the column with a run's name, in order of preference."""


class DroppedRows(NamedTuple):
    """Rows left out of a table.

    Attributes:
        what: names of the rows.
        why: reason.
    """

    what: str
    why: str


def dropped_text(dropped: Sequence[DroppedRows]) -> str:
    """Return the rows left out, each with its reason, in one line."""
    return "; ".join(f"{item.what}: {item.why}" for item in dropped)


def find_name_column(frame: pd.DataFrame) -> str | None:
    """Return the column of the runs' names; a general one such as `name` only if it is unique."""
    for name in RUN_COLUMNS:
        if name in frame.columns and (name in RUN_COLUMNS[:2] or as_text(frame, name).is_unique):
            return name
    return None


def as_text(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column as text, including empty cells."""
    return pd.Series([str(cell) for cell in frame[name]], index=frame.index, dtype=object)


def name_rows(frame: pd.DataFrame, mask: Bools, most: int = 5) -> str:
    """Return the names of rows: runs if the frame names them, otherwise row numbers from 1.

    Args:
        frame: table.
        mask: rows to name.
        most: number of names before `and N more`.
    """
    column = find_name_column(frame)
    if column is None:
        return list_names([str(int(i) + 1) for i in frame.index[mask]], "row", most)
    names = as_text(frame, column)
    return list_names([name for name, hit in zip(names, mask, strict=True) if hit], "run", most)


def list_names(names: Sequence[str], noun: str, most: int = 5) -> str:
    """Return names behind a noun given in the singular: `runs a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{noun}{'s' if len(names) != 1 else ''} {', '.join(names[:most])}{more}"


def abbreviate(cell: object) -> str:
    """Return a cell in at most 24 characters."""
    text = " ".join(repr(cell).split()) if isinstance(cell, str) else " ".join(str(cell).split())
    return text if len(text) <= 24 else text[:21] + "..."
