"""Control of a submitted study: status, cancel, retry, logs, and runs by name prefix."""

from __future__ import annotations

import codecs
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from isoflop.errors import ClusterError, RunError
from isoflop.launching.queue.reconcile import never_starts, reconcile
from isoflop.launching.queue.submit_array import recover_submissions
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.launching.records.approvals import read_approved, revoke
from isoflop.launching.records.submissions import (
    Submission,
    lease_submissions,
    read_submissions,
    submissions_folder,
)
from isoflop.launching.slurm import client as slurm
from isoflop.lease import Lease, is_leased
from isoflop.planning.plan import read_plan_rows
from isoflop.runs.run_directory import TERMINAL_STATES, RunDirectory

UNLIMITED_RETRIES = 10**6
CANCEL_TIMEOUT_S = 60.0
STATUS_POLL_S = 0.5
QUEUE_POLL_S = 5.0
REASONS_S = 5.0
REASON_SETTLE_S = 3.0
READY_REASON = "waiting for retry"
READY_REASONS = (READY_REASON, "to be tried again")
"""Reasons of a run that `retry` made ready and no submission has queued yet; one is of 0.1.0."""

MAX_NAMES = 3
"""Number of runs that a message names."""


def list_runs(directory: Path) -> list[str]:
    """Return the runs of a sweep's directory, in the order of its plan.

    Raises:
        RunError: not a sweep's directory, or a damaged plan.
    """
    return [row["run_id"] for row in read_plan_rows(directory, ["run_id"])]


def list_all_runs(directory: Path) -> list[str]:
    """Return the runs of a sweep's plan, then those that only submissions or run directories have.

    Raises:
        RunError, ConfigError: not a sweep's directory, a damaged plan, or a damaged record.
    """
    runs = list_runs(directory)
    submitted = {run_id for submission in read_submissions(directory) for run_id in submission.runs}
    made = {path.parent.name for path in directory.glob("[!.]*/config.yaml")}
    return [*runs, *sorted((submitted | made) - set(runs))]


def match_runs(directory: Path, prefixes: Sequence[str]) -> list[str]:
    """Return the runs with these name prefixes; without prefixes, all runs of the plan.

    Runs that the plan no longer has match too.

    Raises:
        RunError: a prefix that fits no run, or more than one.
    """
    if not prefixes:
        return list_runs(directory)
    runs, chosen = list_all_runs(directory), []
    for prefix in prefixes:
        matches = [run_id for run_id in runs if run_id == prefix] or [
            run_id
            for run_id in runs
            if run_id.startswith(prefix) or run_id.rpartition("-")[2].startswith(prefix)
        ]
        if len(matches) != 1:
            problem = "fits no run"
            if matches:
                problem = f"fits {len(matches)} runs ({_name_first(matches)})"
            raise RunError(
                f"{prefix}: {problem} of {directory}; give a longer prefix of a name that "
                "`isoflop status` prints"
            )
        chosen += matches
    return list(dict.fromkeys(chosen))


def _name_first(run_ids: Sequence[str]) -> str:
    """Return the first names of a list, with an ellipsis for the others."""
    return ", ".join(run_ids[:MAX_NAMES]) + (", ..." if len(run_ids) > MAX_NAMES else "")


def query_status(directory: Path, retries: int = UNLIMITED_RETRIES) -> SweepStatus:
    """Return the status of every run of a submitted sweep."""
    runs = list_runs(directory)
    status = reconcile(directory, runs, read_submissions(directory), retries)
    if dropped := sorted(status.active.keys() - set(runs)):
        subject = f"{len(dropped)} runs are" if len(dropped) > 1 else "1 run is"
        note = (
            f"{subject} no longer in the sweep but still active: {_name_first(dropped)}; "
            f"`isoflop cancel {directory} NAME` ends one"
        )
        status = status.with_note(note)
    unfinished = {run_id for run_id, run in status.runs.items() if run.task or run.retry}
    unfinished -= set(status.ids("cancelled"))
    if status.ended_supervisor and unfinished & read_approved(directory):
        note = (
            f"the supervisor, job {status.ended_supervisor}, has ended; "
            "`isoflop submit ... --supervise` queues another"
        )
        status = status.with_note(note)
    return status


