"""Simulation of the queue: cases by hand, and properties for any jobs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.planning.queue_simulation import Order, SimulatedJob, simulate


def jobs(*requests: tuple[int, float]) -> list[SimulatedJob]:
    """Return jobs a, b, c, ... of (GPUs, hours), in ascending order of budget."""
    return [
        SimulatedJob("abcdefgh"[i], gpus, hours, 10.0**i)
        for i, (gpus, hours) in enumerate(requests)
    ]


CASES = [
    # jobs, GPUs, order, starts, critical
    ([], 4, "longest", (), ()),
    ([(2, 5.0)], 4, "longest", (0,), ("a",)),
    ([(1, 3.0), (1, 2.0), (1, 1.0)], 2, "longest", (0, 0, 2), ("a",)),
    ([(1, 1.0), (1, 2.0), (1, 4.0)], 2, "longest", (2, 0, 0), ("c",)),
    ([(1, 1.0), (1, 2.0), (1, 4.0)], 2, "budget", (0, 0, 1), ("a", "c")),
    ([(4, 5.0), (3, 4.0), (1, 3.0)], 4, "longest", (0, 5, 5), ("a", "b")),
    # c fits beside a; b waits
    ([(2, 5.0), (4, 4.0), (2, 3.0)], 4, "longest", (0, 5, 0), ("a", "b")),
    ([(4, 5.0), (4, 4.0)], None, "longest", (0, 0), ("a",)),
]


@pytest.mark.parametrize(("requests", "gpus", "order", "starts", "critical"), CASES)
def test_by_hand(
    requests: list[tuple[int, float]],
    gpus: int | None,
    order: Order,
    starts: tuple[float, ...],
    critical: tuple[str, ...],
) -> None:
    schedule = simulate(jobs(*requests), gpus, order)
    assert schedule.starts == starts
    assert schedule.critical == critical
    assert schedule.finish_hours == max(
        (s + hours for s, (_, hours) in zip(starts, requests, strict=True)), default=0.0
    )


def test_a_job_that_is_wider_than_the_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 4 GPUs"):
        simulate(jobs((8, 1.0)), 4)


@pytest.mark.parametrize(
    ("requests", "gpus", "while_running", "after_end", "peak"),
    [
        ([], 1, [], [], 0),
        ([(1, 2.0)], 1, [48], [4], 48),
        ([(1, 2.0), (1, 1.0)], 2, [48, 12], [4, 1], 60),
        (
            [(1, 2.0), (1, 1.0)],
            1,
            [48, 12],
            [4, 1],
            48,
        ),  # the first has ended when the second starts
        ([(1, 2.0), (1, 1.0)], 1, [12, 48], [4, 1], 52),
        ([(1, 2.0), (1, 1.0)], 1, [3, 3], [4, 4], 8),  # the peak is after the end
    ],
)
def test_peak(
    requests: list[tuple[int, float]],
    gpus: int,
    while_running: list[int],
    after_end: list[int],
    peak: int,
) -> None:
    assert simulate(jobs(*requests), gpus).peak(while_running, after_end) == peak


job_requests = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.floats(0.01, 100)), max_size=8)


@given(requests=job_requests, gpus=st.integers(8, 20), order=st.sampled_from(["longest", "budget"]))
def test_no_gpu_is_used_twice_and_none_idles_for_long(
    requests: list[tuple[int, float]], gpus: int, order: Order
) -> None:
    schedule = simulate(jobs(*requests), gpus, order)
    for moment in schedule.starts:
        busy = sum(
            width
            for (width, _), start, end in zip(requests, schedule.starts, schedule.ends, strict=True)
            if start <= moment < end
        )
        assert busy <= gpus
    work = sum(width * hours for width, hours in requests)
    assert schedule.finish_hours >= work / gpus - 1e-9
    assert schedule.finish_hours >= max((hours for _, hours in requests), default=0.0)
    # While a job waits, more than gpus - 8 are busy.
    assert (
        schedule.finish_hours
        <= work / (gpus - 7) + max((hours for _, hours in requests), default=0.0) + 1e-9
    )
    times = {
        job.name: (s, e)
        for job, s, e in zip(jobs(*requests), schedule.starts, schedule.ends, strict=True)
    }
    chain = [times[name] for name in schedule.critical]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chain))
    assert not chain or (chain[0][0] == 0 and chain[-1][1] == schedule.finish_hours)
