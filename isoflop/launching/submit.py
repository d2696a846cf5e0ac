"""Submission of a study: queue its missing runs and nothing else."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.errors import ClusterError, ConfigError, RunError
from isoflop.launching.queue.arrays import ActiveArray, Array, make_arrays, make_job, share_limits
from isoflop.launching.queue.excluded_nodes import exclude_nodes, find_bad_nodes
from isoflop.launching.queue.reconcile import reconcile
from isoflop.launching.queue.submit_array import (
    SubmitLimitError,
    recover_submissions,
    sbatch_script,
    submit_array,
)
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.launching.records.approvals import approve
from isoflop.launching.records.code_snapshot import snapshot_code
from isoflop.launching.records.study_files import write_study_profile
from isoflop.launching.records.submissions import (
    Submission,
    lease_submissions,
    read_submissions,
    submissions_folder,
)
from isoflop.launching.records.sweep_directory import (
    check_study,
    make_directory,
    resolve_root,
    sweep_directory,
)
from isoflop.launching.slurm import client as slurm
from isoflop.lease import Lease
from isoflop.planning.array_limits import Concurrency
from isoflop.planning.plan import Plan, read_plan_rows
from isoflop.planning.pricing import check_cap
from isoflop.planning.queue_simulation import Job, Order
from isoflop.planning.run_spec import RunSpec
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.loggers import check_installed


@dataclass(frozen=True)
class SubmissionPlan:
    """Effect of a submission.

    Attributes:
        directory: directory of the sweep.
        status: status of every run of the plan.
        queued: ids of the runs to queue.
        removed: status of the directory's runs that the plan no longer has.
        bad_nodes: nodes to exclude.
    """

    directory: Path
    status: SweepStatus
    queued: tuple[str, ...]
    removed: tuple[RunStatus, ...]
    bad_nodes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of runs by label, as a submission prints them."""
        counts: Counter[str] = Counter()
        queued = set(self.queued)
        for run_id, run in self.status.runs.items():
            if run_id not in queued:
                counts[run.state if run.state != "pending" else "not chosen"] += 1
            elif run.state == "failed":
                counts["to be tried again"] += 1
            else:
                counts["resuming" if run.stored.get("attempt") else "new"] += 1
        return dict(counts)

    def queued_runs(self, plan: Plan) -> list[RunSpec]:
        """Return the plan's runs to queue."""
        queued = set(self.queued)
        return [run for run in plan.runs if run.run_id in queued]

    def check_cap(self, plan: Plan, max_gpu_hours: float | None) -> None:
        """Raise BudgetError if the runs to queue need more than `max_gpu_hours`."""
        check_cap(self.gpu_hours(plan), max_gpu_hours, "the runs to queue need")

    def gpu_hours(self, plan: Plan) -> float:
        """Return the GPU-hours of the remaining work to queue, by the plan's bill."""
        remaining = self.remaining()
        return sum(
            remaining[run.run_id] * (run.est_gpu_hours or 0.0) for run in self.queued_runs(plan)
        )

    def remaining(self) -> dict[str, float]:
        """Return the fraction of each run to queue that is not done, by run id."""
        return {run_id: 1 - self.status.runs[run_id].progress for run_id in self.queued}

    def scripts(self, plan: Plan, profile: Profile, order: Order) -> list[str]:
        """Return the sbatch script of each array, headed by its runs and the arrays before it."""
        excluded, texts = exclude_nodes(profile, self.bad_nodes), []
        for number, array in enumerate(self.arrays(plan, profile, order), start=1):
            names = ", ".join(run.run_id for run in array.runs[:3])
            heading = [f"# {len(array.runs)} runs: {names}{', ...' if len(array.runs) > 3 else ''}"]
            if array.after:
                others = ", ".join(str(1 + index) for index in array.after)
                heading.append(f"# array {number}, starts after these arrays have ended: {others}")
            script = sbatch_script(array, excluded, self.directory, self.directory / "code")
            texts.append("\n".join([*heading, script]))
        return texts

    def arrays(
        self, plan: Plan, profile: Profile, order: Order, active: Sequence[ActiveArray] = ()
    ) -> list[Array]:
        """Return the arrays to queue, beside the active ones."""
        starts_processes = plan.sweep.train.starts_processes
        max_size = slurm.max_array_size()
        return make_arrays(
            self.queued_runs(plan),
            profile,
            max_size,
            order,
            starts_processes=starts_processes,
            active=active,
        )


