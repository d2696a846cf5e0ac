"""Submission of a study: queue its missing runs and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.errors import ClusterError, ConfigError, RunError
from isoflop.launching.queue.arrays import ActiveArray, make_job, share_limits
from isoflop.launching.queue.excluded_nodes import exclude_nodes
from isoflop.launching.queue.submission_plan import SubmissionPlan, plan_submission
from isoflop.launching.queue.submit_array import SubmitLimitError, recover_submissions, submit_array
from isoflop.launching.records.approvals import approve
from isoflop.launching.records.code_snapshot import snapshot_code
from isoflop.launching.records.study_files import write_study_profile
from isoflop.launching.records.submissions import Submission, lease_submissions, submissions_folder
from isoflop.launching.records.sweep_directory import make_directory, resolve_root, sweep_directory
from isoflop.launching.slurm import client as slurm
from isoflop.lease import Lease
from isoflop.planning.job_arrays import Concurrency
from isoflop.planning.plan import Plan, read_plan_rows
from isoflop.planning.queue_simulation import Order, SimulatedJob
from isoflop.runs.run_directory import RunDirectory


def submit(
    plan: Plan,
    profile: Profile,
    *,
    order: Order = "longest",
    only: str | None = None,
    runs: Collection[str] | None = None,
    confirmed: Collection[str] | None = None,
    cancelled: bool = True,
    new_code: bool = False,
    max_gpu_hours: float | None = None,
    lease: Lease | None = None,
    on_data: Callable[[int, float], None] | None = None,
    on_queued: Callable[[Submission], None] | None = None,
) -> SubmissionPlan:
    """Prepare the data and queue every run that is neither done nor active.

    Args:
        plan: the study, with its bill if the profile has GPUs.
        profile: the cluster.
        order: runs to start first.
        only: pandas query on the plan's columns.
        runs: ids of runs; others are not changed.
        confirmed: ids of runs that the user confirmed; no other cancelled run is queued.
        cancelled: queue cancelled runs too, as a user's submission does, and approve all queued
            runs for a supervisor. A supervisor passes False.
        new_code: run unfinished runs with the current code instead of the first submission's
            snapshot.
        max_gpu_hours: limit above which nothing is queued.
        lease: lease on the submissions, if the caller holds it.
        on_data: called with the progress of the data.
        on_queued: called with each queued array.

    Returns:
        The executed submission.

    Raises:
        ConfigError, DataError, RunError, ClusterError: the submission failed; the next call knows
            the arrays queued before.
        SubmitLimitError: the cluster accepts no more jobs for now.
        BudgetError: the runs to queue need more than `max_gpu_hours`.
    """
    from isoflop.launching.prepare_data import prepare_data  # loads numpy

    directory = sweep_directory(plan.sweep, resolve_root(profile))
    with lease_submissions(directory, lease) as lease:
        submissions = recover_submissions(directory)
        submission = plan_submission(plan, profile, only)
        submission.status.check("queued")
        stay_cancelled = set(submission.status.ids("cancelled"))
        if cancelled:
            stay_cancelled -= set(submission.queued if confirmed is None else confirmed)
        chosen = set(submission.queued if runs is None else runs) - stay_cancelled
        submission = replace(
            submission,
            queued=tuple(run_id for run_id in submission.queued if run_id in chosen),
        )
        submission.check_cap(plan, max_gpu_hours)
        if submission.queued and not submissions:
            slurm.queue()  # raises before any file is written if the cluster does not answer
        slurm.release(submission.status.held)
        slurm.cancel(submission.status.orphans)
        active = active_arrays(plan, submission, submissions)
        if submission.queued:
            prepare_data(plan.sweep, directory.parent, on_data)
        elif _is_laid_out(plan, directory):
            write_study_profile(profile, directory)
            _throttle(directory, submissions, active, share_limits(active, [], profile))
            return submission
        code, _ = snapshot_code(directory, renew=new_code and bool(submission.queued))
        make_directory(plan, directory.parent, code)
        write_study_profile(profile, directory)
        if not submission.queued:
            return submission
        if cancelled:
            approve(directory, submission.queued)
        arrays = submission.arrays(plan, profile, order, active)
        lines = [[make_job(run) for run in array.runs] for array in arrays]
        _throttle(directory, submissions, active, share_limits(active, lines, profile))
        with suppress(ClusterError):  # sbatch refuses a job that excludes an unknown node
            bad_nodes = {*submission.bad_nodes} & slurm.nodes() if submission.bad_nodes else ()
            submission = replace(submission, bad_nodes=tuple(sorted(bad_nodes)))
        # A job that the controller has forgotten may still train. Its id comes again, and sbatch
        # refuses a job that depends on its own id.
        tasks = chain.from_iterable(submission.status.active.values())
        known = {task.partition("_")[0] for task in tasks}
        ids = [array.job_id if array.job_id in known else "" for array in active]
        profile = exclude_nodes(profile, submission.bad_nodes)
        for array in arrays:
            lease.check()
            after = ":".join(filter(None, (ids[number] for number in array.after))) or None
            try:
                record = submit_array(array, profile, directory, code, after)
            except ConfigError as problem:
                raise ConfigError(_explain_refusal(problem, submission.bad_nodes)) from None
            for run_id in record.runs:
                # Only failed runs: leasing each of thousands is slow.
                if submission.status.runs[run_id].stored.get("state") == "failed":
                    _clear_failure(RunDirectory(directory / run_id), record.task(run_id))
            ids.append(record.job_id or "")
            if on_queued:
                on_queued(record)
            if len(record.runs) < len(array.runs):
                raise SubmitLimitError(
                    f"the cluster's submit limit accepted {len(record.runs)} of these "
                    f"{len(array.runs)} runs"
                )
    return submission


def _explain_refusal(problem: ConfigError, bad_nodes: Sequence[str]) -> str:
    """Return the reason of a refusal by sbatch, with the excluded nodes as a possible cause."""
    if not bad_nodes:
        return str(problem)
    return (
        f"{problem} (excluded nodes, where runs failed and nowhere else: {', '.join(bad_nodes)}; "
        "`isoflop retry` uses them again)"
    )


def _is_laid_out(plan: Plan, directory: Path) -> bool:
    """Return whether the directory's plan has exactly the plan's runs."""
    try:
        return [row["run_id"] for row in read_plan_rows(directory, ["run_id"])] == [
            run.run_id for run in plan.runs
        ]
    except RunError:
        return False


def active_arrays(
    plan: Plan, submission: SubmissionPlan, submissions: Sequence[Submission]
) -> list[ActiveArray]:
    """Return the queued and running arrays, those of runs that the plan no longer has too."""
    jobs = {run.run_id: make_job(run) for run in plan.runs}
    statuses = submission.status.runs | {run.run_id: run for run in submission.removed}
    median_hours = statistics.median(job.hours for job in jobs.values())
    arrays = []
    for record in submissions:
        active = [
            run_id
            for run_id in record.runs
            if run_id in statuses and statuses[run_id].task == record.task(run_id)
        ]
        if record.job_id and active:
            # A run that the plan no longer has gets the median hours of those that it has.
            array_jobs = tuple(
                jobs.get(run_id) or SimulatedJob(run_id, record.gpus, median_hours, 0.0)
                for run_id in active
            )
            waits = all(statuses[run_id].reason.startswith("Dependency") for run_id in active)
            running = sum(statuses[run_id].state == "running" for run_id in active)
            arrays.append(ActiveArray(record.job_id, array_jobs, waits, running))
    return arrays


def _throttle(
    directory: Path,
    submissions: Sequence[Submission],
    active: Sequence[ActiveArray],
    shares: Sequence[Concurrency],
) -> None:
    """Set the concurrency limit of the queued arrays to their current share."""
    share_by_job = {array.job_id: share for array, share in zip(active, shares, strict=False)}
    for record in submissions:
        job_id = record.job_id or ""
        limit = share.max_jobs if (share := share_by_job.get(job_id)) else None
        if limit and len(record.runs) > 1 and limit != record.at_once:
            # Some clusters forbid this to users: then limits hold for each submission alone.
            with suppress(ClusterError):
                slurm.throttle(job_id, limit)
                replace(record, at_once=limit).write(submissions_folder(directory))


def _clear_failure(run: RunDirectory, task: str | None) -> None:
    """Set a failed run to pending after it was queued, unless that task failed already."""
    with run.lease() as lease:
        state = run.state()
        if lease and state["state"] == "failed" and state.get("job_id") != task:
            run.set_state("pending", state.get("reason", ""))
