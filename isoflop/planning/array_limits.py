"""A study's jobs as the arrays that SLURM gets: which stand in line together, how many run at once, when all would end.

SLURM limits how many tasks of an array run at once, and knows no limit on the GPUs that several arrays hold together.
So arrays get shares of the limits, and one that gets none is handed what others held, once these have ended.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from isoflop.config.profile import Profile
from isoflop.planning.queue_simulation import Job, Order, Schedule, by_order, chain

UNLIMITED = 1 << 60
EXACT_JOBS = 500
"""Of a larger line the time it takes is estimated while shares are weighed against each other."""

CLEARLY_SOONER = 0.8
"""Of the time: reason enough for lines that wait for others to end, which one stuck job holds up."""


@dataclass(frozen=True)
class Share:
    """What a line of jobs of one size may hold.

    Attributes:
        places: how many of its jobs run at once; 1 at least.
        after: numbers of the lines that have to end before it starts.
    """

    places: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Room:
    """GPUs and places for jobs that are free from a time on, once some lines have ended."""

    free_at: float
    gpus: int
    jobs: int
    after: frozenset[int] = frozenset()


def line_up(
    jobs: Sequence[Job], order: Order, most: int = UNLIMITED, *, limited: bool = True
) -> list[list[int]]:
    """Numbers of jobs, a list for each array: jobs of one size, in order, up to `most` of them.

    By budget, jobs of several sizes that don't all start at once (`limited`) have an array for each budget too, so that
    small budgets of one size don't wait for large ones of another.
    """
    apart = limited and order == "budget" and len({_size(job) for job in jobs}) > 1
    found: dict[tuple[float, int, int], list[int]] = defaultdict(list)
    for number in sorted(range(len(jobs)), key=lambda number: by_order(jobs[number], order)):
        found[jobs[number].budget if apart else 0.0, *_size(jobs[number])].append(number)
    lines = found.values()  # in the order of their first jobs
    return [line[first : first + most] for line in lines for first in range(0, len(line), most)]


def share(
    lines: Sequence[Sequence[Job]],
    max_gpus: int | None,
    max_jobs: int | None,
    order: Order = "longest",
    *,
    queued: bool = False,
) -> list[Share]:
    """How the lines share the limits, which they keep to together however long a job really takes.

    Longest first, those that have room at once get such places that they end as nearly as can be at the same time; few
    places may be too few to share well, and where all end clearly sooner so, it is as by budget, unless some lines are
    `queued` already, which can't be told to wait: the first line gets all the places that let it end soonest, and then
    the next.
    """
    if max_gpus is None and max_jobs is None:
        return [Share(len(line)) for line in lines]
    room = [_Room(0.0, max_gpus or 0, max_jobs or 0)]
    in_line = _share_in_line(lines, {}, room, max_gpus, max_jobs)
    if order == "budget":
        return in_line
    places = _balanced(lines, max_gpus or UNLIMITED, max_jobs or UNLIMITED)
    shares = {number: Share(found) for number, found in enumerate(places) if found}
    held = [_held(number, lines[number], one.places, 0.0) for number, one in shares.items()]
    left = (
        (max_gpus or 0) - sum(one.gpus for one in held),
        (max_jobs or 0) - sum(one.jobs for one in held),
    )
    balanced = _share_in_line(lines, shares, [*held, _Room(0.0, *left)], max_gpus, max_jobs)
    sooner = _end(lines, in_line) < CLEARLY_SOONER * _end(lines, balanced)
    return in_line if sooner and not queued else balanced


def _share_in_line(
    lines: Sequence[Sequence[Job]],
    shares: dict[int, Share],
    room: list[_Room],
    max_gpus: int | None,
    max_jobs: int | None,
) -> list[Share]:
    """The shares with those of the other lines, one after the other, out of the room that others leave."""
    for number, line in enumerate(lines):
        if number not in shares:
            shares[number] = _hand_on(
                number, line, room, max_gpus is not None, max_jobs is not None
            )
    return [shares[number] for number in range(len(lines))]


def share_limits(
    lines: Sequence[Sequence[Job]],
    profile: Profile,
    order: Order = "longest",
    running: Sequence[int] | None = None,
) -> list[Share]:
    """How the lines share the limits of a cluster, where a job counts with all GPUs that it holds.

    In which order those that are not queued come makes no difference.

    Args:
        lines: jobs that are not over.
        profile: the limits.
        order: which jobs start first.
        running: how many jobs of the first lines, which are queued already, run now, and go on whatever the shares are;
            None where nothing is queued.
    """
    known = len(running or ())
    places = [
        *range(known),
        *sorted(range(known, len(lines)), key=lambda number: _rank(lines[number], order)),
    ]
    held = [_holding(lines[place], profile) for place in places]
    found = share(held, *profile.limits, order, queued=running is not None)
    found = _leave_room(found, held, running, *profile.limits) if running else found
    shares = {
        place: Share(one.places, _at(places, one.after))
        for place, one in zip(places, found, strict=True)
    }
    return [shares[number] for number in range(len(lines))]


def _holding(line: Sequence[Job], profile: Profile) -> Sequence[Job]:
    """The jobs of a line with all the GPUs that each of them holds."""
    gpus = profile.held_gpus(line[0].gpus, line[0].nodes)
    return line if gpus == line[0].gpus else [replace(job, gpus=gpus) for job in line]


def _rank(line: Sequence[Job], order: Order) -> tuple[object, ...]:
    """What lines come by: as their first jobs, and then by all that tells them apart."""
    return by_order(line[0], order), line[0].gpus, line[0].nodes, [-job.hours for job in line]


def _at(places: Sequence[int], numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(places[number] for number in numbers))


def _leave_room(
    shares: Sequence[Share],
    lines: Sequence[Sequence[Job]],
    running: Sequence[int],
    max_gpus: int | None,
    max_jobs: int | None,
) -> list[Share]:
    """Shares with room for jobs that run beyond their line's share, until these have ended; lines for which none is
    left wait for those that run.
    """
    runs, known = [*running, *[0] * (len(lines) - len(running))], len(running)
    first = [number for number, one in enumerate(shares) if number < known or not one.after]
    wanted = {number: 1 if shares[number].after else shares[number].places for number in first}
    taken = {number: max(places, runs[number]) for number, places in wanted.items()}

    def too_many() -> bool:
        gpus = sum(places * lines[number][0].gpus for number, places in taken.items())
        return gpus > (max_gpus or UNLIMITED) or sum(taken.values()) > (max_jobs or UNLIMITED)

    def width(number: int) -> int:
        return taken[number] * max(1, lines[number][0].gpus)

    while too_many() and (
        wide := [number for number, places in taken.items() if places > max(1, runs[number])]
    ):
        taken[max(wide, key=width)] -= 1
    found = list(shares)
    for number in sorted(taken, key=width):
        found[number] = Share(min(wanted[number], taken[number]))
        if number >= known and too_many():
            del taken[number]
            found[number] = Share(wanted[number], tuple(range(known)))
    if any(one.after for one in found[known:]):  # nobody takes what those that run would let go
        found[:known] = [
            Share(max(one.places, now)) for one, now in zip(found[:known], running, strict=True)
        ]
    return found


def run_in_lanes(
    jobs: Sequence[Job], lines: Sequence[Sequence[int]], shares: Sequence[Share]
) -> Schedule:
    """When the jobs would start and end, each line's next as one of its places is free."""
    starts, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    let_start: list[int | None] = [None] * len(jobs)
    last: dict[int, int] = {}
    for number in in_turn(shares):
        held = shares[number]
        before = max((last[other] for other in held.after), key=ends.__getitem__, default=None)
        free: list[tuple[float, int | None]] = [
            (0.0 if before is None else ends[before], before)
        ] * held.places
        for job in lines[number]:
            starts[job], let_start[job] = free[0]
            ends[job] = starts[job] + jobs[job].hours
            heapq.heapreplace(free, (ends[job], job))
        last[number] = max(lines[number], key=ends.__getitem__)
    return Schedule(tuple(starts), tuple(ends), chain(jobs, ends, let_start))


