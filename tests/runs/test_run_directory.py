"""Run directories: configuration, state, lease, loss log, and the table of a sweep's runs."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from support.studies import hold_lease, kill, run_of, start, tiny_study, wait_for

from isoflop.errors import RunError
from isoflop.launching.records.sweep_directory import make_directory, run_config
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import PLAN_COLUMNS
from isoflop.runs.collect import read_runs, write_runs
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory, State


def rows(step: int, split: str = "train") -> list[dict[str, Any]]:
    common = dict.fromkeys(LOG_COLUMNS, 0.5) | {
        "step": step,
        "tokens": 10 * step,
        "split": split,
        "targets": 8,
    }
    return [
        common | {"kind": kind, "loss": step + share}
        for kind, share in (("all", 0.0), ("text", 0.25))
    ]


# Configuration


def test_a_directory_is_made_once(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run, config = run_of(root, plan), run_config(plan.sweep, plan.runs[0])
    before = (run.path / "config.yaml").stat().st_mtime_ns
    run.create(config)
    assert (run.path / "config.yaml").stat().st_mtime_ns == before
    assert run.config() == config
    assert run.run_id == plan.runs[0].run_id


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("run", "steps"), 7, "run"),
        (("run", "lr"), 1.0, "run"),
        (("identity", "shape", "width"), 16, "identity"),
        (("data",), "0123456789ab", "data"),
        (("metric", "kind"), "text", "metric"),
        (("precision",), "bf16", "precision"),
    ],
)
def test_an_edited_configuration_is_refused(
    study: tuple[Path, Plan], path: tuple[str, ...], value: object, part: str
) -> None:
    root, plan = study
    file = run_of(root, plan).path / "config.yaml"
    document = place = yaml.safe_load(file.read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(
        RunError,
        match=f"config.yaml: its {part} is not the plan's; it was edited: restore it, or del",
    ):
        make_directory(plan, root)


@pytest.mark.parametrize(
    ("key", "value"), [("evals", 9), ("log_points", 3), ("checkpoint_minutes", 5.0)]
)
def test_how_often_a_run_is_logged_may_differ(
    study: tuple[Path, Plan], key: str, value: float
) -> None:
    root, plan = study
    file = run_of(root, plan).path / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {key: value}))
    make_directory(plan, root)


def test_numbers_that_differ_in_their_last_bits_are_the_same(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run, config = run_of(root, plan), run_config(plan.sweep, plan.runs[0])
    run.create(
        config
        | {"run": config["run"] | {"lr": config["run"]["lr"] * (1 + 2e-16), "sweep": "renamed"}}
    )


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"run: {", b"run: {}\n", b"\x00\x01", b"\xff\xfe\x00"]
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        RunError, match=r"config\.yaml: .*delete the run's directory to start it again"
    ):
        RunDirectory(tmp_path).config()


def test_a_full_disk_is_named_by_the_run_that_it_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> int:
        raise OSError(
            errno.ENOSPC, os.strerror(errno.ENOSPC)
        )  # as write() does, which knows no name

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as problem:
        RunDirectory(tmp_path / "run").create({"run": {}})
    assert problem.value.filename == str(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# State


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"state": "resting"}',
        '{"state": ["failed"]}',
        '{"state": null}',
        '{"state": "failed", "failures": "x"}',
        '{"state": "failed", "failures": null}',
        '{"state": "failed", "attempt": "two"}',
        '{"state": "failed", "reason": 7}',
        '{"state": "failed", "failed_on": "n1"}',
        '{"state": "failed", "failed_on": [["n1"]]}',
        '{"state": "running", "step": "5"}',
        '{"state": "running", "step": 5, "steps": [71]}',
        '{"state": "running", "tokens_per_second": "fast"}',
        '{"state": "running", "wall_s": null, "gpus": 1}',
        '{"state": "running", "gpus": "all"}',
        '{"state": "pending", "in_vain": {}}',
        '{"state": "pending", "node": 1}',
        '{"state": "pending", "job_id": 1}',
        '{"state": "diverged", "loss": "nan"}',
    ],
)
def test_without_a_readable_state_a_run_is_pending(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert RunDirectory(tmp_path).state() == {
        "state": "pending",
        "reason": "",
        "attempt": 0,
        "step": 0,
    }


@pytest.mark.parametrize(
    "stored",
    [
        {"state": "failed"},
        {
            "state": "running",
            "loss": None,
            "tokens_per_second": None,
            "job_id": None,
            "start_step": None,
        },
        {
            "state": "diverged",
            "loss": float("inf"),
            "mine": [1],
            "failed_on": ["n1", "n1"],
            "failures": 2,
        },
    ],
)
def test_what_a_state_does_not_have_is_that_of_a_new_run(
    tmp_path: Path, stored: dict[str, Any]
) -> None:
    (tmp_path / "state.json").write_text(json.dumps(stored))
    assert RunDirectory(tmp_path).state() == {"reason": "", "attempt": 0, "step": 0, **stored}


def test_a_state_keeps_what_it_is_not_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_state("running", attempt=2, data_checksum="abc")
    run.set_state("failed", "no luck", step=5)
    state = run.state()
    assert state.pop("heartbeat") > 0
    assert state == {
        "state": "failed",
        "reason": "no luck",
        "attempt": 2,
        "step": 5,
        "data_checksum": "abc",
    }


def test_the_marker_says_done_whatever_the_state_says(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_state("running")
    (tmp_path / "DONE").touch()
    assert run.done
    assert run.state()["state"] == "done"


# Lease


def test_a_lease_is_held_by_one_process_and_falls_when_it_is_killed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.is_leased()
    holder = start(hold_lease, run)
    wait_for((tmp_path / "held").exists)
    assert run.is_leased()
    with run.lease() as mine:
        assert not mine
    assert (tmp_path / "lease").read_text().split()[1] == str(holder.pid)
    kill(holder)
    assert not run.is_leased()
    with run.lease() as mine:
        assert mine
        assert (tmp_path / "lease").read_text().split()[1] == str(os.getpid())
    assert not run.is_leased()


# Loss log


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Steps of consecutive parts, and the step of a cut."""
    steps = sorted(draw(st.sets(st.integers(1, 40), max_size=12)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(steps), max_size=len(steps)))
    parts, begin = [], 0
    for size in sizes:
        parts.append(steps[begin : begin + size])
        begin += size
    return parts, draw(st.integers(0, 42))


