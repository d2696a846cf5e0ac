"""Figures of IsoFLOP profiles and of the frontier of loss and compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isoflop.frames import Bools, Floats, column, mask, records, rows
from isoflop.plotting.style import (
    INK,
    MUTED,
    QUANTITIES,
    SMALL_FONT_POINTS,
    budget_colours,
    budget_legend,
    flops_label,
    linear_axis,
    log_axis,
    margins,
    new_axes,
    size_unit,
    style_axes,
)
from isoflop.text import percent_text

MAX_FACTOR_BEYOND_SIZES = 4.0
MAX_FACTOR_OFF_MEDIAN_LOSS = 1.5


@dataclass(frozen=True)
class ProfileData:
    """IsoFLOP profiles to draw.

    Attributes:
        profiles: see `ProfileFit.profiles`.
        runs: a row a configuration: budget, params, tokens, loss.
        axis: `params` or `tokens`.
        curve: fitted loss of a budget's profile at sizes on the axis, nats per token.
        confidence: level of the intervals.
        n: parameter count of a model size, such as `total`.
    """

    profiles: pd.DataFrame
    runs: pd.DataFrame
    axis: str
    curve: Callable[[float, Floats], Floats]
    confidence: float
    n: str


def plot_profiles(data: ProfileData, ax: Axes | None = None) -> Axes:
    """Draw loss against size, a colour per budget: runs, fitted profiles, optima with intervals.

    A profile is thick where the loss is within 0.1% of its least. Filled points and solid curves
    enter the laws; hollow points on a dotted line do not. Losses far off their budget's (diverged
    runs) lie outside the frame, and arrows at its edge mark them.
    """
    ax = new_axes(ax)
    colours = budget_colours(column(data.profiles, "budget"))
    for row in records(data.profiles):
        at_budget = column(data.runs, "budget") == row["budget"]
        points = rows(data.runs, at_budget).sort_values(by=[data.axis])
        _draw_profile(ax, data, row, points, colours[row["budget"]])
    ax.set_xlim(*_view(data))
    _draw_optima(ax, data)
    near = {"lw": 5.0, "alpha": 0.35, "label": "within 0.1% of the least loss"}
    ax.plot([], [], color=MUTED, solid_capstyle="round", **near)
    title, unit, _ = QUANTITIES[data.axis]
    x_label = f"{title} ({size_unit(data.n, unit)})"
    style_axes(ax, "Loss at equal compute", x_label, "Loss (nats per token)")
    log_axis(ax, "x", "count")
    _cut_far_losses(ax, data, colours)
    linear_axis(ax, "y")
    budget_legend(ax)
    return ax


def plot_frontier(runs: pd.DataFrame, frontier: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw loss against compute, and the frontier: runs unbeaten at their compute or less.

    Args:
        runs, frontier: columns `flops` and `loss`.
    """
    ax = new_axes(ax, 5.6, 4.2)
    x, y = column(runs, "flops"), column(runs, "loss")
    ax.plot(x, y, marker="o", ms=3.5, color=MUTED, alpha=0.6, ls="none", label="runs")
    best = {"color": INK, "lw": 1.4, "marker": "o", "ms": 5, "label": "frontier", "zorder": 3}
    ax.plot(column(frontier, "flops"), column(frontier, "loss"), **best)
    title = "Frontier of loss and compute"
    style_axes(ax, title, "Training compute (FLOPs)", "Loss (nats per token)")
    ax.set_xlim(*margins(x, 1.3))
    log_axis(ax, "x", "flops")
    linear_axis(ax, "y")
    ax.legend(loc="upper right", fontsize=SMALL_FONT_POINTS, frameon=False)
    return ax


