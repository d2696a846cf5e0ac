"""The bill of a study on a cluster: GPUs, hours, cost, disk and finish time, before anything is queued."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.config.profile import NOT_GIVEN, Profile
from isoflop.errors import BudgetError, ConfigError
from isoflop.planning.array_limits import UNLIMITED, line_up, run_in_lanes, share_limits
from isoflop.planning.calibration import Calibration
from isoflop.planning.queue_simulation import Job, Order, Schedule, simulate
from isoflop.planning.sizing import Size, Sizer
from isoflop.planning.wall_time import Clock, Time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isoflop.planning.plan import Plan
    from isoflop.planning.run_spec import RunSpec

CHECKPOINTS = 3
"""Of a run at work: the two that are kept, and the one that is being written."""

PREEMPTIONS_PER_DAY = 2.0
"""Of a job on a preemptible cluster, as long as nobody says how many there are. A prior."""

SOON_ENOUGH = 1.02
"""A study that ends up to 2 % later on fewer GPUs is not held up."""


@dataclass(frozen=True)
class Total:
    """What a whole study takes: hours from its submission to its end, and GPU-hours."""

    finish_hours: float
    gpu_hours: float


@dataclass(frozen=True)
class Bill:
    """What a plan would take on a cluster; lists are in the order of the plan's runs.

    Attributes:
        profile: the cluster.
        sizes: GPUs, hours and memory of each run, hours without interruptions.
        hours: of each run with its checkpoints and the interruptions to expect.
        starts: how often each run is started, by the time limit of a job (`slurm.time`).
        schedule: when each run would start and end.
        others: what it would take on half and on twice the GPUs, by their number; runs are sized anew there.
        disk_bytes: the most that checkpoints and final weights take at one moment of the schedule.
        kept_bytes: of the final weights, which stay.
        calibration: what the speed was measured to be; None as long as it is a prior.
        interruptions_per_day: preemptions and failures of a job that the hours reckon with.
        precision: `train.precision` of the study.
        most_tasks: of an array.
    """

    profile: Profile
    order: Order
    sizes: tuple[Size, ...]
    hours: tuple[float, ...]
    starts: tuple[int, ...]
    schedule: Schedule
    others: dict[int, Total]
    disk_bytes: int
    kept_bytes: int
    calibration: Calibration | None = None
    interruptions_per_day: float = 0.0
    precision: str = "auto"
    most_tasks: int = UNLIMITED

    @property
    def source(self) -> str:
        """Where the speed comes from, in words."""
        if self.calibration is None:
            return "prior"
        beyond = sum(size.source == "extrapolated" for size in self.sizes)
        return f"measured {self.calibration.day}" + (
            f", extrapolated for {beyond} runs" if beyond else ""
        )

    @property
    def gpu_hours(self) -> float:
        return _gpu_hours(self.sizes, self.hours)

    @property
    def cost(self) -> float | None:
        price = self.profile.price_per_gpu_hour
        return None if price is None else price * self.gpu_hours

    @property
    def finish_hours(self) -> float:
        return self.schedule.finish_hours

    def warnings(self) -> tuple[str, ...]:
        """What the user should mend before submission, a line each."""
        found = []
        root, quota = _existing(self.profile.root), self.profile.disk_gb
        need = f"checkpoints and weights will take up to {self.disk_bytes / 1e9:,.0f} GB at a time"
        if quota is not None and self.disk_bytes > quota * 1e9:
            found.append(f"{need}, disk_gb allows {quota:,.0f}")
        if root and self.disk_bytes > (free := shutil.disk_usage(root).free):
            found.append(f"{need}, {root} has {free / 1e9:,.0f} GB free")
        if self.precision == "fp32" and self.profile.gpu is not None and self.calibration is None:
            found.append(
                "the hours are those of bf16, and train.precision is fp32: measure it with `isoflop calibrate`"
            )
        return tuple(found)


def with_bill(
    plan: Plan,
    profile: Profile,
    *,
    order: Order = "longest",
    interruptions_per_day: float | None = None,
    calibration: Calibration | None = None,
    most_tasks: int = UNLIMITED,
) -> Plan:
    """The plan with its bill, and the columns `gpus` to `est_source` filled in.

    Args:
        plan: the runs.
        profile: the cluster.
        order: `longest` runs first, best for the finish time, or by `budget`, so that a first fit comes early.
        interruptions_per_day: preemptions and failures of a running job to expect; each costs half the time between
            checkpoints, and a restart. By default none, or `PREEMPTIONS_PER_DAY` where the profile is preemptible.
        calibration: speeds that were measured there, in place of the prior.
        most_tasks: of an array; the cluster's limit, where it can be asked.

    Raises:
        ConfigError: GPUs of an unknown type, or too small for a model, or CPUs of which nothing was measured.
    """
    if interruptions_per_day is None:
        interruptions_per_day = PREEMPTIONS_PER_DAY if profile.preemptible else 0.0
    precision = plan.sweep.train.precision
    sizer = Sizer(plan.runs, profile, calibration, precision)
    clock = Clock(plan.sweep.train, interruptions_per_day, profile, calibration)
    layout = partial(_lay_out, sizer, order=order, clock=clock, most_tasks=most_tasks)
    sizes, times, schedule = layout(profile)
    most, kept = _disk(plan.runs, schedule)
    bill = Bill(
        profile=profile,
        order=order,
        sizes=sizes,
        hours=tuple(time.hours for time in times),
        starts=tuple(time.starts for time in times),
        schedule=schedule,
        others=_on_other_gpus(profile, layout),
        disk_bytes=most,
        kept_bytes=kept,
        calibration=calibration,
        interruptions_per_day=interruptions_per_day,
        precision=precision,
        most_tasks=most_tasks,
    )
    runs = [
        replace(
            run,
            gpus=size.gpus,
            nodes=size.nodes,
            est_hours=time.hours,
            est_gpu_hours=size.held * time.hours,
            est_source=size.source,
        )
        for run, size, time in zip(plan.runs, sizes, times, strict=True)
    ]
    return replace(plan, runs=tuple(runs), bill=bill, warnings=plan.warnings + bill.warnings())


def with_bill_of_rest(plan: Plan, left: Mapping[str, float]) -> Plan:
    """The plan with the bill of some of its runs alone, by id, each sized as before, with the share of it that is left.

    The warnings are those of that bill. A plan without a bill stays as it is.
    """
    bill = plan.bill
    if bill is None or not left:
        return plan
    chosen = [(run, size, hours, starts) for run, size, hours, starts in
              zip(plan.runs, bill.sizes, bill.hours, bill.starts, strict=True) if run.run_id in left]  # fmt: skip
    runs, sizes, whole, starts = zip(*chosen, strict=True)
    hours = tuple(each * left[run.run_id] for run, each in zip(runs, whole, strict=True))
    schedule = _schedule(runs, sizes, hours, bill.profile, bill.order, bill.most_tasks)
    most, kept = _disk(runs, schedule)
    rest = replace(
        bill,
        sizes=sizes,
        hours=hours,
        starts=starts,
        schedule=schedule,
        others={},
        disk_bytes=most,
        kept_bytes=kept,
    )
    own = set(bill.warnings())
    return replace(
        plan,
        bill=rest,
        warnings=(*(one for one in plan.warnings if one not in own), *rest.warnings()),
    )


def _disk(runs: Sequence[RunSpec], schedule: Schedule) -> tuple[int, int]:
    """Bytes: the most that checkpoints and final weights take at one moment, and those of the weights, which stay."""
    at_work = [CHECKPOINTS * run.shape.checkpoint_bytes for run in runs]
    kept = [run.shape.weight_bytes() for run in runs]
    return schedule.most_held(at_work, kept), sum(kept)


def places_of(profile: Profile) -> int | None:
    """GPUs that the study may hold at once, on CPUs runs at once; None where nothing limits them."""
    if profile.gpu is not None and profile.executor == "local":  # where each run takes one
        return min(
            profile.max_gpus or profile.gpu.per_node, profile.max_jobs or profile.gpu.per_node
        )
    if profile.gpu is not None:
        return profile.max_gpus
    return profile.max_jobs or (
        len(os.sched_getaffinity(0)) if profile.executor == "local" else None
    )


_Layout = tuple[tuple[Size, ...], tuple[Time, ...], Schedule]


def _lay_out(
    sizer: Sizer, profile: Profile, order: Order, clock: Clock, most_tasks: int
) -> _Layout:
    """Sizes, times and schedule: those of no limit on jobs, or more GPUs a run where that limit makes the study later:
    the fewest that make up for it, as far as GPUs can.
    """
    most, max_jobs = places_of(profile), profile.max_jobs
    runs = [run for run, _, _ in sizer.runs]

    def schedule(sizes: Sequence[Size], times: Sequence[Time], profile: Profile) -> Schedule:
        return _schedule(runs, sizes, [time.hours for time in times], profile, order, most_tasks)

    trials = []
    for sizes in sizer.choices(most, max_jobs):
        times = tuple(clock.time(run, size.hours) for run, size in zip(runs, sizes, strict=True))
        hours = [time.hours for time in times]
        least = max(
            max(hours),
            _gpu_hours(sizes, hours) / (most or math.inf),
            sum(hours) / (max_jobs or math.inf),
        )
        trials.append((least, len(trials), tuple(sizes), times))
    found: dict[int, _Layout] = {}
    soonest = math.inf
    for least, number, sizes, times in sorted(trials, key=lambda trial: trial[0]):
        if least <= SOON_ENOUGH * soonest:
            found[number] = sizes, times, schedule(sizes, times, profile)
            soonest = min(soonest, found[number][2].finish_hours)
    if max_jobs is None or len(trials) == 1:
        return found[0]
    _, _, sizes, times = trials[0]
    aim = max(soonest, schedule(sizes, times, replace(profile, max_jobs=None)).finish_hours)
    if aim > soonest:
        for _, number, sizes, times in trials:
            if number not in found:
                found[number] = sizes, times, schedule(sizes, times, profile)
    return next(found[n] for n in sorted(found) if found[n][2].finish_hours <= SOON_ENOUGH * aim)


def _schedule(
    runs: Sequence[RunSpec],
    sizes: Sequence[Size],
    hours: Sequence[float],
    profile: Profile,
    order: Order,
    most_tasks: int,
) -> Schedule:
    """When runs of such sizes start and end, on a cluster as the arrays that would be submitted."""
    jobs = [
        Job(run.run_id, size.gpus, each, run.budget, size.nodes)
        for run, size, each in zip(runs, sizes, hours, strict=True)
    ]
    if profile.executor == "local":  # whoever is free takes the next
        at_once = [replace(job, gpus=max(1, job.gpus)) for job in jobs]
        return simulate(at_once, places_of(profile), order)
    lines = line_up(jobs, order, most_tasks, limited=profile.limits != (None, None))
    shares = share_limits([[jobs[number] for number in line] for line in lines], profile, order)
    return run_in_lanes(jobs, lines, shares)


def _gpu_hours(sizes: Sequence[Size], hours: Iterable[float]) -> float:
    return sum(size.held * each for size, each in zip(sizes, hours, strict=True))


def _on_other_gpus(profile: Profile, layout: Callable[[Profile], _Layout]) -> dict[int, Total]:
    """What the study takes on half and on twice the GPUs, the runs spread anew."""
    most, found = profile.max_gpus, {}
    if most is None or profile.gpu is None:
        return {}
    for gpus in (most // 2, 2 * most):
        with suppress(ConfigError):  # half of them may be too few for a model
            sizes, times, schedule = layout(replace(profile, max_gpus=gpus))
            found[gpus] = Total(
                schedule.finish_hours, _gpu_hours(sizes, (time.hours for time in times))
            )
    return found


def _existing(root: str | None) -> Path | None:
    """The folder whose disk a root will take; None where this machine does not have it, such as one off the cluster."""
    if root == NOT_GIVEN:
        return None
    folder = Path(root or ".").expanduser().absolute()
    if not folder.is_dir() and folder.parent != Path(folder.anchor):
        folder = folder.parent  # the first submission makes it
    return folder if folder.is_dir() else None


def check_cap(
    gpu_hours: float, most_gpu_hours: float | None, what: str = "the study needs"
) -> None:
    """Refuses what is above a cap on GPU-hours.

    Raises:
        BudgetError: with what would be needed.
    """
    if (
        most_gpu_hours is not None and not gpu_hours <= most_gpu_hours
    ):  # what is no number is no fit either
        raise BudgetError(
            f"{what} about {gpu_hours:,.0f} GPU-hours, --max-gpu-hours allows {most_gpu_hours:,g}; "
            "leave out the largest budgets, or raise the cap"
        )
