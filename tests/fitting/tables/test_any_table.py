"""Thousands of broken and odd tables, as frames and files: each is fitted or refused in one line.

A table is a good study with a few common defects: cells that are no numbers, other units, names and
types, missing or repeated rows, columns of loggers, many rows a run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.known_answers import FIT_OPTIONS, fit_or_refuse, search_settings, try_reading

from isoflop.fitting import simulate_isoflop
from isoflop.fitting.tables.final_loss import FINAL_RULES

STUDY = simulate_isoflop(points=5, budgets=(1e18, 3e18, 1e19, 1e20)).drop(columns="simulated")
NUMBERS = ["params", "tokens", "loss", "budget", "train_flops"]
ODD_CELLS: list[Any] = [
    float("nan"), float("inf"), -float("inf"), 0, 0.0, -0.0, -1.0, 5e-324, 1e-300, 1e300, 1.7e308,
    2**63, 2**70, -(2**63), None, "", " ", "1e6", " 3.5 ", "1,000", "12M", "nan", "inf", "-",
    "true", "٣", "1_000", True, False, [1.0], {"a": 1.0}, "{'a': 1}", '{"value": 3}', "{",
    np.float32(2.5), np.array([3.0]), 1j, pd.Timestamp("2020-01-01"), pd.NA, b"3",
]  # fmt: skip
TYPES = [
    "int64",
    "float32",
    "float16",
    "Int64",
    "Float64",
    "string",
    "category",
    "complex128",
    "bool",
    "object",
    "uint8",
]
NAMES = [
    "params",
    "tokens",
    "loss",
    "flops",
    "budget",
    "step",
    "run",
    "run_id",
    "state",
    "split",
    "lr",
    "x",
    "",
    "name",
    7,
]
FACTORS = [0.5, 1e3, 1e-6, 1e-9, 1e12, 1e150]
LOGGER_COLUMNS = [
    "state",
    "State",
    "seed",
    "epochs",
    "split",
    "kind",
    "step",
    "_step",
    "run",
    "lr",
    "steps",
]
LOGGER_CELLS = ["done", "failed", "finished", None, 0, 1, 2.5, "val", 1e9, "x"]

MAX_ROWS = 5_000
odd_cells = st.sampled_from(ODD_CELLS)
columns = st.sampled_from(NUMBERS)
rows = st.lists(st.integers(0, len(STUDY) - 1), min_size=1, max_size=12)


def set_cells(frame: pd.DataFrame, column: str, where: list[int], cell: Any) -> pd.DataFrame:
    """Return the frame with a cell in some rows of a column."""
    values = list(frame[column]) if column in frame else [None] * len(frame)
    for row in where:
        if row < len(values):
            values[row] = cell
    return frame.assign(**{column: pd.Series(values, index=frame.index, dtype=object)})


def scale(frame: pd.DataFrame, column: str, where: list[int], factor: float) -> pd.DataFrame:
    """Return the frame with some rows of a column times a factor."""
    if list(frame.columns).count(column) != 1 or frame[column].dtype.kind != "f":
        return frame
    values = frame[column].to_numpy(dtype=np.float64).copy()
    with np.errstate(over="ignore"):
        values[[row for row in where if row < len(values)]] *= factor
    return frame.assign(**{column: values})


def cast_column(frame: pd.DataFrame, column: str, kind: str) -> pd.DataFrame:
    try:
        with np.errstate(all="ignore"):
            cells = frame[column].astype(kind)  # type: ignore[call-overload]
            return frame.assign(**{column: cells})
    except (ValueError, TypeError, OverflowError, KeyError, RuntimeWarning):
        return frame


def rename(frame: pd.DataFrame, column: str, name: Any) -> pd.DataFrame:
    return frame.rename(columns={column: name})


def many_rows(frame: pd.DataFrame, count: int, step: str) -> pd.DataFrame:
    """Return a loss log with the frame's rows at each of so many steps."""
    if len(frame) == 0 or "loss" not in frame or frame.columns.has_duplicates:
        return frame
    count = min(count, max(1, MAX_ROWS // len(frame)))
    logs = [frame.assign(**{step: number * 10, "part": number}) for number in range(count)]
    return pd.concat(logs, ignore_index=True)


edits: st.SearchStrategy[Callable[[pd.DataFrame], pd.DataFrame]] = st.one_of(
    st.builds(lambda c, r, v: lambda f: set_cells(f, c, r, v), columns, rows, odd_cells),
    st.builds(lambda c, v: lambda f: f.assign(**{c: [v] * len(f)}), columns, odd_cells),
    st.builds(
        lambda c, r, v: lambda f: scale(f, c, r, v),
        columns, rows | st.just(list(range(99))), st.sampled_from(FACTORS),
    ),
    st.builds(lambda c, k: lambda f: cast_column(f, c, k), columns, st.sampled_from(TYPES)),
    st.builds(lambda c: lambda f: f.drop(columns=c, errors="ignore"), columns),
    st.builds(lambda c, n: lambda f: rename(f, c, n), columns, st.sampled_from(NAMES)),
    st.builds(lambda n: lambda f: f.head(n), st.integers(0, 8)),
    st.builds(lambda r: lambda f: pd.concat([f, f.iloc[[i for i in r if i < len(f)]]]), rows),
    st.builds(
        lambda n, v: lambda f: f.assign(**{n: (v * (len(f) + 1))[: len(f)]}),
        st.sampled_from(LOGGER_COLUMNS), st.lists(st.sampled_from(LOGGER_CELLS), min_size=1),
    ),
    st.builds(
        lambda n, s: lambda f: many_rows(f, n, s),
        st.integers(2, 40), st.sampled_from(["step", "_step", "n"]),
    ),
    st.builds(lambda s: lambda f: f.sample(frac=1.0, random_state=s), st.integers(0, 9)),
    st.just(lambda f: f.set_index(np.zeros(len(f)))),
    st.just(lambda f: f.assign(config=[{"params": 1e7, "x": {"value": i}} for i in range(len(f))])),
    st.just(lambda f: f.T),
)  # fmt: skip
read_options = st.fixed_dictionaries(
    {},
    optional={
        "params": st.sampled_from(["params", "params*1e6", "config.params", "tokens*", "7", "N"]),
        "loss": st.sampled_from(["loss", "bits", "loss*0.5", "run_id"]),
        "flops": st.sampled_from(["6ND", "6nd", "train_flops", "budget"]),
        "budget": st.sampled_from(["budget", "train_flops", "params"]),
        "step": st.sampled_from(["step", "_step", "n", "loss"]),
        "run": st.sampled_from(["run_id", "run", "budget"]),
        "final": st.sampled_from(FINAL_RULES),
        "loss_unit": st.sampled_from(["nats", "bits"]),
        "n": st.sampled_from(["total", "one_embedding"]),
        "need_budgets": st.booleans(),
    },
)


def write_frame(frame: pd.DataFrame, kind: str, folder: Path) -> pd.DataFrame | Path:
    """Return the path of the table as a file; the frame if that kind of file cannot store it."""
    path = folder / f"runs.{kind}"
    if kind == "frame" or not frame.columns.is_unique:
        return frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of pandas' writers
        try:
            if kind in ("csv", "tsv"):
                frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
            elif kind == "parquet":
                frame.to_parquet(path)
            else:
                path.write_text(
                    "\n".join(json.dumps(row, default=str) for row in frame.to_dict("records"))
                )
        except (ValueError, TypeError, KeyError, OverflowError, NotImplementedError):
            return frame
    return path


kinds = st.sampled_from(["frame", "csv", "tsv", "jsonl", "parquet"])


def check_changed_study(
    changes: list[Callable[[pd.DataFrame], pd.DataFrame]],
    kind: str,
    read_options: dict[str, Any],
    fit_options: dict[str, Any],
    root: Path,
) -> None:
    """Change the study, write it as a file, and check that it is fitted or refused."""
    frame = STUDY
    for change in changes:
        try:
            frame = change(frame)
        except (TypeError, ValueError, KeyError):  # two edits that exclude each other
            continue
    for old in root.iterdir():
        old.unlink()
    fit_or_refuse(write_frame(frame, kind, root), read_options, fit_options)


@search_settings(60)
@given(st.lists(edits, max_size=4), kinds, read_options, FIT_OPTIONS)
def test_any_table_is_fitted_or_refused(
    tmp_path: Path, changes: Any, kind: str, reading: Any, fitting: Any
):
    check_changed_study(changes, kind, reading, fitting, tmp_path)


@pytest.mark.long
@search_settings(3_000)
@given(st.lists(edits, max_size=6), kinds, read_options, FIT_OPTIONS)
def test_very_many_tables_are_fitted_or_refused(
    tmp_path: Path, changes: Any, kind: str, reading: Any, fitting: Any
):
    check_changed_study(changes, kind, reading, fitting, tmp_path)


@pytest.mark.parametrize("kind", ["frame", "csv", "tsv", "jsonl", "parquet"])
def test_the_study_itself_is_fitted(tmp_path: Path, kind: str):
    assert fit_or_refuse(write_frame(STUDY, kind, tmp_path), {}, {}) == "fitted"


@pytest.mark.parametrize(
    "cell", [c for c in ODD_CELLS if not isinstance(c, dict | list | np.ndarray)], ids=repr
)
@pytest.mark.parametrize("column", NUMBERS)
def test_an_odd_cell_is_a_number_or_its_run_is_named(cell: Any, column: str):
    table, refusal = try_reading(set_cells(STUDY, column, [3], cell), {})
    if table is None:
        assert "sim-0003" in refusal
        assert column in refusal
    elif len(table) < len(STUDY):
        ((run, reason),) = table.dropped
        assert (run, reason.split(" is ")[0]) == ("run sim-0003", column)
    else:
        value = float(cell)
        assert value in table.array("flops" if column == "train_flops" else column)
        is_plausible = column == "loss" and 2.0 < value < 4.0
        messages = " ".join(finding["message"] for finding in table.findings)
        assert is_plausible or "sim-0003" in messages


@search_settings(100)
@given(
    st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "wandb", "ndjson"])
)
def test_any_bytes_are_refused(tmp_path: Path, content: bytes, kind: str):
    path = tmp_path / f"runs.{kind}"
    path.write_bytes(content)
    assert fit_or_refuse(path, {}, {}) == "refused"
