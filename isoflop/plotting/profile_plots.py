"""Figures of a study. Each takes `ax=None`, returns its Axes, shows nothing and sets no global style."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.fitting.methods.envelope import EnvelopeFit
from isoflop.fitting.results.base import ProfileFit
from isoflop.frames import column, mask, records, rows
from isoflop.plotting.law_plots import WORDS, plot_law
from isoflop.plotting.style import (
    INK,
    MUTED,
    SMALL,
    budget_colours,
    budget_legend,
    dress,
    flops_label,
    linear_axis,
    log_axis,
    margins,
    new_axes,
    size_unit,
)

_BEYOND = 4.0
_FAR = 1.5  # times the middle loss of a budget
CURVE_POINTS = 300  # a run's curve is thinned to so many points, evenly in log FLOPs


def plot_profiles(fit: ProfileFit, ax: Axes | None = None) -> Axes:
    """Loss against size, a colour a budget: runs, fitted profiles, optima with their intervals.

    A profile is thick where the loss is within 0.1 % of its least. Filled points and solid curves enter the laws;
    hollow points on a dotted line don't. Where losses lie far off their budget's (runs that diverged), the frame
    leaves them out, and arrows at its edge show where they are.
    """
    ax = new_axes(ax)
    colours = budget_colours(column(fit.profiles, "budget"))
    runs = fit.runs.configurations
    for row in records(fit.profiles):
        points = rows(runs, column(runs, "budget") == row["budget"]).sort_values(by=[fit.axis])
        _profile(ax, fit, row, points, colours[row["budget"]])
    ax.set_xlim(*_view(fit))
    _optima(ax, fit)
    ax.plot(
        [],
        [],
        color=MUTED,
        lw=5.0,
        alpha=0.35,
        solid_capstyle="round",
        label="within 0.1% of the least loss",
    )
    title, unit, _ = WORDS[fit.axis]
    dress(
        ax, "Loss at equal compute", f"{title} ({size_unit(fit.n, unit)})", "Loss (nats per token)"
    )
    log_axis(ax, "x", "count")
    _cut_far(ax, fit, colours)
    linear_axis(ax, "y")
    budget_legend(ax)
    return ax


def plot_loss_curves(
    frame: pd.DataFrame, ax: Axes | None = None, *, split: str | None = None, kind: str = "all"
) -> Axes:
    """Loss against training FLOPs so far, a line a run, a colour a budget, a dot at the end of each.

    Args:
        frame: columns `run_id, budget, train_flops, split, kind, loss`.
        split: which loss; default the first that is not `train`, or where that is no curve, since no run has two
            points of it, `train`, with dots of the other.
        kind: of token, whose loss it is.
    """
    ax = new_axes(ax)
    chosen = split or default_split(frame, kind)
    drawn = _points_of(frame, chosen, kind)
    dots = split or _heldout(frame) or chosen
    ends = _ends(_points_of(frame, dots, kind))
    colours = budget_colours(column(frame, "budget"))
    seen: set[float] = set()
    for run_id, run in drawn.groupby("run_id", sort=False):
        x, y = _thinned(column(run, "train_flops"), column(run, "loss"))
        budget = float(column(run, "budget")[0])
        colour, label = colours[budget], None if budget in seen else flops_label(budget)
        ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.75, label=label)
        end = rows(ends, (ends["run_id"] == run_id).to_numpy(dtype=bool))
        x, y = column(end, "train_flops"), column(end, "loss")
        ax.plot(x, y, color=colour, marker="o", markersize=3.2, linestyle="none", zorder=3)
        seen.add(budget)
    name = {"train": "training", "held-out": "held-out"}.get(chosen, f"held-out: {chosen}")
    name += "" if dots == chosen else "; dots: held-out"
    what = "Loss" if kind == "all" else f"Loss of {kind} tokens"
    dress(
        ax,
        "Loss while training",
        "Training compute so far (FLOPs)",
        f"{what}, {_plain(name)} (nats per token)",
    )
    if len(drawn):
        _curve_limits(ax, pd.concat([drawn, ends]))
        log_axis(ax, "x", "flops")
        budget_legend(ax)
    linear_axis(ax, "y")
    return ax


def plot_frontier(fit: EnvelopeFit, ax: Axes | None = None) -> Axes:
    """Loss against compute: all runs, and those that no other one beats with as much compute or less."""
    ax = new_axes(ax, 5.6, 4.2)
    runs, best = fit.runs.configurations, fit.frontier
    x, y = column(runs, "flops"), column(runs, "loss")
    ax.plot(x, y, marker="o", ms=3.5, color=MUTED, alpha=0.6, ls="none", label="runs")
    ax.plot(
        column(best, "flops"),
        column(best, "loss"),
        color=INK,
        lw=1.4,
        marker="o",
        ms=5,
        label="frontier",
        zorder=3,
    )
    dress(ax, "Frontier of loss and compute", "Training compute (FLOPs)", "Loss (nats per token)")
    ax.set_xlim(*margins(x, 1.3))
    log_axis(ax, "x", "flops")
    linear_axis(ax, "y")
    ax.legend(loc="upper right", fontsize=SMALL, frameon=False)
    return ax


def plot_overview(fit: ProfileFit, fig: Figure | None = None) -> np.ndarray:
    """Profiles, N*(C) and D*(C) side by side; an array of three Axes (the figure: `axes[0].figure`)."""
    fig = fig if fig is not None else Figure(figsize=(20.0, 4.4), layout="constrained")
    axes = fig.subplots(1, 3, width_ratios=(1.35, 1.0, 1.0))
    plot_profiles(fit, axes[0])
    plot_law(fit, "params", axes[1])
    plot_law(fit, "tokens", axes[2])
    return axes


def default_split(frame: pd.DataFrame, kind: str = "all") -> str:
    """The first split that is not `train`, if a run has two points of it or there is no other; else `train`."""
    heldout = _heldout(frame)
    if heldout is None:
        return "train"
    points, others = _points_of(frame, heldout, kind), _points_of(frame, "train", kind)
    return heldout if len(_ends(points)) < len(points) or not len(others) else "train"


def _heldout(frame: pd.DataFrame) -> str | None:
    return next((s for s in sorted(set(frame["split"].astype(str))) if s != "train"), None)


def _points_of(frame: pd.DataFrame, split: str, kind: str) -> pd.DataFrame:
    """What can be drawn of a loss, run by run."""
    wanted = ((frame["split"] == split) & (frame["kind"] == kind)).to_numpy(dtype=bool)
    wanted = wanted & np.isfinite(column(frame, "loss")) & (column(frame, "train_flops") > 0)
    return rows(frame, wanted).sort_values(by=["budget", "run_id", "train_flops"], kind="stable")


def _ends(points: pd.DataFrame) -> pd.DataFrame:
    """The last point of each run."""
    return points.drop_duplicates("run_id", keep="last")


def _profile(
    ax: Axes, fit: ProfileFit, row: dict[str, Any], points: pd.DataFrame, colour: str
) -> None:
    x, y = column(points, fit.axis), column(points, "loss")
    label = flops_label(row["budget"])
    if not row["used"]:
        note = f"{label} ({row['status'].replace('_', ' ')}, not used)"
        ax.plot(
            x,
            y,
            color=colour,
            marker="o",
            markersize=5,
            markerfacecolor="white",
            linestyle=":",
            lw=1,
            label=note,
        )
        return
    ax.plot(x, y, color=colour, marker="o", markersize=4.5, linestyle="none", label=label)
    left, right = _view(fit)
    optimum = float(np.clip(row[f"{fit.axis}_opt"], left, right))
    curve = np.geomspace(min(x[0], optimum), max(x[-1], optimum), 240)
    loss = fit.curve(row["budget"], curve)
    near = (curve >= row["near_0.1_low"]) & (curve <= row["near_0.1_high"])
    ax.plot(curve, loss, color=colour, linewidth=1.3)
    ax.plot(
        curve[near], loss[near], color=colour, linewidth=5.0, alpha=0.35, solid_capstyle="round"
    )


def _view(fit: ProfileFit) -> tuple[float, float]:
    """From the least size to the greatest, or to an optimum that lies beyond by at most a factor of 4."""
    runs = column(fit.runs.frame, fit.axis)
    optima = column(rows(fit.profiles, mask(fit.profiles, "used")), f"{fit.axis}_opt")
    near = optima[(optima > runs.min() / _BEYOND) & (optima < runs.max() * _BEYOND)]
    return margins(np.concatenate([runs, near]), 1.12)


def _optima(ax: Axes, fit: ProfileFit) -> None:
    """Diamonds at the optima with the interval as a bar, cut at the frame."""
    used = rows(fit.profiles, mask(fit.profiles, "used"))
    used = rows(used, _inside(ax, column(used, f"{fit.axis}_opt")))
    x, y = column(used, f"{fit.axis}_opt"), column(used, "loss_opt")
    low, high = _cut(ax, column(used, "low"), column(used, "high"))
    ax.errorbar(
        x,
        y,
        xerr=(x - low, high - x),
        fmt="none",
        ecolor=INK,
        elinewidth=1.4,
        capsize=3.5,
        zorder=4,
    )
    style = {
        "marker": "D",
        "markersize": 4.5,
        "markerfacecolor": "white",
        "markeredgecolor": INK,
        "linestyle": "none",
    }
    ax.plot(x, y, zorder=5, label=f"optimum, {fit.confidence:.0%} interval", **cast(Any, style))


def _cut_far(ax: Axes, fit: ProfileFit, colours: dict[float, str]) -> None:
    """Frames the losses that are not far off the middle of their budget; the others are arrows at the edge."""
    runs = fit.runs.configurations
    budget, size, loss = (column(runs, name) for name in ("budget", fit.axis, "loss"))
    middle = runs["loss"].groupby(runs["budget"]).transform("median").to_numpy(dtype=np.float64)
    far = np.abs(np.log(loss / middle)) > np.log(_FAR)
    if not far.any():
        return
    low, high = float(loss[~far].min()), float(loss[~far].max())
    pad = 0.06 * max(high - low, 1e-3)
    low, high = low - pad, high + pad
    ax.set_ylim(low, high)
    for k in np.flatnonzero(far):
        above = loss[k] > middle[k]
        edge, mark = (high - 0.3 * pad, "^") if above else (low + 0.3 * pad, "v")
        ax.plot(
            [size[k]],
            [edge],
            marker=mark,
            markersize=7,
            color=colours[budget[k]],
            linestyle="none",
            zorder=6,
        )
    count = int(np.count_nonzero(far))
    label = f"{count} run{'s' if count > 1 else ''} beyond the frame"
    ax.plot([], [], marker="^", markersize=7, color=MUTED, linestyle="none", label=label)


def _inside(ax: Axes, x: np.ndarray) -> np.ndarray:
    left, right = ax.get_xlim()
    return (x >= left) & (x <= right)


def _cut(ax: Axes, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = ax.get_xlim()
    return np.clip(np.nan_to_num(low, nan=left), left, right), np.clip(
        np.nan_to_num(high, nan=right), left, right
    )


def _curve_limits(ax: Axes, drawn: pd.DataFrame) -> None:
    """Leaves out the first, steepest part of the curves, so that their ends can be told apart."""
    loss, flops = column(drawn, "loss"), column(drawn, "train_flops")
    last = drawn.groupby("run_id")["train_flops"].transform("max").to_numpy(dtype=np.float64)
    low, high = float(loss.min()), float(loss[flops >= 0.02 * last].max())
    pad = 0.04 * max(high - low, 1e-3)
    ax.set_ylim(low - pad, high + pad)
    ax.set_xlim(*margins(flops[loss <= high], 1.3))


def _plain(text: str) -> str:
    """A name from outside, without what would be read as mathematical text."""
    return text.replace("$", r"\$")


def _thinned(flops: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(flops) <= CURVE_POINTS:
        return flops, loss
    wanted = np.searchsorted(flops, np.geomspace(flops[0], flops[-1], CURVE_POINTS))
    keep = np.unique(np.append(np.minimum(wanted, len(flops) - 1), len(flops) - 1))
    return flops[keep], loss[keep]
