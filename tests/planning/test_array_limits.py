"""Shares of the limits for arrays of jobs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.planning.array_limits import allocate_limits
from isoflop.planning.job_arrays import Concurrency, group_into_arrays, simulate_arrays
from isoflop.planning.queue_simulation import Order, SimulatedJob


@pytest.mark.parametrize(
    ("arrays", "max_gpus", "max_jobs", "order", "shares"),
    [
        ([[(1, 1.0)] * 3], None, None, "longest", [Concurrency(3)]),
        ([[(1, 1.0)] * 3], 2, None, "longest", [Concurrency(2)]),
        ([[(0, 1.0)] * 3], None, 2, "longest", [Concurrency(2)]),
        # 12 hours on one GPU, 2 hours on two: six jobs and one job at a time end together.
        ([[(1, 2.0)] * 6, [(2, 2.0)]], 8, None, "longest", [Concurrency(6), Concurrency(1)]),
        # No array would end sooner with more jobs at a time: the rest stays free.
        ([[(1, 9.0)] * 2, [(1, 1.0)] * 2], 8, None, "longest", [Concurrency(2), Concurrency(2)]),
        # The first array that fits starts at once; the widest waits for both others.
        (
            [[(2, 3.0)], [(4, 2.0)], [(1, 1.0)]],
            4,
            None,
            "longest",
            [Concurrency(1), Concurrency(1, (0, 2)), Concurrency(1)],
        ),
        # The second does not fit: it gets the share of the first.
        ([[(4, 3.0)], [(2, 1.0)] * 2], 4, None, "longest", [Concurrency(1), Concurrency(2, (0,))]),
        # Together, the first has two of four jobs for 50 hours; in sequence, all end after 31.
        (
            [[(1, 10.0)] * 10, [(2, 1.0)] * 2, [(4, 1.0)] * 2],
            None,
            4,
            "longest",
            [Concurrency(4), Concurrency(2, (0,)), Concurrency(2, (0,))],
        ),
        # Small budgets first: the first ends as soon as it can, the others get free capacity.
        (
            [[(1, 1.0)] * 2, [(1, 2.0)] * 2, [(2, 1.0)]],
            3,
            None,
            "budget",
            [Concurrency(2), Concurrency(2, (0,)), Concurrency(1, (0, 1))],
        ),
        ([[(1, 1.0)] * 2, [(2, 5.0)]], 4, None, "budget", [Concurrency(2), Concurrency(1)]),
    ],
)
def test_shares_by_hand(
    arrays: list[list[tuple[int, float]]],
    max_gpus: int | None,
    max_jobs: int | None,
    order: Order,
    shares: list[Concurrency],
) -> None:
    array_jobs = [[SimulatedJob("", *job, 1.0) for job in array] for array in arrays]
    assert allocate_limits(array_jobs, max_gpus, max_jobs, order) == shares


job_requests = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 4, 8]), st.floats(0.01, 100)), min_size=1, max_size=8
)


@given(
    requests=job_requests,
    max_gpus=st.none() | st.integers(8, 30),
    max_jobs=st.none() | st.integers(1, 5),
    order=st.sampled_from(["longest", "budget"]),
    max_array_size=st.integers(1, 4),
    real_hours=st.lists(st.floats(0.01, 100), min_size=8, max_size=8),
)
def test_limits_hold_however_long_jobs_really_take(
    requests: list[tuple[int, float]],
    max_gpus: int | None,
    max_jobs: int | None,
    order: Order,
    max_array_size: int,
    real_hours: list[float],
) -> None:
    planned = [
        SimulatedJob(str(i), gpus, hours, 10.0 ** (i // 2))
        for i, (gpus, hours) in enumerate(requests)
    ]
    arrays = group_into_arrays(planned, order, max_array_size)
    assert sorted(itertools.chain(*arrays)) == list(range(len(planned)))
    array_jobs = [[planned[number] for number in array] for array in arrays]
    shares = allocate_limits(array_jobs, max_gpus, max_jobs, order)
    for share, array in zip(shares, arrays, strict=True):
        assert 1 <= share.max_jobs <= len(array)
    for hours in ([job.hours for job in planned], real_hours):
        real = [
            SimulatedJob(job.name, job.gpus, duration, job.budget)
            for job, duration in zip(planned, hours, strict=False)
        ]
        schedule = simulate_arrays(real, arrays, shares)
        for moment in schedule.starts:
            spans = zip(planned, schedule.starts, schedule.ends, strict=True)
            busy = [job.gpus for job, start, end in spans if start <= moment < end]
            assert sum(busy) <= (max_gpus or 10**6)
            assert len(busy) <= (max_jobs or 10**6)
