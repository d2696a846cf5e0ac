"""Plan of a submission: the runs to queue, their arrays and scripts, and the nodes to exclude."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.errors import ConfigError
from isoflop.launching.queue.arrays import ActiveArray, Array, make_arrays
from isoflop.launching.queue.excluded_nodes import exclude_nodes, find_bad_nodes
from isoflop.launching.queue.reconcile import reconcile
from isoflop.launching.queue.submit_array import sbatch_script
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.launching.records.submissions import read_submissions
from isoflop.launching.records.sweep_directory import check_study, resolve_root, sweep_directory
from isoflop.launching.slurm import client as slurm
from isoflop.planning.plan import Plan
from isoflop.planning.pricing import check_cap
from isoflop.planning.queue_simulation import Order
from isoflop.planning.run_spec import RunSpec
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
                counts["retrying"] += 1
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
