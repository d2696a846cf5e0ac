"""Figures of the surface and of its exponents."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.contour import ContourSet
from matplotlib.text import Annotation
from scipy.special import fdtri
from support.figure_checks import axes_in_axes_out, corners, legend, marked, named, xy

from isoflop.fitting import fit_parametric, simulate_isoflop

RUNS = simulate_isoflop(points=7)
FIT = fit_parametric(RUNS, bootstrap=300)


def test_the_path_is_the_optimum_and_contours_are_the_loss():
    ax = axes_in_axes_out(FIT.plot)
    n, d = xy(next(line for line in ax.lines if line.get_linestyle() == "--"))
    predicted = FIT.predict(6.0 * float(n[7]) * float(d[7]))["value"]
    assert (n[7], d[7]) == pytest.approx((predicted["params"], predicted["tokens"]))
    assert 6.0 * n[-1] * d[-1] == pytest.approx(10.0 * RUNS["budget"].max(), rel=0.01)
    (contours,) = [c for c in ax.collections if isinstance(c, ContourSet)]
    drawn = [corners(path) for path in contours.get_paths()]
    assert sum(len(c) > 0 for c in drawn) >= 8
    for level, edge in zip(contours.levels, drawn, strict=True):
        assert FIT.loss_at(edge[:, 0], edge[:, 1]) == pytest.approx(level, rel=2e-3)


def test_named_losses_stand_where_their_contours_leave_the_frame():
    ax = FIT.plot()
    right, top = ax.get_xlim()[1], ax.get_ylim()[1]
    texts = [t for t in ax.texts if isinstance(t, Annotation)]
    assert len(texts) >= 4
    for text in texts:
        n, d = text.xy
        assert n == pytest.approx(right) or d == pytest.approx(top)
        assert FIT.loss_at(n, d) == pytest.approx(float(text.get_text()))


def test_lines_of_equal_compute_are_6nd():
    lines = [
        xy(line) for line in FIT.plot().lines if line.get_linestyle() == ":" and len(xy(line)[0])
    ]
    assert len(lines) >= 3
    for n, d in lines:
        powers = np.log10(6.0 * n * d)
        assert powers == pytest.approx(np.round(powers), abs=1e-9)


def test_all_runs_are_on_the_surface():
    drawn = np.concatenate([xy(line)[0] for line in marked(FIT.plot(), "o")])
    assert sorted(drawn) == pytest.approx(sorted(RUNS["params"]))


def test_exponents_show_resamples_intervals_and_their_region():
    ax = axes_in_axes_out(FIT.plot_exponents, x_scale="linear")
    assert xy(named(ax, "resamples"))[0] == pytest.approx(FIT.draws[:, 3])
    assert list(xy(named(ax, "t intervals"))[0]) == pytest.approx(
        FIT.conf_int().loc["alpha"].tolist()
    )
    ellipse = named(ax, "95% region of both")
    path = ellipse.get_patch_transform().transform_path(ellipse.get_path())
    edge = np.array([c[-2:] for c, _ in path.iter_segments() if len(c) > 2]) - FIT.theta[3:]
    distance = np.einsum(
        "ki,ij,kj->k", edge, np.linalg.inv(FIT.estimate.covariance[0][3:, 3:]), edge
    )
    assert distance == pytest.approx(2.0 * fdtri(2, FIT.sample.dof, 0.95), rel=1e-6)
    assert f"a = {FIT.exponents.loc['a', 'value']:.3f}" in legend(ax)


def test_the_wedge_is_the_interval_of_a():
    alpha, beta = corners(named(FIT.plot_exponents(), "a, 95% t interval").get_paths()[0]).T
    shares = beta / (alpha + beta)
    assert (shares.min(), shares.max()) == pytest.approx(FIT.conf_int().loc["a"].tolist())


def test_exponents_without_resamples():
    assert "resamples" not in legend(fit_parametric(RUNS, bootstrap=0).plot_exponents())
