"""One profile: the vertex of a known parabola, weights, statuses, depth, residuals."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.fitting.estimators import parabola as para

X = np.log(np.geomspace(1e7, 1e9, 9))


def profile(x: np.ndarray, loss: np.ndarray, weight: np.ndarray | None = None) -> para.Profile:
    return para.Profile(1e18, 1e18, x, loss, np.ones(len(x)) if weight is None else weight, -x)


def bowl(x: np.ndarray, vertex: float, curvature: float = 0.1) -> np.ndarray:
    return 3.0 + 0.5 * curvature * (x - vertex) ** 2


@pytest.mark.parametrize("vertex", [X[0], X[4], X[-1] + 3.0])
def test_vertex_of_a_known_parabola(vertex):
    fitted = para.fit_parabola(profile(X, bowl(X, vertex)))
    assert fitted is not None
    assert float(fitted.vertices(fitted.coefficients)) == pytest.approx(vertex, abs=1e-9)
    assert float(fitted.lowest(fitted.coefficients)) == pytest.approx(3.0, abs=1e-12)
    assert fitted.curvature == pytest.approx(0.1, rel=1e-9)
    assert fitted.leverage.sum() == pytest.approx(3.0)


def test_weights_are_repeated_runs():
    loss = bowl(X, X[4]) + 0.01 * np.sin(np.arange(9.0))
    weight = np.array([1.0, 2, 1, 3, 1, 1, 1, 2, 1])
    times = weight.astype(int)
    once = para.fit_parabola(profile(X, loss, weight))
    listed = np.polyfit(np.repeat(X, times) - X[4], np.repeat(loss, times), 2)
    assert once is not None
    assert float(once.vertices(once.coefficients)) == pytest.approx(
        X[4] - listed[1] / (2 * listed[0]), abs=1e-9
    )


FEW = X[[0, 2, 4, 6]]
STATUSES = {
    "middle": (X, bowl(X, X[4]), "interior"),
    "four sizes": (FEW, bowl(FEW, FEW[1:3].mean()), "interior"),
    "beyond the largest": (X, bowl(X, X[-1] + 0.1), "edge"),
    "below the smallest": (X, bowl(X, X[0] - 0.1), "edge"),
    "one size above": (X, bowl(X, X[-2] + 0.2), "one_sided"),
    "two sizes above": (X, bowl(X, X[-2] - 0.1), "interior"),
    "upside down": (X, bowl(X, X[4], -0.1), "concave"),
    "constant": (X, np.full(9, 3.0), "concave"),
    "straight": (X, 3.0 - 0.01 * X, "concave"),
    "three sizes": (X[:3], bowl(X[:3], X[1]), "too_few"),
    "one size": (X[:1], np.array([3.0]), "too_few"),
    "nine runs of three sizes": (np.repeat(X[:3], 3), bowl(np.repeat(X[:3], 3), X[1]), "too_few"),
    "sizes a tenth of a percent apart": (X[0] + np.arange(6) * 0.001, bowl(X[:6], X[3]), "too_few"),
    "a thousand sizes close together": (
        np.linspace(X[0], X[-1], 1000),
        bowl(np.linspace(X[0], X[-1], 1000), X[4]),
        "interior",
    ),
}


@pytest.mark.parametrize("case", STATUSES)
def test_statuses(case):
    x, loss, expected = STATUSES[case]
    status = para.classify_profile(profile(x, loss), para.fit_parabola(profile(x, loss)))
    assert status == expected


def test_best_run_at_an_end_is_one_sided_even_with_sizes_on_both_sides():
    loss = bowl(X, X[3], 0.02)
    loss[0] = loss.min() - 1e-4
    shape = profile(X, loss)
    fitted = para.fit_parabola(shape)
    assert fitted is not None
    vertex = float(fitted.vertices(fitted.coefficients))
    assert X[1] < vertex < X[-2]
    assert para.classify_profile(shape, fitted) == "one_sided"


def test_depth_is_the_lesser_arm():
    shape = profile(X, bowl(X, X[3]))
    assert para.measure_depth(shape, 3.0) == pytest.approx(0.05 * (X[3] - X[0]) ** 2)


def test_scaled_residuals_have_the_variance_of_the_noise():
    rng = np.random.default_rng(0)
    pools = []
    for _ in range(2000):
        shape = profile(X[::2], 3.0 * (1.0 + rng.normal(0.0, 0.01, 5)))
        fitted = para.fit_parabola(shape)
        assert fitted is not None
        pools.append(para.residual_pool([(shape, fitted)]))
    assert np.std(np.concatenate(pools)) == pytest.approx(0.01, rel=0.06)  # centring takes a little


def test_a_draw_without_a_minimum_has_no_vertex():
    fitted = para.fit_parabola(profile(X, bowl(X, X[4])))
    assert fitted is not None
    vertices = fitted.vertices(np.array([[3.0, 0.1, 0.2], [3.0, 0.1, 0.0], [3.0, 0.1, -0.2]]))
    assert np.isfinite(vertices).tolist() == [True, False, False]