def in_turn(shares: Sequence[Share]) -> list[int]:
    """Numbers of lines, each after those that it waits for: first those that start at once."""

    @cache
    def depth(number: int) -> int:
        return 1 + max(map(depth, shares[number].after)) if shares[number].after else 0

    return sorted(range(len(shares)), key=depth)


def _end(lines: Sequence[Sequence[Job]], shares: Sequence[Share]) -> float:
    """Hours until all lines have ended."""
    ends: dict[int, float] = {}
    for number in in_turn(shares):
        start = max((ends[other] for other in shares[number].after), default=0.0)
        ends[number] = start + _time(lines[number], shares[number].places)
    return max(ends.values(), default=0.0)


def _size(job: Job) -> tuple[int, int]:
    return job.gpus, job.nodes


def _balanced(lines: Sequence[Sequence[Job]], gpus: int, count: int) -> list[int]:
    """Places of each line from the start on, 0 where nothing is left for it."""
    places = [0] * len(lines)

    def add(number: int) -> bool:
        nonlocal gpus, count
        job = lines[number][0]
        if places[number] == len(lines[number]) or job.gpus > gpus or count < 1:
            return False
        places[number], gpus, count = places[number] + 1, gpus - job.gpus, count - 1
        times[number] = _time(lines[number], places[number])
        return True

    times = [0.0] * len(lines)
    for number in range(len(lines)):
        add(number)
    longest = [max(job.hours for job in line) for line in lines]
    while any(
        add(number)
        for number in sorted(range(len(lines)), key=times.__getitem__, reverse=True)
        if places[number] and times[number] > longest[number]
    ):
        pass
    return places


