"""Shares of a cluster's limits on GPUs and jobs, one for each array of a study.

SLURM limits the tasks of one array that run at a time. It has no limit on the GPUs of several
arrays together. So each array gets a share of the limits, or waits for the shares of arrays that
have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from isoflop.config.profile import Profile
from isoflop.planning.job_arrays import UNLIMITED, Concurrency, array_hours, makespan
from isoflop.planning.queue_simulation import Order, SimulatedJob, sort_key

MAX_SEQUENTIAL_RATIO = 0.8
"""Ratio of hours below which arrays wait for others to end; one stuck job then delays them all."""


@dataclass(frozen=True)
class _Capacity:
    """GPUs and jobs that are free from `free_at` hours on, after the end of some arrays."""

    free_at: float
    gpus: int
    jobs: int
    after: frozenset[int] = frozenset()


def allocate_limits(
    arrays: Sequence[Sequence[SimulatedJob]],
    max_gpus: int | None,
    max_jobs: int | None,
    order: Order = "longest",
    *,
    queued: bool = False,
) -> list[Concurrency]:
    """Return each array's share; all together keep the limits, however long a job really takes.

    In order `longest`, the arrays that can start at once get shares with which they end as nearly
    as possible at the same time. Few jobs at a time may be too few to divide well. If the study
    ends clearly sooner in sequence, the arrays are treated as in order `budget`, unless some are
    `queued` already, because a queued array cannot be made to wait. In order `budget`, the first
    array gets the share with which it ends soonest, then the next one.
    """
    if max_gpus is None and max_jobs is None:
        return [Concurrency(len(array)) for array in arrays]
    capacities = [_Capacity(0.0, max_gpus or 0, max_jobs or 0)]
    sequential = _allocate_in_sequence(arrays, {}, capacities, max_gpus, max_jobs)
    if order == "budget":
        return sequential
    jobs_at_once = _balance(arrays, max_gpus or UNLIMITED, max_jobs or UNLIMITED)
    shares = {number: Concurrency(count) for number, count in enumerate(jobs_at_once) if count}
    held = [
        _held_capacity(number, arrays[number], share.max_jobs, 0.0)
        for number, share in shares.items()
    ]
    free = _Capacity(
        0.0,
        (max_gpus or 0) - sum(capacity.gpus for capacity in held),
        (max_jobs or 0) - sum(capacity.jobs for capacity in held),
    )
    balanced = _allocate_in_sequence(arrays, shares, [*held, free], max_gpus, max_jobs)
    sooner = makespan(arrays, sequential) < MAX_SEQUENTIAL_RATIO * makespan(arrays, balanced)
    return sequential if sooner and not queued else balanced


def _allocate_in_sequence(
    arrays: Sequence[Sequence[SimulatedJob]],
    shares: dict[int, Concurrency],
    capacities: list[_Capacity],
    max_gpus: int | None,
    max_jobs: int | None,
) -> list[Concurrency]:
    """Return `shares` and those of the other arrays, allocated one after the other."""
    limits_gpus, limits_jobs = max_gpus is not None, max_jobs is not None
    for number, array in enumerate(arrays):
        if number not in shares:
            shares[number] = _allocate_freed(number, array, capacities, limits_gpus, limits_jobs)
    return [shares[number] for number in range(len(arrays))]


def allocate_concurrency(
    arrays: Sequence[Sequence[SimulatedJob]],
    profile: Profile,
    order: Order = "longest",
    running: Sequence[int] | None = None,
) -> list[Concurrency]:
    """Return each array's share of a cluster's limits, where a job counts with all GPUs it holds.

    The order of arrays that are not queued makes no difference.

    Args:
        arrays: unfinished jobs of each array.
        profile: cluster with the limits.
        order: jobs that start first.
        running: number of running jobs of the first arrays, which are queued already. These jobs go
            on whatever the shares are. None if no array is queued.
    """
    known = len(running or ())
    ranking = [
        *range(known),
        *sorted(range(known, len(arrays)), key=lambda number: _rank(arrays[number], order)),
    ]
    held = [_with_held_gpus(arrays[number], profile) for number in ranking]
    ranked = allocate_limits(held, *profile.limits, order, queued=running is not None)
    if running:
        ranked = _reserve_running(ranked, held, running, *profile.limits)
    shares = {
        number: Concurrency(share.max_jobs, tuple(sorted(ranking[rank] for rank in share.after)))
        for number, share in zip(ranking, ranked, strict=True)
    }
    return [shares[number] for number in range(len(arrays))]


def _with_held_gpus(array: Sequence[SimulatedJob], profile: Profile) -> Sequence[SimulatedJob]:
    """Return the jobs of an array with all GPUs that each of them holds."""
    gpus = profile.held_gpus(array[0].gpus, array[0].nodes)
    return array if gpus == array[0].gpus else [replace(job, gpus=gpus) for job in array]


def _rank(array: Sequence[SimulatedJob], order: Order) -> tuple[object, ...]:
    """Return the sort key of an array: that of its first job, then all other differences."""
    return sort_key(array[0], order), array[0].gpus, array[0].nodes, [-job.hours for job in array]


def _reserve_running(
    shares: Sequence[Concurrency],
    arrays: Sequence[Sequence[SimulatedJob]],
    running: Sequence[int],
    max_gpus: int | None,
    max_jobs: int | None,
) -> list[Concurrency]:
    """Return shares that leave capacity for running jobs beyond their array's share until they end.

    Arrays without any capacity wait for those that run.
    """
    known = len(running)
    now_running = [*running, *[0] * (len(arrays) - known)]
    starting = [number for number, share in enumerate(shares) if number < known or not share.after]
    targets = {
        number: 1 if shares[number].after else shares[number].max_jobs for number in starting
    }
    reserved = {number: max(target, now_running[number]) for number, target in targets.items()}

    def exceeds_limits() -> bool:
        gpus = sum(count * arrays[number][0].gpus for number, count in reserved.items())
        jobs = sum(reserved.values())
        return gpus > (max_gpus or UNLIMITED) or jobs > (max_jobs or UNLIMITED)

    def reserved_gpus(number: int) -> int:
        return reserved[number] * max(1, arrays[number][0].gpus)

    while exceeds_limits() and (
        reducible := [
            number for number, count in reserved.items() if count > max(1, now_running[number])
        ]
    ):
        reserved[max(reducible, key=reserved_gpus)] -= 1
    changed = list(shares)
    for number in sorted(reserved, key=reserved_gpus):
        changed[number] = Concurrency(min(targets[number], reserved[number]))
        if number >= known and exceeds_limits():
            del reserved[number]
            changed[number] = Concurrency(targets[number], tuple(range(known)))
    if any(share.after for share in changed[known:]):  # no array would use what running ones free
        changed[:known] = [
            Concurrency(max(share.max_jobs, count))
            for share, count in zip(changed[:known], running, strict=True)
        ]
    return changed


def _balance(arrays: Sequence[Sequence[SimulatedJob]], gpus: int, jobs: int) -> list[int]:
    """Return the jobs of each array at a time from the start on; 0 if it cannot start then."""
    counts = [0] * len(arrays)
    hours = [0.0] * len(arrays)

    def add(number: int) -> bool:
        nonlocal gpus, jobs
        job = arrays[number][0]
        if counts[number] == len(arrays[number]) or job.gpus > gpus or jobs < 1:
            return False
        counts[number], gpus, jobs = counts[number] + 1, gpus - job.gpus, jobs - 1
        hours[number] = array_hours(arrays[number], counts[number])
        return True

    for number in range(len(arrays)):
        add(number)
    longest = [max(job.hours for job in array) for array in arrays]
    while any(
        add(number)
        for number in sorted(range(len(arrays)), key=hours.__getitem__, reverse=True)
        if counts[number] and hours[number] > longest[number]
    ):
        pass
    return counts


def _held_capacity(
    number: int, array: Sequence[SimulatedJob], max_jobs: int, start: float
) -> _Capacity:
    """Return the capacity that an array holds, which is free for others after it."""
    end = start + array_hours(array, max_jobs)
    return _Capacity(end, max_jobs * array[0].gpus, max_jobs, frozenset((number,)))


def _allocate_freed(
    number: int,
    array: Sequence[SimulatedJob],
    capacities: list[_Capacity],
    limits_gpus: bool,
    limits_jobs: bool,
) -> Concurrency:
    """Return the share with which an array ends soonest, from capacities that earlier arrays free.

    `capacities` is updated: the array's own capacity is free after it. Resources without a limit
    are ignored.
    """
    capacities.sort(key=lambda capacity: capacity.free_at)
    needs_gpus, needs_jobs = limits_gpus and array[0].gpus > 0, limits_jobs
    best: tuple[float, float, int, int] | None = None
    for used, capacity in enumerate(capacities, start=1):
        gpus = sum(free.gpus for free in capacities[:used])
        jobs = sum(free.jobs for free in capacities[:used])
        count = min(
            len(array),
            gpus // array[0].gpus if needs_gpus else len(array),
            jobs if needs_jobs else len(array),
        )
        if count:
            end = capacity.free_at + array_hours(array, count)
            option = (end, capacity.free_at, used, count)
            best = min(best or option, option)
    if best is None:  # a job beyond the limit, which sizing refuses: alone, after all others
        start = capacities[-1].free_at
        best = (start + array_hours(array, 1), start, len(capacities), 1)
    end, start, used, count = best
    # Fewer jobs at a time may end as soon, and leave capacity to others.
    while count > 1 and start + array_hours(array, count - 1) <= end:
        count -= 1
    sources = [
        capacity
        for capacity in capacities[:used]
        if (needs_gpus and capacity.gpus > 0) or (needs_jobs and capacity.jobs > 0)
    ]
    after = frozenset[int]().union(*(capacity.after for capacity in sources))
    held = _held_capacity(number, array, count, start)
    spare_gpus = sum(capacity.gpus for capacity in sources) - held.gpus
    spare_jobs = sum(capacity.jobs for capacity in sources) - held.jobs
    unused = [capacity for capacity in capacities if capacity not in sources]
    spare = _Capacity(start, max(0, spare_gpus), max(0, spare_jobs), after)
    capacities[:] = [*unused, spare, held]
    return Concurrency(count, tuple(sorted(after)))
