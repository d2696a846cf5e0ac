"""Submitting a study: what is missing is queued, and nothing else."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.errors import ClusterError, ConfigError, RunError
from isoflop.launching.queue.arrays import Active, Array, group, job_of, shares_beside
from isoflop.launching.queue.excluded_nodes import bad_nodes, with_excluded
from isoflop.launching.queue.reconcile import reconcile
from isoflop.launching.queue.submit_array import SubmitLimitError, heal, submit_array
from isoflop.launching.queue.sweep_status import Picture, Where
from isoflop.launching.records.approvals import approve
from isoflop.launching.records.code_snapshot import study_code
from isoflop.launching.records.study_files import keep_profile
from isoflop.launching.records.submissions import (
    Submission,
    lease_submissions,
    read_submissions,
    submissions_folder,
)
from isoflop.launching.records.sweep_directory import (
    check_study,
    make_directory,
    root_of,
    sweep_directory,
)
from isoflop.launching.slurm import client as slurm
from isoflop.lease import Lease
from isoflop.planning.array_limits import Share
from isoflop.planning.bill import check_cap
from isoflop.planning.plan import Plan, plan_rows
from isoflop.planning.queue_simulation import Job, Order
from isoflop.planning.run_spec import RunSpec
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.loggers import check_installed


@dataclass(frozen=True)
class Intent:
    """What a submission would do.

    Attributes:
        picture: where every run of the plan is.
        queued: the runs that would be queued.
        left: runs of the directory that the plan has no more.
        bad_nodes: nodes that would be left out.
    """

    directory: Path
    picture: Picture
    queued: tuple[str, ...]
    left: tuple[Where, ...]
    bad_nodes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many runs there are of each sort, in the words of a submission."""
        found: Counter[str] = Counter()
        queued = set(self.queued)
        for run_id, where in self.picture.runs.items():
            if run_id not in queued:
                found[where.state if where.state != "pending" else "not chosen"] += 1
            elif where.state == "failed":
                found["to be tried again"] += 1
            else:
                found["resuming" if where.stored.get("attempt") else "new"] += 1
        return dict(found)

    def chosen(self, plan: Plan) -> list[RunSpec]:
        """The plan's runs that would be queued."""
        queued = set(self.queued)
        return [run for run in plan.runs if run.run_id in queued]

    def check_cap(self, plan: Plan, max_gpu_hours: float | None) -> None:
        """Raises BudgetError where what would be queued needs more GPU-hours."""
        check_cap(self.gpu_hours(plan), max_gpu_hours, "what would be queued needs")

    def gpu_hours(self, plan: Plan) -> float:
        """What would be queued needs, by the plan's bill; runs go on where they were."""
        rest = self.rest()
        return sum(rest[run.run_id] * (run.est_gpu_hours or 0.0) for run in self.chosen(plan))

    def rest(self) -> dict[str, float]:
        """Of each run that would be queued, the share that is not done."""
        return {run_id: 1 - self.picture.runs[run_id].share for run_id in self.queued}

    def arrays(
        self, plan: Plan, profile: Profile, order: Order, active: Sequence[Active] = ()
    ) -> list[Array]:
        """The arrays in which they would be queued, beside those that are."""
        starts = plan.sweep.train.starts_processes
        most = slurm.max_array_size()
        return group(
            self.chosen(plan), profile, most, order, starts_processes=starts, active=active
        )