def count_never_starting(directory: Path, wait_s: float = REASONS_S) -> dict[str, int]:
    """Return the number of queued runs that can never start by reason, soon after a submission.

    Args:
        directory: directory of the sweep.
        wait_s: seconds to wait for SLURM to consider each of their arrays.
    """
    limit, settled = time.monotonic() + wait_s, wait_s == 0
    while True:
        runs = [run for run in query_status(directory).runs.values() if run.task]
        waiting = [run for run in runs if run.state in ("queued", "requeued")]
        considered = {_array_id(run) for run in runs if run.state == "running" or run.reason}
        if considered >= {_array_id(run) for run in waiting} or time.monotonic() > limit:
            counts = Counter(run.reason for run in waiting if never_starts(run.reason))
            if settled or not counts:
                return dict(counts)
            # SLURM's first reason may be vague: PartitionConfig for a time limit that is too long.
            settled = True
            time.sleep(REASON_SETTLE_S)
            continue
        time.sleep(STATUS_POLL_S)


def _array_id(run: RunStatus) -> str:
    """Return the array of a run's task; its tasks request the same, so one reason holds for all."""
    return (run.task or "").partition("_")[0]


def cancel(directory: Path, prefixes: Sequence[str]) -> list[str]:
    """Cancel all jobs of runs and withdraw their approval; each keeps its last checkpoint.

    Without prefixes, cancel all submitted runs, those no longer in the sweep too.

    Returns:
        The runs that had a job, or that were not cancelled before.

    Raises:
        RunError: a run that is unknown, or was never submitted.
        ClusterError: SLURM does not answer; none or not all were cancelled, and the same command
            continues.
    """
    chosen = match_runs(directory, prefixes) if prefixes else list_all_runs(directory)
    if not (agreed := read_approved(directory)):
        raise RunError(f"{directory}: was never submitted; stop `isoflop run` with Ctrl-C")
    if prefixes and (others := [run_id for run_id in chosen if run_id not in agreed]):
        raise RunError(f"{others[0]}: was never submitted, so there is nothing to cancel")
    with _lease_and_recover(directory) as submissions:
        if not prefixes:  # the previous holder of the lease may have submitted more
            chosen = list_all_runs(directory)
        status = reconcile(directory, (), submissions, UNLIMITED_RETRIES)
        status.check("cancelled")
        latest = {run_id: submission for submission in submissions for run_id in submission.runs}
        jobs = {run_id: status.active.get(run_id, ()) for run_id in chosen}
        over = {
            run_id
            for run_id in chosen
            if RunDirectory(directory / run_id).state()["state"] in ("done", "diverged")
        }
        may_go_on = set(list_runs(directory)) - over
        unrecorded: OSError | None = None
        try:
            new = revoke(directory, chosen)
        except OSError as problem:
            new, unrecorded = set(), problem
        # First the record: a cancelled run must never be mistaken for a lost one.
        for submission in submissions:
            before = set(submission.cancelled)
            affected = [
                run_id
                for run_id in submission.runs
                if run_id in jobs and run_id not in before
                if submission.task(run_id) in jobs[run_id]
                or (latest[run_id] is submission and run_id in may_go_on)
            ]
            if affected:
                cancelled = (*submission.cancelled, *affected)
                try:
                    dataclasses.replace(submission, cancelled=cancelled).write(
                        submissions_folder(directory)
                    )
                except OSError as problem:
                    unrecorded = problem
                new.update(affected)
        tasks = [task for run_tasks in jobs.values() for task in run_tasks]
        slurm.cancel(tasks)
        if unrecorded is not None:  # a full disk is a common reason to cancel
            raise RunError(
                f"{len(tasks)} jobs were cancelled, but this could not be recorded "
                f"({unrecorded.strerror}: {unrecorded.filename}); make room and cancel again, "
                "or a supervisor may requeue them"
            )
        _wait_for_end(set(tasks))
    return [run_id for run_id in chosen if run_id not in over and (jobs[run_id] or run_id in new)]


def _wait_for_end(tasks: Set[str]) -> None:
    """Wait until cancelled jobs have saved and left the queue, so that a `retry` can follow."""
    limit = time.monotonic() + CANCEL_TIMEOUT_S
    with suppress(ClusterError):
        while (
            any(job.active for task, job in slurm.queue().items() if task in tasks)
            and time.monotonic() < limit
        ):
            time.sleep(STATUS_POLL_S)


