"""The loss log of a run: columns, rows, and its Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import RunError
from isoflop.files import replace_file
from isoflop.shapes import ModelShape

if TYPE_CHECKING:
    import pandas as pd

LOG_COLUMNS = {
    "step": "int64",
    "tokens": "int64",
    "train_flops": "float64",
    "split": "str",
    "kind": "str",
    "targets": "int64",
    "loss": "float64",
    "lr": "float64",
    "grad_norm": "float64",
    "tokens_per_second": "float64",
    "mfu": "float64",
    "wall_s": "float64",
}
"""Columns of the loss log; all but the last three, which measure time, repeat bit for bit."""


def log_row(shape: ModelShape, batch_size: int, step: int, **values: Any) -> dict[str, Any]:
    """Return a row of the loss log after `step` updates of `batch_size` sequences.

    Columns without a value are NaN.
    """
    tokens = step * batch_size * shape.seq_len
    counts = {
        "step": step,
        "tokens": tokens,
        "train_flops": float(tokens * shape.train_flops_per_token),
        "targets": 0,
    }
    return {**dict.fromkeys(LOG_COLUMNS, float("nan")), **counts, **values}


def to_log_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with the columns of the log."""
    import pandas as pd

    def column(name: str, kind: str) -> pd.Series:
        return pd.Series([row.get(name, float("nan")) for row in rows], dtype=kind)

    return pd.DataFrame({name: column(name, kind) for name, kind in LOG_COLUMNS.items()})


def write_part(path: Path, frame: pd.DataFrame) -> None:
    """Write a part file, complete or not at all."""
    with replace_file(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_part(path: Path) -> pd.DataFrame:
    """Read a part file.

    Raises:
        RunError: a file that can't be read, or that lacks a column.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{path}: damaged ({reason}); delete the run's directory to start it again"
        ) from None
    if fault := find_column_fault(frame, LOG_COLUMNS):
        raise RunError(f"{path}: damaged ({fault}); delete the run's directory to start it again")
    return frame


def find_column_fault(frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Return the first fault of a table's columns, e.g. `no column step`; empty if there is none.

    The table may have been edited by hand.
    """
    for name, kind in columns.items():
        if name not in frame.columns:
            return f"no column {name}"
        if (frame[name].dtype.kind in "iuf") is (kind == "str"):
            return f"its column {name} holds {frame[name].dtype}, not {kind}"
    return ""
