"""Arrays of jobs: their grouping and their schedule."""

from __future__ import annotations

import pytest

from isoflop.planning.job_arrays import Concurrency, group_into_arrays, simulate_arrays
from isoflop.planning.queue_simulation import Order, SimulatedJob


def jobs(*requests: tuple[int, float]) -> list[SimulatedJob]:
    """Return jobs a, b, c, ... of (GPUs, hours), two of each budget."""
    return [
        SimulatedJob("abcdefgh"[i], gpus, hours, 10.0 ** (i // 2))
        for i, (gpus, hours) in enumerate(requests)
    ]


@pytest.mark.parametrize(
    ("requests", "order", "max_array_size", "arrays"),
    [
        ([], "longest", 9, []),
        ([(1, 1.0), (2, 3.0), (1, 2.0)], "longest", 9, [[1], [2, 0]]),
        ([(1, 1.0), (1, 2.0), (1, 4.0), (1, 3.0)], "budget", 9, [[1, 0, 2, 3]]),
        ([(1, 1.0), (2, 2.0), (1, 4.0), (2, 3.0)], "budget", 9, [[1], [0], [2], [3]]),
        ([(1, 5.0), (1, 4.0), (1, 3.0)], "longest", 2, [[0, 1], [2]]),
    ],
)
def test_jobs_are_grouped_by_size(
    requests: list[tuple[int, float]], order: Order, max_array_size: int, arrays: list[list[int]]
) -> None:
    assert group_into_arrays(jobs(*requests), order, max_array_size) == arrays


def test_schedule_and_critical_jobs() -> None:
    queued = jobs((1, 4.0), (1, 3.0), (1, 2.0), (2, 5.0))
    schedule = simulate_arrays(queued, [[0, 1, 2], [3]], [Concurrency(2), Concurrency(1, (0,))])
    assert schedule.starts == (0.0, 0.0, 3.0, 5.0)
    assert schedule.ends == (4.0, 3.0, 5.0, 10.0)
    assert schedule.critical == ("b", "c", "d")
    assert schedule.finish_hours == 10.0
