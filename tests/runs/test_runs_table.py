"""The runs table of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from support.tiny_studies import find_run, tiny_study

from isoflop.errors import RunError
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import PLAN_COLUMNS
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.runs.runs_table import RESULT_COLUMNS, read_runs, write_runs


def finish(run: RunDirectory, steps: int, loss: float, **more_kinds: float) -> None:
    kinds = {"all": 0.0, "text": -0.5, "semantic": 0.25, "acoustic": 0.5} | more_kinds
    common = dict.fromkeys(LOG_COLUMNS, 2.0) | {"step": steps, "split": "heldout", "targets": 64}
    run.append_log(
        [common | {"kind": kind, "loss": loss + offset} for kind, offset in kinds.items()]
    )
    run.set_state("done", attempt=3, step=steps)
    (run.path / "DONE").touch()


@pytest.mark.parametrize(("kind", "loss"), [("all", 3.0), ("text", 2.5), ("acoustic", 3.5)])
def test_the_table_of_runs(tmp_path: Path, kind: str, loss: float) -> None:
    root, plan = tiny_study(tmp_path, f"metric.kind={kind}")
    directory = root / "tiny"
    finish(find_run(root, plan, 0), plan.runs[0].steps, 3.0)
    find_run(root, plan, 1).set_state("diverged", "the loss was not finite")
    table = read_runs(directory)
    assert [*table.columns] == [*PLAN_COLUMNS, *RESULT_COLUMNS]
    assert table["run_id"].tolist() == [spec.run_id for spec in plan.runs]
    assert table["state"].tolist() == ["done", "diverged", "pending"]
    assert table["reason"].tolist() == ["", "the loss was not finite", ""]
    done = table.iloc[0]
    assert done["loss"] == loss
    assert (done["loss_text"], done["loss_semantic"], done["loss_acoustic"]) == (2.5, 3.25, 3.5)
    assert (done["restarts"], done["gpu_hours"], done["wall_s"]) == (2, 0.0, 2.0)
    assert table["loss"].isna().tolist() == [False, True, True]
    assert_frame_equal(write_runs(directory), pd.read_parquet(directory / "runs.parquet"))


def test_kinds_of_an_external_trainer_have_columns(study: tuple[Path, Plan]) -> None:
    root, plan = study
    finish(find_run(root, plan), plan.runs[0].steps, 3.0, code=-0.25)
    table = write_runs(root / "tiny")
    assert [*table.columns] == [*PLAN_COLUMNS, *RESULT_COLUMNS, "loss_code"]
    assert table["loss_code"].dropna().tolist() == [2.75]
    assert_frame_equal(table, pd.read_parquet(root / "tiny" / "runs.parquet"))


def test_a_saved_result_is_read_unchanged(study: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = study
    finish(find_run(root, plan), plan.runs[0].steps, 3.0)
    table = write_runs(root / "tiny")
    saved = tmp_path / "saved"
    saved.mkdir()
    for name in ("plan.parquet", "runs.parquet"):
        (saved / name).write_bytes((root / "tiny" / name).read_bytes())
    assert_frame_equal(write_runs(saved), table)
    assert (saved / "runs.parquet").read_bytes() == (root / "tiny" / "runs.parquet").read_bytes()


def test_a_missing_or_damaged_plan_is_refused(study: tuple[Path, Plan], tmp_path: Path) -> None:
    root, _ = study
    with pytest.raises(RunError, match=r"absent: no sweep's directory \(it has no plan.parquet\)"):
        read_runs(tmp_path / "absent")
    (root / "tiny" / "plan.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"plan\.parquet: damaged"):
        read_runs(root / "tiny")


# Faults that affect one run only


def without(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.drop(columns=name)


def as_text(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{name: "much"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (None, "Parquet"),
        *((without(name), f"(no column {name})") for name in LOG_COLUMNS),
        (as_text("loss"), "(its column loss holds "),
        (as_text("step"), "(its column step holds "),
        (lambda frame: frame.assign(kind=7), "(its column kind holds int64, not str)"),
        (
            lambda frame: frame.assign(kind="text"),
            "marked done without a loss after step 71; delete it to start it",
        ),
    ],
)
def test_an_invalid_log_fails_only_its_run(
    study: tuple[Path, Plan], edit: Callable[[pd.DataFrame], pd.DataFrame] | None, message: str
) -> None:
    root, plan = study
    for number in range(2):
        finish(find_run(root, plan, number), plan.runs[number].steps, 3.0)
    run = find_run(root, plan)
    run.set_state("done", gpus=4, wall_s=1800.0)
    file = next((run.path / "loss").iterdir())
    if edit is None:
        file.write_bytes(file.read_bytes()[:-20])
    else:
        edit(pd.read_parquet(file)).to_parquet(file)
    table = write_runs(root / "tiny")
    assert table["state"].tolist() == ["failed", "done", "pending"]
    reason = table["reason"].iloc[0]
    assert reason.startswith(str(run.path if "marked" in message else file))
    assert message in reason
    assert "to start it again" in reason
    assert "\n" not in reason
    assert table[["loss", "loss_text", "mfu"]].isna().to_numpy().all(axis=1).tolist() == [
        True,
        False,
        True,
    ]
    assert table["gpu_hours"].tolist() == [2.0, 0.0, 0.0]
    assert run.state()["state"] == "done"


@pytest.mark.parametrize(
    "content", ["run: {}", "run: 1\nidentity: 1\ndata: 1\nmetric: 1\nprecision: 1"]
)
def test_an_invalid_configuration_fails_only_its_run(
    study: tuple[Path, Plan], content: str
) -> None:
    root, plan = study
    for number in range(2):
        finish(find_run(root, plan, number), plan.runs[number].steps, 3.0)
    file = find_run(root, plan).path / "config.yaml"
    file.write_text(content)
    table = read_runs(root / "tiny")
    assert table["state"].tolist() == ["failed", "done", "pending"]
    assert (
        table["reason"].iloc[0] == f"{file}: damaged; delete the run's directory to start it again"
    )


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        *(
            (without(name), f"no column {name}")
            for name in ("run_id", "budget", "tokens", "train_flops")
        ),
        (lambda plan: plan.assign(run_id=range(3)), "its column run_id holds int64, not str"),
        (as_text("budget"), "its column budget holds "),
    ],
)
def test_an_invalid_plan_is_refused(
    study: tuple[Path, Plan], edit: Callable[[pd.DataFrame], pd.DataFrame], fault: str
) -> None:
    file = study[0] / "tiny" / "plan.parquet"
    edit(pd.read_parquet(file)).to_parquet(file)
    with pytest.raises(
        RunError,
        match=rf"plan\.parquet: damaged \({fault}.*\); delete it, and the command that made",
    ):
        read_runs(study[0] / "tiny")


@pytest.mark.parametrize("state", ["running", "failed", "diverged", "pending", "done"])
def test_every_run_has_a_cost(study: tuple[Path, Plan], state: State) -> None:
    root, plan = study
    run = find_run(root, plan)
    if state == "done":
        finish(run, plan.runs[0].steps, 3.0)  # its log has the duration
    run.set_state(state, gpus=8, wall_s=2.0 if state == "done" else 900.0)
    hours = 8 * 2.0 / 3600 if state == "done" else 2.0
    assert read_runs(root / "tiny")["gpu_hours"].tolist() == [hours, 0.0, 0.0]
    if state != "done":
        run.set_state(state, gpus=10**400, wall_s=float("nan"))  # by hand
        assert read_runs(root / "tiny")["gpu_hours"].tolist() == [0.0, 0.0, 0.0]
