"""Worker: trains remaining runs in order, and stops at a signal or when its parent is gone."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal
from support import tiny_studies
from support.tiny_studies import (
    EVERY_STEP,
    exact,
    find_run,
    hold_a_worker,
    hold_lease,
    kill,
    start,
    tiny_study,
    wait_for,
    work_here,
)

from isoflop.errors import RunError
from isoflop.launching.worker import pool_worker as worker
from isoflop.launching.worker.attempt import _failure_reason
from isoflop.launching.worker.pool_worker import Worker, write_order
from isoflop.lease import Lease, LeaseLostError
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.checkpoint import load_checkpoint

LONG = ("budgets=[1e10]", "widths=[8]", EVERY_STEP)
"""One run of some thousand steps, which no test waits for."""


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Plan]:
    """Return a root with a corpus and untrained runs of 41, 22 and 16 steps, and the plan."""
    return tiny_study(tmp_path, "budgets=[5.7e7]")


def order(root: Path, plan: Plan) -> Path:
    write_order(root / "tiny", [spec.run_id for spec in plan.runs])
    return root / "tiny"


@contextmanager
def own_handlers() -> Iterator[None]:
    """Restore this process's signal handlers after a worker."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def finish(directory: Path) -> None:
    process = start(work_here, directory, os.getpid())
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.torch
def test_it_trains_what_is_left(study: tuple[Path, Plan]) -> None:
    root, plan = study
    find_run(root, plan, 1).set_state("diverged", "the loss was not finite", attempt=1)
    finish(order(root, plan))
    states = [find_run(root, plan, number).state() for number in range(3)]
    assert [(state["state"], state["attempt"]) for state in states] == [
        ("done", 1),
        ("diverged", 1),
        ("done", 1),
    ]
    assert "done after" in (find_run(root, plan).path / "attempts" / "1" / "log.txt").read_text()
    heartbeats = [find_run(root, plan, number).state()["heartbeat"] for number in (0, 2)]
    finish(root / "tiny")
    assert [find_run(root, plan, number).state()["heartbeat"] for number in (0, 2)] == heartbeats


@pytest.mark.torch
@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(study: tuple[Path, Plan]) -> None:
    root, plan = study
    failing = find_run(root, plan)
    loss_file = failing.path / "loss" / "000000000-000000005.parquet"
    loss_file.parent.mkdir()
    loss_file.write_bytes(b"damaged")
    finish(order(root, plan))
    state = failing.state()
    assert state["state"] == "failed"
    assert state["reason"].startswith(f"{loss_file}: damaged (")
    assert state["reason"].endswith("; delete the run's directory to start it again")
    assert "\n" not in state["reason"]
    log = (failing.path / "attempts" / "1" / "log.txt").read_text()
    assert "Traceback" in log
    assert f"{loss_file}: damaged" in log
    assert find_run(root, plan, 1).done
    assert find_run(root, plan, 2).done


@pytest.mark.slow
@pytest.mark.torch
def test_it_leaves_what_another_has(study: tuple[Path, Plan]) -> None:
    root, plan = study
    held = find_run(root, plan)
    holder = start(hold_lease, held)
    wait_for((held.path / "held").exists)
    finish(order(root, plan))
    kill(holder)
    assert [find_run(root, plan, number).done for number in range(3)] == [False, True, True]


