"""Status of a run from its directory, the queue and accounting; consequences of its job's end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from support.fake_slurm import FakeSlurm

from isoflop.launching.queue.reconcile import explain, never_starts, reconcile
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.launching.records.submissions import Submission
from isoflop.launching.slurm.tasks import PERMANENT_WAITS
from isoflop.launching.worker.attempt import record_failure
from isoflop.runs.run_directory import RunDirectory

TASK = "100_0"
BEGAN = {"state": "running", "attempt": 1, "job_id": TASK, "node": "n1"}
SAVED = {"state": "pending", "attempt": 1, "job_id": TASK, "node": "n1"}
BEFORE = {"state": "running", "attempt": 1, "job_id": "99_0", "node": "n1"}
NEW = {"state": "pending", "attempt": 0}
NO_ACCOUNTING = "echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1"
NO_ANSWER = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


class Cluster:
    """One run, with answers of squeue and sacct about its task; None for a failing program."""

    def __init__(self, folder: Path, slurm: FakeSlurm) -> None:
        self.folder, self.slurm = folder, slurm
        self.run = RunDirectory(folder / "tiny" / "r0")
        self.run.path.mkdir(parents=True)

    def sweep_status(
        self,
        stored: dict[str, Any],
        queue: str | None = "",
        known: str | None = "",
        *,
        age: float = 600,
        retries: int = 2,
        submission: dict[str, Any] | None = None,
    ) -> SweepStatus:
        if stored:
            self.run.set_state(**stored)
        for program, line, failing in (
            ("squeue", queue, NO_ANSWER),
            ("sacct", known, NO_ACCOUNTING),
        ):
            self.slurm.program(
                program, failing if line is None else f"printf '%s' '{line and line + chr(10)}'"
            )
        made = Submission(
            **{
                "name": "tiny-1",
                "runs": ("r0", "r1"),
                "gpus": 0,
                "submitted": time.time() - age,
                "job_id": "100",
                **(submission or {}),
            }
        )
        return reconcile(self.run.path.parent, ["r0"], [made], retries)

    def run_status(self, *arguments: Any, **options: Any) -> RunStatus:
        return self.sweep_status(*arguments, **options).runs["r0"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    slurm = FakeSlurm.make(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(slurm.folder))
    return Cluster(tmp_path, slurm)


@pytest.mark.parametrize(
    ("stored", "queue", "known", "age", "state", "retry", "reason"),
    [
        # Final states in the run's directory
        ({"state": "done"}, "", "", 600, "done", False, ""),
        ({"state": "done"}, "100_0|RUNNING|n1|None", "", 600, "done", False, ""),
        ({"state": "done"}, None, "", 600, "done", False, ""),
        (
            {"state": "diverged", "reason": "not finite"},
            "",
            "100_0|FAILED|n1|1:0",
            600,
            "diverged",
            False,
            "not",
        ),
        # In the queue
        (NEW, "100_0|PENDING||Priority", "", 0, "queued", False, "Priority"),
        (NEW, "100_0|PENDING||None", "", 600, "queued", False, ""),
        (NEW, "100_0|RUNNING|n1|None", "", 600, "running", False, ""),
        (NEW, "100_0|CONFIGURING|n1|None", "", 600, "running", False, "configuring"),
        (BEGAN, "100_0|RUNNING|n1|None", "", 600, "running", False, ""),
        (BEGAN, "100_0|COMPLETING|n1|None", "", 600, "running", False, "completing"),
        (SAVED, "100_0|PENDING||BeginTime", "", 600, "requeued", False, "BeginTime"),
        (BEGAN, "100_0|PENDING||Resources", "", 600, "requeued", False, "Resources"),
        (BEFORE, "100_0|PENDING||Resources", "", 600, "requeued", False, "Resources"),
        (
            NEW,
            "100_0|PENDING||PartitionTimeLimit",
            "",
            600,
            "queued",
            False,
            "PartitionTimeLimit: slurm.time is long",
        ),
        (
            NEW,
            "100_0|PENDING||(InvalidQOS)",
            "",
            600,
            "queued",
            False,
            "InvalidQOS: slurm.qos is not valid",
        ),
        (
            {"state": "failed", **NEW, "attempt": 1},
            "100_0|RUNNING|n1|None",
            "",
            600,
            "running",
            False,
            "",
        ),
        # Not in the queue yet, or never
        (NEW, "", None, 1, "queued", False, "not in the queue yet"),
        (NEW, "", "", 1, "queued", False, "not in the queue yet"),
        (BEFORE, "", "", 1, "queued", False, "not in the queue yet"),
        (NEW, "", "100_0|PENDING|None assigned|0:0", 1, "queued", False, "not in the queue yet"),
        (NEW, "", None, 600, "pending", True, "lost by SLURM"),
        (NEW, "", "", 600, "pending", True, "lost by SLURM"),
        (NEW, "", "100_0|PENDING|None assigned|0:0", 600, "pending", True, "lost by SLURM"),
        (NEW, "", "100_[0-1]|PENDING|None assigned|0:0", 600, "pending", True, "lost by SLURM"),
        (BEFORE, "", None, 600, "pending", True, "lost by SLURM"),
        (BEGAN, "", "100_0|RUNNING|n1|0:0", 600, "pending", True, "lost by SLURM while it ran"),
        # Interrupted
        (BEGAN, "", "100_0|PREEMPTED|n1|0:0", 600, "pending", True, "interrupted (preempted)"),
        (BEGAN, "", "100_0|TIMEOUT|n1|0:0", 600, "pending", True, "interrupted (timeout)"),
        (BEGAN, "", "100_0|NODE_FAIL|n1|0:0", 600, "pending", True, "interrupted (node_fail)"),
        (NEW, "", "100_0|BOOT_FAIL|n1|0:0", 600, "pending", True, "interrupted (boot_fail)"),
        (BEGAN, "", "100_0|FAILED|n1|0:12", 600, "pending", True, "interrupted"),
        (BEGAN, "", "100_0|FAILED|n1|12:0", 600, "pending", True, "interrupted"),
        (BEGAN, "", "100_0|FAILED|n1|0:15", 600, "pending", True, "interrupted"),
        (BEGAN, "", "100_0|FAILED|n1|143:0", 600, "pending", True, "interrupted"),
        (BEGAN, "100_0|TIMEOUT|n1|TimeLimit", None, 600, "pending", True, "interrupted (timeout)"),
        (BEGAN, "100_0|PREEMPTED|n1|None", None, 600, "pending", True, "interrupted (preempted)"),
        (BEGAN, "100_0|NODE_FAIL|n1|NodeDown", "", 600, "pending", True, "interrupted (node_fail)"),
        (
            BEGAN,
            "100_0|TIMEOUT|n1|TimeLimit",
            "100_0|RUNNING|n1|0:0",
            600,
            "pending",
            True,
            "interrupted (timeout)",
        ),
        (SAVED, "", None, 600, "pending", True, "interrupted"),
        (SAVED, "", "100_0|COMPLETED|n1|0:0", 600, "pending", True, "interrupted"),
        (
            {**SAVED, "reason": "stopped at step 7"},
            "",
            "",
            600,
            "pending",
            True,
            "stopped at step 7",
        ),
        (
            BEGAN,
            "",
            "100_0|CANCELLED by 1001|n1|0:15",
            600,
            "cancelled",
            True,
            "its job was cancelled",
        ),
        (NEW, "100_0|CANCELLED||None", None, 600, "cancelled", True, "its job was cancelled"),
        # Failed
        (
            BEGAN,
            "",
            "100_0|FAILED|n2|1:0",
            600,
            "failed",
            True,
            "its job 100_0 died on n2 (failed, exit code 1:0)",
        ),
        (
            BEGAN,
            "",
            "100_0|OUT_OF_MEMORY|n2|0:125",
            600,
            "failed",
            True,
            "died on n2 (out_of_memory, exit code 0:125)",
        ),
        (
            BEGAN,
            "",
            "100_0|FAILED|n2|0:9",
            600,
            "failed",
            True,
            "died on n2 (failed, exit code 0:9): killed",
        ),
        (
            BEGAN,
            "100_0|FAILED|n2|NonZeroExitCode",
            None,
            600,
            "failed",
            True,
            "its job 100_0 died on n2",
        ),
        (BEGAN, "", None, 600, "failed", True, "its job 100_0 died on n1: killed"),
        (
            NEW,
            "",
            "100_0|FAILED|n2|1:0",
            600,
            "failed",
            True,
            "ended on n2 (failed, exit code 1:0) before the run be",
        ),
        (
            NEW,
            "",
            "100_0|FAILED|n2|0:53",
            600,
            "failed",
            True,
            "began and left no log (do all nodes share the profi",
        ),
    ],
)
def test_status_of_a_run(
    cluster: Cluster,
    stored: dict[str, Any],
    queue: str | None,
    known: str | None,
    age: float,
    state: str,
    retry: bool,
    reason: str,
) -> None:
    status = cluster.run_status(stored, queue, known, age=age)
    assert (status.state, status.retry) == (state, retry)
    assert reason in status.reason
    assert (reason == "") == (status.reason == "")
    after = cluster.run.state()
    if state == "failed":
        log = cluster.run.path.parent / "submissions" / "tiny-1" / "100_0_0_log.err"
        assert status.reason.endswith(f"; see {log}")
        assert (after["state"], after["failures"], after["reason"]) == ("failed", 1, status.reason)
        assert after["failed_on"] == ["n2" if queue or known else "n1"]
        assert cluster.run_status({}, queue, known) == RunStatus(
            "r0", "failed", status.reason, None, status.node, after, True
        )
        assert cluster.run.state()["failures"] == 1
    else:
        assert after["state"] == stored["state"]
        assert "failures" not in after


@pytest.mark.parametrize("stored", [NEW, BEGAN, SAVED, BEFORE, {**BEGAN, "state": "failed"}])
@pytest.mark.parametrize("age", [1, 600])
def test_a_queue_that_does_not_answer_proves_nothing(
    cluster: Cluster, stored: dict[str, Any], age: float
) -> None:
    sweep = cluster.sweep_status(stored, None, "100_0|FAILED|n1|1:0", age=age)
    assert not sweep.queue_answered
    (note,) = sweep.notes
    assert note.startswith("squeue: slurm_load_jobs error: Unable to contact slurm controller; ")
    status = sweep.runs["r0"]
    assert status.state != "pending"
    assert not status.retry
    assert cluster.run.state()["state"] == stored["state"]


def test_a_sweep_that_was_never_submitted_needs_no_slurm(cluster: Cluster) -> None:
    for program in ("squeue", "sacct"):
        cluster.slurm.remove(program)
    sweep = reconcile(cluster.run.path.parent, ["r0"], [], 2)
    assert sweep.queue_answered
    assert (sweep.runs["r0"].state, sweep.runs["r0"].retry) == ("pending", True)


@pytest.mark.parametrize(
    ("retries", "retry"), [(0, [False] * 3), (1, [True, False, False]), (2, [True, True, False])]
)
def test_a_run_is_retried_up_to_the_limit(
    cluster: Cluster, retries: int, retry: list[bool]
) -> None:
    retried = []
    for attempt in range(1, 4):
        status = cluster.run_status(
            {**BEGAN, "attempt": attempt}, "", "100_0|FAILED|n1|1:0", retries=retries
        )
        assert (status.state, status.stored["failures"]) == ("failed", attempt)
        retried.append(status.retry)
    assert retried == retry


def test_progress_between_failures_starts_their_count_again(cluster: Cluster) -> None:
    counts = []
    for step in (0, 0, 10, 10, 20):
        cluster.run.checkpoints.mkdir(exist_ok=True)
        if step:
            (cluster.run.checkpoints / f"step-{step:09d}.sha256").touch()
        status = cluster.run_status(BEGAN, "", "100_0|FAILED|n1|1:0", retries=1)
        counts.append((status.stored["failures"], status.retry))
    assert counts == [(1, True), (2, False), (1, True), (2, False), (1, True)]


def test_a_leased_run_is_running_whatever_slurm_reports(cluster: Cluster) -> None:
    with cluster.run.lease() as lease:
        assert lease
        for queue, known in (("", "100_0|FAILED|n1|1:0"), (None, None), ("", None)):
            status = cluster.run_status(BEGAN, queue, known)
            assert (status.state, status.task, status.retry) == ("running", TASK, False)
    assert "failures" not in cluster.run.state()


def test_a_run_leased_meanwhile_is_no_failure(cluster: Cluster) -> None:
    with cluster.run.lease() as lease:
        assert lease
        status = cluster.run_status(NEW, "", "100_0|FAILED|n1|1:0")
    assert (status.state, status.retry) == ("running", False)
    assert cluster.run.state()["state"] == "pending"


@pytest.mark.parametrize("known", ["100_0|CANCELLED by 0|n1|0:15", "100_0|FAILED|n1|0:9", "", None])
@pytest.mark.parametrize("stored", [NEW, BEGAN, SAVED])
def test_a_run_that_isoflop_cancelled_never_failed(
    cluster: Cluster, stored: dict[str, Any], known: str | None
) -> None:
    status = cluster.run_status(stored, "", known, submission={"cancelled": ("r0",)})
    assert (status.state, status.reason, status.retry) == ("cancelled", "by isoflop cancel", True)
    assert "failures" not in cluster.run.state()


@pytest.mark.parametrize(
    "stored", [NEW, {"state": "running", "attempt": 1}, BEFORE, {**BEFORE, "job_id": None}]
)
@pytest.mark.parametrize("age", [1, 600])
def test_a_submission_without_an_id_yet_is_no_failure(
    cluster: Cluster, stored: dict[str, Any], age: float
) -> None:
    """The status is read while another call is between its record and sbatch."""
    status = cluster.run_status(stored, "", "", age=age, submission={"job_id": None})
    assert status.state in ("pending", "queued")
    assert status.reason != "interrupted"
    assert "failures" not in cluster.run.state()


def test_a_run_alone_is_a_job_and_no_task(cluster: Cluster) -> None:
    status = cluster.run_status(NEW, "100|RUNNING|n3|None", submission={"runs": ("r0",)})
    assert (status.state, status.task, status.node) == ("running", "100", "n3")


def test_the_last_submission_of_a_run_is_what_counts(cluster: Cluster) -> None:
    cluster.run.set_state("pending", attempt=1, job_id="100_0")
    cluster.slurm.program("squeue", "printf '101|PENDING||Priority\\n100_0|FAILED|n1|None\\n'")
    older, newer = (
        Submission(f"tiny-{n}", runs, 0, n, f"10{n}")
        for n, runs in enumerate([("r0", "r1"), ("r0",)])
    )
    status = reconcile(cluster.run.path.parent, ["r0"], [older, newer], 2).runs["r0"]
    assert (status.state, status.task) == ("requeued", "101")


def test_many_runs_take_one_call_of_each_program(cluster: Cluster) -> None:
    cluster.slurm.program("squeue", "echo x >>squeue.calls\nprintf '100_0|PENDING||Priority\\n'")
    cluster.slurm.program(
        "sacct",
        "echo \"$@\" >>sacct.calls\nprintf '100_1|TIMEOUT|n1|0:0\\n200_7|COMPLETED|n1|0:0\\n'",
    )
    for name in ("squeue", "sacct"):
        script = (cluster.slurm.folder / name).read_text()
        (cluster.slurm.folder / name).write_text(
            script.replace("\n", f"\ncd '{cluster.slurm.folder}'\n", 1)
        )
    first = Submission("tiny-1", tuple(f"r{n}" for n in range(50)), 0, 0, "100")
    second = Submission("tiny-2", tuple(f"r{n}" for n in range(50, 100)), 0, 0, "200")
    sweep = reconcile(cluster.run.path.parent, [f"r{n}" for n in range(100)], [first, second], 2)
    assert sweep.ids("queued") == ["r0"]
    assert sweep.ids("failed") == ["r57"]
    assert len(sweep.ids("pending")) == 98
    assert (cluster.slurm.folder / "squeue.calls").read_text() == "x\n"
    (call,) = (cluster.slurm.folder / "sacct.calls").read_text().splitlines()
    assert "-j 100,200 " in call


# Ends of jobs without accounting, or before it has them

FAILED_JOB = (
    "JobId=101 ArrayJobId=100 ArrayTaskId=0 JobName=tiny-1 JobState=FAILED Reason=x "
    "ExitCode={} RunTime=00:00:03"
)
RUNNING_JOB = (
    "JobId=102 ArrayJobId=100 ArrayTaskId=1 JobName=tiny-1 JobState=RUNNING Reason=None "
    "ExitCode=0:0"
)
FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
FAILED_LINE = "100_0|FAILED|n1|NonZeroExitCode"


@pytest.mark.parametrize(
    "known", [None, "", "100_0|RUNNING|n1|0:0"], ids=["no accounting", "no row", "not ended"]
)
@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        ("0:12", "pending", "interrupted (failed)"),
        ("143:0", "pending", "interrupted (failed)"),
        ("1:0", "failed", "(failed, exit code 1:0)"),
    ],
)
@pytest.mark.parametrize("stored", [NEW, BEGAN])
def test_the_controller_knows_how_a_job_ended_before_accounting_does(
    cluster: Cluster, stored: dict[str, Any], known: str | None, code: str, state: str, reason: str
) -> None:
    cluster.slurm.program("scontrol", f"printf '%s\\n' '{RUNNING_JOB}' '{FAILED_JOB.format(code)}'")
    status = cluster.run_status(stored, FAILED_LINE, known, retries=0)
    assert status.state == state
    assert reason in status.reason
    assert status.retry == (state == "pending")


@pytest.mark.parametrize(("stored", "state"), [(NEW, "queued"), (BEGAN, "running")])
@pytest.mark.parametrize("known", ["", "100_0|RUNNING|n1|0:0"])
def test_how_a_job_ended_is_waited_for_while_accounting_lags(
    cluster: Cluster, stored: dict[str, Any], state: str, known: str
) -> None:
    cluster.slurm.program("scontrol", FORGOTTEN)
    status = cluster.run_status(stored, FAILED_LINE, known)
    assert (status.state, status.retry) == (state, False)
    assert status.reason == "its job has ended; SLURM has not reported the exit code yet"
    assert "failures" not in cluster.run.state()
    assert (
        cluster.run_status(stored, FAILED_LINE, "100_0|FAILED|n1|0:12").reason
        == "interrupted (failed)"
    )


def test_an_unexplained_death_counts_without_accounting(cluster: Cluster) -> None:
    cluster.slurm.program("scontrol", FORGOTTEN)
    assert cluster.run_status(BEGAN, FAILED_LINE, None).state == "failed"


# Held jobs and interrupted cancellations


@pytest.mark.parametrize("state", ["SPECIAL_EXIT", "REQUEUE_HOLD"])
@pytest.mark.parametrize(
    ("reason", "says"),
    [("None", "JobHeldUser: "), ("job requeued in held state", "job requeued in held state")],
)
def test_a_job_that_was_requeued_to_be_held_waits(
    cluster: Cluster, state: str, reason: str, says: str
) -> None:
    sweep = cluster.sweep_status(SAVED, f"{TASK}|{state}||{reason}")
    status = sweep.runs["r0"]
    assert (status.state, status.task, status.retry) == ("requeued", TASK, False)
    assert status.reason.startswith(says)
    assert never_starts(status.reason)
    assert sweep.held == []


@pytest.mark.parametrize(
    ("state", "orphan"), [("RUNNING", True), ("PENDING", True), ("COMPLETING", False)]
)
def test_a_job_whose_cancellation_broke_off_is_an_orphan_and_not_gone(
    cluster: Cluster, state: str, orphan: bool
) -> None:
    sweep = cluster.sweep_status(
        BEGAN, f"{TASK}|{state}|n1|None", submission={"cancelled": ("r0",)}
    )
    status = sweep.runs["r0"]
    assert status.state == ("requeued" if state == "PENDING" else "running")
    assert status.reason == "being cancelled; if this persists, run `isoflop cancel` again"
    assert sweep.orphans == (TASK,) * orphan


def test_a_cancelled_run_whose_older_job_runs_is_not_gone(cluster: Cluster) -> None:
    cluster.run.set_state(**BEFORE)
    cluster.slurm.program("squeue", "printf '99|RUNNING|n1|None\\n100|CANCELLED||None\\n'")
    old = Submission("tiny-1", ("r0",), 0, time.time() - 99, "99")
    new = Submission("tiny-2", ("r0",), 0, time.time() - 9, "100", ("r0",))
    sweep = reconcile(cluster.run.path.parent, ["r0"], [old, new], 2)
    assert (sweep.runs["r0"].state, sweep.runs["r0"].task) == ("running", "99")
    assert sweep.active == {"r0": ["99"]}
    assert sweep.orphans == ()


def test_a_run_with_an_older_job_in_an_unknown_state_is_not_queued_again(
    cluster: Cluster,
) -> None:
    cluster.run.set_state(**BEGAN)
    cluster.slurm.program("squeue", "printf '99|EXPEDITING||None\\n100|FAILED|n1|None\\n'")
    cluster.slurm.program("sacct", "printf '100|FAILED|1:0|n1\\n'")
    old = Submission("tiny-1", ("r0",), 0, time.time() - 99, "99")
    new = Submission("tiny-2", ("r0",), 0, time.time() - 9, "100")
    sweep = reconcile(cluster.run.path.parent, ["r0"], [old, new], 2)
    status = sweep.runs["r0"]
    assert (status.state, status.task, status.retry) == ("requeued", "99", False)
    assert sweep.orphans == ()


# Reasons


@pytest.mark.parametrize("stored", [NEW, BEGAN, SAVED], ids=["new", "began", "saved"])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("EXPEDITING|n1|None", "waiting: SLURM says EXPEDITING"),
        ("EXPEDITING||Priority", "waiting: SLURM says EXPEDITING, Priority"),
        ("PENDING||Moon is full", "waiting: SLURM says Moon is full"),
    ],
)
def test_an_unknown_state_or_reason_waits_and_never_runs(
    cluster: Cluster, stored: dict[str, Any], line: str, says: str
) -> None:
    sweep = cluster.sweep_status(stored, f"{TASK}|{line}")
    status = sweep.runs["r0"]
    assert status.state == ("queued" if stored is NEW else "requeued")
    assert (status.reason, status.task, status.retry) == (says, TASK, False)
    assert not never_starts(status.reason)
    assert sweep.orphans == ()


@pytest.mark.parametrize(
    ("state", "expected"), [("EXPEDITING", "running"), ("PENDING", "requeued")]
)
def test_a_run_that_holds_its_lease_runs_unless_slurm_says_that_it_waits(
    cluster: Cluster, state: str, expected: str
) -> None:
    with cluster.run.lease():
        sweep = cluster.sweep_status(BEGAN, f"{TASK}|{state}||None")
    assert sweep.runs["r0"].state == expected


@pytest.mark.parametrize(("state", "orphan"), [("PENDING", True), ("EXPEDITING", False)])
def test_a_job_in_an_unknown_state_is_not_cancelled(
    cluster: Cluster, state: str, orphan: bool
) -> None:
    (cluster.run.path / "DONE").touch()
    sweep = cluster.sweep_status(BEGAN, f"{TASK}|{state}||None")
    assert sweep.runs["r0"].state == "done"
    assert sweep.orphans == (TASK,) * orphan


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "RESV_DEL_HOLD||Reservation r3 was deleted",
            "RESV_DEL_HOLD, Reservation r3 was deleted: "
            "slurm.reservation has ended or was deleted; name another, or leave it out",
        ),
        (
            "RESV_DEL_HOLD||None",
            "RESV_DEL_HOLD: slurm.reservation has ended or was deleted; "
            "name another, or leave it out",
        ),
        (
            "PENDING||ReservationDeleted",
            "ReservationDeleted: slurm.reservation has ended or was deleted; "
            "name another, or leave it out",
        ),
        (
            "PENDING||ReservationInvalid",
            "ReservationInvalid: slurm.reservation is not valid; name another, or leave it out",
        ),
        (
            "PENDING||JobHoldMaxRequeue",
            "JobHoldMaxRequeue: held after too many failed starts (MaxBatchRequeue); "
            "release it with `scontrol release`, or cancel it and submit again",
        ),
    ],
)
def test_a_job_held_by_slurm_never_starts_and_names_the_mend(
    cluster: Cluster, line: str, says: str
) -> None:
    status = cluster.run_status(SAVED, f"{TASK}|{line}")
    assert (status.state, status.reason, status.task, status.retry) == (
        "requeued",
        says,
        TASK,
        False,
    )
    assert never_starts(status.reason)


@pytest.mark.parametrize("reason", PERMANENT_WAITS)
def test_a_permanent_wait_is_explained_with_the_mend(reason: str) -> None:
    key, problem = PERMANENT_WAITS[reason]
    assert never_starts(reason)
    assert explain(reason) == f"{reason}: {f'{key} ' if key else ''}{problem}"
    assert explain(f"({reason})") == explain(reason)


@pytest.mark.parametrize(
    "reason", ["Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency", ""]
)
def test_a_temporary_reason_is_unchanged(reason: str) -> None:
    assert not never_starts(reason)
    assert explain(reason) == reason


@pytest.mark.parametrize("node", ["n1", ""])
def test_a_failure_is_kept_with_its_node(cluster: Cluster, node: str) -> None:
    for _ in range(2):
        record_failure(cluster.run, "no luck", node)
    assert cluster.run.state()["failed_on"] == [node] * 2 * bool(node)
    assert cluster.run.state()["failures"] == 2


# Superfluous jobs


def test_a_waiting_job_of_a_run_that_is_over_or_has_a_newer_one_is_an_orphan(
    cluster: Cluster,
) -> None:
    assert cluster.sweep_status(BEGAN, f"{TASK}|PENDING||Resources").orphans == ()
    cluster.run.set_state("done")
    (cluster.run.path / "DONE").touch()
    assert cluster.sweep_status({}, f"{TASK}|PENDING||Resources").orphans == (TASK,)
    assert cluster.sweep_status({}, f"{TASK}|RUNNING|n1|None").orphans == ()
    old = Submission("tiny-1", ("r0",), 0, time.time() - 99, "100")
    new = Submission("tiny-2", ("r0",), 0, time.time() - 9, "101")
    (cluster.run.path / "DONE").unlink()
    cluster.run.set_state("pending")
    cluster.slurm.program("squeue", "printf '100|PENDING||Resources\\n101|PENDING||Resources\\n'")
    assert reconcile(cluster.run.path.parent, ["r0"], [old, new], 2).orphans == ("100",)


def test_a_job_that_slurm_holds_after_a_failed_launch_is_known(cluster: Cluster) -> None:
    sweep = cluster.sweep_status(BEGAN, f"{TASK}|PENDING||launch failed requeued held")
    assert sweep.held == [TASK]
    assert not sweep.runs["r0"].retry


@pytest.mark.parametrize(("stored", "state"), [(BEGAN, "requeued"), (BEFORE, "running")])
def test_a_run_whose_own_job_waits_again_is_requeued_though_its_killed_worker_seems_to_hold_it(
    cluster: Cluster, stored: dict[str, Any], state: str
) -> None:
    (cluster.run.path / "lease").write_text("another 1 token\n")
    status = cluster.run_status(stored, f"{TASK}|PENDING||JobArrayTaskLimit")
    assert (status.state, status.task, status.retry) == (state, TASK, False)


def test_a_cancelled_run_is_so_once_its_job_is_gone_though_its_killed_worker_seems_to_hold_it(
    cluster: Cluster,
) -> None:
    (cluster.run.path / "lease").write_text("another 1 token\n")
    cancelled = {"cancelled": ("r0",)}
    assert cluster.sweep_status(BEGAN, "").runs["r0"].state == "running"
    assert (
        cluster.sweep_status(BEGAN, f"{TASK}|COMPLETING|n1|None", submission=cancelled)
        .runs["r0"]
        .state
        == "running"
    )
    status = cluster.sweep_status(BEGAN, "", submission=cancelled).runs["r0"]
    assert (status.state, status.retry) == ("cancelled", True)


# Jobs that SLURM has forgotten


def test_a_cancellation_outlasts_the_memory_of_slurm(cluster: Cluster) -> None:
    assert cluster.run_status(BEGAN, "", "100_0|CANCELLED by 0|n1|0:15").state == "cancelled"
    later = cluster.run_status({}, "", None)
    assert (later.state, later.reason, later.retry) == ("cancelled", "its job was cancelled", True)
    newer = cluster.run_status({}, "200_0|PENDING||Priority", None, submission={"job_id": "200"})
    assert newer.state == "requeued"


def test_a_job_that_left_a_log_was_not_lost(cluster: Cluster) -> None:
    """For example, its `setup` lines failed and the controller forgot it before the next query."""
    log = cluster.run.path.parent / "submissions" / "tiny-1" / "100_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("Lmod has detected an error\nmodule cuda/99 is unknown\n")
    for failures in (1, 2, 3):
        status = cluster.run_status(NEW, "", None)
        assert status.state == "failed"
        assert "ended before the run began: module cuda/99 is unknown; see " in status.reason
        assert (status.stored["failures"], status.retry) == (failures, failures <= 2)


def test_a_suspended_run_says_so(cluster: Cluster) -> None:
    with cluster.run.lease() as lease:
        assert lease
        status = cluster.run_status(BEGAN, "100_0|SUSPENDED|n1|None", "")
    assert (status.state, status.reason) == ("running", "suspended")


@pytest.mark.parametrize("stored", [NEW, BEGAN])
def test_a_cancelled_run_is_cancelled_though_slurm_is_silent(
    cluster: Cluster, stored: dict[str, Any]
) -> None:
    assert (
        cluster.run_status(stored, None, None, submission={"cancelled": ("r0",)}).state
        == "cancelled"
    )


def test_a_cancelled_run_that_this_machine_trains_runs(cluster: Cluster) -> None:
    """`isoflop run` trains it; that process is no job of the submission."""
    with cluster.run.lease() as lease:
        assert lease
        cancelled = {"cancelled": ("r0",)}
        assert (
            cluster.run_status({**BEGAN, "job_id": "4711"}, "", "", submission=cancelled).state
            == "running"
        )
        assert cluster.run_status(BEGAN, "", "", submission=cancelled).state == "cancelled"


def test_a_colleague_who_may_not_write_sees_a_death_and_records_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != cluster.run.path and may(path, mode)
    )
    status = cluster.run_status(BEGAN, "", "100_0|FAILED|n1|0:9")
    assert status.state == "failed"
    assert "its job 100_0 died on n1" in status.reason
    assert cluster.run.state()["state"] == "running"


def test_jobs_of_whoever_submitted_are_asked_for(cluster: Cluster) -> None:
    calls = cluster.folder / "calls"
    sweep = cluster.sweep_status(NEW, "", "")
    cluster.slurm.program("squeue", f'echo "$@" >{calls}')
    made = Submission("tiny-1", ("r0",), 0, 0.0, "100", user=54321)
    sweep = reconcile(cluster.run.path.parent, ["r0"], [made], 2)
    assert sweep.queue_answered
    assert set(calls.read_text().split("-u ")[1].split()[0].split(",")) == {
        str(os.geteuid()),
        "54321",
    }


def test_of_several_nodes_none_is_to_blame(cluster: Cluster) -> None:
    cluster.run_status(BEGAN, "", "100_0|FAILED|n[1-2]|0:9")
    assert cluster.run.state()["failed_on"] == []


def test_what_another_process_said_is_why_a_job_died(cluster: Cluster) -> None:
    failure = cluster.run.log_file(1).with_name("failure.json")
    failure.parent.mkdir(parents=True)
    failure.write_text('["in process 9 of 16: no GPU", "n2"]')
    status = cluster.run_status({**BEGAN, "attempt": 1}, "", "100_0|FAILED|n[1-2]|0:9")
    assert status.reason == "in process 9 of 16: no GPU"
    assert cluster.run.state()["failed_on"] == ["n2"]


def test_going_back_is_no_progress(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that restarts from step 0 each time and fails at various steps."""
    counts = []
    for step in (1761, 351, 2321, 1641, 781):
        monkeypatch.setattr(RunDirectory, "resume_step", lambda _, step=step: step)
        record_failure(cluster.run, "no luck", "n1")
        counts.append(cluster.run.state()["failures"])
    assert counts == [1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    "reason",
    [
        "QOSMaxWallDurationPerJobLimit",
        "AssocMaxWallDurationPerJobLimit",
        "QOSMaxCpuPerJobLimit",
        "MaxMemPerLimit",
        "QOSMinGRES",
        "PartitionTimeLimit",
    ],
)
def test_a_request_beyond_the_limits_of_one_job_never_starts(reason: str) -> None:
    assert never_starts(reason)
    assert "slurm." in explain(reason)


@pytest.mark.parametrize(
    "reason", ["QOSGrpCpuLimit", "AssocGrpGRES", "QOSMaxJobsPerUserLimit", "Priority", "Resources"]
)
def test_a_wait_for_others_is_temporary(reason: str) -> None:
    assert not never_starts(reason)
