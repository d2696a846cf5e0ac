"""Residuals of runs about the fit, and the influence of each run on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isoflop.frames import Floats, column
from isoflop.plotting.style import (
    BAND,
    INK,
    MUTED,
    SMALL_FONT_POINTS,
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
)
from isoflop.text import percent_text

Against = Literal["params", "tokens", "flops"]
_X_LABELS = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs"}
_ABSCISSA_TITLES = {"params": "model size", "tokens": "training data", "flops": "training compute"}
MIN_RUNS_PER_GROUP = 8
MAX_GROUPS = 10
MIN_LN_GAP_BETWEEN_GROUPS = 0.1
"""Runs whose ln x are nearer than this are in one group."""


@dataclass(frozen=True)
class ResidualData:
    """Residuals to draw.

    Attributes:
        table: budget, params, tokens, flops, `sds` (residual in robust standard deviations of one
            run), a row a configuration; `attrs["robust_sd"]` is that standard deviation.
        scale: `log` for residuals of ln loss, `loss` for residuals in nats.
        n: parameter count of a model size, such as `total`.
        budgets_are_flops: runs without common budgets, each with a budget of its own.
    """

    table: pd.DataFrame
    scale: str
    n: str
    budgets_are_flops: bool


def plot_residuals(data: ResidualData, against: Against = "params", ax: Axes | None = None) -> Axes:
    """Draw residuals in robust standard deviations against size, data or compute.

    Each budget has its colour. The line joins medians of budgets, or of groups of equally many runs
    (8 or more). Where it leaves zero the fit misses in one direction.
    """
    ax = new_axes(ax)
    x, y, budgets = (column(data.table, name) for name in (against, "sds", "budget"))
    for budget, colour in budget_colours(budgets).items():
        members = budgets == budget
        style = {"marker": "o", "ms": 4.2, "color": colour, "ls": "none", "alpha": 0.85}
        ax.plot(x[members], y[members], label=flops_label(budget), **style)
    for level, style in ((0.0, "-"), (2.0, ":"), (-2.0, ":")):
        ax.axhline(level, color=MUTED, linewidth=0.9, linestyle=style, zorder=1)
    groups = _groups(x)
    if len(groups) > 1:
        centres = [np.exp(np.mean(np.log(x[group]))) for group in groups]
        medians = [np.median(y[group]) for group in groups]
        ax.plot(centres, medians, color=INK, linewidth=1.6, zorder=4, label="median")
    sd = float(data.table.attrs["robust_sd"])
    unit, size = ("of the loss", f"{sd:.2g} nats")
    if data.scale == "log":
        unit, size = ("of ln loss", percent_text(sd))
    x_unit = size_unit(data.n, "parameters") if against == "params" else _X_LABELS[against]
    title = _ABSCISSA_TITLES[against]
    style_axes(
        ax,
        f"Residuals against {title}",
        f"{title.capitalize()} ({x_unit})",
        f"Residual {unit} (robust sd = {size})",
    )
    ax.set_xlim(*margins(x, 1.15))
    log_axis(ax, "x", "flops" if against == "flops" else "count")
    linear_axis(ax, "y")
    budget_legend(ax, "Compute up to (FLOPs)" if data.budgets_are_flops else "Budget (FLOPs)")
    return ax


def _groups(x: Floats) -> list[np.ndarray]:
    """Return the indices of each group by ascending x: budgets if few, else equally many runs."""
    order = np.argsort(x, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(x[order])) > MIN_LN_GAP_BETWEEN_GROUPS) + 1
    count = len(gaps) + 1
    if count <= MAX_GROUPS and len(x) >= MIN_RUNS_PER_GROUP // 2 * count:
        return np.split(order, gaps)
    return np.array_split(order, max(min(MAX_GROUPS, len(x) // MIN_RUNS_PER_GROUP), 1))


def plot_influence(
    influence: pd.DataFrame,
    names: Sequence[str],
    interval: Mapping[str, float],
    confidence: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw the exponent a without each of some runs; the band is a's interval with all runs.

    Args:
        influence: column `a`, the exponent without the run; drawn from the bottom up.
        names: run names, (K,).
        interval: value, low and high of a with all runs.
        confidence: level of the interval.
    """
    ax = new_axes(ax, 6.4, 0.9 + 0.3 * len(influence))
    value, low, high = (interval[end] for end in ("value", "low", "high"))
    without, positions = column(influence, "a"), np.arange(len(influence))
    ax.axvspan(
        low, high, color=BAND, alpha=0.14, lw=0, label=f"{percent_text(confidence)} interval"
    )
    ax.axvline(value, color=INK, linewidth=1.2, label=f"all runs: a = {value:.4f}")
    ax.hlines(positions, value, without, color=MUTED, linewidth=1.2)
    style = {"marker": "o", "ms": 5, "color": INK, "linestyle": "none", "zorder": 3}
    ax.plot(without, positions, label="without the run", **style)
    x_label = "Exponent a (N* ~ C^a) without the run"
    style_axes(ax, "Runs that move a most when left out", x_label, "")
    ax.set_yticks(positions, list(names))
    ax.grid(False, axis="y")
    least, most = ends(np.append(without, [low, high]))
    room = max(0.05 * (most - least), 1e-6)
    ax.set_xlim(least - room, most + room)
    linear_axis(ax, "x")
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3}
    ax.legend(fontsize=SMALL_FONT_POINTS, frameon=False, **legend)
    return ax
