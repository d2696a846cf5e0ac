"""Job arrays of a study: grouping of the jobs, and start and end of each job."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from isoflop.planning.queue_simulation import (
    Order,
    QueueSchedule,
    SimulatedJob,
    critical_chain,
    sort_key,
)

UNLIMITED = 1 << 60
MAX_EXACT_JOBS = 500
"""Size of an array above which its hours are estimated when shares are compared."""


@dataclass(frozen=True)
class Concurrency:
    """The share of the limits that one array of jobs of one size gets.

    Attributes:
        max_jobs: largest number of its jobs at a time, at least 1.
        after: numbers of the arrays that end before it starts.
    """

    max_jobs: int
    after: tuple[int, ...] = ()


def group_into_arrays(
    jobs: Sequence[SimulatedJob],
    order: Order,
    max_array_size: int = UNLIMITED,
    *,
    limited: bool = True,
) -> list[list[int]]:
    """Return the numbers of the jobs of each array: up to `max_array_size` jobs of one size each.

    In order `budget`, jobs of several sizes that do not all start at once (`limited`) get an array
    per budget too. Otherwise small budgets of one size would wait for large budgets of another.
    """
    by_budget = limited and order == "budget" and len({_size(job) for job in jobs}) > 1
    groups: dict[tuple[float, int, int], list[int]] = defaultdict(list)
    for number in sorted(range(len(jobs)), key=lambda number: sort_key(jobs[number], order)):
        groups[jobs[number].budget if by_budget else 0.0, *_size(jobs[number])].append(number)
    return [
        group[first : first + max_array_size]
        for group in groups.values()  # in the order of their first jobs
        for first in range(0, len(group), max_array_size)
    ]


def _size(job: SimulatedJob) -> tuple[int, int]:
    return job.gpus, job.nodes


def simulate_arrays(
    jobs: Sequence[SimulatedJob], arrays: Sequence[Sequence[int]], shares: Sequence[Concurrency]
) -> QueueSchedule:
    """Return the schedule of the jobs; the next job of an array starts when one of it ends.

    Args:
        jobs: all jobs.
        arrays: numbers of the jobs of each array, in order.
        shares: share of each array.
    """
    starts, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    predecessors: list[int | None] = [None] * len(jobs)
    last_jobs: dict[int, int] = {}
    for number in topological_order(shares):
        share = shares[number]
        last = max((last_jobs[other] for other in share.after), key=ends.__getitem__, default=None)
        slots: list[tuple[float, int | None]] = [
            (0.0 if last is None else ends[last], last)
        ] * share.max_jobs
        for job in arrays[number]:
            starts[job], predecessors[job] = slots[0]
            ends[job] = starts[job] + jobs[job].hours
            heapq.heapreplace(slots, (ends[job], job))
        last_jobs[number] = max(arrays[number], key=ends.__getitem__)
    return QueueSchedule(tuple(starts), tuple(ends), critical_chain(jobs, ends, predecessors))


def topological_order(shares: Sequence[Concurrency]) -> list[int]:
    """Return the numbers of the arrays, each after those it waits for."""

    @cache
    def depth(number: int) -> int:
        return 1 + max(map(depth, shares[number].after)) if shares[number].after else 0

    return sorted(range(len(shares)), key=depth)


def makespan(arrays: Sequence[Sequence[SimulatedJob]], shares: Sequence[Concurrency]) -> float:
    """Return the hours until all arrays have ended."""
    ends: dict[int, float] = {}
    for number in topological_order(shares):
        start = max((ends[other] for other in shares[number].after), default=0.0)
        ends[number] = start + array_hours(arrays[number], shares[number].max_jobs)
    return max(ends.values(), default=0.0)


def array_hours(array: Iterable[SimulatedJob], max_jobs: int) -> float:
    """Return the hours from the start of an array to the end of its last job."""
    hours = [job.hours for job in array]
    if len(hours) > MAX_EXACT_JOBS:
        return max(max(hours), sum(hours) / max_jobs)
    slot_ends = [0.0] * min(max_jobs, len(hours))
    for duration in hours:
        heapq.heapreplace(slot_ends, slot_ends[0] + duration)
    return max(slot_ends)
