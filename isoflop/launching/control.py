"""Steering a study that was submitted: cancel, retry, and find a run by the beginning of its name."""

from __future__ import annotations

import codecs
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from isoflop.errors import ClusterError, RunError
from isoflop.launching.queue.reconcile import is_hopeless, reconcile
from isoflop.launching.queue.submit_array import heal
from isoflop.launching.queue.sweep_status import Picture, Where
from isoflop.launching.records.approvals import approved, withdraw
from isoflop.launching.records.submissions import (
    Submission,
    lease_submissions,
    read_submissions,
    submissions_folder,
)
from isoflop.launching.slurm import client as slurm
from isoflop.launching.worker.attempt import log_file
from isoflop.lease import Lease, is_leased
from isoflop.planning.plan import plan_rows
from isoflop.runs.run_directory import SETTLED, RunDirectory

ANY_RETRIES = 10**6
GONE_S = 60.0
POLL_S = 0.5
LOOK_S = 5.0
REASONS_S = 5.0
SETTLE_S = 3.0
READY = "to be tried again"
"""Why a run waits that `retry` has made ready."""


def runs_of(directory: Path) -> list[str]:
    """The runs of a sweep's directory, in the order of its plan.

    Raises:
        RunError: no sweep's directory, or a damaged plan.
    """
    return [row["run_id"] for row in plan_rows(directory, ["run_id"])]


def all_runs(directory: Path) -> list[str]:
    """The runs of a sweep's plan, then those that submissions or run directories have and the plan has no more.

    Raises:
        RunError, ConfigError: no sweep's directory, a damaged plan, or a damaged record.
    """
    runs = runs_of(directory)
    submitted = {run_id for submission in read_submissions(directory) for run_id in submission.runs}
    made = {path.parent.name for path in directory.glob("[!.]*/config.yaml")}
    return [*runs, *sorted((submitted | made) - set(runs))]


def choose(directory: Path, prefixes: Sequence[str]) -> list[str]:
    """The runs whose names begin as given, those that the plan has no more too; all of the plan where nothing is given.

    Raises:
        RunError: a beginning that fits no run, or more than one.
    """
    if not prefixes:
        return runs_of(directory)
    runs, chosen = all_runs(directory), []
    for prefix in prefixes:
        found = [run_id for run_id in runs if run_id == prefix] or [
            run_id
            for run_id in runs
            if run_id.startswith(prefix) or run_id.rpartition("-")[2].startswith(prefix)
        ]
        if len(found) != 1:
            some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            what = f"fits {len(found)} runs ({some})" if found else "fits no run"
            raise RunError(
                f"{prefix}: {what} of {directory}; give more of its name, as `isoflop status` prints it"
            )
        chosen += found
    return list(dict.fromkeys(chosen))


def look(directory: Path, retries: int = ANY_RETRIES) -> Picture:
    """Where every run of a submitted sweep is."""
    runs = runs_of(directory)
    picture = reconcile(directory, runs, read_submissions(directory), retries)
    if dropped := sorted(picture.active.keys() - set(runs)):
        some = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
        are = (
            "runs that the sweep has no more are"
            if len(dropped) > 1
            else "run that the sweep has no more is"
        )
        note = f"{len(dropped)} {are} under way: {some}; `isoflop cancel {directory} NAME` ends one"
        picture = picture.noting(note)
    left = {run_id for run_id, where in picture.runs.items() if where.task or where.again}
    if picture.unwatched and left.difference(picture.ids("cancelled")) & approved(directory):
        note = f"the supervisor, job {picture.unwatched}, has ended; `isoflop submit ... --supervise` queues another"
        picture = picture.noting(note)
    return picture


