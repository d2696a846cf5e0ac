"""Figures of laws and hold-outs: they equal predictions and mark the range of the data."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.figure_checks import FITS, RUNS, axes_in_axes_out, band, legend, marked, xy

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, fit_parametric, simulate_isoflop

LAWS = [(name, quantity) for name in FITS for quantity in ("params", "tokens")] + [
    ("parametric", "loss")
]


@pytest.mark.parametrize(("name", "quantity"), LAWS)
def test_laws_and_their_bands_are_predictions(name, quantity):
    fit = FITS[name]
    ax = axes_in_axes_out(lambda ax=None: fit.plot_law(quantity, ax))
    x, y = xy(ax.lines[0])
    predicted = fit.predict(x[[0, 60, -1]]).xs(quantity, level="quantity")
    assert y[[0, 60, -1]] == pytest.approx(predicted["value"].to_numpy())
    low, high = band(ax, "95% statistical")
    assert low[[0, 60, -1]] == pytest.approx(predicted["statistical_low"].to_numpy())
    assert high[[0, 60, -1]] == pytest.approx(predicted["statistical_high"].to_numpy())
    if fit.rollout is None:
        assert "95% with model error" not in legend(ax)
    else:
        low, high = band(ax, "95% with model error")
        assert high[-1] == pytest.approx(predicted["high"].iloc[-1])
        assert low[-1] < predicted["statistical_low"].iloc[-1]


@pytest.mark.parametrize(("count", "label"), [(3, "95% with skew"), (4, "95% with model error")])
def test_without_a_roll_out_the_wide_band_is_the_skews(count, label):
    fit = fit_isoflop(
        simulate_isoflop(budgets=[10.0 ** (18 + k) for k in range(count)]), bootstrap=0
    )
    assert fit.skew is not None
    assert [text for text in legend(fit.plot_law()) if " with " in text] == [label]


def test_the_line_is_solid_where_the_data_are_and_the_range_is_marked():
    ax = FITS["isoflop"].plot_law()
    whole, inside = ax.lines[:2]
    assert (whole.get_linestyle(), inside.get_linestyle()) == ("--", "-")
    x = xy(inside)[0]
    assert RUNS["budget"].min() * 0.99 < x[0] < x[-1] < RUNS["budget"].max() * 1.01
    assert xy(whole)[0][-1] == pytest.approx(10.0 * RUNS["budget"].max(), rel=0.01)
    assert "range of the data" in legend(ax)


def test_the_legend_has_the_exponent_and_unused_profiles():
    assert any(r"D^* \propto C^{0.4" in text for text in legend(FITS["isoflop"].plot_law("tokens")))
    assert "not used" not in legend(FITS["isoflop"].plot_law())
    cut = RUNS.query("budget != 1e20 or params < 1e9")
    assert "not used" in legend(fit_isoflop(cut, bootstrap=0).plot_law())


@pytest.mark.parametrize(
    ("name", "quantity"),
    [("isoflop", "params"), ("joint", "tokens"), ("parametric", "loss"), ("parametric", None)],
)
def test_rollout_points_are_the_misses(name, quantity):
    fit = FITS[name]
    assert fit.rollout is not None
    ax = axes_in_axes_out(lambda ax=None: fit.plot_rollout(quantity, ax))
    missed = quantity or "loss"
    drawn = sorted(float(xy(line)[1][0]) for line in marked(ax, "o"))
    assert drawn == pytest.approx(
        sorted(100.0 * np.expm1(m.errors[missed].item()) for m in fit.rollout.misses)
    )
    allowed = band(ax, "allowance of predictions")[1]
    reach = float(np.exp(max(m.distance for m in fit.rollout.misses)))
    x = np.exp(np.linspace(0.0, np.log(reach) * 1.08, 100))
    allowance = fit.rollout.allowance(missed, fit.rollout.reach[1] * float(x[-1]))
    assert np.log1p(allowed[-1] / 100.0) == pytest.approx(allowance)


def test_undrawable_figures_are_refused_with_a_reason():
    with pytest.raises(FitError, match="no law of the loss: fit_parametric has"):
        FITS["joint"].plot_law("loss")
    with pytest.raises(FitError, match="too few budgets or runs to hide one"):
        FITS["envelope"].plot_rollout()
    with pytest.raises(FitError, match="predicts params and tokens, not loss"):
        FITS["isoflop"].plot_rollout("loss")


@pytest.mark.parametrize(("name", "quantity"), LAWS)
def test_the_legend_lies_beside_the_data(name, quantity):
    figure = Figure(layout="constrained")
    ax = FITS[name].plot_law(quantity, figure.add_subplot())
    figure.draw_without_rendering()
    box = ax.get_legend()
    assert box is not None
    assert box.get_window_extent().x0 >= ax.get_window_extent().x1


@pytest.mark.parametrize(
    "budgets",
    [(1e18, 1.15e18, 1.3e18, 1.5e18), (1e18, 1.5e18, 2e18, 3e18, 4e18), (1e18, 1e19, 1e20, 1e21)],
)
def test_a_short_reach_has_ticks_too(budgets):
    fit = fit_parametric(simulate_isoflop(budgets=budgets, points=9), bootstrap=0)
    ax = fit.plot_rollout()
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert 3 <= len(ticks) <= 10
    labels = [ax.xaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(set(labels)) == len(labels)
