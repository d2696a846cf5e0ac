"""Figures of laws against compute, N*(C), D*(C) and L*(C), and of their hold-out errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isoflop.frames import Floats, column, mask, records, rows
from isoflop.plotting.style import (
    BAND,
    INK,
    MUTED,
    PANEL,
    QUANTITIES,
    budget_colours,
    budget_legend,
    ends,
    flops_label,
    linear_axis,
    log_axis,
    margins,
    new_axes,
    size_unit,
    style_axes,
    times_axis,
)
from isoflop.text import percent_text

Quantity = Literal["params", "tokens", "loss"]
_OPTIMUM_TITLES = {
    "params": "Optimal model size",
    "tokens": "Optimal data",
    "loss": "Loss at the optimum",
}
_OPTIMUM_SYMBOLS = {"params": "N*", "tokens": "D*", "loss": "loss"}
FACTOR_ABOVE_DATA = 10.0
"""A law is drawn up to this many times the largest compute of its data."""
FACTOR_BELOW_DATA = 3.0
MAX_FACTOR_OFF_POINTS = 1e4
_GRID_POINTS = 160


@dataclass(frozen=True)
class Optima:
    """Optima of profiles as points: the table `ProfileFit.profiles`, and its axis."""

    profiles: pd.DataFrame
    axis: str


@dataclass(frozen=True)
class Frontier:
    """Best runs as points: training FLOPs and the quantity, (K,) each."""

    flops: Floats
    values: Floats


@dataclass(frozen=True)
class Runs:
    """All runs as points: training FLOPs and the quantity, (K,) each."""

    flops: Floats
    values: Floats


LawPoints = Optima | Frontier | Runs


@dataclass(frozen=True)
class LawData:
    """Numbers of a law of compute to draw.

    Attributes:
        quantity: `params`, `tokens` or `loss`.
        predict: from training FLOPs, (K,), to a table with columns value, low, high,
            statistical_low, statistical_high, a row each.
        fitted_flops: training FLOPs of the points that the law was fitted to.
        points: drawn with the law.
        exponent: value, low, high of the exponent; empty for a loss.
        confidence: level of the intervals.
        allowance: `model error` or `skew`, whichever the outer band allows for; empty for none.
        n: parameter count of a model size, such as `total`.
    """

    quantity: Quantity
    predict: Callable[[Floats], pd.DataFrame]
    fitted_flops: Floats
    points: LawPoints
    exponent: Mapping[str, float]
    confidence: float
    allowance: str
    n: str


def plot_law(data: LawData, ax: Axes | None = None) -> Axes:
    """Draw optimal size, data or loss against compute: law, two bands and points; dashed beyond the
    data.

    The inner band (statistical) holds if the law is true. The outer one allows for the law's own
    error beyond the data, as the hold-out shows it (with model error), or for the skew of parabolas
    alone if there is no hold-out (with skew): the columns of `Fit.predict`. Points are the optima
    of budgets, the frontier, or, for a surface, the runs.
    """
    ax = new_axes(ax, 7.2, 4.2)
    low, high = ends(data.fitted_flops)
    limits = low / FACTOR_BELOW_DATA, high * FACTOR_ABOVE_DATA
    grid = np.geomspace(*limits, _GRID_POINTS)
    law = data.predict(grid)
    value, inside = column(law, "value"), (grid >= low) & (grid <= high)
    ax.axvspan(low, high, color=PANEL, linewidth=0, zorder=0, label="range of the data")
    _draw_bands(ax, grid, law, data)
    ax.plot(grid, value, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    ax.plot(grid[inside], value[inside], color=INK, linewidth=1.7, label=_law_label(data))
    points = _draw_points(ax, data)
    style_axes(ax, _OPTIMUM_TITLES[data.quantity], "Training compute (FLOPs)", _y_label(data))
    ax.set_xlim(*limits)
    _scale_y(ax, data.quantity, value, points)
    log_axis(ax, "x", "flops")
    budget_legend(ax, None)
    return ax


def plot_rollout(
    errors: pd.DataFrame, quantity: Quantity, rate: float, ax: Axes | None = None
) -> Axes:
    """Draw hold-out errors: hidden budgets predicted from the smaller ones, against their distance.

    Bars are the standard error of noise alone. The band is the allowance of predictions: it grows
    as the square of ln(distance) and holds the worst hold-out of those that reach far enough to be
    informative (`HoldOut.allowance`).

    Args:
        errors: see `HoldOut.errors`.
        quantity: the predicted quantity.
        rate: allowance of ln(quantity) at a distance of 1 in ln C.
    """
    ax = new_axes(ax, 5.6, 4.2)
    farthest = float(column(errors, "distance").max()) * 1.08
    grid = np.linspace(0.0, farthest, 100)
    band = _percent(rate * grid**2), _percent(-rate * grid**2)
    label = "allowance of predictions"
    ax.fill_between(np.exp(grid), *band, color=BAND, alpha=0.14, linewidth=0, label=label)
    ax.axhline(0.0, color=INK, linewidth=1.0)
    colours = budget_colours(column(errors, "budget"))
    labelled: set[float] = set()
    lowest = highest = 0.0
    for row in records(errors.sort_values("budget", kind="stable")):
        error, se, budget = row["error"], row["se"], row["budget"]
        centre, low, high = _percent(np.array([error, error - se, error + se]))
        ax.errorbar(
            [float(np.exp(row["distance"]))],
            [centre],
            yerr=([centre - low], [high - centre]),
            color=colours[budget],
            marker="o",
            ms=5,
            capsize=2.5,
            lw=1.2,
            label=None if budget in labelled else flops_label(budget),
        )
        lowest, highest = min(lowest, float(low)), max(highest, float(high))
        labelled.add(budget)
    symbol = _OPTIMUM_SYMBOLS[quantity]
    style_axes(
        ax,
        f"Hidden budgets, predicted: {symbol}",
        "Compute beyond the largest budget kept",
        f"Predicted over measured {symbol} (%)",
    )
    ax.set_xlim(1.0, float(np.exp(farthest)))
    room = max(0.15 * (highest - lowest), 0.01)
    ax.set_ylim(lowest - room, highest + room)
    times_axis(ax)
    linear_axis(ax, "y")
    budget_legend(ax, "Hidden budget (FLOPs)")
    return ax


def _percent(ln_ratio: Floats) -> Floats:
    """Return the excess of a ratio over 1 in percent, cut to a range that a figure can hold."""
    return 100.0 * np.expm1(np.clip(ln_ratio, -50.0, 50.0))


def _draw_bands(ax: Axes, grid: Floats, law: pd.DataFrame, data: LawData) -> None:
    value, level = column(law, "value"), percent_text(data.confidence)

    def band(prefix: str, alpha: float, label: str) -> None:
        low = np.clip(column(law, f"{prefix}low"), value * 1e-6, None)
        high = np.clip(column(law, f"{prefix}high"), None, np.minimum(value, 1e300) * 1e6)
        ax.fill_between(grid, low, high, color=BAND, alpha=alpha, linewidth=0, label=label)

    if data.allowance:
        band("", 0.15, f"{level} with {data.allowance}")
    band("statistical_", 0.3, f"{level} statistical")


def _draw_points(ax: Axes, data: LawData) -> Floats:
    """Draw the points and return the values that must stay in view."""
    points = data.points
    if isinstance(points, Optima):
        return _draw_optima(ax, points, data.quantity)
    if isinstance(points, Frontier):
        style = {"markersize": 5, "color": INK, "zorder": 4, "label": "best run so far"}
    else:
        style = {"markersize": 3, "color": MUTED, "alpha": 0.55, "zorder": 2, "label": "runs"}
    ax.plot(points.flops, points.values, marker="o", linestyle="none", **style)
    return points.values


def _draw_optima(ax: Axes, points: Optima, quantity: str) -> Floats:
    colours = budget_colours(column(points.profiles, "budget"))
    known = points.profiles.dropna(subset=[f"{quantity}_opt"])
    for row in records(known):
        colour, value, used = colours[row["budget"]], row[f"{quantity}_opt"], row["used"]
        face = colour if used else "white"
        style = {"color": colour, "markerfacecolor": face, "zorder": 4}
        ax.plot([row["flops"]], [value], marker="o", markersize=6, **style)
        if used and quantity == points.axis and np.isfinite([row["low"], row["high"]]).all():
            ax.vlines(row["flops"], row["low"], row["high"], color=colour, linewidth=1.6, zorder=3)
    if not mask(known, "used").all():
        empty: dict[str, Any] = {"color": MUTED, "markerfacecolor": "white", "ls": "none"}
        ax.plot([], [], marker="o", markersize=6, label="not used", **empty)
    return column(rows(known, mask(known, "used")), f"{quantity}_opt")


def _law_label(data: LawData) -> str:
    if data.quantity == "loss":
        return "$L^*(C)$"
    value, low, high = (data.exponent[end] for end in ("value", "low", "high"))
    span = f"{low:.3f}, {high:.3f}" if np.isfinite(high - low) else "unbounded"
    return rf"${QUANTITIES[data.quantity].letter}^* \propto C^{{{value:.3f}}}$  [{span}]"


def _y_label(data: LawData) -> str:
    if data.quantity == "loss":
        return "Loss (nats per token)"
    title, unit, letter = QUANTITIES[data.quantity]
    return f"{title} {letter}* ({size_unit(data.n, unit)})"


def _scale_y(ax: Axes, quantity: Quantity, value: Floats, points: Floats) -> None:
    # A law that its runs do not fix may lead anywhere: it leaves the frame, the points stay.
    least, most = ends(points)
    value = np.clip(value, least / MAX_FACTOR_OFF_POINTS, most * MAX_FACTOR_OFF_POINTS)
    if quantity != "loss":
        ax.set_ylim(*margins(np.concatenate([value, points]), 1.6))
        log_axis(ax, "y", "count")
        return
    low, high = ends(np.concatenate([value, points]))
    ax.set_ylim(low - 0.08 * (high - low), high + 0.05 * (high - low))
    linear_axis(ax, "y")
