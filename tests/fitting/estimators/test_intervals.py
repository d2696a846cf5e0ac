"""Lines and intervals against textbook values."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from isoflop.fitting.estimators.intervals import (
    Interval,
    Line,
    draws_interval,
    exponential,
    lines_through,
    t_interval,
    wider,
)

X = np.log([1e18, 3e18, 1e19, 3e19, 1e20])
Y = 0.5 * X + np.array([0.01, -0.02, 0.0, 0.03, -0.01])


def test_line_agrees_with_scipy():
    from scipy import stats  # a second to import

    line, known = Line.through(X, Y), cast(Any, stats.linregress(X, Y))
    assert line.slope == pytest.approx(known.slope, rel=1e-12)
    assert line.intercept == pytest.approx(known.intercept, rel=1e-9)
    assert line.slope_se == pytest.approx(known.stderr, rel=1e-9)
    assert line.se_at(0.0) == pytest.approx(known.intercept_stderr, rel=1e-9)
    half = stats.t(3).ppf(0.95) * known.stderr
    assert t_interval(line.slope, line.slope_se, 3, 0.9).width == pytest.approx(2 * half)


def test_lines_through_each_draw():
    slopes, intercepts = lines_through(X, np.stack([Y, 2.0 * Y]))
    assert slopes.tolist() == pytest.approx(
        [Line.through(X, Y).slope, 2.0 * Line.through(X, Y).slope]
    )
    assert intercepts[0] == pytest.approx(Line.through(X, Y).intercept)


def test_draws_are_stretched_to_t():
    from scipy import stats

    draws = np.random.default_rng(0).normal(1.0, 0.1, 200_000)
    interval = draws_interval(1.0, draws, 8, 0.95)
    assert interval.high - 1.0 == pytest.approx(0.1 * stats.t(8).ppf(0.975), rel=0.02)
    assert 1.0 - interval.low == pytest.approx(0.1 * stats.t(8).ppf(0.975), rel=0.02)


@pytest.mark.parametrize(
    ("lost", "finite"), [(0.0, True), (0.04, True), (0.06, False), (1.0, False)]
)
def test_lost_draws_open_the_interval(lost, finite):
    draws = np.random.default_rng(0).normal(size=4000)
    whole = draws_interval(0.0, draws, 30, 0.95)
    draws[: int(lost * 4000)] = np.nan
    interval = draws_interval(0.0, draws, 30, 0.95)
    assert np.isfinite(interval.width) == finite
    assert not finite or not lost or interval.width > whole.width


def test_an_interval_without_draws_loses():
    none = draws_interval(1.0, np.empty(0), 5, 0.95)
    assert wider(none, Interval(1.0, 0.5, 1.5)) == Interval(1.0, 0.5, 1.5)
    assert wider(Interval(1.0, 0.0, 2.0), Interval(1.0, 0.5, 1.5)).low == 0.0
    assert exponential(Interval(0.0, -np.inf, np.inf)) == Interval(1.0, 0.0, np.inf)