@given(logs(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_cut_log_is_the_log_up_to_there(log: tuple[list[list[int]], int], twice: bool) -> None:
    parts, cut = log
    with TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        for steps in parts:
            run.append_log([row for step in steps for row in rows(step) + rows(step, "heldout")])
        whole = run.log()
        assert list(whole["step"]) == sorted(whole["step"])
        assert whole["loss"].tolist() == [
            step + share for part in parts for step in part for share in (0, 0.25) * 2
        ]
        run.truncate_log(cut)
        if twice:
            run.truncate_log(cut)
        kept = whole.loc[whole["step"] <= cut].reset_index(drop=True)
        assert_frame_equal(run.log(), kept, check_exact=True)
        run.append_log(rows(50))
        assert len(run.log()) == len(kept) + 2


def test_a_cut_that_was_killed_half_way_is_repeated(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_log([row for step in range(1, 9) for row in rows(step)])
    part = next((tmp_path / "loss").iterdir())
    content = part.read_bytes()
    run.truncate_log(5)
    part.write_bytes(
        content
    )  # killed after the shorter part was written, before the longer one was removed
    run.truncate_log(5)
    assert run.log()["step"].tolist() == [step for step in range(1, 6) for _ in range(2)]


def test_an_empty_log_has_the_columns() -> None:
    with TemporaryDirectory() as folder:
        frame = RunDirectory(Path(folder)).log()
    assert list(frame.columns) == list(LOG_COLUMNS)
    assert len(frame) == 0


def test_half_written_files_are_removed_and_never_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_log(rows(1))
    strays = [
        tmp_path / "loss" / ".000000002-000000002.parquet.77.tmp",
        tmp_path / "checkpoints" / ".step-1.pt.77.tmp",
    ]
    strays[1].parent.mkdir()
    for stray in strays:
        stray.write_bytes(b"half")
    assert len(run.log()) == 2
    run.remove_abandoned()
    assert not any(stray.exists() for stray in strays)
    assert len(run.log()) == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1 and then nothing", None])
def test_a_damaged_part_is_named(tmp_path: Path, damage: bytes | None) -> None:
    run = RunDirectory(tmp_path)
    run.append_log(rows(1))
    part = next((tmp_path / "loss").iterdir())
    part.write_bytes(part.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(
        RunError, match=r"000000001-000000001\.parquet: damaged .* delete the run's directory"
    ):
        run.log()


# Table of runs


def finish(run: RunDirectory, steps: int, loss: float) -> None:
    kinds = {"all": 0.0, "text": -0.5, "semantic": 0.25, "acoustic": 0.5}
    common = dict.fromkeys(LOG_COLUMNS, 2.0) | {"step": steps, "split": "heldout", "targets": 64}
    run.append_log([common | {"kind": kind, "loss": loss + more} for kind, more in kinds.items()])
    run.set_state("done", attempt=3, step=steps)
    (run.path / "DONE").touch()


@pytest.mark.parametrize(("kind", "loss"), [("all", 3.0), ("text", 2.5), ("acoustic", 3.5)])
def test_the_table_of_runs(tmp_path: Path, kind: str, loss: float) -> None:
    root, plan = tiny_study(tmp_path, f"metric.kind={kind}")
    directory = root / "tiny"
    finish(run_of(root, plan, 0), plan.runs[0].steps, 3.0)
    run_of(root, plan, 1).set_state("diverged", "the loss was not finite")
    table = read_runs(directory)
    results = [
        "state",
        "reason",
        "loss",
        "loss_text",
        "loss_semantic",
        "loss_acoustic",
        "gpu_hours",
        "mfu",
        "restarts",
    ]
    results.append("simulated")
    assert [name for name in table.columns if name != "wall_s"] == [*PLAN_COLUMNS, *results]
    assert table["run_id"].tolist() == [spec.run_id for spec in plan.runs]
    assert table["state"].tolist() == ["done", "diverged", "pending"]
    assert table["reason"].tolist() == ["", "the loss was not finite", ""]
    done = table.iloc[0]
    assert done["loss"] == loss
    assert (done["loss_text"], done["loss_semantic"], done["loss_acoustic"]) == (2.5, 3.25, 3.5)
    assert (done["restarts"], done["gpu_hours"], done["wall_s"]) == (2, 0.0, 2.0)
    assert table["loss"].isna().tolist() == [False, True, True]
    assert_frame_equal(write_runs(directory), pd.read_parquet(directory / "runs.parquet"))


def test_a_kept_result_is_read_as_it_is(study: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = study
    finish(run_of(root, plan), plan.runs[0].steps, 3.0)
    table = write_runs(root / "tiny")
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("plan.parquet", "runs.parquet"):
        (kept / name).write_bytes((root / "tiny" / name).read_bytes())
    assert_frame_equal(write_runs(kept), table)
    assert (kept / "runs.parquet").read_bytes() == (root / "tiny" / "runs.parquet").read_bytes()


def test_what_can_be_no_table_is_refused(study: tuple[Path, Plan], tmp_path: Path) -> None:
    root, _ = study
    with pytest.raises(RunError, match=r"absent: no sweep's directory \(it has no plan.parquet\)"):
        read_runs(tmp_path / "absent")
    (root / "tiny" / "plan.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"plan\.parquet: damaged"):
        read_runs(root / "tiny")


# What costs no other run


def without(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.drop(columns=name)


def as_text(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{name: "much"})


@pytest.mark.parametrize(
    ("edit", "says"),
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
def test_a_log_that_is_no_log_fails_its_run_and_no_other(
    study: tuple[Path, Plan], edit: Callable[[pd.DataFrame], pd.DataFrame] | None, says: str
) -> None:
    root, plan = study
    for number in range(2):
        finish(run_of(root, plan, number), plan.runs[number].steps, 3.0)
    run = run_of(root, plan)
    run.set_state("done", gpus=4, wall_s=1800.0)
    part = next((run.path / "loss").iterdir())
    if edit is None:
        part.write_bytes(part.read_bytes()[:-20])
    else:
        edit(pd.read_parquet(part)).to_parquet(part)
    table = write_runs(root / "tiny")
    assert table["state"].tolist() == ["failed", "done", "pending"]
    reason = table["reason"].iloc[0]
    assert reason.startswith(str(run.path if "marked" in says else part))
    assert says in reason
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
def test_a_configuration_that_is_none_fails_its_run_and_no_other(
    study: tuple[Path, Plan], content: str
) -> None:
    root, plan = study
    for number in range(2):
        finish(run_of(root, plan, number), plan.runs[number].steps, 3.0)
    file = run_of(root, plan).path / "config.yaml"
    file.write_text(content)
    table = read_runs(root / "tiny")
    assert table["state"].tolist() == ["failed", "done", "pending"]
    assert (
        table["reason"].iloc[0] == f"{file}: damaged; delete the run's directory to start it again"
    )


@pytest.mark.parametrize(
    ("edit", "lack"),
    [
        *(
            (without(name), f"no column {name}")
            for name in ("run_id", "budget", "tokens", "train_flops")
        ),
        (lambda plan: plan.assign(run_id=range(3)), "its column run_id holds int64, not str"),
        (as_text("budget"), "its column budget holds "),
    ],
)
def test_a_plan_that_is_none_is_refused(
    study: tuple[Path, Plan], edit: Callable[[pd.DataFrame], pd.DataFrame], lack: str
) -> None:
    file = study[0] / "tiny" / "plan.parquet"
    edit(pd.read_parquet(file)).to_parquet(file)
    with pytest.raises(
        RunError,
        match=rf"plan\.parquet: damaged \({lack}.*\); delete it, and the command that made",
    ):
        read_runs(study[0] / "tiny")


@pytest.mark.parametrize("state", ["running", "failed", "diverged", "pending", "done"])
def test_every_run_has_its_cost(study: tuple[Path, Plan], state: State) -> None:
    root, plan = study
    run = run_of(root, plan)
    if state == "done":
        finish(run, plan.runs[0].steps, 3.0)  # whose log says how long it took
    run.set_state(state, gpus=8, wall_s=2.0 if state == "done" else 900.0)
    hours = 8 * 2.0 / 3600 if state == "done" else 2.0
    assert read_runs(root / "tiny")["gpu_hours"].tolist() == [hours, 0.0, 0.0]
    if state != "done":
        run.set_state(state, gpus=10**400, wall_s=float("nan"))  # by hand
        assert read_runs(root / "tiny")["gpu_hours"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "age_s", "stays"),
    [
        (".state.json.77.tmp", 3600.0, False),
        (".state.json.77.tmp", 0.0, True),
        (".config.yaml.77.tmp", 3600.0, False),
        (".weights.pt.77.tmp", 0.0, False),
        ("notes.tmp", 3600.0, True),
    ],
)
def test_of_the_half_written_files_that_others_may_write_old_ones_go(
    tmp_path: Path, name: str, age_s: float, stays: bool
) -> None:
    stray = tmp_path / name
    stray.write_bytes(b"half")
    written = time.time() - age_s
    os.utime(stray, (written, written))
    RunDirectory(tmp_path).remove_abandoned()
    assert stray.exists() is stays
