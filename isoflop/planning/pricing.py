"""Pricing of a plan: GPUs of each run, schedule and disk, for the whole study or what remains."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from isoflop.config.profile import Profile
from isoflop.errors import BudgetError, ConfigError
from isoflop.planning.array_limits import allocate_concurrency
from isoflop.planning.bill import Bill, Total, held_gpu_hours
from isoflop.planning.calibration import Calibration
from isoflop.planning.job_arrays import UNLIMITED, group_into_arrays, simulate_arrays
from isoflop.planning.plan import Plan
from isoflop.planning.queue_simulation import Order, QueueSchedule, SimulatedJob, simulate
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.sizing import Size, Sizer
from isoflop.planning.wall_time import WallTime, WallTimeModel
from isoflop.text import gpu_hours_text

CHECKPOINTS_PER_RUN = 3
"""Checkpoints of a running run on disk: the two that are kept and the one being written."""

PREEMPTIONS_PER_DAY = 2.0
"""Preemptions of a job on a preemptible cluster unless the user gives their number. A prior."""

MAX_FINISH_RATIO = 1.02
"""Finish time over the earliest one up to which fewer GPUs are preferred: 2% later."""


def with_bill(
    plan: Plan,
    profile: Profile,
    *,
    order: Order = "longest",
    interruptions_per_day: float | None = None,
    calibration: Calibration | None = None,
    max_array_size: int = UNLIMITED,
) -> Plan:
    """Return the plan with its bill and the columns `gpus` to `est_source`.

    Args:
        plan: the runs.
        profile: the cluster.
        order: `longest` runs first, best for the finish time, or by `budget`, which allows an early
            first fit.
        interruptions_per_day: expected preemptions and failures of a running job. Each costs half
            the time between checkpoints, and a restart. Default: none, or `PREEMPTIONS_PER_DAY` if
            the profile is preemptible.
        calibration: speeds measured on the cluster, which replace the prior.
        max_array_size: largest number of tasks of an array, if the cluster's limit is known.

    Raises:
        ConfigError: GPUs of an unknown type or too small for a model, or CPUs without measurements.
    """
    if interruptions_per_day is None:
        interruptions_per_day = PREEMPTIONS_PER_DAY if profile.preemptible else 0.0
    precision = plan.sweep.train.precision
    sizer = Sizer(plan.runs, profile, calibration, precision)
    wall_times = WallTimeModel(plan.sweep.train, interruptions_per_day, profile, calibration)
    layout = partial(
        _lay_out, sizer, order=order, wall_times=wall_times, max_array_size=max_array_size
    )
    sizes, times, schedule = layout(profile)
    disk_bytes, weights_bytes = _disk_use(plan.runs, schedule)
    bill = Bill(
        profile=profile,
        order=order,
        sizes=sizes,
        hours=tuple(time.hours for time in times),
        starts=tuple(time.starts for time in times),
        schedule=schedule,
        alternatives=_totals_on_other_gpus(profile, layout),
        disk_bytes=disk_bytes,
        weights_bytes=weights_bytes,
        calibration=calibration,
        interruptions_per_day=interruptions_per_day,
        precision=precision,
        max_array_size=max_array_size,
    )
    runs = [
        replace(
            run,
            gpus=size.gpus,
            nodes=size.nodes,
            est_hours=time.hours,
            est_gpu_hours=size.held_gpus * time.hours,
            est_source=size.source,
        )
        for run, size, time in zip(plan.runs, sizes, times, strict=True)
    ]
    return replace(plan, runs=tuple(runs), bill=bill, warnings=plan.warnings + bill.warnings())


def with_remaining_bill(plan: Plan, remaining: Mapping[str, float]) -> Plan:
    """Return the plan with the bill of its remaining work, each run sized as before.

    The bill's warnings replace those of the whole bill. A plan without a bill is returned
    unchanged.

    Args:
        plan: the runs, with or without a bill.
        remaining: share of the work that remains, by run id.
    """
    bill = plan.bill
    if bill is None or not remaining:
        return plan
    rows = zip(plan.runs, bill.sizes, bill.hours, bill.starts, strict=True)
    runs, sizes, full_hours, starts = zip(
        *(row for row in rows if row[0].run_id in remaining), strict=True
    )
    hours = tuple(full * remaining[run.run_id] for run, full in zip(runs, full_hours, strict=True))
    schedule = _schedule(runs, sizes, hours, bill.profile, bill.order, bill.max_array_size)
    disk_bytes, weights_bytes = _disk_use(runs, schedule)
    remaining_bill = replace(
        bill,
        sizes=sizes,
        hours=hours,
        starts=starts,
        schedule=schedule,
        alternatives={},
        disk_bytes=disk_bytes,
        weights_bytes=weights_bytes,
    )
    replaced = set(bill.warnings())
    unrelated = (warning for warning in plan.warnings if warning not in replaced)
    return replace(plan, bill=remaining_bill, warnings=(*unrelated, *remaining_bill.warnings()))


def _disk_use(runs: Sequence[RunSpec], schedule: QueueSchedule) -> tuple[int, int]:
    """Return the peak bytes of checkpoints and final weights, and the bytes of the weights."""
    checkpoints = [CHECKPOINTS_PER_RUN * run.shape.checkpoint_bytes for run in runs]
    weights = [run.shape.weight_bytes() for run in runs]
    return schedule.peak(checkpoints, weights), sum(weights)


def concurrency_limit(profile: Profile) -> int | None:
    """Return the GPUs that a study may hold at a time, or runs on CPUs; None without a limit."""
    if profile.gpu is not None and profile.executor == "local":  # each run takes one GPU
        return min(
            profile.max_gpus or profile.gpu.per_node, profile.max_jobs or profile.gpu.per_node
        )
    if profile.gpu is not None:
        return profile.max_gpus
    return profile.max_jobs or (
        len(os.sched_getaffinity(0)) if profile.executor == "local" else None
    )


_Layout = tuple[tuple[Size, ...], tuple[WallTime, ...], QueueSchedule]


def _lay_out(
    sizer: Sizer,
    profile: Profile,
    order: Order,
    wall_times: WallTimeModel,
    max_array_size: int,
) -> _Layout:
    """Return sizes, wall times and schedule.

    The sizes are those without a limit on jobs. If `max_jobs` makes the study later, runs take more
    GPUs each: the fewest that make up for it, as far as GPUs can.
    """
    max_gpus, max_jobs = concurrency_limit(profile), profile.max_jobs
    runs = [run for run, _, _ in sizer.runs]

    def schedule(
        sizes: Sequence[Size], times: Sequence[WallTime], profile: Profile
    ) -> QueueSchedule:
        hours = [time.hours for time in times]
        return _schedule(runs, sizes, hours, profile, order, max_array_size)

    trials = []
    for sizes in sizer.choices(max_gpus, max_jobs):
        times = tuple(
            wall_times.predict(run, size.hours) for run, size in zip(runs, sizes, strict=True)
        )
        hours = [time.hours for time in times]
        lower_bound = max(
            max(hours),
            held_gpu_hours(sizes, hours) / (max_gpus or math.inf),
            sum(hours) / (max_jobs or math.inf),
        )
        trials.append((lower_bound, len(trials), tuple(sizes), times))
    layouts: dict[int, _Layout] = {}
    soonest = math.inf
    for lower_bound, number, sizes, times in sorted(trials, key=lambda trial: trial[0]):
        if lower_bound <= MAX_FINISH_RATIO * soonest:
            layouts[number] = sizes, times, schedule(sizes, times, profile)
            soonest = min(soonest, layouts[number][2].finish_hours)
    if max_jobs is None or len(trials) == 1:
        return layouts[0]
    _, _, sizes, times = trials[0]
    any_jobs = schedule(sizes, times, replace(profile, max_jobs=None))
    target = max(soonest, any_jobs.finish_hours)
    if target > soonest:
        for _, number, sizes, times in trials:
            if number not in layouts:
                layouts[number] = sizes, times, schedule(sizes, times, profile)
    return next(
        layouts[number]
        for number in sorted(layouts)
        if layouts[number][2].finish_hours <= MAX_FINISH_RATIO * target
    )


def _schedule(
    runs: Sequence[RunSpec],
    sizes: Sequence[Size],
    hours: Sequence[float],
    profile: Profile,
    order: Order,
    max_array_size: int,
) -> QueueSchedule:
    """Return the schedule of runs of some sizes; on a cluster, as the arrays of a submission."""
    jobs = [
        SimulatedJob(run.run_id, size.gpus, duration, run.budget, size.nodes)
        for run, size, duration in zip(runs, sizes, hours, strict=True)
    ]
    if profile.executor == "local":  # a free worker takes the next run
        local_jobs = [replace(job, gpus=max(1, job.gpus)) for job in jobs]
        return simulate(local_jobs, concurrency_limit(profile), order)
    limited = profile.limits != (None, None)
    arrays = group_into_arrays(jobs, order, max_array_size, limited=limited)
    array_jobs = [[jobs[number] for number in array] for array in arrays]
    return simulate_arrays(jobs, arrays, allocate_concurrency(array_jobs, profile, order))


def _totals_on_other_gpus(
    profile: Profile, layout: Callable[[Profile], _Layout]
) -> dict[int, Total]:
    """Return the study's totals on half and on twice the GPUs, by their number."""
    if profile.max_gpus is None or profile.gpu is None:
        return {}
    totals = {}
    for gpus in (profile.max_gpus // 2, 2 * profile.max_gpus):
        with suppress(ConfigError):  # half of the GPUs may be too few for a model
            sizes, times, schedule = layout(replace(profile, max_gpus=gpus))
            hours = held_gpu_hours(sizes, (time.hours for time in times))
            totals[gpus] = Total(schedule.finish_hours, hours)
    return totals


def check_cap(
    gpu_hours: float, max_gpu_hours: float | None, subject: str = "the study needs"
) -> None:
    """Refuse GPU-hours above a cap; None is no cap. NaN is above any cap.

    Raises:
        BudgetError: GPU-hours above the cap, with `subject` before their number.
    """
    if max_gpu_hours is not None and not gpu_hours <= max_gpu_hours:
        raise BudgetError(
            f"{subject} about {gpu_hours_text(gpu_hours)}, --max-gpu-hours allows "
            f"{max_gpu_hours:,g}; leave out the largest budgets, or raise the cap"
        )
