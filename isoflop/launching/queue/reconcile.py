"""Where every run of a sweep is: its directory first, then the queue, then accounting.

A queue that does not answer proves nothing. A run whose job has ended goes on where the end was not its fault
(preempted, out of time, a lost node), and counts as failed where it was.
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
from isoflop.launching.queue.job_states import Seen, read_queue, recorded_supervisor, see
from isoflop.launching.queue.sweep_status import Picture, Where
from isoflop.launching.records.submissions import Submission, submissions_folder
from isoflop.launching.slurm.client import INTERRUPTED, Task, why_in_vain
from isoflop.launching.slurm.signals import KILLED
from isoflop.launching.worker.attempt import failure_of_another, record_failure
from isoflop.runs.run_directory import SETTLED, RunDirectory, State

LOST_S = 20.0
"""How long after its submission a job that the controller does not know may still be on its way."""

SIGNALLED = {"0:10", "0:12", "0:15", "10:0", "12:0", "15:0", f"{KILLED}:0"}
"""Exit codes of a worker that a signal met: USR1, USR2 or TERM before it could listen, or after it had saved."""

OUT_OF_MEMORY = re.compile(r"exceeded memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)
LOG_END = 4000
LAST_WORDS = 200
STOPPED = ("SUSPENDED", "STOPPED")


def reconcile(
    directory: Path, run_ids: Iterable[str], submissions: Sequence[Submission], retries: int
) -> Picture:
    """The picture of a sweep; records deaths that the runs themselves could not.

    Args:
        directory: of the sweep.
        run_ids: its runs.
        submissions: all of them, the oldest first.
        retries: how many failures without progress a run may have and still be queued again.
    """
    latest = {run_id: submission for submission in submissions for run_id in submission.runs}
    silence, queue = "", None
    try:
        queue = read_queue(submissions) if submissions else {}
    except ClusterError as problem:
        silence = str(problem)
    runs = {run_id: RunDirectory(directory / run_id) for run_id in run_ids}
    stored = {run_id: run.state() for run_id, run in runs.items()}
    unsettled = [
        run_id for run_id in latest if run_id in runs and stored[run_id]["state"] not in SETTLED
    ]
    seen = see(submissions, queue, [latest[run_id].task(run_id) for run_id in unsettled])
    jobs = {submission.job_id for submission in submissions}
    found = {}
    for run_id, run in runs.items():
        theirs = (stored[run_id].get("job_id") or "").partition("_")[0] in jobs
        found[run_id] = _where(
            run, stored[run_id], latest.get(run_id), seen, retries, by_slurm=theirs
        )
    _, watcher = recorded_supervisor(directory) or ("", None)
    job = seen.job(watcher)
    return Picture(
        found,
        (f"{silence}; what follows is what the runs themselves say",) if silence else (),
        silence,
        _orphans(submissions, latest, found, seen),
        seen.active,
        watcher if queue is not None and not (job and job.active) else None,
    )


def _orphans(
    submissions: Sequence[Submission],
    latest: Mapping[str, Submission],
    runs: Mapping[str, Where],
    seen: Seen,
) -> tuple[str, ...]:
    found = []
    for submission in submissions:
        cancelled = set(submission.cancelled)
        for run_id in submission.runs:
            if (job := seen.job(submission.task(run_id))) is None:
                continue
            # An older job that runs is left: it may be the one that trains, and the newer one waits for its lease.
            over = latest[run_id] is not submission or (
                run_id in runs and runs[run_id].state in ("done", "diverged")
            )
            broke_off = run_id in cancelled and job.active and job.state != "COMPLETING"
            if broke_off or (over and job.waits):
                found.append(job.id)
    return tuple(found)


def _where(
    run: RunDirectory,
    stored: dict[str, Any],
    submission: Submission | None,
    seen: Seen,
    retries: int,
    *,
    by_slurm: bool,
) -> Where:
    node = stored.get("node") or ""
    task = submission.task(run.run_id) if submission else None
    active = seen.active.get(run.run_id, ())
    if seen.queue is not None and task not in active:  # an older job may run still
        task = next((older for older in active if not seen.queue[older].waits), task)

    def where(
        state: State,
        reason: str = "",
        *,
        job: str | None = None,
        at: str = node,
        again: bool = False,
    ) -> Where:
        return Where(run.run_id, state, reason, job, at, stored, again)

    if stored["state"] in ("done", "diverged"):
        return where(stored["state"], stored.get("reason", ""))
    cancelled = submission is not None and run.run_id in submission.cancelled
    job = seen.job(task)
    # From another machine a killed worker's lease looks held for a while; of these two SLURM knows better.
    waits_again = job is not None and job.waits and stored.get("job_id") == task
    over = (by_slurm and cancelled and seen.queue is not None and not active) or waits_again
    ending = "being cancelled; if that lasts, `isoflop cancel` again" if cancelled else ""
    if stored["state"] == "running" and not over and run.is_leased():
        stopped = job.state.lower() if job is not None and job.state in STOPPED else ""
        return where("running", ending or stopped, job=task)
    if submission is None:
        return _not_submitted(where, stored, retries)
    if job is not None and job.active:
        if not job.waits:
            says = "" if job.state == "RUNNING" else job.state.lower()
            return where("running", ending or says, job=task, at=job.node or node)
        began = stored.get("attempt", 0) > 0
        return where("requeued" if began else "queued", ending or explain(job.reason), job=task)
    if seen.queue is None and cancelled:
        return where("cancelled", "by isoflop cancel", again=True)
    if seen.queue is None and stored["state"] == "failed":
        return where("failed", stored.get("reason", ""))
    if seen.queue is None:
        return where(
            "running" if stored["state"] == "running" else "queued",
            "SLURM does not answer",
            job=task,
        )
    if stored["state"] == "failed":
        failed = _failed(where, stored, retries)
        said = f"by isoflop cancel; it had failed: {failed.reason}"
        return where("cancelled", said, again=True) if cancelled and failed.again else failed
    if cancelled:
        return where("cancelled", "by isoflop cancel", again=True)
    if task is not None and stored.get("cancelled_job") == task:
        return where("cancelled", "its job was cancelled", again=True)
    return _over(where, run, stored, submission, seen, retries)


def _over(
    where: Any,
    run: RunDirectory,
    stored: dict[str, Any],
    submission: Submission,
    seen: Seen,
    retries: int,
) -> Where:
    """A run whose job is not in the queue any more, and that did not say how it ended."""
    task = submission.task(run.run_id)
    job = seen.words.get(task or "")
    began = task is not None and stored.get("job_id") == task
    if task is None:  # another call is at work, or was killed; the next submission finds out
        return where("queued", "being submitted")
    if task in seen.unsaid:  # until accounting has it, or the controller forgets it: in minutes
        return where(
            "running" if began else "queued", "its job has ended, SLURM does not say yet how"
        )
    if job is None or job.active:  # the controller forgot it, or never started it
        young = (
            time.time() - submission.submitted < LOST_S
        )  # accounting may lag behind the controller
        if young and (job is not None or not began):
            return where("queued", "not in the queue yet", job=task)
        started = job is None and _log_of(run, submission).exists()
        if not began and not started:
            return where("pending", "its job was lost by SLURM", again=True)
        if job is not None:
            return where("pending", "its job was lost by SLURM while it ran", again=True)
    if job is not None and job.state == "CANCELLED":
        with (
            suppress(OSError),
            run.lease() as lease,
        ):  # SLURM forgets it, where there is no accounting
            if lease:
                run.set_state(stored["state"], stored.get("reason", ""), cancelled_job=task)
        return where("cancelled", "its job was cancelled", again=True)
    if job is not None and (job.state in INTERRUPTED or job.exit_code in SIGNALLED):
        return where("pending", f"interrupted ({job.state.lower()})", again=True)
    if began and stored["state"] == "pending":
        return where("pending", stored.get("reason", "") or "interrupted", again=True)
    if not os.access(run.path, os.W_OK):  # a colleague looks
        return where("failed", _death(run, stored, submission, job, began))
    with run.lease() as lease:
        if not lease:
            return where("running", job=task)
        stored = run.state()
        if stored["state"] in ("done", "failed", "diverged"):
            return where(stored["state"], stored.get("reason", ""))
        said = failure_of_another(run, stored.get("attempt", 0)) if began else None
        reason, at = said or (
            _death(run, stored, submission, job, began),
            job.node if job else where("failed").node,
        )
        record_failure(
            run, reason, "" if "[" in at or "," in at else at
        )  # of several nodes none is known to be bad
        stored = run.state()
        return replace(_failed(where, stored, retries), stored=stored)


def _death(
    run: RunDirectory,
    stored: Mapping[str, Any],
    submission: Submission,
    job: Task | None,
    began: bool,
) -> str:
    how = f" ({job.state.lower()}, exit code {job.exit_code})" if job and job.exit_code else ""
    task = submission.task(run.run_id)
    node = (job.node if job else "") or stored.get("node")
    at = f" on {node}" if node else ""
    log = _log_of(run, submission)
    if OUT_OF_MEMORY.search(_end_of(log)):
        return f"its job {task} was out of memory{at}{how}: raise slurm.mem or mem_per_cpu in the profile; see {log}"
    if began:
        return f"its job {task} died{at}{how}: killed; see {log}"
    silent = (
        ""
        if log.exists()
        else " and left no log (do all nodes share the profile's root? see `isoflop doctor`)"
    )
    said = _end_of(log).strip().rpartition("\n")[2][-LAST_WORDS:]
    words = f": {said}" if said else ""
    return f"its job {task} ended{at}{how} before the run began{words}{silent}; see {log}"


def _log_of(run: RunDirectory, submission: Submission) -> Path:
    """What a run's job, and its first process, wrote to stderr."""
    return (
        submissions_folder(run.path.parent)
        / submission.name
        / f"{submission.task(run.run_id)}_0_log.err"
    )


def _end_of(log: Path) -> str:
    try:
        return log.read_bytes()[-LOG_END:].decode(errors="replace")
    except OSError:
        return ""


def _not_submitted(where: Any, stored: Mapping[str, Any], retries: int) -> Where:
    if stored["state"] == "failed":
        return _failed(where, stored, retries)
    return where("pending", stored.get("reason", ""), again=True)


def _failed(where: Any, stored: Mapping[str, Any], retries: int) -> Where:
    again = stored.get("failures", 1) <= retries
    return where("failed", stored.get("reason", ""), again=again)


def explain(reason: str) -> str:
    """Why a job waits, with the key of the profile to mend where it would wait for ever."""
    words = reason.strip("()")
    if (found := why_in_vain(words)) is None:
        return words
    key, what = found
    return f"{words}: {key} {what}" if key else f"{words}: {what}"


def is_hopeless(reason: str) -> bool:
    """Whether a job with this reason waits for ever."""
    return why_in_vain(reason) is not None
