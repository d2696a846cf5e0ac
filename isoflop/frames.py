"""Typed access to DataFrames: pandas' own annotations are too wide for a strict type checker."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def column(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A numeric column as float64; what is missing is NaN."""
    return cast(pd.Series, frame[name]).to_numpy(dtype=np.float64, na_value=np.nan)


def mask(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A boolean column."""
    return cast(pd.Series, frame[name]).to_numpy(dtype=bool)


def rows(frame: pd.DataFrame, keep: np.ndarray) -> pd.DataFrame:
    """The rows where a mask holds, with their index."""
    return cast(pd.DataFrame, frame.loc[keep])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A dict a row."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


def cell(frame: pd.DataFrame, row: str, name: str) -> float:
    """One number, by the name of its row."""
    return float(cast(Any, frame.at[row, name]))
