"""Run as a job: starts without progress. Tests on a real SLURM are in `cluster/`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from submitit.core.job_environment import _checkpoint
from submitit.core.utils import DelayedSubmission, JobPaths, temporary_save_path
from support.tiny_studies import tiny_plan

from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker import slurm_job as job
from isoflop.launching.worker.slurm_job import MAX_STARTS_WITHOUT_PROGRESS, RunJob
from isoflop.runs.run_directory import RunDirectory, State


@pytest.fixture(params=["builtin", "'command: train {losses}'"], ids=["builtin", "command"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    plan = tiny_plan(tmp_path, f"train.trainer={request.param}")
    return RunDirectory(make_directory(plan, tmp_path / "runs") / plan.runs[0].run_id)


def starts(run: RunDirectory, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the states of a run after starts that are stopped at these steps."""

    def stopped(run: RunDirectory, *_: Any, **entries: Any) -> State:
        step = next(reached)
        if run.trainer == "builtin":
            run.checkpoints.mkdir(exist_ok=True)
            (run.checkpoints / f"step-{step:09d}.sha256").touch()
        run.set_state("pending", step=step, **entries)
        return "pending"

    reached = iter(steps)
    monkeypatch.setattr(job, "attempt", stopped)
    return [RunJob(str(run.path))._train(run, lambda: None, None) for _ in steps]


def test_a_run_that_gets_further_is_started_without_end(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list(range(1, 3 * MAX_STARTS_WITHOUT_PROGRESS))
    assert starts(run, steps, monkeypatch) == ["pending"] * len(steps)


def test_a_run_that_gets_no_further_has_failed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = starts(run, [7] * (MAX_STARTS_WITHOUT_PROGRESS + 3), monkeypatch)
    assert (
        states.index("failed") == MAX_STARTS_WITHOUT_PROGRESS + 1
    )  # the first start got to step 7
    assert (
        f"started {MAX_STARTS_WITHOUT_PROGRESS} times without getting past step 7: "
        in run.state()["reason"]
    )


def test_a_step_further_begins_the_count_anew(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [7] * MAX_STARTS_WITHOUT_PROGRESS + [8] * MAX_STARTS_WITHOUT_PROGRESS
    assert set(starts(run, steps, monkeypatch)) == {"pending"}


def test_a_job_is_requeued_though_a_killed_start_has_left_half_a_pickle(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }.items():
        monkeypatch.setenv(name, value)
    delayed, pickle = (
        DelayedSubmission(RunJob(str(run.path))),
        JobPaths(tmp_path, "7").submitted_pickle,
    )
    delayed.set_timeout(60, 5)
    delayed.dump(pickle)
    with suppress(KeyboardInterrupt), temporary_save_path(pickle) as half:
        half.write_bytes(b"half")
        raise KeyboardInterrupt
    assert half.exists()
    assert _checkpoint(delayed, pickle, 4) == ""
    second = DelayedSubmission.load(pickle)
    assert (second.function, second._timeout_countdown) == (delayed.function, 4)
    assert not half.exists()