def retry(directory: Path, prefixes: Sequence[str], lease: Lease | None = None) -> list[str]:
    """Make failed and cancelled runs ready for the next submission and return them.

    Their number of earlier failures does not matter.

    Args:
        directory: directory of the sweep.
        prefixes: prefixes of run names; all runs if empty.
        lease: lease on the submissions, if the caller holds it.

    Raises:
        RunError: a run that is unknown, active or diverged (it would diverge again).
        ClusterError: SLURM does not answer; the runs are unchanged.
    """
    chosen, runs = match_runs(directory, prefixes), list_runs(directory)
    if dropped := sorted(set(chosen) - set(runs)):
        raise RunError(f"{dropped[0]}: is no longer in the sweep, so there is nothing to retry")
    with _lease_and_recover(directory, lease) as submissions:
        status = reconcile(directory, runs, submissions, UNLIMITED_RETRIES)
        latest = {run_id: submission for submission in submissions for run_id in submission.runs}
        status.check("queued")
        ready = [
            run_id
            for run_id in chosen
            if (run := status.runs[run_id]).state in ("failed", "cancelled")
            or (run.retry and run.reason in READY_REASONS)  # an earlier retry did not queue it
        ]
        if prefixes and (others := [run_id for run_id in chosen if run_id not in ready]):
            state = status.runs[others[0]].state
            raise RunError(f"{others[0]}: is {state}, so there is nothing to retry")
        for run_id in ready:
            run_directory = RunDirectory(directory / run_id)
            with run_directory.lease() as run_lease:
                if run_lease:
                    # The id of the ended task, so that it is not counted again.
                    ended = latest[run_id].task(run_id) if run_id in latest else None
                    run_directory.set_state(
                        "pending",
                        READY_REASON,
                        failures=0,
                        failed_on=[],
                        starts_without_progress=0,
                        start_step=None,
                        job_id=ended,
                    )
    return ready


def newest_log(directory: Path, run_id: str) -> Path:
    """Return the log of a run's newest attempt, or that of its job if no attempt began.

    Raises:
        RunError: no log exists yet.
    """
    run = RunDirectory(directory / run_id)
    log = run.log_file(run.state().get("attempt", 0))
    if log.exists():
        return log
    submissions = read_submissions(directory)
    for submission in reversed(submissions):
        if run_id in submission.runs:
            folder = submissions_folder(directory) / submission.name
            errors = folder / f"{submission.task(run_id)}_0_log.err"
            if errors.exists():
                return errors
    fix = "`isoflop run` of its sweep trains it"
    if submissions:
        fix = f"see `isoflop status {directory}`"
    raise RunError(f"{run_id}: has written nothing yet; {fix}")


def follow_log(directory: Path, run_id: str) -> Iterator[tuple[Path, str]]:
    """Yield new text of a run's logs and its file, through all attempts until the run is over.

    A run is also over once no process trains it and no job of it is queued.

    Raises:
        RunError: no log exists yet.
    """
    log, run = newest_log(directory, run_id), RunDirectory(directory / run_id)
    last_check = time.monotonic()
    while True:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with log.open("rb") as file:
            newest = log
            while newest == log:
                over = run.state()["state"] in TERMINAL_STATES
                if not over and time.monotonic() - last_check > QUEUE_POLL_S:
                    over, last_check = not _is_under_way(directory, run), time.monotonic()
                newest = newest_log(directory, run_id)
                # Read after both checks: the text before the end of a run or attempt is complete.
                yield log, decoder.decode(file.read())
                if over and newest == log:
                    return
                if newest == log:
                    time.sleep(STATUS_POLL_S)
        log = newest


def _is_under_way(directory: Path, run: RunDirectory) -> bool:
    """Return whether a process trains a run or still may; True if SLURM does not answer.

    Calls squeue at most once.
    """
    if run.is_leased() or is_leased(directory / "workers" / "lease"):
        return True
    tasks = {
        submission.task(run.run_id)
        for submission in read_submissions(directory)
        if run.run_id in submission.runs
    }
    try:
        return bool(tasks) and any(
            job.active for task, job in slurm.queue().items() if task in tasks
        )
    except ClusterError:
        return True


@contextmanager
def _lease_and_recover(directory: Path, lease: Lease | None = None) -> Iterator[list[Submission]]:
    """Yield the recovered submissions of a sweep while holding their lease."""
    with lease_submissions(directory, lease):
        yield recover_submissions(directory)
