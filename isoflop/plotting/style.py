"""Style of figures: axes in real units and one colour per budget, without global state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from isoflop.text import count_text

FONT_POINTS = 10  # points
SMALL_FONT_POINTS = 9
INK = "#222222"
MUTED = "#6b7280"
GRID = "#e5e7eb"
PANEL = "#eef0f3"
BAND = "#3b82f6"


class QuantityLabel(NamedTuple):
    """Title, unit and letter of a quantity in figures."""

    title: str
    unit: str
    letter: str


QUANTITIES = {
    "params": QuantityLabel("Model size", "parameters", "N"),
    "tokens": QuantityLabel("Training data", "tokens", "D"),
}
_PARAM_COUNTS = {
    "total": "all",
    "one_embedding": "one embedding counted",
    "non_embedding": "without embeddings",
}
_MAX_LEGEND_ROWS = 14
_DARKEST, _LIGHTEST = 0.02, 0.86  # of viridis, whose lightest colours can't be read on white


def new_axes(ax: Axes | None, width: float = 7.2, height: float = 4.6) -> Axes:
    """Return the given axes, or new ones in a figure outside pyplot (display `ax.figure`).

    Args:
        ax: axes to draw on.
        width, height: of a new figure, in inches.
    """
    if ax is not None:
        return ax
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def budget_colours(budgets: Iterable[float]) -> dict[float, str]:
    """Return a colour for each budget, dark to light by rank on a perceptually ordered map."""
    ordered = sorted(set(budgets))
    shades = np.linspace(_DARKEST, _LIGHTEST, max(len(ordered), 2))
    return {b: to_hex(colormaps["viridis"](s)) for b, s in zip(ordered, shades, strict=False)}


def style_axes(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set title (to the left) and labels, a light grid and two spines."""
    ax.set_title(title, loc="left", fontsize=FONT_POINTS + 1, fontweight="bold", color=INK, pad=8)
    ax.set_xlabel(x_label, fontsize=FONT_POINTS, color=INK)
    ax.set_ylabel(y_label, fontsize=FONT_POINTS, color=INK)
    ax.tick_params(labelsize=SMALL_FONT_POINTS, colors=INK, which="both")
    ax.tick_params(which="minor", length=2)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def log_axis(ax: Axes, which: Literal["x", "y"], unit: Literal["flops", "count"]) -> None:
    """Make an axis logarithmic, with readable ticks: powers of ten, and 2 and 5 (3 for FLOPs) on
    short ranges.
    """
    low, high = sorted(ax.get_xlim() if which == "x" else ax.get_ylim())
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=_subs(float(decades)), numticks=20))
    axis.set_minor_locator(
        LogLocator(subs=tuple(range(2, 10)), numticks=40) if decades < 4 else NullLocator()
    )
    axis.set_major_formatter(
        FuncFormatter(lambda v, _: flops_label(v) if unit == "flops" else count_label(v))
    )
    axis.set_minor_formatter(NullFormatter())


def _subs(decades: float) -> tuple[float, ...]:
    if decades < 0.7:
        return (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    if decades < 1.6:
        return (1.0, 2.0, 5.0)
    return (1.0, 3.0) if decades < 2.6 else (1.0,)


def times_axis(ax: Axes) -> None:
    """Make x a logarithmic axis of factors: 1, 2, 5, 10 times, or finer on a short range."""
    low, high = ax.get_xlim()
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    if high / low < 4.0:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        ax.xaxis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50.0 else (1.0, 3.0), numticks=20)
        )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}x"))


def linear_axis(ax: Axes, which: Literal["x", "y"]) -> None:
    """Give a linear axis at most seven ticks."""
    (ax.xaxis if which == "x" else ax.yaxis).set_major_locator(
        MaxNLocator(7, steps=[1, 2, 2.5, 5, 10])
    )


def flops_label(value: float, digits: int = 2) -> str:
    """Return 1.8e19 as mathematical text."""
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    ten = f"10^{{{int(power)}}}"
    return f"${ten}$" if mantissa == "1" else rf"${mantissa}\times{ten}$"


def count_label(value: float) -> str:
    """Return parameters or tokens for a tick: 1K, 2.5B."""
    return count_text(value, padded=False)


def size_unit(n: str, unit: str) -> str:
    """Return `parameters` with the parameter count `n` in words, and another unit unchanged."""
    return f"{unit}, {_PARAM_COUNTS[n]}" if unit == "parameters" else unit


def ends(values: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value."""
    return float(np.min(values)), float(np.max(values))


def margins(values: np.ndarray, factor: float) -> tuple[float, float]:
    """Return the least value over a factor, and the greatest times it."""
    low, high = ends(values)
    return low / factor, high * factor


def budget_legend(ax: Axes, title: str | None = "Budget (FLOPs)", beside: float = 1.01) -> None:
    """Add a legend beside the axes, from the least budget down to the greatest.

    Args:
        title: title of the legend.
        beside: left edge of the legend, in widths of the axes from their left edge.
    """
    handles, _ = ax.get_legend_handles_labels()
    columns = 1 + (len(handles) - 1) // _MAX_LEGEND_ROWS
    style: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (beside, 1.0)}
    legend = ax.legend(
        ncols=columns, title=title, fontsize=SMALL_FONT_POINTS, frameon=False, **style
    )
    legend.get_title().set_fontsize(FONT_POINTS)
