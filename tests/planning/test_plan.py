"""A plan: its columns, totals, files and warnings."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from isoflop.config import load_sweep
from isoflop.errors import ConfigError, IsoflopError, RunError
from isoflop.planning.plan import Plan, plan, read_plan_rows
from isoflop.planning.run_spec import PLAN_COLUMNS

INTERFACE_COLUMNS = """
    run_id sweep budget width layers heads kv_heads head_dim mlp_width vocab_size seq_len batch_size
    steps lr beta2 seed check tokens train_flops params_total params_one_embedding
    params_non_embedding epochs gpus nodes est_hours est_gpu_hours est_source
"""
"""Columns that readers of plan.parquet rely on."""

UNKNOWN_WITHOUT_A_CLUSTER = ["gpus", "nodes", "est_hours", "est_gpu_hours", "est_source"]


@pytest.fixture(scope="module")
def soda() -> Plan:
    return plan("soda")


def test_soda(soda: Plan) -> None:
    assert len(soda.runs) == 64
    assert len(soda.dropped) == 21
    assert len({run.run_id for run in soda.runs}) == 64
    (run,) = (run for run in soda.runs if (run.budget, run.width) == (9e18, 768))
    assert run.vocab_size == 144_644
    assert (run.layers, run.heads, run.batch_size, run.steps) == (8, 6, 32, 48_244)
    assert run.run_id.startswith("9e18-w768-s0-")
    assert run.tokens == 32 * 4096 * 48_244
    assert run.train_flops == pytest.approx(9e18, rel=1e-4)


def test_runs_are_in_order_of_budget_width_and_seed() -> None:
    planned = plan("soda", ["budgets=[9e18, 3e18]", "extra=[]", "seeds=[2, 0]"])
    order = [(run.budget, run.width, run.seed) for run in planned.runs]
    assert order == sorted(order)


def test_checks_of_the_recipe_do_not_rename_other_runs(soda: Plan) -> None:
    checked = plan("soda", ["recipe_check=true"])
    assert checked.runs[:64] == soda.runs
    checks = checked.runs[64:]
    assert len(checks) == 24
    assert len({run.run_id for run in checked.runs}) == 88
    (run,) = (
        run for run in checks if (run.budget, run.width, run.check) == (3e18, 640, "lr x 0.5")
    )
    assert run.run_id.startswith("3e18-w640-lr0.5-s0-")
    assert list(checked.to_frame()["check"])[60:] == [""] * 4 + [run.check for run in checks]


def test_totals(soda: Plan) -> None:
    assert soda.total_flops == sum(run.train_flops for run in soda.runs)
    assert isinstance(soda.total_flops, int)
    assert soda.totals() == {
        "runs": 64,
        "train_flops": float(soda.total_flops),
        "gpu_hours": None,
        "cost": None,
        "finish_hours": None,
    }


def test_columns_are_those_of_the_interface(soda: Plan) -> None:
    assert list(PLAN_COLUMNS) == INTERFACE_COLUMNS.split()
    assert all(list(row) == INTERFACE_COLUMNS.split() for row in soda.rows())
    json.dumps(soda.rows(), allow_nan=False)


def test_frame(soda: Plan) -> None:
    frame = soda.to_frame()
    assert list(frame.columns) == INTERFACE_COLUMNS.split()
    assert frame["params_total"].dtype == "int64"
    assert frame["train_flops"].dtype == "float64"
    assert list(frame.columns[frame.isna().any()]) == UNKNOWN_WITHOUT_A_CLUSTER
    assert list(frame.columns[frame.isna().all()]) == UNKNOWN_WITHOUT_A_CLUSTER


def test_files_hold_the_same_table(soda: Plan, tmp_path: Path) -> None:
    soda.write_parquet(tmp_path / "plan.parquet")
    soda.write_csv(tmp_path / "plan.csv")
    assert pq.read_table(tmp_path / "plan.parquet").to_pylist() == soda.rows()
    text = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in soda.rows()
    ]
    assert list(csv.DictReader((tmp_path / "plan.csv").read_text().splitlines())) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.csv", "plan.parquet"]
    rates = pd.read_csv(tmp_path / "plan.csv", dtype=str)["lr"]
    assert [float(rate) for rate in rates] == [run.lr for run in soda.runs]


def test_a_file_that_cannot_be_written_leaves_the_old_one(soda: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.csv").mkdir()
    with pytest.raises(IsoflopError, match=r"plan\.csv: can't be written"):
        soda.write_csv(tmp_path / "plan.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.csv"]


def test_epochs_are_those_of_the_source_repeated_most(soda: Plan) -> None:
    worst = max(soda.runs, key=lambda run: run.tokens)
    assert worst.epochs == pytest.approx(worst.tokens * 0.28776 / 73e9)  # emilia-yodas-en
    assert soda.warnings == ()


def test_epochs_are_unknown_without_sizes() -> None:
    assert {run.epochs for run in plan("soda", ["data.tokens={}"]).runs} == {None}


def test_too_many_epochs_lead_to_a_warning() -> None:
    (warning,) = plan("soda", ["data.tokens.emilia-en=1e9"]).warnings
    assert (
        "runs pass over a source more than 4 times (data.max_epochs); the most: 3e20-w640-s0-"
        in warning
    )
    assert warning.endswith("41.6 epochs of emilia-en")


def test_a_sweep_object_is_planned_like_its_file(soda: Plan) -> None:
    sweep = load_sweep("soda")
    assert plan(sweep).runs == soda.runs
    renamed = plan(dataclasses.replace(sweep, name="other"))
    assert [run.run_id for run in renamed.runs] == [run.run_id for run in soda.runs]
    with pytest.raises(ConfigError, match="overrides go with a file"):
        plan(sweep, ["seq_len=1"])


def test_run_ids_do_not_change_from_release_to_release(soda: Plan) -> None:
    # A change makes every finished run unknown; if it is meant, raise the recipe's version.
    ids = {(run.budget, run.width): run.run_id for run in soda.runs}
    assert ids[9e18, 768] == "9e18-w768-s0-18ab08f4"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=sodaa"], "soda: recipe 'sodaa' is not known; did you mean soda?"),
        (["data.codec=mimo"], "soda: data.codec 'mimo' is not known; use"),
        (
            ["extra=[{budget: 3e18, width: 768}]"],
            "soda: extra[0]: 3e18 at width 768 is in the plan already",
        ),
        (
            ["max_steps=2", "extra=[]"],
            "soda: no runs are left: 69 of 80 candidates were dropped for steps "
            "(3e18 at width 128:",
        ),
        (
            ["min_batch=1024", "extra=[]"],
            "soda: no runs are left: 80 of 80 candidates were dropped for batch",
        ),
        (
            ["budgets=[1e9]", "extra=[]", "min_batch=1"],
            "soda: no runs are left: 16 of 16 candidates were dropped for budget",
        ),
        (
            ["budgets=[1e40]", "extra=[]", "max_steps=null"],
            "soda: budgets: 1e40 at width 128 would take",
        ),
    ],
)
def test_a_sweep_that_cannot_be_planned(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        plan("soda", overrides)
    assert str(problem.value).startswith(message)
    assert "\n" not in str(problem.value)


def test_text_and_notebook_table(soda: Plan) -> None:
    assert (
        repr(soda) == "<Plan soda: 64 runs, 7 budgets (3e18 to 3e20), 5.15e21 training FLOPs, "
        "21 candidates dropped>"
    )
    page = soda._repr_html_()
    assert page.count("<tr>") == 65
    assert "9e18-w768-s0-" in page
    long = plan("soda", ["seeds=[0, 1]"])._repr_html_()
    assert "and 28 more; plan.to_frame() has them all" in long


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys; from isoflop.planning.plan import plan; plan('soda'); "
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'pyarrow', 'matplotlib', 'submitit'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_columns_of_a_plan_are_read_without_pandas(soda: Plan, tmp_path: Path) -> None:
    soda.write_parquet(tmp_path / "plan.parquet")
    assert read_plan_rows(tmp_path, ["tokens", "run_id"]) == [
        {"tokens": run.tokens, "run_id": run.run_id} for run in soda.runs
    ]
    code = (
        "import sys; from pathlib import Path; from isoflop.planning.plan import read_plan_rows; "
        "read_plan_rows(Path(sys.argv[1]), ['run_id']); print('pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1 and then not PAR1", None],
    ids=["empty", "cut", "other", "folder"],
)
def test_a_damaged_plan_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "plan.parquet"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(
        RunError, match="delete it, and `isoflop submit` writes it again"
    ) as problem:
        read_plan_rows(tmp_path, ["run_id"])
    assert str(problem.value).startswith(f"{file}: damaged (")
    assert "\n" not in str(problem.value)


def test_a_plan_without_a_column_is_refused(tmp_path: Path, soda: Plan) -> None:
    soda.to_frame().drop(columns="tokens").to_parquet(tmp_path / "plan.parquet")
    with pytest.raises(RunError, match="damaged"):
        read_plan_rows(tmp_path, ["run_id", "tokens"])