def _held(number: int, line: Sequence[Job], places: int, start: float) -> _Room:
    """What a line holds, which is room for others after it."""
    return _Room(start + _time(line, places), places * line[0].gpus, places, frozenset((number,)))


def _hand_on(
    number: int, line: Sequence[Job], room: list[_Room], by_gpus: bool, by_jobs: bool
) -> Share:
    """The share with which a line ends soonest, taken out of the room that others leave; what it holds is room again
    after it. Of what nothing limits no room is needed.
    """
    room.sort(key=lambda one: one.free_at)
    needs = by_gpus and line[0].gpus > 0, by_jobs
    best: tuple[float, float, int, int] | None = None
    for taken, one in enumerate(room, start=1):
        gpus, jobs = (sum(one.gpus for one in room[:taken]), sum(one.jobs for one in room[:taken]))
        places = min(
            len(line),
            gpus // line[0].gpus if needs[0] else len(line),
            jobs if needs[1] else len(line),
        )
        if places:
            found = (one.free_at + _time(line, places), one.free_at, taken, places)
            best = min(best or found, found)
    if best is None:  # wider than the limit, which sizing refuses: alone, after all others
        best = (room[-1].free_at + _time(line, 1), room[-1].free_at, len(room), 1)
    end, start, taken, places = best
    while (
        places > 1 and start + _time(line, places - 1) <= end
    ):  # fewer do as well, and leave room to others
        places -= 1
    from_whom = [
        one for one in room[:taken] if (needs[0] and one.gpus > 0) or (needs[1] and one.jobs > 0)
    ]
    after = frozenset[int]().union(*(one.after for one in from_whom))
    held = _held(number, line, places, start)
    left = (
        sum(one.gpus for one in from_whom) - held.gpus,
        sum(one.jobs for one in from_whom) - held.jobs,
    )
    others = [one for one in room if one not in from_whom]
    room[:] = [*others, _Room(start, max(0, left[0]), max(0, left[1]), after), held]
    return Share(places, tuple(sorted(after)))


def _time(line: Iterable[Job], places: int) -> float:
    """Hours from the start of a line to the end of its last job."""
    hours = [job.hours for job in line]
    if len(hours) > EXACT_JOBS:
        return max(max(hours), sum(hours) / places)
    free = [0.0] * min(places, len(hours))
    for time in hours:
        heapq.heapreplace(free, free[0] + time)
    return max(free)