def intend(plan: Plan, profile: Profile, only: str | None = None) -> Intent:
    """What submitting a plan would do. Nothing is queued; how jobs have ended is recorded, as `status` does.

    Args:
        plan: the study.
        profile: the cluster.
        only: a pandas query on the plan's columns; other runs are left as they are.

    Raises:
        ConfigError: a directory of another study, a logger that is not installed, or a query that can't be used.
    """
    directory = sweep_directory(plan.sweep, root_of(profile))
    check_study(plan, directory)
    if (
        profile.python is None
    ):  # another interpreter may have what this one lacks; its worker says so if not
        check_installed(plan.sweep.train.loggers)
    chosen = _chosen(plan, only)
    wanted = [run.run_id for run in plan.runs]
    submissions = read_submissions(directory)
    left = sorted({path.parent.name for path in directory.glob("[!.]*/config.yaml")} - set(wanted))
    picture = reconcile(directory, [*wanted, *left], submissions, profile.retries)
    runs = {run_id: picture.runs[run_id] for run_id in wanted}
    queued = tuple(run_id for run_id in wanted if run_id in chosen and runs[run_id].again)
    return Intent(
        directory=directory,
        picture=replace(picture, runs=runs),
        queued=queued if picture.certain else (),
        left=tuple(picture.runs[run_id] for run_id in left),
        bad_nodes=bad_nodes(picture),
    )


def submit(
    plan: Plan,
    profile: Profile,
    *,
    order: Order = "longest",
    only: str | None = None,
    runs: Collection[str] | None = None,
    shown: Collection[str] | None = None,
    cancelled: bool = True,
    new_code: bool = False,
    max_gpu_hours: float | None = None,
    lease: Lease | None = None,
    on_data: Callable[[int, float], None] | None = None,
    on_queued: Callable[[Submission], None] | None = None,
) -> Intent:
    """Prepares the data and queues every run that is neither done nor under way.

    Args:
        plan: the study, with its bill where the profile has GPUs.
        profile: the cluster.
        order: which runs start first.
        only: a pandas query on the plan's columns.
        runs: names of runs; others are left as they are.
        shown: runs that a person was shown as to be queued; of cancelled ones, no others are.
        cancelled: a person submits, who means cancelled runs too; a supervisor may then queue again what this queues.
        new_code: give the runs that are not done the code of today, not that of the first submission.
        max_gpu_hours: nothing is queued where it would need more.
        lease: on the submissions, of who has it already.
        on_data: told about the data's progress.
        on_queued: told of each array, once it is queued.

    Returns:
        What was done.

    Raises:
        ConfigError, DataError, RunError, ClusterError: with what is wrong; arrays queued before are known to the next
            call.
        SubmitLimitError: the cluster takes no more jobs for now.
        BudgetError: what would be queued needs more than `max_gpu_hours`.
    """
    from isoflop.launching.prepare_data import prepare_data

    directory = sweep_directory(plan.sweep, root_of(profile))
    with lease_submissions(directory, lease) as lease:
        submissions, intent = heal(directory), intend(plan, profile, only)
        intent.picture.check("queued")
        meant = set(intent.queued if shown is None else shown) if cancelled else set[str]()
        stay = set(intent.picture.ids("cancelled")) - meant
        wanted = set(intent.queued if runs is None else runs) - stay
        intent = replace(
            intent, queued=tuple(run_id for run_id in intent.queued if run_id in wanted)
        )
        intent.check_cap(plan, max_gpu_hours)
        if intent.queued and not submissions:
            slurm.queue()  # a cluster that does not answer is found before anything is made
        slurm.release(intent.picture.held)
        slurm.cancel(intent.picture.orphans)
        active = active_arrays(plan, intent, submissions)
        if intent.queued:
            prepare_data(plan.sweep, directory.parent, on_data)
        elif _is_laid_out(plan, directory):
            keep_profile(profile, directory)
            _throttle(directory, submissions, active, shares_beside(active, [], profile))
            return intent
        code, _ = study_code(directory, renew=new_code and bool(intent.queued))
        make_directory(plan, directory.parent, code)
        keep_profile(profile, directory)
        if not intent.queued:
            return intent
        if cancelled:
            approve(directory, intent.queued)
        arrays = intent.arrays(plan, profile, order, active)
        lines = [[job_of(run) for run in array.runs] for array in arrays]
        _throttle(directory, submissions, active, shares_beside(active, lines, profile))
        with suppress(ClusterError):  # sbatch refuses a job for the name of a node that is no more
            intent = replace(
                intent,
                bad_nodes=intent.bad_nodes and tuple(sorted({*intent.bad_nodes} & slurm.nodes())),
            )
        ids, profile = [array.job_id for array in active], with_excluded(profile, intent.bad_nodes)
        for array in arrays:
            lease.check()
            after = ":".join(ids[number] for number in array.after) or None
            try:
                done = submit_array(array, profile, directory, code, after)
            except ConfigError as problem:
                raise ConfigError(_without(intent.bad_nodes, problem)) from None
            for run_id in done.runs:
                if (
                    intent.picture.runs[run_id].stored.get("state") == "failed"
                ):  # a lease on each of thousands is slow
                    _clear(RunDirectory(directory / run_id), done.task(run_id))
            ids.append(done.job_id or "")
            if on_queued:
                on_queued(done)
            if len(done.runs) < len(array.runs):
                raise SubmitLimitError(
                    f"the cluster's submit limit lets {len(done.runs)} of these {len(array.runs)} runs in"
                )
    return intent


