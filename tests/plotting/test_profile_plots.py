"""Figures of profiles, curves and the frontier: contents, units, no global state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.figure_checks import axes_in_axes_out, legend, marked, xy

from isoflop.fitting import IsoflopFit, fit_envelope, fit_isoflop, fit_joint, simulate_isoflop
from isoflop.plotting.curve_plots import default_split
from isoflop.plotting.style import budget_colours, count_label, flops_label
from isoflop.reporting import plot_loss_curves, plot_overview

RUNS = simulate_isoflop(points=7)


def one_excluded() -> IsoflopFit:
    flipped = RUNS["loss"].where(RUNS["budget"] != 1e19, 6.0 - RUNS["loss"])
    return fit_isoflop(RUNS.assign(loss=flipped), bootstrap=200)


FIT = fit_isoflop(RUNS, bootstrap=200)
EXCLUDED = one_excluded()


def curves() -> pd.DataFrame:
    share = np.geomspace(0.01, 1.0, 500)
    parts = []
    for row in RUNS.iloc[::7].to_dict("records"):
        steps = {
            "run_id": row["run_id"],
            "budget": row["budget"],
            "train_flops": row["budget"] * share,
        }
        for split in ("train", "dev"):
            loss = row["loss"] * share**-0.05
            parts.append(pd.DataFrame(steps | {"split": split, "kind": "all", "loss": loss}))
            parts.append(pd.DataFrame(steps | {"split": split, "kind": "text", "loss": 99.0}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    "draw", [lambda fit, ax=None: fit.plot(ax), lambda fit, ax=None: plot_loss_curves(curves(), ax)]
)
def test_axes_in_axes_out(draw):
    axes_in_axes_out(lambda ax=None: draw(FIT, ax=ax))


def test_profiles_draw_every_run_and_mark_excluded_budgets():
    ax = EXCLUDED.plot()
    drawn = np.concatenate([xy(line)[0] for line in marked(ax, "o")])
    assert sorted(drawn) == pytest.approx(sorted(RUNS["params"]))
    assert r"$10^{19}$ (concave, not used)" in legend(ax)
    hollow = [line for line in marked(ax, "o") if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1
    (diamonds,) = marked(ax, "D")
    assert list(xy(diamonds)[0]) == EXCLUDED.profiles.query("used")["params_opt"].tolist()


def test_unbounded_intervals_are_drawn():
    draws = FIT.draws | {
        name: np.full(200, np.nan) for name in ("a", "b", "ln_k_params", "ln_k_tokens")
    }
    unbounded = replace(FIT, draws=draws)
    assert not np.isfinite(unbounded.exponents["high"]).any()
    axes = plot_overview(unbounded)
    axes[0].figure.canvas.draw()
    assert "[unbounded]" in unbounded.headline()
    assert any("[unbounded]" in text for text in legend(axes[1]))


def test_loss_curves_take_the_held_out_loss_of_all_tokens():
    ax = plot_loss_curves(curves())
    assert "held-out: dev" in ax.get_ylabel()
    lines = [line for line in ax.lines if len(np.asarray(line.get_xdata())) > 1]
    assert len(lines) == len(RUNS.iloc[::7])
    assert max(np.asarray(line.get_ydata()).max() for line in lines) < 99.0
    assert max(len(np.asarray(line.get_xdata())) for line in lines) <= 301
    ends = {float(np.asarray(line.get_xdata())[-1]) for line in lines}
    assert ends == set(RUNS["budget"])
    assert "training" in plot_loss_curves(curves(), split="train").get_ylabel()


def test_loss_curves_are_of_the_requested_kind():
    ax = plot_loss_curves(curves(), kind="text")
    assert ax.get_ylabel() == "Loss of text tokens, held-out: dev (nats per token)"
    assert {y for line in ax.lines for y in xy(line)[1]} == {99.0}


def test_one_held_out_point_a_run_is_the_dot_of_its_training_curve():
    frame = curves().query("kind == 'all'")
    last = (frame["train_flops"] == frame["budget"]) & (frame["split"] == "dev")
    frame = frame.loc[last | (frame["split"] == "train")].assign(
        loss=lambda f: f["loss"] + 0.1 * (f["split"] == "dev")
    )
    assert default_split(frame) == "train"
    assert default_split(frame.loc[last]) == "dev"
    ax = plot_loss_curves(frame)
    assert ax.get_ylabel() == "Loss, training; dots: held-out (nats per token)"
    lines = [line for line in ax.lines if len(xy(line)[0]) > 1]
    assert len(lines) == len(RUNS.iloc[::7])
    dots = sorted(float(y) for line in marked(ax, "o") for y in xy(line)[1])
    assert dots == pytest.approx(sorted(RUNS["loss"].iloc[::7] + 0.1))
    low, high = ax.get_ylim()
    assert low < dots[0] < dots[-1] < high


def test_no_curves_no_failure():
    ax = plot_loss_curves(curves().iloc[:0])
    assert len(ax.lines) == 0


def test_an_optimum_beyond_the_sizes_is_in_view_or_left_out():
    few = RUNS.query("budget < 1e21 or params < 1e9")
    fit = fit_joint(few)
    assert "edge" in set(fit.profiles["status"])
    ax = fit.plot()
    ax.figure.canvas.draw()
    (diamonds,) = marked(ax, "D")
    assert len(xy(diamonds)[0]) == 7
    assert ax.get_xlim()[1] > few["params"].to_numpy().max()


def test_the_frontier_is_below_all_runs():
    fit = fit_envelope(RUNS)
    runs, best = fit.plot().lines
    x, y = xy(runs)
    for flops, loss in zip(*xy(best), strict=True):
        assert loss <= y[x <= flops * 1.01].min()


def test_colours_are_ordered_and_distinct():
    colours = budget_colours([1e20, 1e18, 1e19, 1e18])
    assert list(colours) == [1e18, 1e19, 1e20]
    brightness = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in colours.values()]
    assert brightness == sorted(brightness)


@pytest.mark.parametrize(
    ("value", "text"), [(999.0, "999"), (1e6, "1M"), (2.5e9, "2.5B"), (9.999e8, "1B"), (3e12, "3T")]
)
def test_count_labels(value, text):
    assert count_label(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e18, "$10^{18}$"), (1.8e19, r"$1.8\times10^{19}$"), (9.96e18, "$10^{19}$")],
)
def test_flops_labels(value, text):
    assert flops_label(value) == text


@pytest.mark.parametrize(("factor", "mark"), [(2.2, "^"), (0.5, "v")])
def test_a_run_far_off_does_not_squeeze_the_others(factor, mark):
    runs = RUNS.copy()
    runs.loc[10, "loss"] *= factor
    ax, clean = (fit_isoflop(t, bootstrap=0, use="all").plot() for t in (runs, RUNS))
    assert np.ptp(ax.get_ylim()) <= 1.1 * np.ptp(clean.get_ylim())
    (arrow,) = marked(ax, mark)
    x, y = xy(arrow)
    assert x[0] == pytest.approx(runs.loc[10, "params"])
    assert ax.get_ylim()[0] < y[0] < ax.get_ylim()[1]
    assert "1 run beyond the frame" in legend(ax)
    assert not any("beyond the frame" in text for text in legend(clean))
