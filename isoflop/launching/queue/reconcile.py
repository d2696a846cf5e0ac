"""Reconciliation: the state of every run from its directory, then the queue, then accounting.

A queue that does not answer proves nothing. A run whose job was interrupted (preempted, out of
time, a lost node) continues; any other end of the job counts as a failure of the run.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop.errors import ClusterError
from isoflop.launching.queue.job_states import (
    JobStates,
    query_jobs,
    read_queue,
    recorded_supervisor,
)
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.launching.records.submissions import Submission, submissions_folder
from isoflop.launching.slurm.signals import KILLED_EXIT_CODE
from isoflop.launching.slurm.tasks import (
    INTERRUPTED_STATES,
    Task,
    find_permanent_wait,
)
from isoflop.launching.worker.attempt import read_peer_failure, record_failure
from isoflop.runs.run_directory import TERMINAL_STATES, RunDirectory, State

LOST_JOB_S = 20.0
"""Time after submission within which a job may be unknown to the controller and still arrive."""

SIGNAL_EXIT_CODES = {"0:10", "0:12", "0:15", "10:0", "12:0", "15:0", f"{KILLED_EXIT_CODE}:0"}
"""Exit codes of a worker stopped by USR1, USR2 or TERM, before it could listen or after saving."""

OUT_OF_MEMORY = re.compile(r"exceeded memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)
LOG_TAIL_BYTES = 4000
LAST_LINE_CHARACTERS = 200
STOPPED_STATES = ("SUSPENDED", "STOPPED")


def reconcile(
    directory: Path, run_ids: Iterable[str], submissions: Sequence[Submission], retries: int
) -> SweepStatus:
    """Return the status of a sweep; record failures that runs could not record.

    Args:
        directory: the sweep's directory.
        run_ids: its runs.
        submissions: all of them, the oldest first.
        retries: number of failures without progress after which a run is still queued again.
    """
    latest = {run_id: submission for submission in submissions for run_id in submission.runs}
    queue_error, queue = "", None
    try:
        queue = read_queue(submissions) if submissions else {}
    except ClusterError as problem:
        queue_error = str(problem)
    runs = {run_id: RunDirectory(directory / run_id) for run_id in run_ids}
    stored = {run_id: run.state() for run_id, run in runs.items()}
    tasks = [
        latest[run_id].task(run_id)
        for run_id in latest
        if run_id in runs and stored[run_id]["state"] not in TERMINAL_STATES
    ]
    states = query_jobs(submissions, queue, tasks)
    jobs = {submission.job_id for submission in submissions}
    statuses = {}
    for run_id, run in runs.items():
        by_slurm = (stored[run_id].get("job_id") or "").partition("_")[0] in jobs
        statuses[run_id] = _run_status(
            run, stored[run_id], latest.get(run_id), states, retries, by_slurm=by_slurm
        )
    _, supervisor = recorded_supervisor(directory) or ("", None)
    job = states.job(supervisor)
    note = f"{queue_error}; the states below come from the runs' directories alone"
    return SweepStatus(
        statuses,
        (note,) if queue_error else (),
        queue_error,
        _orphans(submissions, latest, statuses, states),
        states.active,
        supervisor if queue is not None and not (job and job.active) else None,
    )


def _orphans(
    submissions: Sequence[Submission],
    latest: Mapping[str, Submission],
    runs: Mapping[str, RunStatus],
    states: JobStates,
) -> tuple[str, ...]:
    """Return superfluous jobs, as in `SweepStatus`."""
    orphans = []
    for submission in submissions:
        cancelled = set(submission.cancelled)
        for run_id in submission.runs:
            if (job := states.job(submission.task(run_id))) is None:
                continue
            # An older running job stays: it may be training while the newer waits for its lease.
            superfluous = latest[run_id] is not submission or (
                run_id in runs and runs[run_id].state in ("done", "diverged")
            )
            half_cancelled = run_id in cancelled and job.active and job.state != "COMPLETING"
            if half_cancelled or (superfluous and job.known_to_wait):
                orphans.append(job.id)
    return tuple(orphans)


def _run_status(
    run: RunDirectory,
    stored: dict[str, Any],
    submission: Submission | None,
    states: JobStates,
    retries: int,
    *,
    by_slurm: bool,
) -> RunStatus:
    """Return the status of a run.

    Args:
        run: its directory.
        stored: content of its `state.json`.
        submission: its latest one, if any.
        states: SLURM's answers.
        retries: as for `reconcile`.
        by_slurm: True if its last attempt belongs to a job of the sweep's submissions.
    """
    node = stored.get("node") or ""
    task = submission.task(run.run_id) if submission else None
    active = states.active.get(run.run_id, ())
    if states.queue is not None and task not in active:  # an older job may still run
        task = next((older for older in active if not states.queue[older].known_to_wait), task)

    def status(
        state: State,
        reason: str = "",
        *,
        job: str | None = None,
        at: str = node,
        retry: bool = False,
    ) -> RunStatus:
        return RunStatus(run.run_id, state, reason, job, at, stored, retry)

    if stored["state"] in ("done", "diverged"):
        return status(stored["state"], stored.get("reason", ""))
    cancelled = submission is not None and run.run_id in submission.cancelled
    job = states.job(task)
    # A killed worker's lease looks held on other machines for a while; here SLURM is right.
    requeued = job is not None and job.known_to_wait and stored.get("job_id") == task
    over = (by_slurm and cancelled and states.queue is not None and not active) or requeued
    ending = "being cancelled; if this persists, run `isoflop cancel` again" if cancelled else ""
    if stored["state"] == "running" and not over and run.is_leased():
        stopped = job.state.lower() if job is not None and job.state in STOPPED_STATES else ""
        return status("running", ending or stopped, job=task)
    if submission is None:
        return _not_submitted(status, stored, retries)
    if job is not None and job.active:
        if not job.waits:
            phase = "" if job.state == "RUNNING" else job.state.lower()
            return status("running", ending or phase, job=task, at=job.node or node)
        state = "requeued" if stored.get("attempt", 0) > 0 else "queued"
        return status(state, ending or explain(job.wait_reason), job=task)
    if states.queue is None and cancelled:
        return status("cancelled", "by isoflop cancel", retry=True)
    if states.queue is None and stored["state"] == "failed":
        return status("failed", stored.get("reason", ""))
    if states.queue is None:
        state = "running" if stored["state"] == "running" else "queued"
        return status(state, "SLURM does not answer", job=task)
    if stored["state"] == "failed":
        failed = _failed(status, stored, retries)
        if cancelled and failed.retry:
            reason = f"by isoflop cancel; it had failed: {failed.reason}"
            return status("cancelled", reason, retry=True)
        return failed
    if cancelled:
        return status("cancelled", "by isoflop cancel", retry=True)
    if task is not None and stored.get("cancelled_job") == task:
        return status("cancelled", "its job was cancelled", retry=True)
    return _ended_status(status, run, stored, submission, states, retries)


def _ended_status(
    status: Any,
    run: RunDirectory,
    stored: dict[str, Any],
    submission: Submission,
    states: JobStates,
    retries: int,
) -> RunStatus:
    """Return the status of a run whose job left the queue and that recorded no end."""
    task = submission.task(run.run_id)
    job = states.ended.get(task or "")
    started = task is not None and stored.get("job_id") == task
    if task is None:  # another call is submitting or was killed; the next submission finds out
        return status("queued", "being submitted")
    if task in states.unexplained:  # for minutes: until accounting has it or the controller forgets
        state = "running" if started else "queued"
        return status(state, "its job has ended; SLURM has not reported the exit code yet")
    if job is None or job.active:  # the controller forgot it, or never started it
        # Accounting may lag behind the controller.
        young = time.time() - submission.submitted < LOST_JOB_S
        if young and (job is not None or not started):
            return status("queued", "not in the queue yet", job=task)
        left_log = job is None and _log_file(run, submission).exists()
        if not started and not left_log:
            return status("pending", "its job was lost by SLURM", retry=True)
        if job is not None:
            return status("pending", "its job was lost by SLURM while it ran", retry=True)
    if job is not None and job.state == "CANCELLED":
        with suppress(OSError), run.lease() as lease:  # without accounting SLURM forgets it
            if lease:
                run.set_state(stored["state"], stored.get("reason", ""), cancelled_job=task)
        return status("cancelled", "its job was cancelled", retry=True)
    if job is not None and (job.state in INTERRUPTED_STATES or job.exit_code in SIGNAL_EXIT_CODES):
        return status("pending", f"interrupted ({job.state.lower()})", retry=True)
    if started and stored["state"] == "pending":
        return status("pending", stored.get("reason", "") or "interrupted", retry=True)
    if not os.access(run.path, os.W_OK):  # a colleague reads the status
        return status("failed", _describe_death(run, stored, submission, job, started))
    with run.lease() as lease:
        if not lease:
            return status("running", job=task)
        stored = run.state()
        if stored["state"] in ("done", "failed", "diverged"):
            return status(stored["state"], stored.get("reason", ""))
        failure = read_peer_failure(run, stored.get("attempt", 0)) if started else None
        reason, node = failure or (
            _describe_death(run, stored, submission, job, started),
            job.node if job else status("failed").node,
        )
        several = "[" in node or "," in node  # then no single node is known to be bad
        record_failure(run, reason, "" if several else node)
        stored = run.state()
        return replace(_failed(status, stored, retries), stored=stored)


def _describe_death(
    run: RunDirectory,
    stored: Mapping[str, Any],
    submission: Submission,
    job: Task | None,
    started: bool,
) -> str:
    """Return the reason of a failure that only SLURM and the job's log show."""
    how = f" ({job.state.lower()}, exit code {job.exit_code})" if job and job.exit_code else ""
    task = submission.task(run.run_id)
    node = (job.node if job else "") or stored.get("node")
    at = f" on {node}" if node else ""
    log = _log_file(run, submission)
    if OUT_OF_MEMORY.search(_log_tail(log)):
        fix = "raise slurm.mem or mem_per_cpu in the profile"
        return f"its job {task} ran out of memory{at}{how}: {fix}; see {log}"
    if started:
        return f"its job {task} died{at}{how}: killed; see {log}"
    if log.exists():
        no_log = ""
    else:
        no_log = " and left no log (do all nodes share the profile's root? see `isoflop doctor`)"
    last_line = _log_tail(log).strip().rpartition("\n")[2][-LAST_LINE_CHARACTERS:]
    quote = f": {last_line}" if last_line else ""
    return f"its job {task} ended{at}{how} before the run began{quote}{no_log}; see {log}"


def _log_file(run: RunDirectory, submission: Submission) -> Path:
    """Return the file with stderr of a run's job and of its first process."""
    folder = submissions_folder(run.path.parent) / submission.name
    return folder / f"{submission.task(run.run_id)}_0_log.err"


def _log_tail(log: Path) -> str:
    try:
        return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""


def _not_submitted(status: Any, stored: Mapping[str, Any], retries: int) -> RunStatus:
    if stored["state"] == "failed":
        return _failed(status, stored, retries)
    return status("pending", stored.get("reason", ""), retry=True)


def _failed(status: Any, stored: Mapping[str, Any], retries: int) -> RunStatus:
    retry = stored.get("failures", 1) <= retries
    return status("failed", stored.get("reason", ""), retry=retry)


def explain(reason: str) -> str:
    """Return SLURM's reason of a wait; add the profile's key to fix if the job can never start."""
    reason = reason.strip("()")
    if (finding := find_permanent_wait(reason)) is None:
        return reason
    key, problem = finding
    return f"{reason}: {key} {problem}" if key else f"{reason}: {problem}"


def never_starts(reason: str) -> bool:
    """Return whether a job that waits for this reason can never start."""
    return find_permanent_wait(reason) is not None