def _without(bad_nodes: Sequence[str], problem: ConfigError) -> str:
    """Why sbatch refuses a job, which may be that nodes were left out."""
    if not bad_nodes:
        return str(problem)
    why = f"without {', '.join(bad_nodes)}, where runs failed and nowhere else; `isoflop retry` takes them again"
    return f"{problem} ({why})"


def _is_laid_out(plan: Plan, directory: Path) -> bool:
    """Whether the directory has the plan's runs, and no others."""
    try:
        return [row["run_id"] for row in plan_rows(directory, ["run_id"])] == [
            run.run_id for run in plan.runs
        ]
    except RunError:
        return False


def active_arrays(plan: Plan, intent: Intent, submissions: Sequence[Submission]) -> list[Active]:
    """Arrays that are queued or run already, those of runs that the plan has no more among them."""
    jobs = {run.run_id: job_of(run) for run in plan.runs}
    places = {**intent.picture.runs, **{where.run_id: where for where in intent.left}}
    usual = statistics.median(job.hours for job in jobs.values())
    found = []
    for item in submissions:
        mine = [
            run_id
            for run_id in item.runs
            if run_id in places and places[run_id].task == item.task(run_id)
        ]
        if item.job_id and mine:
            known = tuple(jobs.get(run_id) or Job(run_id, item.gpus, usual, 0.0) for run_id in mine)
            waits = all(places[run_id].reason.startswith("Dependency") for run_id in mine)
            running = sum(places[run_id].state == "running" for run_id in mine)
            found.append(Active(item.job_id, known, waits, running))
    return found


def _throttle(
    directory: Path,
    submissions: Sequence[Submission],
    active: Sequence[Active],
    shares: Sequence[Share],
) -> None:
    """Lets as many runs of the queued arrays run at once as their share is now."""
    by_job = {array.job_id: held for array, held in zip(active, shares, strict=False)}
    for item in submissions:
        held = by_job.get(item.job_id or "")
        if held and held.places and len(item.runs) > 1 and held.places != item.at_once:
            with suppress(
                ClusterError
            ):  # some clusters don't let users: then the limits hold for each call alone
                slurm.throttle(item.job_id or "", held.places)
                replace(item, at_once=held.places).write(submissions_folder(directory))


def _chosen(plan: Plan, only: str | None) -> set[str]:
    """The runs that a query chooses."""
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
            raise ValueError("is no condition")
        found = set(frame.loc[chosen, "run_id"])
    except Exception as problem:  # pandas raises what its parser happens to raise
        raise ConfigError(
            f"--only {only!r}: {problem}; name the plan's columns, such as 'budget <= 3e18'"
        ) from None
    if not found:
        raise ConfigError(f"--only {only!r}: chooses none of the {len(plan.runs)} runs")
    return found


def _clear(run: RunDirectory, task: str | None) -> None:
    """A run that failed and is queued again is pending until its task starts, which it may have done, and failed."""
    with run.lease() as lease:
        state = run.state()
        if lease and state["state"] == "failed" and state.get("job_id") != task:
            run.set_state("pending", state.get("reason", ""))
