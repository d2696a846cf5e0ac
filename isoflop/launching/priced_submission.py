"""Submission of a study with its cost: priced first, queued once the user has confirmed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.config.profile import Profile, load_profile
from isoflop.errors import ConfigError
from isoflop.launching.cost_estimate import estimate_cost
from isoflop.launching.queue.submission_plan import SubmissionPlan, plan_submission
from isoflop.launching.records.approvals import read_approved
from isoflop.launching.records.study_files import find_calibration
from isoflop.launching.records.submissions import Submission, submissions_folder
from isoflop.launching.slurm.client import max_array_size
from isoflop.launching.submit import submit
from isoflop.planning.plan import Plan, plan
from isoflop.planning.pricing import with_remaining_bill
from isoflop.planning.queue_simulation import Order


@dataclass(frozen=True)
class PricedSubmission:
    """Submission of a study that is not queued yet.

    Attributes:
        plan: all runs, with their bill if the profile has GPUs or measured speeds.
        profile: the cluster.
        runs: the runs to queue and the states of all.
        remaining: the plan of the runs that are not done, with their bill.
        order: runs to start first.
        only: pandas query that chooses the runs to queue.
        max_gpu_hours: limit above which nothing is queued.
    """

    plan: Plan
    profile: Profile
    runs: SubmissionPlan
    remaining: Plan
    order: Order
    only: str | None
    max_gpu_hours: float | None

    @property
    def directory(self) -> Path:
        """Directory of the sweep."""
        return self.runs.directory

    def scripts(self) -> list[str]:
        """Return the scripts that sbatch would get."""
        return self.runs.scripts(self.plan, self.profile, self.order)

    def queue(
        self,
        *,
        new_code: bool,
        on_data: Callable[[int, float], None],
        on_queued: Callable[[Submission], None],
    ) -> None:
        """Queue the confirmed runs, as `submit` does.

        If there are none, heal a submission that was killed and release held jobs.
        """
        if not self.runs.queued and not submissions_folder(self.directory).exists():
            return
        submit(
            self.plan,
            self.profile,
            order=self.order,
            only=self.only,
            runs={*self.runs.queued, *read_approved(self.directory)},
            confirmed=self.runs.queued,
            new_code=new_code,
            max_gpu_hours=self.max_gpu_hours,
            on_data=on_data,
            on_queued=on_queued,
        )


def price_submission(
    sweep: str,
    overrides: Sequence[str],
    cluster: str,
    *,
    order: Order = "longest",
    only: str | None = None,
    interruptions: float | None = None,
    max_gpu_hours: float | None = None,
) -> PricedSubmission:
    """Plan a sweep, estimate its cost on a cluster and find the runs to queue; queue nothing.

    Args:
        sweep: sweep file, or the name of a shipped sweep.
        overrides: changes of its keys, as KEY=VALUE.
        cluster: profile, by its name or file.
        order: runs to start first.
        only: pandas query on the plan's columns.
        interruptions: expected preemptions and failures of a job per day.
        max_gpu_hours: limit on the GPU-hours of the runs to queue.

    Raises:
        ConfigError: an invalid sweep or profile, or a profile of this machine.
        BudgetError: the runs to queue need more than `max_gpu_hours`.
    """
    profile = load_profile(cluster)
    if profile.executor != "slurm":
        raise ConfigError(
            f"{cluster}: executor: is local; on this machine use `isoflop run {sweep}`"
        )
    study = plan(sweep, overrides)
    if (
        profile.gpu is not None
        or max_gpu_hours is not None
        or find_calibration(study, profile) is not None
    ):
        study = estimate_cost(study, cluster, order, interruptions, None, max_array_size())
    elif interruptions is not None:
        raise ConfigError(
            "--interruptions: needs a cost estimate; set the profile's `gpu`, or run "
            "`isoflop calibrate`"
        )
    runs = plan_submission(study, profile, only)
    runs.check_cap(study, max_gpu_hours)
    remaining = with_remaining_bill(study, runs.remaining())
    return PricedSubmission(study, profile, runs, remaining, order, only, max_gpu_hours)
