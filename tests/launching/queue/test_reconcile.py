"""Where a run is, by what its directory, the queue and accounting say; and what a death of its job counts for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from support.fake_slurm import FakeSlurm

from isoflop.launching.queue.reconcile import explain, is_hopeless, reconcile
from isoflop.launching.queue.sweep_status import Picture, Where
from isoflop.launching.records.submissions import Submission
from isoflop.launching.slurm.client import HOPELESS
from isoflop.launching.worker.attempt import log_file, record_failure
from isoflop.runs.run_directory import RunDirectory

TASK = "100_0"
BEGAN = {"state": "running", "attempt": 1, "job_id": TASK, "node": "n1"}
SAVED = {"state": "pending", "attempt": 1, "job_id": TASK, "node": "n1"}
BEFORE = {"state": "running", "attempt": 1, "job_id": "99_0", "node": "n1"}
NEW = {"state": "pending", "attempt": 0}
NO_ACCOUNTING = "echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1"
NO_ANSWER = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


class Cluster:
    """One run, and what squeue and sacct say of its task; None where a program fails."""

    def __init__(self, folder: Path, slurm: FakeSlurm) -> None:
        self.folder, self.slurm = folder, slurm
        self.run = RunDirectory(folder / "tiny" / "r0")
        self.run.path.mkdir(parents=True)

    def look(
        self,
        stored: dict[str, Any],
        queue: str | None = "",
        known: str | None = "",
        *,
        age: float = 600,
        retries: int = 2,
        submission: dict[str, Any] | None = None,
    ) -> Picture:
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

    def where(self, *arguments: Any, **options: Any) -> Where:
        return self.look(*arguments, **options).runs["r0"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    slurm = FakeSlurm.make(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(slurm.folder))
    return Cluster(tmp_path, slurm)


@pytest.mark.parametrize(
    ("stored", "queue", "known", "age", "state", "again", "reason"),
    [
        # What the run itself says for good
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
        # Not there yet, or never
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
        # Ended by what is not its fault
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
        # Ended by what may be
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
def test_where_a_run_is(
    cluster: Cluster,
    stored: dict[str, Any],
    queue: str | None,
    known: str | None,
    age: float,
    state: str,
    again: bool,
    reason: str,
) -> None:
    where = cluster.where(stored, queue, known, age=age)
    assert (where.state, where.again) == (state, again)
    assert reason in where.reason
    assert (reason == "") == (where.reason == "")
    after = cluster.run.state()
    if state == "failed":
        log = cluster.run.path.parent / "submissions" / "tiny-1" / "100_0_0_log.err"
        assert where.reason.endswith(f"; see {log}")
        assert (after["state"], after["failures"], after["reason"]) == ("failed", 1, where.reason)
        assert after["failed_on"] == ["n2" if queue or known else "n1"]
        assert cluster.where({}, queue, known) == Where(
            "r0", "failed", where.reason, None, where.node, after, True
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
    picture = cluster.look(stored, None, "100_0|FAILED|n1|1:0", age=age)
    assert not picture.certain
    (note,) = picture.notes
    assert note.startswith("squeue: slurm_load_jobs error: Unable to contact slurm controller; ")
    where = picture.runs["r0"]
    assert where.state != "pending"
    assert not where.again
    assert cluster.run.state()["state"] == stored["state"]


def test_a_sweep_that_was_never_submitted_needs_no_slurm(cluster: Cluster) -> None:
    for program in ("squeue", "sacct"):
        cluster.slurm.remove(program)
    picture = reconcile(cluster.run.path.parent, ["r0"], [], 2)
    assert picture.certain
    assert (picture.runs["r0"].state, picture.runs["r0"].again) == ("pending", True)


@pytest.mark.parametrize(
    ("retries", "again"), [(0, [False] * 3), (1, [True, False, False]), (2, [True, True, False])]
)
def test_a_run_is_tried_again_so_often(cluster: Cluster, retries: int, again: list[bool]) -> None:
    found = []
    for attempt in range(1, 4):
        where = cluster.where(
            {**BEGAN, "attempt": attempt}, "", "100_0|FAILED|n1|1:0", retries=retries
        )
        assert (where.state, where.stored["failures"]) == ("failed", attempt)
        found.append(where.again)
    assert found == again


def test_progress_between_failures_starts_their_count_again(cluster: Cluster) -> None:
    counts = []
    for step in (0, 0, 10, 10, 20):
        cluster.run.checkpoints.mkdir(exist_ok=True)
        if step:
            (cluster.run.checkpoints / f"step-{step:09d}.sha256").touch()
        where = cluster.where(BEGAN, "", "100_0|FAILED|n1|1:0", retries=1)
        counts.append((where.stored["failures"], where.again))
    assert counts == [(1, True), (2, False), (1, True), (2, False), (1, True)]


def test_a_run_that_somebody_trains_is_running_whatever_slurm_says(cluster: Cluster) -> None:
    with cluster.run.lease() as mine:
        assert mine
        for queue, known in (("", "100_0|FAILED|n1|1:0"), (None, None), ("", None)):
            where = cluster.where(BEGAN, queue, known)
            assert (where.state, where.task, where.again) == ("running", TASK, False)
    assert "failures" not in cluster.run.state()


def test_a_run_that_somebody_begins_to_train_meanwhile_is_no_failure(cluster: Cluster) -> None:
    with cluster.run.lease() as mine:
        assert mine
        where = cluster.where(NEW, "", "100_0|FAILED|n1|1:0")
    assert (where.state, where.again) == ("running", False)
    assert cluster.run.state()["state"] == "pending"


@pytest.mark.parametrize("known", ["100_0|CANCELLED by 0|n1|0:15", "100_0|FAILED|n1|0:9", "", None])
@pytest.mark.parametrize("stored", [NEW, BEGAN, SAVED])
def test_a_run_that_isoflop_cancelled_never_failed(
    cluster: Cluster, stored: dict[str, Any], known: str | None
) -> None:
    where = cluster.where(stored, "", known, submission={"cancelled": ("r0",)})
    assert (where.state, where.reason, where.again) == ("cancelled", "by isoflop cancel", True)
    assert "failures" not in cluster.run.state()


@pytest.mark.parametrize(
    "stored", [NEW, {"state": "running", "attempt": 1}, BEFORE, {**BEFORE, "job_id": None}]
)
@pytest.mark.parametrize("age", [1, 600])
def test_a_submission_without_an_id_yet_is_nobodys_failure(
    cluster: Cluster, stored: dict[str, Any], age: float
) -> None:
    """Somebody looks while another call is between its record and sbatch."""
    where = cluster.where(stored, "", "", age=age, submission={"job_id": None})
    assert where.state in ("pending", "queued")
    assert where.reason != "interrupted"
    assert "failures" not in cluster.run.state()


def test_a_run_alone_is_a_job_and_no_task(cluster: Cluster) -> None:
    where = cluster.where(NEW, "100|RUNNING|n3|None", submission={"runs": ("r0",)})
    assert (where.state, where.task, where.node) == ("running", "100", "n3")


def test_the_last_submission_of_a_run_is_what_counts(cluster: Cluster) -> None:
    cluster.run.set_state("pending", attempt=1, job_id="100_0")
    cluster.slurm.program("squeue", "printf '101|PENDING||Priority\\n100_0|FAILED|n1|None\\n'")
    older, newer = (
        Submission(f"tiny-{n}", runs, 0, n, f"10{n}")
        for n, runs in enumerate([("r0", "r1"), ("r0",)])
    )
    where = reconcile(cluster.run.path.parent, ["r0"], [older, newer], 2).runs["r0"]
    assert (where.state, where.task) == ("requeued", "101")


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
    picture = reconcile(cluster.run.path.parent, [f"r{n}" for n in range(100)], [first, second], 2)
    assert picture.ids("queued") == ["r0"]
    assert picture.ids("failed") == ["r57"]
    assert len(picture.ids("pending")) == 98
    assert (cluster.slurm.folder / "squeue.calls").read_text() == "x\n"
    (call,) = (cluster.slurm.folder / "sacct.calls").read_text().splitlines()
    assert "-j 100,200 " in call


# How a job has ended, where accounting does not say, or not yet

TOLD = "JobId=101 ArrayJobId=100 ArrayTaskId=0 JobName=tiny-1 JobState=FAILED Reason=x ExitCode={} RunTime=00:00:03"
OTHER = "JobId=102 ArrayJobId=100 ArrayTaskId=1 JobName=tiny-1 JobState=RUNNING Reason=None ExitCode=0:0"
FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
ENDED = "100_0|FAILED|n1|NonZeroExitCode"


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
    cluster.slurm.program("scontrol", f"printf '%s\\n' '{OTHER}' '{TOLD.format(code)}'")
    where = cluster.where(stored, ENDED, known, retries=0)
    assert where.state == state
    assert reason in where.reason
    assert where.again == (state == "pending")


@pytest.mark.parametrize(("stored", "state"), [(NEW, "queued"), (BEGAN, "running")])
@pytest.mark.parametrize("known", ["", "100_0|RUNNING|n1|0:0"])
def test_how_a_job_ended_is_waited_for_while_accounting_lags(
    cluster: Cluster, stored: dict[str, Any], state: str, known: str
) -> None:
    cluster.slurm.program("scontrol", FORGOTTEN)
    where = cluster.where(stored, ENDED, known)
    assert (where.state, where.again) == (state, False)
    assert where.reason == "its job has ended, SLURM does not say yet how"
    assert "failures" not in cluster.run.state()
    assert cluster.where(stored, ENDED, "100_0|FAILED|n1|0:12").reason == "interrupted (failed)"


def test_a_death_of_which_nobody_knows_more_counts_without_accounting(cluster: Cluster) -> None:
    cluster.slurm.program("scontrol", FORGOTTEN)
    assert cluster.where(BEGAN, ENDED, None).state == "failed"


# Held, and cancelled by halves


@pytest.mark.parametrize("state", ["SPECIAL_EXIT", "REQUEUE_HOLD"])
@pytest.mark.parametrize(
    ("reason", "says"),
    [("None", "JobHeldUser: "), ("job requeued in held state", "job requeued in held state")],
)
def test_a_job_that_was_requeued_to_be_held_waits(
    cluster: Cluster, state: str, reason: str, says: str
) -> None:
    picture = cluster.look(SAVED, f"{TASK}|{state}||{reason}")
    where = picture.runs["r0"]
    assert (where.state, where.task, where.again) == ("requeued", TASK, False)
    assert where.reason.startswith(says)
    assert is_hopeless(where.reason)
    assert picture.held == []


@pytest.mark.parametrize(
    ("state", "orphan"), [("RUNNING", True), ("PENDING", True), ("COMPLETING", False)]
)
def test_a_job_whose_cancellation_broke_off_is_an_orphan_and_not_gone(
    cluster: Cluster, state: str, orphan: bool
) -> None:
    picture = cluster.look(BEGAN, f"{TASK}|{state}|n1|None", submission={"cancelled": ("r0",)})
    where = picture.runs["r0"]
    assert where.state == ("requeued" if state == "PENDING" else "running")
    assert where.reason == "being cancelled; if that lasts, `isoflop cancel` again"
    assert picture.orphans == (TASK,) * orphan


def test_a_cancelled_run_whose_older_job_runs_is_not_gone(cluster: Cluster) -> None:
    cluster.run.set_state(**BEFORE)
    cluster.slurm.program("squeue", "printf '99|RUNNING|n1|None\\n100|CANCELLED||None\\n'")
    old = Submission("tiny-1", ("r0",), 0, time.time() - 99, "99")
    new = Submission("tiny-2", ("r0",), 0, time.time() - 9, "100", ("r0",))
    picture = reconcile(cluster.run.path.parent, ["r0"], [old, new], 2)
    assert (picture.runs["r0"].state, picture.runs["r0"].task) == ("running", "99")
    assert picture.active == {"r0": ["99"]}
    assert picture.orphans == ()


# Reasons


@pytest.mark.parametrize("reason", HOPELESS)
def test_what_a_job_waits_for_in_vain_is_explained_with_the_mend(reason: str) -> None:
    key, what = HOPELESS[reason]
    assert is_hopeless(reason)
    assert explain(reason) == f"{reason}: {f'{key} ' if key else ''}{what}"
    assert explain(f"({reason})") == explain(reason)


@pytest.mark.parametrize(
    "reason", ["Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency", ""]
)
def test_what_passes_by_itself_is_left_as_it_is(reason: str) -> None:
    assert not is_hopeless(reason)
    assert explain(reason) == reason


@pytest.mark.parametrize("node", ["n1", ""])
def test_a_failure_is_kept_with_its_node(cluster: Cluster, node: str) -> None:
    for _ in range(2):
        record_failure(cluster.run, "no luck", node)
    assert cluster.run.state()["failed_on"] == [node] * 2 * bool(node)
    assert cluster.run.state()["failures"] == 2


# Jobs that nobody needs


def test_a_waiting_job_of_a_run_that_is_over_or_has_a_newer_one_is_an_orphan(
    cluster: Cluster,
) -> None:
    assert cluster.look(BEGAN, f"{TASK}|PENDING||Resources").orphans == ()
    cluster.run.set_state("done")
    (cluster.run.path / "DONE").touch()
    assert cluster.look({}, f"{TASK}|PENDING||Resources").orphans == (TASK,)
    assert cluster.look({}, f"{TASK}|RUNNING|n1|None").orphans == ()
    old = Submission("tiny-1", ("r0",), 0, time.time() - 99, "100")
    new = Submission("tiny-2", ("r0",), 0, time.time() - 9, "101")
    (cluster.run.path / "DONE").unlink()
    cluster.run.set_state("pending")
    cluster.slurm.program("squeue", "printf '100|PENDING||Resources\\n101|PENDING||Resources\\n'")
    assert reconcile(cluster.run.path.parent, ["r0"], [old, new], 2).orphans == ("100",)


def test_a_job_that_slurm_holds_after_a_failed_launch_is_known(cluster: Cluster) -> None:
    picture = cluster.look(BEGAN, f"{TASK}|PENDING||launch failed requeued held")
    assert picture.held == [TASK]
    assert not picture.runs["r0"].again


@pytest.mark.parametrize(("stored", "state"), [(BEGAN, "requeued"), (BEFORE, "running")])
def test_a_run_whose_own_job_waits_again_is_requeued_though_its_killed_worker_seems_to_hold_it(
    cluster: Cluster, stored: dict[str, Any], state: str
) -> None:
    (cluster.run.path / "lease").write_text("another 1 token\n")
    where = cluster.where(stored, f"{TASK}|PENDING||JobArrayTaskLimit")
    assert (where.state, where.task, where.again) == (state, TASK, False)


def test_a_cancelled_run_is_so_once_its_job_is_gone_though_its_killed_worker_seems_to_hold_it(
    cluster: Cluster,
) -> None:
    (cluster.run.path / "lease").write_text("another 1 token\n")
    mine = {"cancelled": ("r0",)}
    assert cluster.look(BEGAN, "").runs["r0"].state == "running"
    assert (
        cluster.look(BEGAN, f"{TASK}|COMPLETING|n1|None", submission=mine).runs["r0"].state
        == "running"
    )
    where = cluster.look(BEGAN, "", submission=mine).runs["r0"]
    assert (where.state, where.again) == ("cancelled", True)


# What SLURM forgets, and what it does not know


def test_that_somebody_cancelled_a_job_outlasts_slurm_s_memory(cluster: Cluster) -> None:
    assert cluster.where(BEGAN, "", "100_0|CANCELLED by 0|n1|0:15").state == "cancelled"
    later = cluster.where({}, "", None)
    assert (later.state, later.reason, later.again) == ("cancelled", "its job was cancelled", True)
    newer = cluster.where({}, "200_0|PENDING||Priority", None, submission={"job_id": "200"})
    assert newer.state == "requeued"


def test_a_job_that_left_a_log_was_not_lost(cluster: Cluster) -> None:
    """Its lines of `setup` fail, say, and nobody looked before the controller forgot it."""
    log = cluster.run.path.parent / "submissions" / "tiny-1" / "100_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("Lmod has detected an error\nmodule cuda/99 is unknown\n")
    for failures in (1, 2, 3):
        where = cluster.where(NEW, "", None)
        assert where.state == "failed"
        assert "ended before the run began: module cuda/99 is unknown; see " in where.reason
        assert (where.stored["failures"], where.again) == (failures, failures <= 2)


def test_a_suspended_run_says_so(cluster: Cluster) -> None:
    with cluster.run.lease() as mine:
        assert mine
        where = cluster.where(BEGAN, "100_0|SUSPENDED|n1|None", "")
    assert (where.state, where.reason) == ("running", "suspended")


@pytest.mark.parametrize("stored", [NEW, BEGAN])
def test_a_cancelled_run_is_cancelled_though_slurm_is_silent(
    cluster: Cluster, stored: dict[str, Any]
) -> None:
    assert cluster.where(stored, None, None, submission={"cancelled": ("r0",)}).state == "cancelled"


def test_a_cancelled_run_that_this_machine_trains_runs(cluster: Cluster) -> None:
    """By `isoflop run`, whose process is no job of the submission."""
    with cluster.run.lease() as mine:
        assert mine
        cancelled = {"cancelled": ("r0",)}
        assert (
            cluster.where({**BEGAN, "job_id": "4711"}, "", "", submission=cancelled).state
            == "running"
        )
        assert cluster.where(BEGAN, "", "", submission=cancelled).state == "cancelled"


def test_a_colleague_who_may_not_write_sees_a_death_and_records_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != cluster.run.path and may(path, mode)
    )
    where = cluster.where(BEGAN, "", "100_0|FAILED|n1|0:9")
    assert where.state == "failed"
    assert "its job 100_0 died on n1" in where.reason
    assert cluster.run.state()["state"] == "running"


def test_jobs_of_whoever_submitted_are_asked_for(cluster: Cluster) -> None:
    told = cluster.folder / "told"
    picture = cluster.look(NEW, "", "")
    cluster.slurm.program("squeue", f'echo "$@" >{told}')
    made = Submission("tiny-1", ("r0",), 0, 0.0, "100", user=54321)
    picture = reconcile(cluster.run.path.parent, ["r0"], [made], 2)
    assert picture.certain
    assert set(told.read_text().split("-u ")[1].split()[0].split(",")) == {
        str(os.geteuid()),
        "54321",
    }


def test_of_several_nodes_none_is_to_blame(cluster: Cluster) -> None:
    cluster.where(BEGAN, "", "100_0|FAILED|n[1-2]|0:9")
    assert cluster.run.state()["failed_on"] == []


def test_what_another_process_said_is_why_a_job_died(cluster: Cluster) -> None:
    failure = log_file(cluster.run, 1).with_name("failure.json")
    failure.parent.mkdir(parents=True)
    failure.write_text('["in process 9 of 16: no GPU", "n2"]')
    where = cluster.where({**BEGAN, "attempt": 1}, "", "100_0|FAILED|n[1-2]|0:9")
    assert where.reason == "in process 9 of 16: no GPU"
    assert cluster.run.state()["failed_on"] == ["n2"]


def test_going_back_is_no_progress(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that starts anew each time, and fails somewhere."""
    counts = []
    for step in (1761, 351, 2321, 1641, 781):
        monkeypatch.setattr(RunDirectory, "reached", lambda _, step=step: step)
        record_failure(cluster.run, "no luck", "n1")
        counts.append(cluster.run.state()["failures"])
    assert counts == [1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    "reason",
    ["QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "MaxMemPerLimit",
     "QOSMinGRES", "PartitionTimeLimit"],
)  # fmt: skip
def test_what_one_job_may_not_have_is_hopeless(reason: str) -> None:
    assert is_hopeless(reason)
    assert "slurm." in explain(reason)


@pytest.mark.parametrize(
    "reason", ["QOSGrpCpuLimit", "AssocGrpGRES", "QOSMaxJobsPerUserLimit", "Priority", "Resources"]
)
def test_what_others_hold_is_not(reason: str) -> None:
    assert not is_hopeless(reason)