def _work_without_locks(directory: Path, parent: int) -> None:
    """Train a sweep's order on a file system without locks."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = none
    work_here(directory, parent)


@pytest.mark.torch
def test_two_workers_share_runs_where_the_file_system_knows_no_locks(
    study: tuple[Path, Plan],
) -> None:
    root, plan = study
    directory = order(root, plan)
    workers = [start(_work_without_locks, directory, os.getpid()) for _ in range(2)]
    for process in workers:
        process.join()
    states = [find_run(root, plan, number).state() for number in range(3)]
    assert [(state["state"], state["attempt"]) for state in states] == [("done", 1)] * 3


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_stops_it_at_a_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals
) -> None:
    root, plan = tiny_study(tmp_path, *LONG, "train.checkpoint_minutes=10")
    run = find_run(root, plan)
    process = start(work_here, order(root, plan), os.getpid())
    wait_for(lambda: run.state().get("loss"))
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 0
    state, saved = run.state(), load_checkpoint(run.checkpoints)
    assert saved is not None
    assert (state["state"], state["step"]) == ("pending", saved["step"])
    assert not run.is_leased()


@pytest.mark.torch
def test_it_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, *LONG, "train.checkpoint_minutes=10")
    run = find_run(root, plan)
    parent = start(hold_a_worker, order(root, plan))
    wait_for(lambda: run.state().get("loss"))
    parent.kill()
    wait_for(
        lambda: not run.is_leased()
    )  # the parent is not waited for yet: what is left of it does not count
    parent.join()
    state, saved = run.state(), load_checkpoint(run.checkpoints)
    assert saved is not None
    assert (state["state"], state["step"]) == ("pending", saved["step"])


def test_it_takes_no_run_once_its_parent_is_gone(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, plan = study
    taken = []

    def take(run: RunDirectory, *_: object) -> str:
        taken.append(run.run_id)
        monkeypatch.setattr(worker, "start_time", lambda _: None)
        return "done"

    monkeypatch.setattr(worker, "attempt", take)
    with own_handlers():
        assert Worker(str(order(root, plan)), os.getpid())() == 1
    assert taken == [plan.runs[0].run_id]


def test_without_a_parent_it_begins_nothing(study: tuple[Path, Plan]) -> None:
    root, plan = study
    gone = start(int)
    gone.join()
    assert gone.pid
    process = start(work_here, order(root, plan), gone.pid)
    process.join()
    assert process.exitcode == 0
    assert find_run(root, plan).state()["attempt"] == 0
    assert not Worker("", gone.pid).__dict__.keys() - {
        "sweep",
        "parent",
        "environment",
    }  # nothing else is sent to a job


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunError("a line\n  and another"), "a line and another"),
        (ValueError("a line\nand another"), "ValueError: a line and another"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.pt"),
            "the disk is full (x.pt); make room, then the same command resumes from the "
            "last checkpoint",
        ),
        (
            OSError(errno.EIO, "Input/output error", "x.pt"),
            "OSError: [Errno 5] Input/output error: 'x.pt'",
        ),
    ],
)
def test_why_a_run_failed_in_one_line(error: Exception, reason: str) -> None:
    assert _failure_reason(error) == reason


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with tiny_studies.small_disk(tmp_path, "6m") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_fails_the_runs_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    root, plan = tiny_study(small_disk, EVERY_STEP)
    elsewhere, _ = tiny_study(tmp_path)
    finish(order(elsewhere, plan))
    directory, first = order(root, plan), find_run(root, plan)
    filler = small_disk / "filler"
    process = start(work_here, directory, os.getpid())
    wait_for(lambda: any(first.checkpoints.glob("*.sha256")))
    with filler.open("wb", buffering=0) as file:  # until nothing is left
        for size in (2**18, 4096):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    assert shutil.disk_usage(small_disk).free == 0
    process.join()
    ended = [
        find_run(root, plan, number) for number in range(3) if not find_run(root, plan, number).done
    ]
    assert ended
    for run in ended:
        assert run.state()["state"] in (
            "failed",
            "running",
            "pending",
        )  # a full disk may not take the new state
        if run.state()["state"] == "failed":
            assert run.state()["reason"].startswith("the disk is full (")
    filler.unlink()
    for run in ended:
        run.set_state("pending")
    finish(directory)
    for number in range(3):
        assert_frame_equal(
            exact(find_run(root, plan, number)),
            exact(find_run(elsewhere, plan, number)),
            check_exact=True,
        )
    assert not [
        path for path in directory.rglob(".*.tmp") if path.parent.name in ("checkpoints", "loss")
    ]


def test_once_all_are_to_stop_a_worker_that_is_through_takes_no_run_that_another_has_let_go(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, plan = study
    directory, taken = order(root, plan), []

    def stopped_meanwhile(run: RunDirectory, *_: object) -> str:
        taken.append(run.run_id)
        write_order(
            directory, []
        )  # as the pool does, before its signals reach one worker after the other
        return "done"

    monkeypatch.setattr(worker, "attempt", stopped_meanwhile)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR2)]
    try:
        assert Worker(str(directory), os.getpid())() == 1
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    assert taken == [plan.runs[0].run_id]


def test_it_stops_once_another_machine_has_its_run(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let another process take the lease, as if this one slept."""
    root, plan = study

    def lose(run: RunDirectory, should_stop: Callable[[], bool], *_: object) -> str:
        assert not should_stop()
        with monkeypatch.context() as lost:
            lost.setattr(Lease, "check", taken_over)
            with pytest.raises(LeaseLostError):
                should_stop()
        return "pending"

    def taken_over(_: Lease) -> None:
        raise LeaseLostError("taken over")

    monkeypatch.setattr(worker, "attempt", lose)
    with own_handlers():
        assert Worker(str(order(root, plan)), os.getpid())() == 0
