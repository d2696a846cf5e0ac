"""Loss logs become a row a run: rules of the final loss, a table beside the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.training_logs import curve, make_log

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, read_table, simulate_isoflop
from isoflop.fitting.tables.final_loss import (
    FinalRule,
    choose_rule,
    estimate_final_loss,
    is_held_out,
)
from isoflop.runs.runs_table import read_runs

STUDY = Path(__file__).parents[3] / "analysis" / "pocket-64"


@pytest.mark.parametrize("shape", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("rows", [200, 2000])
def test_a_line_is_less_biased_than_a_mean_on_a_decaying_schedule(rows: int, shape: float):
    share, loss, _ = curve(rows, shape)
    rules: tuple[FinalRule, ...] = ("line", "mean", "last")
    bias = {rule: estimate_final_loss(share, loss, rule) / loss[-1] - 1.0 for rule in rules}
    assert abs(bias["line"]) < 0.003
    assert bias["mean"] > 0.002
    assert abs(bias["line"]) < 1.2 * bias["mean"]
    noisy = np.random.default_rng(0).normal(0.0, 0.02, (300, rows))
    scatter = {
        rule: np.std([estimate_final_loss(share, loss * np.exp(error), rule) for error in noisy])
        for rule in rules
    }
    assert scatter["line"] < 1.7 * scatter["mean"]
    assert scatter["line"] < 0.5 * scatter["last"]


def test_training_logs_of_the_committed_study_end_at_its_held_out_losses():
    runs = read_runs(STUDY).set_index("run_id")
    ends = {}
    rules: tuple[FinalRule, ...] = ("line", "mean")
    for rule in rules:
        table = read_table(
            STUDY / "losses.parquet", split="train", beside=STUDY / "runs.parquet", final=rule
        )
        ends[rule] = np.log(table.frame.set_index("run_id")["loss"] / runs["loss"])
    assert len(ends["line"]) == 80
    assert abs(ends["line"].mean()) < 0.003
    assert ends["mean"].mean() > 0.005


def test_held_out_logs_of_the_committed_study_give_its_law():
    logs = read_table(STUDY / "losses.parquet", beside=STUDY / "runs.parquet")
    assert logs.hash == read_table(STUDY).hash
    assert (
        "69,996 rows of 80 loss logs; final 'loss' of heldout: the last value (80)" in logs.reading
    )


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("val_loss", True),
        ("eval/loss", True),
        ("heldout", True),
        ("train/loss", False),
        ("loss", False),
        ("value", False),
    ],
)
def test_held_out_losses_are_recognised(name: str, held_out: bool):
    assert is_held_out(name) is held_out


@pytest.mark.parametrize(
    ("rows", "rule", "held_out", "expected"),
    [
        (200, "auto", False, "line"),
        (200, "auto", True, "last"),
        (20, "auto", False, "last"),
        (20, "mean", True, "mean"),
    ],
)
def test_rules_are_chosen(rows: int, rule: FinalRule, held_out: bool, expected: str):
    assert choose_rule(np.arange(1.0, rows + 1), rule, held_out) == expected


def test_a_log_becomes_a_row_a_run():
    runs = pd.concat([make_log("a", noise=0.01), make_log("b", level=1.1, noise=0.01)]).sample(
        frac=1.0, random_state=0
    )
    table = read_table(runs, final="last")
    assert table.frame["run_id"].tolist() == ["a", "b"]
    assert table.array("tokens").tolist() == [1e9, 1e9]
    assert table.array("flops").tolist() == [6e16, 6e16]
    last = runs[runs["step"] == 2000].set_index("run")["loss"]
    np.testing.assert_allclose(table.array("loss"), last[["a", "b"]])
    line = read_table(runs).array("loss")
    np.testing.assert_allclose(line / curve(200)[1][-1], [1.0, 1.1], rtol=0.015)
    expected = (
        "400 rows of 2 loss logs; final 'loss': the end of a straight line through the log loss of "
        "the last 10%"
    )
    assert expected in read_table(runs).reading


def test_a_table_beside_adds_missing_columns(tmp_path: Path):
    runs = pd.concat([make_log("a"), make_log("b"), make_log("c")]).drop(
        columns=["params", "flops"]
    )
    beside = tmp_path / "shapes.csv"
    beside.write_text("run,params,budget\na,1e7,6e16\nb,2e7,6e16\nz,3e7,6e16\n")
    table = read_table(runs, beside=beside)
    assert table.array("params").tolist() == [1e7, 2e7]
    assert table.dropped == (("run c", "not in the --beside table"),)
    with pytest.raises(FitError, match="no column 'run'"):
        read_table(runs, beside=pd.DataFrame({"params": [1e7]}))
    with pytest.raises(FitError, match="column 'run' has run a more than once"):
        read_table(runs, beside=pd.DataFrame({"run": ["a", "a"], "params": 1e7}))
    with pytest.raises(FitError, match="has none of the log's runs"):
        read_table(runs, beside=pd.DataFrame({"run": ["x"], "params": 1e7}))


def test_a_table_beside_fills_missing_values_of_runs(tmp_path: Path):
    runs = pd.concat(
        [
            make_log("a"),
            make_log("b", params=np.nan),
            make_log("c", params=3e7, tokens=np.nan),
            make_log("d", flops=np.nan),
        ]
    )
    # A loss is never filled from the table.
    runs.loc[(runs["run"] == "c").to_numpy(), "loss"] = np.nan
    beside = tmp_path / "runs.csv"
    beside.write_text(
        "run,params,tokens,flops,loss\na,9e9,9e9,9e19,9\nb,2e7,,,9\nc,9e9,5e8,,9\nd,9e9,,6e16,9\n"
    )
    table = read_table(runs, beside=beside, final="last")
    assert table.frame.set_index("run_id")["params"].to_dict() == {"a": 1e7, "b": 2e7, "d": 1e7}
    assert table.array("flops").tolist() == [6e16, 6e16, 6e16]
    assert table.array("loss").tolist() == [curve(200)[1][-1]] * 3
    assert ("run c", "no loss in the log") in table.dropped
    assert (
        f"; 'params' of 1 run, 'tokens' of 1 run, 'flops' of 1 run from {beside}: 3 runs"
        in table.reading
    )


@pytest.mark.parametrize(
    "options", [{"run": "name"}, {"split": "val"}, {"step": "stp"}, {"loss": "lss"}]
)
def test_a_missing_column_is_named_with_file_and_option(tmp_path: Path, options: dict[str, Any]):
    make_log().to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(FitError) as problem:
        read_table(tmp_path / "log.csv", **options)
    assert str(problem.value).startswith(f"{tmp_path / 'log.csv'}: no column ")
    assert f"--{next(iter(options))}" in str(problem.value)
    (tmp_path / "beside.csv").write_text("width\n8\n")
    with pytest.raises(FitError, match=f"^{tmp_path / 'beside.csv'}: no column 'run'; "):
        read_table(make_log(), beside=tmp_path / "beside.csv")


def test_seeds_with_one_name_are_separate_runs():
    table = read_table(
        pd.concat(
            [
                make_log("a", seed=0),
                make_log("a", seed=1, level=1.1),
                make_log("b", seed=0, params=2e7),
            ]
        )
    )
    assert table.frame["run_id"].tolist() == ["a seed 0", "a seed 1", "b seed 0"]
    assert table.configurations["seeds"].tolist() == [2, 1]
    assert not table.findings


def test_a_table_beside_completes_a_table_without_steps():
    study = simulate_isoflop(points=5)
    beside = study.drop(columns=["loss", "train_flops"])
    losses = study.drop(columns=["params", "tokens", "budget", "train_flops"])
    table = read_table(losses.sample(frac=1.0, random_state=0), beside=beside)
    assert table.hash == read_table(study.drop(columns="train_flops")).hash


def test_splits_are_chosen():
    both = pd.concat(
        [
            make_log(split="train"),
            make_log(split="val", level=1.1).iloc[::50].assign(step=1, tokens=1e8),
        ]
    )
    both = pd.concat([both, make_log(split="val", level=1.2).iloc[[-1]]])
    assert read_table(both).array("loss")[0] == pytest.approx(1.2 * curve(200)[1][-1])
    assert read_table(both, split="train").array("loss")[0] == pytest.approx(
        curve(200)[1][-1], rel=0.01
    )
    three = pd.concat([both, make_log(split="test")])
    with pytest.raises(
        FitError, match="column 'split' has test, train, val; choose one with split="
    ):
        read_table(three)
    with pytest.raises(FitError, match="has no 'dev'; it has test, train, val"):
        read_table(three, split="dev")


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (
            make_log().assign(params=np.arange(200) + 1e7),
            {},
            "column 'params' changes within run r",
        ),
        (make_log(), {"step": "stp"}, "no column 'stp'; did you mean 'step'?"),
        (make_log(), {"run": "name"}, "no column 'name'"),
        (make_log(), {"split": "val"}, "no column 'split'"),
        (make_log().assign(loss="high"), {}, "column 'loss' needs positive, finite numbers"),
        (make_log().drop(columns="params"), {}, "no column 'params' or 'params_total'"),
    ],
)
def test_unusable_logs_are_refused(runs: pd.DataFrame, options: dict[str, Any], message: str):
    with pytest.raises(FitError) as refusal:
        read_table(runs, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_runs_with_one_row_each_are_no_log():
    runs = simulate_isoflop(points=5, seeds=2).rename(columns={"run_id": "run"}).assign(step=1000)
    assert "with 70 rows" in read_table(runs).reading
    by_size = runs.assign(run=[f"w{i % 5}" for i in range(70)])
    assert "with 70 rows" in read_table(by_size).reading


def make_nameless_logs(**columns: Any) -> pd.DataFrame:
    """Return logs of 35 runs whose names are in an unusual column."""
    study = simulate_isoflop(points=5)
    rows = [
        study.assign(step=10 * k, tokens=study["tokens"] * k / 12, loss=study["loss"] * 12 / k)
        for k in range(13)
    ]
    logs = pd.concat(rows[1:]).rename(columns={"run_id": "experiment"})
    logs["train_flops"] *= logs["step"] / 120
    return logs.assign(**columns)


@pytest.mark.parametrize(
    ("runs", "options", "step"),
    [
        (make_nameless_logs(), {}, "step"),
        (make_nameless_logs(), {"budget": "budget", "params": "params"}, "step"),
        (make_nameless_logs().drop(columns="budget"), {}, "step"),
        (make_nameless_logs().drop(columns="budget"), {"flops": "6ND"}, "step"),
        # One size: its steps are those of all runs.
        (make_nameless_logs().drop(columns="budget").assign(params=1e9), {}, "step"),
        (
            make_nameless_logs().rename(columns={"step": "iteration"}).astype({"iteration": str}),
            {},
            "iteration",
        ),
        (make_nameless_logs(step="unknown"), {}, "step"),
        (make_nameless_logs(step="unknown").drop(columns="budget"), {}, "step"),
        (make_nameless_logs(seed=0, batch_size=8, lr=np.arange(420)), {}, "step"),
    ],
)
def test_a_log_without_run_names_is_refused(runs: pd.DataFrame, options: dict[str, Any], step: str):
    with pytest.raises(FitError) as refusal:
        read_table(runs, **options)
    message = (
        f"column {step!r} marks this table as a loss log, but no column names its runs; "
        "name it with run="
    )
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_log_with_run_names_needs_numeric_steps():
    assert len(read_table(make_nameless_logs(), run="experiment")) == 35
    with pytest.raises(FitError, match="column 'step' needs positive, finite numbers"):
        read_table(make_nameless_logs(step="unknown"), run="experiment")


SIZES = pd.concat(
    [
        simulate_isoflop(budgets=(budget,), points=5).assign(params=[1e8, 2e8, 3e8, 4e8, 5e8])
        for budget in (1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21, 3e21)
    ],
    ignore_index=True,
)
SIZES = SIZES.assign(
    tokens=SIZES["budget"] / 6 / SIZES["params"], step=(SIZES["budget"] / SIZES["params"]) // 6e5
)


@pytest.mark.parametrize(
    "runs",
    [
        SIZES,
        SIZES.drop(columns="budget"),  # the steps of a size are those of 8 budgets
        SIZES.drop(columns=["budget", "train_flops"]),
        SIZES.assign(step="last"),
        SIZES.drop(columns="budget").assign(step="last"),
        SIZES.rename(columns={"step": "steps"}),
        pd.concat([SIZES.assign(seed=s, loss=SIZES["loss"] * (1 + s / 1e3)) for s in range(4)]),
        pd.concat([SIZES.assign(batch_size=b, step=SIZES["step"] * 64 // b) for b in (16, 32, 64)]),
    ],
)
def test_finished_runs_without_names_may_have_steps(runs: pd.DataFrame):
    six = None if {"budget", "train_flops"} & set(runs.columns) else "6ND"
    assert len(read_table(runs.drop(columns="run_id"), flops=six)) == len(runs)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("layout", ["runs/{run}", "{run}/metrics"])
def test_a_folder_with_a_file_a_run_is_read(tmp_path: Path, kind: str, layout: str):
    for run in ("a", "b"):
        file = tmp_path / "logs" / f"{layout.format(run=run)}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = make_log(run, params=1e7 if run == "a" else 2e7).drop(columns="run")
        if kind == "csv":
            rows.to_csv(file)
        elif kind == "parquet":
            rows.to_parquet(file)
        else:
            file.write_text("\n".join(map(json.dumps, rows.to_dict("records"))))
    table = read_table(tmp_path / "logs")
    assert [name.removeprefix("runs/") for name in table.frame["run_id"]] == ["a", "b"]
    assert table.array("params").tolist() == [1e7, 2e7]


def test_a_broken_file_of_a_folder_is_left_out_with_its_reason(tmp_path: Path):
    make_log("a").to_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("")
    table = read_table(tmp_path)
    assert table.dropped == (("b.csv", "the file is empty"),)


def test_training_logs_give_the_true_law():
    study = simulate_isoflop(noise=0.0, points=7, budgets=(1e18, 1e19, 1e20, 1e21))
    share, shape, rate = curve(100)
    logs = []
    rng = np.random.default_rng(0)
    for row in study.to_dict("records"):
        loss = row["loss"] * shape / shape[-1] * np.exp(rng.normal(0.0, 0.004, 100))
        steps = {
            "step": np.arange(100),
            "tokens": share * row["tokens"],
            "train_flops": share * row["budget"],
        }
        logs.append(
            pd.DataFrame(
                {"run": row["run_id"], "params": row["params"], "lr": rate, "loss": loss, **steps}
            )
        )
    law = fit_isoflop(pd.concat(logs))
    assert len(law.profiles) == 4
    a = law.exponents.loc["a"]
    assert a["low"] < 0.5139 < a["high"]
    assert a["high"] - a["low"] < 0.1
