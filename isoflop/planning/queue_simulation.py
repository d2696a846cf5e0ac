"""When a study would finish: a simulation of its jobs on a number of GPUs."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Order = Literal["longest", "budget"]


@dataclass(frozen=True)
class Job:
    """What a run asks of the queue: GPUs on so many nodes, hours, and the budget it belongs to."""

    name: str
    gpus: int
    hours: float
    budget: float
    nodes: int = 1


@dataclass(frozen=True)
class Schedule:
    """Start and end of every job in hours, in the order given, and the jobs that decide the end.

    Attributes:
        starts, ends: hours from submission.
        critical: names of the jobs that follow one another without a gap up to the end, the first one first.
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    critical: tuple[str, ...]

    @property
    def finish_hours(self) -> float:
        return max(self.ends, default=0.0)

    def most_held(self, at_work: Sequence[int], after: Sequence[int]) -> int:
        """The most that all jobs hold at one moment of what each holds while it runs, and from its end on."""
        started = [(start, 1, held) for start, held in zip(self.starts, at_work, strict=True)]
        ended = [
            (end, 0, kept - held) for end, held, kept in zip(self.ends, at_work, after, strict=True)
        ]
        changes = [
            change for _, _, change in sorted(started + ended)
        ]  # what ends makes room for what starts then
        return max(itertools.accumulate(changes), default=0)


def simulate(jobs: Sequence[Job], gpus: int | None, order: Order = "longest") -> Schedule:
    """Starts jobs as GPUs become free, the first in the order that fits; all at once where `gpus` is None.

    As a scheduler with backfill does without other users: a job that is too wide at the moment lets narrower ones by.

    Raises:
        ValueError: a job that asks for more GPUs than there are.
    """
    free = sum(job.gpus for job in jobs) if gpus is None else gpus
    if any(job.gpus > free for job in jobs):
        raise ValueError(f"a job asks for more than {free} GPUs")
    waiting: dict[int, deque[tuple[int, int]]] = defaultdict(
        deque
    )  # by GPUs: places in the order, and jobs
    for place, number in enumerate(
        sorted(range(len(jobs)), key=lambda number: by_order(jobs[number], order))
    ):
        waiting[jobs[number].gpus].append((place, number))
    starts, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    let_start: list[int | None] = [None] * len(jobs)  # the job whose end made room
    running: list[tuple[float, int]] = []
    now, ended = 0.0, None
    while running or waiting:
        while fitting := [queue[0] for width, queue in waiting.items() if width <= free]:
            _, number = min(fitting)
            job = jobs[number]
            waiting[job.gpus].popleft()
            if not waiting[job.gpus]:
                del waiting[job.gpus]
            starts[number], ends[number], let_start[number] = now, now + job.hours, ended
            free -= job.gpus
            heapq.heappush(running, (ends[number], number))
        now, ended = heapq.heappop(running)
        free += jobs[ended].gpus
    return Schedule(tuple(starts), tuple(ends), chain(jobs, ends, let_start))


def by_order(job: Job, order: Order) -> tuple[float, float]:
    """What to sort jobs by: the longest first, or the smallest budgets."""
    return (-job.hours, job.budget) if order == "longest" else (job.budget, -job.hours)


def chain(
    jobs: Sequence[Job], ends: Sequence[float], let_start: Sequence[int | None]
) -> tuple[str, ...]:
    """Names of the jobs that let one another start, up to the last one to end."""
    if not jobs:
        return ()
    chain: list[str] = []
    number: int | None = max(range(len(jobs)), key=ends.__getitem__)
    while number is not None:
        chain.append(jobs[number].name)
        number = let_start[number]
    return tuple(reversed(chain))
