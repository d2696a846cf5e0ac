"""Array types and typed access to DataFrames, whose annotations are too wide for a type checker."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def column(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return a numeric column as float64, (rows,); NaN for missing values."""
    return cast(pd.Series, frame[name]).to_numpy(dtype=np.float64, na_value=np.nan)


def mask(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return a boolean column, (rows,)."""
    return cast(pd.Series, frame[name]).to_numpy(dtype=bool)


def rows(frame: pd.DataFrame, keep: np.ndarray) -> pd.DataFrame:
    """Return the rows where a mask, (rows,), is true, with their index."""
    return cast(pd.DataFrame, frame.loc[keep])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one dict per row, keyed by column."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


def cell(frame: pd.DataFrame, row: str, name: str) -> float:
    """Return the number in a column at the row with index `row`."""
    return float(cast(Any, frame.at[row, name]))
