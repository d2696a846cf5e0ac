"""What a reader says about a table beside its rows: rows left out, doubts, and how a row is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

RUN_COLUMNS = ("run_id", "run", "run_name", "Name", "name", "ID")
"""Names under which tables keep a run's name; the first that is there counts."""


class Dropped(NamedTuple):
    """Rows that were left out."""

    what: str
    why: str


def run_column(frame: pd.DataFrame) -> str | None:
    """The column that names the runs; a general one such as `name` only where it tells the rows apart."""
    for name in RUN_COLUMNS:
        if name in frame.columns and (name in RUN_COLUMNS[:2] or texts(frame, name).is_unique):
            return name
    return None


def texts(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, empty cells too."""
    return pd.Series([str(cell) for cell in frame[name]], index=frame.index, dtype=object)


def name_rows(frame: pd.DataFrame, mask: np.ndarray, most: int = 5) -> str:
    """Names rows: by their run where there is one, else by number (1 is the first row below the header)."""
    column = run_column(frame)
    if column is not None:
        return listed(
            [name for name, here in zip(texts(frame, column), mask, strict=True) if here],
            "run",
            most,
        )
    return listed([str(int(i) + 1) for i in frame.index[mask]], "row", most)


def listed(names: Sequence[str], word: str, most: int = 5) -> str:
    """`runs a, b and 3 more`: names behind a word in the singular."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{word}{'s' if len(names) != 1 else ''} {', '.join(names[:most])}{more}"


def short(cell: object) -> str:
    """A cell in at most 24 characters."""
    text = " ".join(repr(cell).split()) if isinstance(cell, str) else " ".join(str(cell).split())
    return text if len(text) <= 24 else text[:21] + "..."
