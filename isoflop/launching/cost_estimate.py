"""Cost estimate of a plan on a cluster, by the speeds measured there if there are any."""

from __future__ import annotations

from isoflop.config.profile import load_profile
from isoflop.errors import ConfigError
from isoflop.launching.records.study_files import find_calibration
from isoflop.planning.job_arrays import UNLIMITED
from isoflop.planning.plan import Plan
from isoflop.planning.pricing import check_cap, with_bill
from isoflop.planning.queue_simulation import Order

MAX_INTERRUPTIONS_PER_DAY = 10_000


def estimate_cost(
    plan: Plan,
    cluster: str,
    order: Order = "longest",
    interruptions: float | None = None,
    max_gpu_hours: float | None = None,
    max_array_size: int | None = None,
) -> Plan:
    """Return the plan with its bill on a cluster.

    Args:
        plan: the runs.
        cluster: profile, by its name or file.
        order: runs to start first.
        interruptions: expected preemptions and failures of a job per day.
        max_gpu_hours: limit on the GPU-hours of the whole plan.
        max_array_size: largest number of tasks of an array, if the cluster's limit is known.

    Raises:
        ConfigError: an invalid profile or rate of interruptions.
        BudgetError: the bill exceeds `max_gpu_hours`.
    """
    if interruptions is not None and not interruptions <= MAX_INTERRUPTIONS_PER_DAY:
        raise ConfigError(
            f"--interruptions: expected 0 to {MAX_INTERRUPTIONS_PER_DAY:,} a day, "
            f"got {interruptions:g}"
        )
    profile = load_profile(cluster, to_plan=True)
    try:
        priced = with_bill(
            plan,
            profile,
            order=order,
            interruptions_per_day=interruptions,
            calibration=find_calibration(plan, profile),
            max_array_size=max_array_size or UNLIMITED,
        )
    except ConfigError as problem:
        raise ConfigError(f"{cluster}: {problem}") from None
    if priced.bill is not None:
        check_cap(priced.bill.gpu_hours, max_gpu_hours)
    return priced
