"""Simulation of a study's jobs on a number of GPUs, for the finish time."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Order = Literal["longest", "budget"]
"""Jobs that start first: the longest, or those of the smallest budgets."""


@dataclass(frozen=True)
class SimulatedJob:
    """A run in the queue: its name, GPUs on a number of nodes, hours, and budget."""

    name: str
    gpus: int
    hours: float
    budget: float
    nodes: int = 1


@dataclass(frozen=True)
class QueueSchedule:
    """Start and end of every job in hours, in the order of the jobs, and the critical jobs.

    Attributes:
        starts, ends: hours from submission.
        critical: names of the jobs that follow each other without a gap until the end, the first
            one first.
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    critical: tuple[str, ...]

    @property
    def finish_hours(self) -> float:
        """Return the hours from submission to the end of the last job; 0 without jobs."""
        return max(self.ends, default=0.0)

    def peak(self, while_running: Sequence[int], after_end: Sequence[int]) -> int:
        """Return the largest sum over the jobs at one moment.

        Args:
            while_running: amount of each job from its start to its end.
            after_end: amount of each job from its end on.
        """
        started = [
            (start, 1, amount) for start, amount in zip(self.starts, while_running, strict=True)
        ]
        ended = [
            (end, 0, final - amount)  # before starts at the same hour
            for end, amount, final in zip(self.ends, while_running, after_end, strict=True)
        ]
        changes = [change for _, _, change in sorted(started + ended)]
        return max(itertools.accumulate(changes), default=0)


def simulate(
    jobs: Sequence[SimulatedJob], gpus: int | None, order: Order = "longest"
) -> QueueSchedule:
    """Return the schedule of jobs that start when GPUs become free; all at once if `gpus` is None.

    Among the jobs that fit, the first in order starts, as with a scheduler's backfill and no other
    users: narrower jobs pass a job that is too wide at the moment.

    Raises:
        ValueError: a job needs more than `gpus` GPUs.
    """
    free = sum(job.gpus for job in jobs) if gpus is None else gpus
    if any(job.gpus > free for job in jobs):
        raise ValueError(f"a job asks for more than {free} GPUs")
    waiting: dict[int, deque[tuple[int, int]]] = defaultdict(deque)  # by GPUs: ranks and jobs
    ranking = sorted(range(len(jobs)), key=lambda number: sort_key(jobs[number], order))
    for rank, number in enumerate(ranking):
        waiting[jobs[number].gpus].append((rank, number))
    starts, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    predecessors: list[int | None] = [None] * len(jobs)
    running: list[tuple[float, int]] = []
    now, ended = 0.0, None
    while running or waiting:
        while fitting := [queue[0] for width, queue in waiting.items() if width <= free]:
            _, number = min(fitting)
            job = jobs[number]
            waiting[job.gpus].popleft()
            if not waiting[job.gpus]:
                del waiting[job.gpus]
            starts[number], ends[number], predecessors[number] = now, now + job.hours, ended
            free -= job.gpus
            heapq.heappush(running, (ends[number], number))
        now, ended = heapq.heappop(running)
        free += jobs[ended].gpus
    return QueueSchedule(tuple(starts), tuple(ends), critical_chain(jobs, ends, predecessors))


def sort_key(job: SimulatedJob, order: Order) -> tuple[float, float]:
    """Return the key by which jobs are sorted: longest first, or smallest budgets first."""
    return (-job.hours, job.budget) if order == "longest" else (job.budget, -job.hours)


def critical_chain(
    jobs: Sequence[SimulatedJob], ends: Sequence[float], predecessors: Sequence[int | None]
) -> tuple[str, ...]:
    """Return the names of the jobs that lead to the last end, the first one first.

    Args:
        jobs: all jobs.
        ends: end of each job in hours.
        predecessors: number of the job whose end made room for each job; None at the start.
    """
    if not jobs:
        return ()
    names: list[str] = []
    number: int | None = max(range(len(jobs)), key=ends.__getitem__)
    while number is not None:
        names.append(jobs[number].name)
        number = predecessors[number]
    return tuple(reversed(names))