def waits_in_vain(directory: Path, wait_s: float = REASONS_S) -> dict[str, int]:
    """Why runs that are queued will never start, each reason with how many; soon after a submission.

    Args:
        directory: of the sweep.
        wait_s: how long to wait for SLURM to have looked at each of their arrays.
    """
    limit, settled = time.monotonic() + wait_s, wait_s == 0
    while True:
        runs = [where for where in look(directory).runs.values() if where.task]
        waiting = [where for where in runs if where.state in ("queued", "requeued")]
        seen = {_array(where) for where in runs if where.state == "running" or where.reason}
        if seen >= {_array(where) for where in waiting} or time.monotonic() > limit:
            found = Counter(where.reason for where in waiting if is_hopeless(where.reason))
            if settled or not found:
                return dict(found)
            settled = (
                True  # what it says first may be vague: PartitionConfig for a time that is too long
            )
            time.sleep(SETTLE_S)
            continue
        time.sleep(POLL_S)


def _array(where: Where) -> str:
    """The array that a run's task is of; its tasks ask for the same, so what SLURM says of one holds for all."""
    return (where.task or "").partition("_")[0]


def cancel(directory: Path, prefixes: Sequence[str]) -> list[str]:
    """Cancels runs: every job of theirs, and what a supervisor would queue again; each keeps its last checkpoint.

    Where nothing is named, all that were submitted, those that the sweep has no more too.

    Returns:
        The runs that had a job, or that were not cancelled before.

    Raises:
        RunError: a run that is not known, or was never submitted.
        ClusterError: SLURM does not answer; nothing was cancelled, or not all, and the same command goes on.
    """
    chosen = choose(directory, prefixes) if prefixes else all_runs(directory)
    if not (agreed := approved(directory)):
        raise RunError(f"{directory}: was never submitted; stop `isoflop run` with Ctrl-C")
    if prefixes and (others := [run_id for run_id in chosen if run_id not in agreed]):
        raise RunError(f"{others[0]}: was never submitted, so there is nothing to cancel")
    with _steering(directory) as submissions:
        chosen = (
            chosen if prefixes else all_runs(directory)
        )  # whom this waited for may have submitted more
        picture = reconcile(directory, (), submissions, ANY_RETRIES)
        picture.check("cancelled")
        latest = {run_id: submission for submission in submissions for run_id in submission.runs}
        jobs = {run_id: picture.active.get(run_id, ()) for run_id in chosen}
        over = {
            run_id
            for run_id in chosen
            if RunDirectory(directory / run_id).state()["state"] in ("done", "diverged")
        }
        may_go_on = set(runs_of(directory)) - over
        unrecorded: OSError | None = None
        try:
            new = withdraw(directory, chosen)
        except OSError as problem:
            new, unrecorded = set(), problem
        for (
            submission
        ) in submissions:  # first the record: a cancelled run must never be taken for one that died
            before = set(submission.cancelled)
            mine = [
                run_id
                for run_id in submission.runs
                if run_id in jobs and run_id not in before
                if submission.task(run_id) in jobs[run_id]
                or (latest[run_id] is submission and run_id in may_go_on)
            ]
            if mine:
                cancelled = (*submission.cancelled, *mine)
                try:
                    dataclasses.replace(submission, cancelled=cancelled).write(
                        submissions_folder(directory)
                    )
                except OSError as problem:
                    unrecorded = problem
                new.update(mine)
        tasks = [task for several in jobs.values() for task in several]
        slurm.cancel(tasks)
        if unrecorded is not None:  # such as a full disk, which is when somebody wants to cancel
            raise RunError(
                f"{len(tasks)} jobs were cancelled, but that could not be written down ({unrecorded.strerror}: "
                f"{unrecorded.filename}); make room and cancel again, or a supervisor may queue them again"
            )
        _wait_for_end(set(tasks))
    return [run_id for run_id in chosen if run_id not in over and (jobs[run_id] or run_id in new)]


def _wait_for_end(tasks: Set[str]) -> None:
    """Until cancelled jobs have saved and are gone, so that what is called next, such as retry, finds them so."""
    limit = time.monotonic() + GONE_S
    with suppress(ClusterError):
        while (
            any(job.active for task, job in slurm.queue().items() if task in tasks)
            and time.monotonic() < limit
        ):
            time.sleep(POLL_S)


