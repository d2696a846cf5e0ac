"""The learning-rate schedule against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.training.schedule import wsd

# steps, warmup, decay, min_ratio, {step: factor}
CASES = [
    (
        100,
        0.1,
        0.2,
        0.0,
        {0: 0.0, 1: 0.1, 9: 0.9, 10: 1.0, 50: 1.0, 80: 1.0, 81: 0.95, 90: 0.5, 99: 0.05},
    ),
    (100, 0.1, 0.2, 0.1, {0: 0.0, 80: 1.0, 90: 0.55, 99: 0.145}),
    (100, 10, 20, 0.0, {0: 0.0, 5: 0.5, 10: 1.0, 80: 1.0, 90: 0.5}),  # counts
    (1000, 0.0, 0.5, 0.0, {0: 1.0, 500: 1.0, 750: 0.5, 999: 0.002}),
    (40, 0.5, 0.5, 0.0, {0: 0.0, 10: 0.5, 19: 0.95, 20: 1.0, 30: 0.5, 39: 0.05}),
    (40, 0.0, 1.0, 0.0, {0: 1.0, 10: 0.75, 39: 0.025}),  # 1 is the whole run
    (40, 1.0, 0.0, 0.0, {0: 0.0, 10: 0.25, 39: 0.975}),
    (40, 0.0, 0.0, 0.0, {0: 1.0, 39: 1.0}),
    (
        48_244,
        0.1,
        0.2,
        0.0,
        {4823: 4823 / 4824, 4824: 1.0, 38_596: 1.0, 38_597: 9647 / 9648, 48_243: 1 / 9648},
    ),
    # 0.7 steps of warm-up are none, 1.4 steps of decay are two.
    (7, 0.1, 0.2, 0.0, {0: 1.0, 5: 1.0, 6: 0.5}),
    (9, 0.1, 0.2, 0.1, {0: 1.0, 7: 1.0, 8: 0.55}),
    (4, 0.1, 0.2, 0.0, {0: 1.0, 2: 1.0, 3: 0.5}),
    (2, 0.5, 0.5, 0.0, {0: 0.0, 1: 1.0}),  # no room for two steps of decay
    (1, 0.1, 0.2, 0.0, {0: 1.0}),
]


@pytest.mark.parametrize(("steps", "warmup", "decay", "min_ratio", "expected"), CASES)
def test_factors(
    steps: int, warmup: float, decay: float, min_ratio: float, expected: dict[int, float]
) -> None:
    for step, factor in expected.items():
        assert wsd(step, steps, warmup, decay, min_ratio) == pytest.approx(factor, abs=1e-12), step


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    min_ratio=st.floats(0, 1),
)
def test_it_rises_stays_and_falls(
    steps: int, warmup: float, decay: float, min_ratio: float
) -> None:
    factors = [wsd(step, steps, warmup, decay, min_ratio) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert max(factors) == 1.0
    top = factors.index(1.0)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(factor >= min_ratio for factor in factors[top:])