def plan_submission(plan: Plan, profile: Profile, only: str | None = None) -> SubmissionPlan:
    """Return the effect of submitting a plan.

    Queue nothing, but record the end of jobs, as `status` does.

    Args:
        plan: the study.
        profile: the cluster.
        only: pandas query on the plan's columns; other runs are not changed.

    Raises:
        ConfigError: the directory of another study, a missing logger, or an invalid query.
    """
    directory = sweep_directory(plan.sweep, resolve_root(profile))
    check_study(plan, directory)
    if profile.python is None:  # the worker checks those of another interpreter
        check_installed(plan.sweep.train.loggers)
    chosen = _select_runs(plan, only)
    planned = [run.run_id for run in plan.runs]
    submissions = read_submissions(directory)
    made = {path.parent.name for path in directory.glob("[!.]*/config.yaml")}
    removed = sorted(made - set(planned))
    status = reconcile(directory, [*planned, *removed], submissions, profile.retries)
    runs = {run_id: status.runs[run_id] for run_id in planned}
    queued = tuple(run_id for run_id in planned if run_id in chosen and runs[run_id].retry)
    return SubmissionPlan(
        directory=directory,
        status=replace(status, runs=runs),
        queued=queued if status.queue_answered else (),
        removed=tuple(status.runs[run_id] for run_id in removed),
        bad_nodes=find_bad_nodes(status),
    )


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
        submissions, intent = recover_submissions(directory), plan_submission(plan, profile, only)
        intent.status.check("queued")
        stay_cancelled = set(intent.status.ids("cancelled"))
        if cancelled:
            stay_cancelled -= set(intent.queued if confirmed is None else confirmed)
        chosen = set(intent.queued if runs is None else runs) - stay_cancelled
        intent = replace(
            intent, queued=tuple(run_id for run_id in intent.queued if run_id in chosen)
        )
        intent.check_cap(plan, max_gpu_hours)
        if intent.queued and not submissions:
            slurm.queue()  # raises before any file is written if the cluster does not answer
        slurm.release(intent.status.held)
        slurm.cancel(intent.status.orphans)
        active = active_arrays(plan, intent, submissions)
        if intent.queued:
            prepare_data(plan.sweep, directory.parent, on_data)
        elif _is_laid_out(plan, directory):
            write_study_profile(profile, directory)
            _throttle(directory, submissions, active, share_limits(active, [], profile))
            return intent
        code, _ = snapshot_code(directory, renew=new_code and bool(intent.queued))
        make_directory(plan, directory.parent, code)
        write_study_profile(profile, directory)
        if not intent.queued:
            return intent
        if cancelled:
            approve(directory, intent.queued)
        arrays = intent.arrays(plan, profile, order, active)
        lines = [[make_job(run) for run in array.runs] for array in arrays]
        _throttle(directory, submissions, active, share_limits(active, lines, profile))
        with suppress(ClusterError):  # sbatch refuses a job that excludes an unknown node
            intent = replace(
                intent,
                bad_nodes=intent.bad_nodes and tuple(sorted({*intent.bad_nodes} & slurm.nodes())),
            )
        ids, profile = [array.job_id for array in active], exclude_nodes(profile, intent.bad_nodes)
        for array in arrays:
            lease.check()
            after = ":".join(ids[number] for number in array.after) or None
            try:
                submission = submit_array(array, profile, directory, code, after)
            except ConfigError as problem:
                raise ConfigError(_explain_refusal(problem, intent.bad_nodes)) from None
            for run_id in submission.runs:
                # Only failed runs: leasing each of thousands is slow.
                if intent.status.runs[run_id].stored.get("state") == "failed":
                    _clear_failure(RunDirectory(directory / run_id), submission.task(run_id))
            ids.append(submission.job_id or "")
            if on_queued:
                on_queued(submission)
            if len(submission.runs) < len(array.runs):
                raise SubmitLimitError(
                    f"the cluster's submit limit accepted {len(submission.runs)} of these "
                    f"{len(array.runs)} runs"
                )
    return intent


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
    plan: Plan, intent: SubmissionPlan, submissions: Sequence[Submission]
) -> list[ActiveArray]:
    """Return the queued and running arrays, those of runs that the plan no longer has too."""
    jobs = {run.run_id: make_job(run) for run in plan.runs}
    statuses = {**intent.status.runs, **{run.run_id: run for run in intent.removed}}
    median_hours = statistics.median(job.hours for job in jobs.values())
    arrays = []
    for submission in submissions:
        active = [
            run_id
            for run_id in submission.runs
            if run_id in statuses and statuses[run_id].task == submission.task(run_id)
        ]
        if submission.job_id and active:
            # A run that the plan no longer has gets the median hours of those that it has.
            array_jobs = tuple(
                jobs.get(run_id) or Job(run_id, submission.gpus, median_hours, 0.0)
                for run_id in active
            )
            waits = all(statuses[run_id].reason.startswith("Dependency") for run_id in active)
            running = sum(statuses[run_id].state == "running" for run_id in active)
            arrays.append(ActiveArray(submission.job_id, array_jobs, waits, running))
    return arrays


def _throttle(
    directory: Path,
    submissions: Sequence[Submission],
    active: Sequence[ActiveArray],
    shares: Sequence[Concurrency],
) -> None:
    """Set the concurrency limit of the queued arrays to their current share."""
    share_by_job = {array.job_id: share for array, share in zip(active, shares, strict=False)}
    for submission in submissions:
        job_id = submission.job_id or ""
        limit = share.max_jobs if (share := share_by_job.get(job_id)) else None
        if limit and len(submission.runs) > 1 and limit != submission.at_once:
            # Some clusters forbid this to users: then limits hold for each submission alone.
            with suppress(ClusterError):
                slurm.throttle(job_id, limit)
                replace(submission, at_once=limit).write(submissions_folder(directory))


def _select_runs(plan: Plan, only: str | None) -> set[str]:
    """Return the ids of the runs that a query selects."""
    if only is None:
        return {run.run_id for run in plan.runs}
    if "@" in only:
        raise ConfigError(
            "--only: a query has no @; name the plan's columns, such as 'budget <= 3e18'"
        )
    try:
        frame = plan.to_frame()
        chosen = frame.eval(only)
        if getattr(chosen, "dtype", None) not in ("bool", "boolean"):
            raise ValueError("is not a condition")
        run_ids = set(frame.loc[chosen, "run_id"])
    except Exception as problem:  # pandas' parser raises errors of many types
        raise ConfigError(
            f"--only {only!r}: {problem}; name the plan's columns, such as 'budget <= 3e18'"
        ) from None
    if not run_ids:
        raise ConfigError(f"--only {only!r}: selects none of the {len(plan.runs)} runs")
    return run_ids


def _clear_failure(run: RunDirectory, task: str | None) -> None:
    """Set a failed run to pending after it was queued, unless that task failed already."""
    with run.lease() as lease:
        state = run.state()
        if lease and state["state"] == "failed" and state.get("job_id") != task:
            run.set_state("pending", state.get("reason", ""))
