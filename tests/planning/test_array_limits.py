"""Arrays as the queue runs them: who stands in line, and how limits are shared."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.planning.array_limits import Share, line_up, run_in_lanes, share
from isoflop.planning.queue_simulation import Job, Order


def jobs(*asked: tuple[int, float]) -> list[Job]:
    """Jobs a, b, c, ... of (GPUs, hours), two and two of a budget."""
    return [
        Job("abcdefgh"[i], gpus, hours, 10.0 ** (i // 2)) for i, (gpus, hours) in enumerate(asked)
    ]


@pytest.mark.parametrize(
    ("asked", "order", "most", "lines"),
    [
        ([], "longest", 9, []),
        ([(1, 1.0), (2, 3.0), (1, 2.0)], "longest", 9, [[1], [2, 0]]),
        ([(1, 1.0), (1, 2.0), (1, 4.0), (1, 3.0)], "budget", 9, [[1, 0, 2, 3]]),
        ([(1, 1.0), (2, 2.0), (1, 4.0), (2, 3.0)], "budget", 9, [[1], [0], [2], [3]]),
        ([(1, 5.0), (1, 4.0), (1, 3.0)], "longest", 2, [[0, 1], [2]]),
    ],
)
def test_who_stands_in_line(
    asked: list[tuple[int, float]], order: Order, most: int, lines: list[list[int]]
) -> None:
    assert line_up(jobs(*asked), order, most) == lines


@pytest.mark.parametrize(
    ("lines", "gpus", "count", "order", "shares"),
    [
        ([[(1, 1.0)] * 3], None, None, "longest", [Share(3)]),
        ([[(1, 1.0)] * 3], 2, None, "longest", [Share(2)]),
        ([[(0, 1.0)] * 3], None, 2, "longest", [Share(2)]),
        # Twelve hours of one GPU against two of two: six places against one end together.
        ([[(1, 2.0)] * 6, [(2, 2.0)]], 8, None, "longest", [Share(6), Share(1)]),
        # Once no line ends sooner with more, what is left stays free.
        ([[(1, 9.0)] * 2, [(1, 1.0)] * 2], 8, None, "longest", [Share(2), Share(2)]),
        # The first of those for which there is room starts at once, and the widest waits for both.
        (
            [[(2, 3.0)], [(4, 2.0)], [(1, 1.0)]],
            4,
            None,
            "longest",
            [Share(1), Share(1, (0, 2)), Share(1)],
        ),
        # No room for the second: it is handed the first one's.
        ([[(4, 3.0)], [(2, 1.0)] * 2], 4, None, "longest", [Share(1), Share(2, (0,))]),
        # Side by side the first line has two of four places, for 50 hours; one after the other all end after 31.
        (
            [[(1, 10.0)] * 10, [(2, 1.0)] * 2, [(4, 1.0)] * 2],
            None,
            4,
            "longest",
            [Share(4), Share(2, (0,)), Share(2, (0,))],
        ),
        # Small budgets first: the first line takes what lets it end soonest, the others what is left, or freed.
        (
            [[(1, 1.0)] * 2, [(1, 2.0)] * 2, [(2, 1.0)]],
            3,
            None,
            "budget",
            [Share(2), Share(2, (0,)), Share(1, (0, 1))],
        ),
        ([[(1, 1.0)] * 2, [(2, 5.0)]], 4, None, "budget", [Share(2), Share(1)]),
    ],
)
def test_shares_by_hand(
    lines: list[list[tuple[int, float]]],
    gpus: int | None,
    count: int | None,
    order: Order,
    shares: list[Share],
) -> None:
    asked = [[Job("", *job, 1.0) for job in line] for line in lines]
    assert share(asked, gpus, count, order) == shares


def test_when_they_run_and_which_decide_the_end() -> None:
    asked = jobs((1, 4.0), (1, 3.0), (1, 2.0), (2, 5.0))
    schedule = run_in_lanes(asked, [[0, 1, 2], [3]], [Share(2), Share(1, (0,))])
    assert schedule.starts == (0.0, 0.0, 3.0, 5.0)
    assert schedule.ends == (4.0, 3.0, 5.0, 10.0)
    assert schedule.critical == ("b", "c", "d")
    assert schedule.finish_hours == 10.0


asked_of = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 4, 8]), st.floats(0.01, 100)), min_size=1, max_size=8
)


@given(
    asked=asked_of,
    gpus=st.none() | st.integers(8, 30),
    count=st.none() | st.integers(1, 5),
    order=st.sampled_from(["longest", "budget"]),
    most=st.integers(1, 4),
    real=st.lists(st.floats(0.01, 100), min_size=8, max_size=8),
)
def test_limits_hold_however_long_jobs_really_take(
    asked: list[tuple[int, float]],
    gpus: int | None,
    count: int | None,
    order: Order,
    most: int,
    real: list[float],
) -> None:
    planned = jobs(*asked)
    lines = line_up(planned, order, most)
    assert sorted(itertools.chain(*lines)) == list(range(len(planned)))
    shares = share([[planned[number] for number in line] for line in lines], gpus, count, order)
    assert all(1 <= one.places <= len(line) for one, line in zip(shares, lines, strict=True))
    for hours in ([job.hours for job in planned], real):
        taken = [
            Job(job.name, job.gpus, time, job.budget)
            for job, time in zip(planned, hours, strict=False)
        ]
        schedule = run_in_lanes(taken, lines, shares)
        for moment in schedule.starts:
            spans = zip(planned, schedule.starts, schedule.ends, strict=True)
            busy = [job.gpus for job, start, end in spans if start <= moment < end]
            assert sum(busy) <= (gpus or 10**6)
            assert len(busy) <= (count or 10**6)
