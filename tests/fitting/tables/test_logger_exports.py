"""Exports of W&B: the runs page, the API, the history of a run, a chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import read_table, simulate_isoflop
from isoflop.fitting.tables.nested_columns import unnest, unpivot_chart

STUDY = simulate_isoflop(points=5)


def check_study(source: pd.DataFrame | Path, rows: int = len(STUDY), **options: Any) -> None:
    """Check that a source gives the numbers of the study."""
    table = read_table(source, **options)
    expected = read_table(STUDY.head(rows)).frame
    for name in ("params", "tokens", "loss", "budget"):
        np.testing.assert_allclose(table.array(name), expected[name], rtol=1e-12)


def test_the_runs_page_is_read(tmp_path: Path):
    page = pd.DataFrame(
        {"Name": STUDY["run_id"], "State": "finished", "Notes": None, "User": "me", "Tags": ""}
    )
    page["Created"], page["Runtime"], page["_step"] = "2025-01-01T00:00:00.000Z", 100, 999
    page = page.assign(
        params=STUDY["params"], budget=STUDY["budget"], **{"eval/loss": STUDY["loss"]}
    )
    page["tokens"] = STUDY["tokens"]
    page.loc[[3, 7], "State"] = "crashed"
    page.loc[[8], "State"] = "running"
    page.to_csv(tmp_path / "wandb_export.csv", index=False, quoting=1)
    table = read_table(tmp_path / "wandb_export.csv")
    assert len(table) == len(STUDY) - 3
    assert table.columns["loss"] == "eval/loss"
    assert table.dropped == (
        ("runs sim-0003, sim-0007", "state is crashed, not done"),
        ("run sim-0008", "state is running, not done"),
    )


@pytest.mark.parametrize("form", ["python", "json", "value"])
def test_the_export_of_the_api_is_read(tmp_path: Path, form: str):
    """Read the export of W&B's documentation: name, and dictionaries in summary and config."""
    rows = STUDY.to_dict("records")
    summary = [
        {"loss": r["loss"], "tokens": r["tokens"], "bad": float("nan"), "_step": 10} for r in rows
    ]
    config = [
        {"model": {"params": r["params"]}, "budget": r["budget"], "none": None, "yes": True}
        for r in rows
    ]
    frame = pd.DataFrame({"summary": summary, "config": config, "name": STUDY["run_id"]})
    check_study(frame)
    if form != "python":
        frame["summary"] = frame["summary"].map(json.dumps)
        wrapped = [
            {k: {"desc": None, "value": v} for k, v in c.items()} if form == "value" else c
            for c in config
        ]
        frame["config"] = [json.dumps(c) for c in wrapped]
    if form == "value":
        frame = frame.assign(params=STUDY["params"])
    frame.to_csv(tmp_path / "project.csv")
    check_study(tmp_path / "project.csv")
    if form != "value":
        check_study(
            tmp_path / "project.csv",
            params="config.model.params",
            tokens="summary.tokens",
            loss="summary.loss",
        )


def test_nested_rows_of_jsonl_are_read(tmp_path: Path):
    lines = [
        {
            "id": r["run_id"],
            "config": {"params": r["params"], "budget": r["budget"]},
            "result": {"loss": r["loss"]},
        }
        for r in STUDY.to_dict("records")
    ]
    for line, tokens in zip(lines, STUDY["tokens"], strict=True):
        line["result"]["tokens"] = tokens
        line["config"]["note"] = "\u2028 \x85"
    (tmp_path / "runs.jsonl").write_text(
        "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    )
    check_study(tmp_path / "runs.jsonl")
    pd.DataFrame(lines).to_parquet(tmp_path / "runs.parquet")
    check_study(tmp_path / "runs.parquet")


@pytest.mark.parametrize(
    "cell",
    ["{", "{not: python}", "{'a': open('x')}", "{1}", "[1]", "{}", "", None, 3.0, "{" * 5000],
)
def test_cells_without_a_dictionary_are_not_changed(cell: object):
    assert list(unnest(pd.DataFrame({"config": [cell, cell]})).columns) == ["config"]


def test_a_column_of_the_frame_is_not_replaced():
    frame = pd.DataFrame({"a": [{"b": 1}], "a.b": [2]})
    assert unnest(frame)["a.b"].tolist() == [2]


def history(**more: object) -> pd.DataFrame:
    """Return `run.history()` of three runs: each metric is logged in its own rows."""
    histories = []
    for run, params in (("x", 1e7), ("y", 2e7), ("z", 3e7)):
        step = np.arange(0, 200, 2)
        train = pd.DataFrame(
            {
                "_step": step,
                "_runtime": step * 0.5,
                "train/loss": 4.0 - step / 200,
                "tokens": step * 1e5,
            }
        )
        held_out = pd.DataFrame({"_step": [99, 199], "eval/loss": [3.6, 3.1 + params / 1e9]})
        rows = pd.concat([train, held_out]).sort_values("_step", ignore_index=True)
        histories.append(rows.assign(run=run, params=params, budget=1e15, **more))
    return pd.concat(histories, ignore_index=True)


@pytest.mark.parametrize("kind", ["frame", "csv", "folder"])
def test_histories_are_read(tmp_path: Path, kind: str):
    source: pd.DataFrame | Path = history()
    if kind == "csv":
        source = tmp_path / "history.csv"
        history().to_csv(source)
    if kind == "folder":
        source = tmp_path / "histories"
        source.mkdir()
        for run, rows in history().groupby("run"):
            rows.drop(columns="run").to_csv(source / f"{run}.csv", index=False)
    table = read_table(source, loss="eval/loss")
    assert table.array("params").tolist() == [1e7, 2e7, 3e7]
    np.testing.assert_allclose(table.array("loss"), [3.11, 3.12, 3.13])
    assert table.array("tokens").tolist() == [198e5] * 3
    train = read_table(source, loss="train/loss")
    np.testing.assert_allclose(train.array("loss"), 3.01, rtol=1e-4)
    with pytest.raises(
        FitError, match=r"column 'loss' could be '.*loss', '.*loss'; name one with (--loss|loss=)"
    ):
        read_table(source)


def test_charts_are_read(tmp_path: Path):
    wide = pd.DataFrame({"Step": np.arange(100)})
    for run, level in (("a - b", 3.0), ("c", 4.0)):
        wide[f"{run} - train/loss"] = level * (1.1 - np.arange(100) / 1000)
        wide[f"{run} - train/loss__MIN"] = wide[f"{run} - train/loss"] - 0.1
        wide[f"{run} - train/loss__MAX"] = wide[f"{run} - train/loss"] + 0.1
    wide.loc[50:, [c for c in wide if c.startswith("c")]] = np.nan
    wide.to_csv(tmp_path / "chart.csv", index=False)
    (tmp_path / "runs.csv").write_text(
        "Name,params,tokens,budget\na - b,1e7,1e9,6e16\nc,2e7,5e8,6e16\n"
    )
    table = read_table(tmp_path / "chart.csv", beside=tmp_path / "runs.csv")
    assert dict(zip(table.frame["run_id"], table.array("params"), strict=True)) == {
        "a - b": 1e7,
        "c": 2e7,
    }
    np.testing.assert_allclose(table.array("loss"), [3.0 * 1.001, 4.0 * 1.051], rtol=1e-3)
    assert unpivot_chart(STUDY) is STUDY
