"""Broken and odd tables, by the thousand, as frames and as files: each is fitted or refused in one line.

A table is a good study with a few things done to it that happen to tables: cells that are no numbers, units, names,
types, rows that are gone or there twice, columns of loggers, many rows a run.
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
from support.known_answers import WAYS, answer, read, search

from isoflop.fitting import simulate_isoflop
from isoflop.fitting.tables.final_loss import RULES

STUDY = simulate_isoflop(points=5, budgets=(1e18, 3e18, 1e19, 1e20)).drop(columns="simulated")
NUMBERS = ["params", "tokens", "loss", "budget", "train_flops"]
ODD_CELLS: list[Any] = [
    float("nan"), float("inf"), -float("inf"), 0, 0.0, -0.0, -1.0, 5e-324, 1e-300, 1e300, 1.7e308, 2**63, 2**70,
    -(2**63), None, "", " ", "1e6", " 3.5 ", "1,000", "12M", "nan", "inf", "-", "true", "٣", "1_000", True, False,
    [1.0], {"a": 1.0}, "{'a': 1}", '{"value": 3}', "{", np.float32(2.5), np.array([3.0]), 1j, 
    pd.Timestamp("2020-01-01"), pd.NA, b"3",
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

MOST_ROWS = 5_000
columns = st.sampled_from(NUMBERS)
rows = st.lists(st.integers(0, len(STUDY) - 1), min_size=1, max_size=12)


def set_cells(frame: pd.DataFrame, column: str, where: list[int], cell: Any) -> pd.DataFrame:
    values = list(frame[column]) if column in frame else [None] * len(frame)
    for row in where:
        if row < len(values):
            values[row] = cell
    return frame.assign(**{column: pd.Series(values, index=frame.index, dtype=object)})


def scale(frame: pd.DataFrame, column: str, where: list[int], factor: float) -> pd.DataFrame:
    if list(frame.columns).count(column) != 1 or frame[column].dtype.kind != "f":
        return frame
    values = frame[column].to_numpy(dtype=np.float64).copy()
    with np.errstate(over="ignore"):
        values[[row for row in where if row < len(values)]] *= factor
    return frame.assign(**{column: values})


def cast_column(frame: pd.DataFrame, column: str, kind: str) -> pd.DataFrame:
    try:
        with np.errstate(all="ignore"):
            return frame.assign(**{column: frame[column].astype(kind)})  # type: ignore[call-overload]
    except (ValueError, TypeError, OverflowError, KeyError, RuntimeWarning):
        return frame


def rename(frame: pd.DataFrame, column: str, name: Any) -> pd.DataFrame:
    return frame.rename(columns={column: name})


def many_rows(frame: pd.DataFrame, count: int, step: str) -> pd.DataFrame:
    if (
        len(frame) == 0
        or "loss" not in frame
        or frame.columns.has_duplicates
        or "loss" not in NUMBERS
    ):
        return frame
    count = min(count, max(1, MOST_ROWS // len(frame)))
    parts = [frame.assign(**{step: number * 10, "part": number}) for number in range(count)]
    return pd.concat(parts, ignore_index=True)


edits: st.SearchStrategy[Callable[[pd.DataFrame], pd.DataFrame]] = st.one_of(
    st.builds(lambda c, r, v: lambda f: set_cells(f, c, r, v), columns, rows, st.sampled_from(ODD_CELLS)),
    st.builds(lambda c, v: lambda f: f.assign(**{c: [v] * len(f)}), columns, st.sampled_from(ODD_CELLS)),
    st.builds(
        lambda c, r, v: lambda f: scale(f, c, r, v),
        columns, rows | st.just(list(range(99))), st.sampled_from([0.5, 1e3, 1e-6, 1e-9, 1e12, 1e150]),
    ),
    st.builds(lambda c, k: lambda f: cast_column(f, c, k), columns, st.sampled_from(TYPES)),
    st.builds(lambda c: lambda f: f.drop(columns=c, errors="ignore"), columns),
    st.builds(lambda c, n: lambda f: rename(f, c, n), columns, st.sampled_from(NAMES)),
    st.builds(lambda n: lambda f: f.head(n), st.integers(0, 8)),
    st.builds(lambda r: lambda f: pd.concat([f, f.iloc[[i for i in r if i < len(f)]]]), rows),
    st.builds(
        lambda n, v: lambda f: f.assign(**{n: (v * (len(f) + 1))[: len(f)]}),
        st.sampled_from(["state", "State", "seed", "epochs", "split", "kind", "step", "_step", "run", "lr", "steps"]),
        st.lists(st.sampled_from(["done", "failed", "finished", None, 0, 1, 2.5, "val", 1e9, "x"]), min_size=1),
    ),
    st.builds(lambda n, s: lambda f: many_rows(f, n, s), st.integers(2, 40), st.sampled_from(["step", "_step", "n"])),
    st.builds(lambda s: lambda f: f.sample(frac=1.0, random_state=s), st.integers(0, 9)),
    st.just(lambda f: f.set_index(np.zeros(len(f)))),
    st.just(lambda f: f.assign(config=[{"params": 1e7, "x": {"value": i}} for i in range(len(f))])),
    st.just(lambda f: f.T),
)  # fmt: skip
options = st.fixed_dictionaries(
    {},
    optional={
        "params": st.sampled_from(["params", "params*1e6", "config.params", "tokens*", "7", "N"]),
        "loss": st.sampled_from(["loss", "bits", "loss*0.5", "run_id"]),
        "flops": st.sampled_from(["6ND", "6nd", "train_flops", "budget"]),
        "budget": st.sampled_from(["budget", "train_flops", "params"]),
        "step": st.sampled_from(["step", "_step", "n", "loss"]),
        "run": st.sampled_from(["run_id", "run", "budget"]),
        "final": st.sampled_from(RULES),
        "loss_unit": st.sampled_from(["nats", "bits"]),
        "n": st.sampled_from(["total", "one_embedding"]),
        "need_budgets": st.booleans(),
    },
)


def written(frame: pd.DataFrame, kind: str, folder: Path) -> pd.DataFrame | Path:
    """The table as a file, or as it is where that kind of file can't hold it."""
    path = folder / f"runs.{kind}"
    if kind == "frame" or not frame.columns.is_unique:
        return frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' own, about what it writes
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