def retry(directory: Path, prefixes: Sequence[str], lease: Lease | None = None) -> list[str]:
    """Makes failed and cancelled runs ready for the next submission, however often they failed. Returns them.

    Args:
        directory: of the sweep.
        prefixes: beginnings of their names; all where there are none.
        lease: on the submissions, of who has it already.

    Raises:
        RunError: a run that is not known, or that is under way; a diverged one would only diverge again.
        ClusterError: SLURM does not answer; the runs are as they were.
    """
    chosen, runs = choose(directory, prefixes), runs_of(directory)
    if dropped := sorted(set(chosen) - set(runs)):
        raise RunError(f"{dropped[0]}: the sweep has it no more, so there is nothing to retry")
    with _steering(directory, lease) as submissions:
        picture = reconcile(directory, runs, submissions, ANY_RETRIES)
        latest = {run_id: submission for submission in submissions for run_id in submission.runs}
        picture.check("queued")
        ready = [
            run_id
            for run_id in chosen
            if (where := picture.runs[run_id]).state in ("failed", "cancelled")
            or (where.again and where.reason == READY)  # of a call that queued nothing
        ]
        if prefixes and (others := [run_id for run_id in chosen if run_id not in ready]):
            where = picture.runs[others[0]]
            raise RunError(f"{others[0]}: is {where.state}, so there is nothing to retry")
        for run_id in ready:
            run = RunDirectory(directory / run_id)
            with run.lease() as mine:
                if mine:
                    ended = (
                        latest[run_id].task(run_id) if run_id in latest else None
                    )  # it counts for nothing any more
                    run.set_state(
                        "pending",
                        READY,
                        failures=0,
                        failed_on=[],
                        in_vain=0,
                        start_step=None,
                        job_id=ended,
                    )
    return ready


def newest_log(directory: Path, run_id: str) -> Path:
    """What the newest attempt at a run has written; where there is none, what its job has.

    Raises:
        RunError: nothing was written yet.
    """
    run = RunDirectory(directory / run_id)
    log = log_file(run, run.state().get("attempt", 0))
    if log.exists():
        return log
    for submission in reversed(read_submissions(directory)):
        if run_id in submission.runs:
            errors = (
                submissions_folder(directory)
                / submission.name
                / f"{submission.task(run_id)}_0_log.err"
            )
            if errors.exists():
                return errors
    mend = (
        f"see `isoflop status {directory}`"
        if read_submissions(directory)
        else "`isoflop run` of its sweep trains it"
    )
    raise RunError(f"{run_id}: has written nothing yet; {mend}")


def follow_log(directory: Path, run_id: str) -> Iterator[tuple[Path, str]]:
    """What a run writes, as it comes, each piece with the file that it is in: through its attempts, until it is over.

    It is over too once nobody trains it, and no job of it is in the queue.

    Raises:
        RunError: nothing was written yet.
    """
    log, run = newest_log(directory, run_id), RunDirectory(directory / run_id)
    looked = time.monotonic()
    while True:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with log.open("rb") as file:
            newer = log
            while newer == log:
                over = run.state()["state"] in SETTLED
                if not over and time.monotonic() - looked > LOOK_S:
                    over, looked = not _is_under_way(directory, run), time.monotonic()
                newer = newest_log(directory, run_id)
                yield (
                    log,
                    decoder.decode(file.read()),
                )  # all that was written before one of them became so
                if over and newer == log:
                    return
                if newer == log:
                    time.sleep(POLL_S)
        log = newer


def _is_under_way(directory: Path, run: RunDirectory) -> bool:
    """Whether somebody trains a run, or may still; where SLURM does not answer too. One call of squeue at most."""
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
def _steering(directory: Path, lease: Lease | None = None) -> Iterator[list[Submission]]:
    """The submissions of a sweep, for the one process that may change them."""
    with lease_submissions(directory, lease):
        yield heal(directory)