def _draw_profile(
    ax: Axes, data: ProfileData, row: dict[str, Any], points: pd.DataFrame, colour: str
) -> None:
    x, y = column(points, data.axis), column(points, "loss")
    label = flops_label(row["budget"])
    if not row["used"]:
        note = f"{label} ({row['status'].replace('_', ' ')}, not used)"
        style = {"color": colour, "marker": "o", "markersize": 5, "markerfacecolor": "white"}
        ax.plot(x, y, linestyle=":", lw=1, label=note, **style)
        return
    ax.plot(x, y, color=colour, marker="o", markersize=4.5, linestyle="none", label=label)
    x_min, x_max = _view(data)
    optimum = float(np.clip(row[f"{data.axis}_opt"], x_min, x_max))
    curve = np.geomspace(min(x[0], optimum), max(x[-1], optimum), 240)
    loss = data.curve(row["budget"], curve)
    near = (curve >= row["near_0.1_low"]) & (curve <= row["near_0.1_high"])
    ax.plot(curve, loss, color=colour, linewidth=1.3)
    ax.plot(
        curve[near], loss[near], color=colour, linewidth=5.0, alpha=0.35, solid_capstyle="round"
    )


def _view(data: ProfileData) -> tuple[float, float]:
    """Return the range of sizes to show: the runs, and optima beyond them by at most a factor of
    `MAX_FACTOR_BEYOND_SIZES`.
    """
    runs = column(data.runs, data.axis)
    optima = column(rows(data.profiles, mask(data.profiles, "used")), f"{data.axis}_opt")
    near = optima[
        (optima > runs.min() / MAX_FACTOR_BEYOND_SIZES)
        & (optima < runs.max() * MAX_FACTOR_BEYOND_SIZES)
    ]
    return margins(np.concatenate([runs, near]), 1.12)


def _draw_optima(ax: Axes, data: ProfileData) -> None:
    """Draw optima as diamonds with their intervals as bars, cut at the frame."""
    used = rows(data.profiles, mask(data.profiles, "used"))
    used = rows(used, _inside(ax, column(used, f"{data.axis}_opt")))
    x, y = column(used, f"{data.axis}_opt"), column(used, "loss_opt")
    low, high = _cut(ax, column(used, "low"), column(used, "high"))
    bars = {"ecolor": INK, "elinewidth": 1.4, "capsize": 3.5, "zorder": 4}
    ax.errorbar(x, y, xerr=(x - low, high - x), fmt="none", **cast(Any, bars))
    style = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": INK}
    label = f"optimum, {percent_text(data.confidence)} interval"
    ax.plot(x, y, linestyle="none", zorder=5, label=label, **cast(Any, style))


def _cut_far_losses(ax: Axes, data: ProfileData, colours: dict[float, str]) -> None:
    """Fit the frame to losses near the median of their budget, and mark the others by arrows at its
    edge.
    """
    runs = data.runs
    budget, size, loss = (column(runs, name) for name in ("budget", data.axis, "loss"))
    middle = runs["loss"].groupby(runs["budget"]).transform("median").to_numpy(dtype=np.float64)
    far = np.abs(np.log(loss / middle)) > np.log(MAX_FACTOR_OFF_MEDIAN_LOSS)
    if not far.any():
        return
    low, high = float(loss[~far].min()), float(loss[~far].max())
    pad = 0.06 * max(high - low, 1e-3)
    low, high = low - pad, high + pad
    ax.set_ylim(low, high)
    for k in np.flatnonzero(far):
        above = loss[k] > middle[k]
        edge, mark = (high - 0.3 * pad, "^") if above else (low + 0.3 * pad, "v")
        style = {"marker": mark, "markersize": 7, "linestyle": "none", "zorder": 6}
        ax.plot([size[k]], [edge], color=colours[budget[k]], **style)
    count = int(np.count_nonzero(far))
    label = f"{count} run{'s' if count > 1 else ''} beyond the frame"
    ax.plot([], [], marker="^", markersize=7, color=MUTED, linestyle="none", label=label)


def _inside(ax: Axes, x: Floats) -> Bools:
    x_min, x_max = ax.get_xlim()
    return (x >= x_min) & (x <= x_max)


def _cut(ax: Axes, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return both ends within the frame, (K,) each; a NaN lies at its edge."""
    x_min, x_max = ax.get_xlim()
    low, high = np.nan_to_num(low, nan=x_min), np.nan_to_num(high, nan=x_max)
    return np.clip(low, x_min, x_max), np.clip(high, x_min, x_max)