def run_one(
    changes: list[Callable[[pd.DataFrame], pd.DataFrame]],
    kind: str,
    chosen: dict[str, Any],
    how: dict[str, Any],
    root: Path,
) -> None:
    frame = STUDY
    for change in changes:
        try:
            frame = change(frame)
        except (TypeError, ValueError, KeyError):  # two edits that exclude each other
            continue
    for old in root.iterdir():
        old.unlink()
    answer(written(frame, kind, root), chosen, how)


@search(100)
@given(st.lists(edits, max_size=4), kinds, options, WAYS)
def test_any_table_is_fitted_or_refused(
    tmp_path: Path, changes: Any, kind: str, chosen: Any, how: Any
):
    run_one(changes, kind, chosen, how, tmp_path)


@pytest.mark.slow
@search(1_000)
@given(st.lists(edits, max_size=6), kinds, options, WAYS)
def test_very_many_tables_are_fitted_or_refused(
    tmp_path: Path, changes: Any, kind: str, chosen: Any, how: Any
):
    run_one(changes, kind, chosen, how, tmp_path)


@pytest.mark.parametrize("kind", ["frame", "csv", "tsv", "jsonl", "parquet"])
def test_the_study_itself_is_fitted(tmp_path: Path, kind: str):
    assert answer(written(STUDY, kind, tmp_path), {}, {}) == "fitted"


@pytest.mark.parametrize(
    "cell", [c for c in ODD_CELLS if not isinstance(c, dict | list | np.ndarray)], ids=repr
)
@pytest.mark.parametrize("column", NUMBERS)
def test_one_odd_cell_is_a_number_or_is_named(cell: Any, column: str):
    table, refusal = read(set_cells(STUDY, column, [3], cell), {})
    if table is None:
        assert "sim-0003" in refusal
        assert column in refusal
    elif len(table) < len(STUDY):
        ((what, why),) = table.dropped
        assert (what, why.split(" is ")[0]) == ("run sim-0003", column)
    else:
        value = float(cell)
        assert value in table.array("flops" if column == "train_flops" else column)
        plausible = column == "loss" and 2.0 < value < 4.0
        assert plausible or "sim-0003" in " ".join(finding["message"] for finding in table.findings)


@search(100)
@given(
    st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "wandb", "ndjson"])
)
def test_any_bytes_are_refused(tmp_path: Path, content: bytes, kind: str):
    path = tmp_path / f"runs.{kind}"
    path.write_bytes(content)
    assert answer(path, {}, {}) == "refused"
