"""Figures of a study. Each takes `ax=None`, returns its Axes, shows nothing and sets no global style."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.fitting.base import ProfileFit
from isoflop.fitting.frames import column, mask, records, rows
from isoflop.reporting.style import (
    FONT,
    INK,
    MUTED,
    SMALL,
    budget_colours,
    dress,
    flops_label,
    linear_axis,
    log_axis,
    new_axes,
)

Quantity = Literal["params", "tokens"]
WORDS = {"params": ("Model size", "parameters", "N"), "tokens": ("Training data", "tokens", "D")}
CURVE_POINTS = 300  # a run's curve is thinned to so many points, evenly in log FLOPs
_COUNTS = {"total": "all", "one_embedding": "one embedding counted", "non_embedding": "without embeddings"}
_MOST_LEGEND_ROWS = 14


def plot_profiles(fit: ProfileFit, ax: Axes | None = None) -> Axes:
    """Loss against size, a colour a budget: runs, parabolas, optima with their intervals.

    Filled points and solid parabolas enter the laws; hollow points on a dotted line don't.
    """
    ax = new_axes(ax)
    colours = budget_colours(column(fit.profiles, "budget"))
    runs = fit.runs.configurations
    for row in records(fit.profiles):
        points = rows(runs, column(runs, "budget") == row["budget"]).sort_values(by=[fit.axis])
        _profile(ax, fit, row, points, colours[row["budget"]])
    ax.set_xlim(*_margins(column(runs, fit.axis), 1.12))
    _optima(ax, fit)
    title, unit, _ = WORDS[fit.axis]
    dress(ax, "Loss at equal compute", f"{title} ({_unit(fit, unit)})", "Loss (nats per token)")
    log_axis(ax, "x", "count")
    linear_axis(ax, "y")
    _budget_legend(ax)
    return ax


def plot_law(fit: ProfileFit, quantity: Quantity = "params", ax: Axes | None = None) -> Axes:
    """Optimal size or data against compute: a point a budget, the power law, its band; dashed beyond the data."""
    ax = new_axes(ax, 5.0, 4.2)
    used = rows(fit.profiles, mask(fit.profiles, "used"))
    low, high = _ends(column(used, "flops"))
    grid = np.geomspace(low / 3.0, high * 10.0, 160)
    law = cast(pd.DataFrame, fit.predict(grid).xs(quantity, level="quantity"))
    inside = (grid >= low) & (grid <= high)
    value, letter = column(law, "value"), WORDS[quantity][2]
    exponent = fit.exponents.loc["a" if quantity == "params" else "b"].to_dict()
    _band(ax, grid, law, fit)
    ax.plot(grid, value, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    ax.plot(grid[inside], value[inside], color=INK, linewidth=1.7, label=_law_label(letter, exponent))
    _law_points(ax, fit, quantity)
    title, unit, _ = WORDS[quantity]
    what = "model size" if quantity == "params" else "data"
    dress(ax, f"Optimal {what}", "Training compute (FLOPs)", f"{title} {letter}* ({_unit(fit, unit)})")
    ax.set_xlim(low / 3.0, high * 10.0)
    ax.set_ylim(*_margins(np.concatenate([value, column(used, f"{quantity}_opt")]), 1.6))
    log_axis(ax, "x", "flops")
    log_axis(ax, "y", "count")
    ax.legend(loc="upper left", fontsize=SMALL, frameon=False)
    return ax


def plot_loss_curves(frame: pd.DataFrame, ax: Axes | None = None, *, split: str | None = None) -> Axes:
    """Loss against training FLOPs so far, a line a run, a colour a budget, a dot at the end of each.

    Args:
        frame: columns `run_id, budget, train_flops, split, kind, loss`; of kinds, `all` is drawn.
        split: which loss; default the first that is not `train`, else `train`.
    """
    ax = new_axes(ax)
    chosen = split or default_split(frame)
    wanted = ((frame["split"] == chosen) & (frame["kind"] == "all")).to_numpy(dtype=bool)
    wanted = wanted & np.isfinite(column(frame, "loss")) & (column(frame, "train_flops") > 0)
    drawn = rows(frame, wanted).sort_values(by=["budget", "run_id", "train_flops"], kind="stable")
    colours = budget_colours(column(frame, "budget"))
    seen: set[float] = set()
    for _, run in drawn.groupby("run_id", sort=False):
        x, y = _thinned(column(run, "train_flops"), column(run, "loss"))
        budget = float(column(run, "budget")[0])
        colour, label = colours[budget], None if budget in seen else flops_label(budget)
        ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.75, label=label)
        ax.plot(x[-1:], y[-1:], color=colour, marker="o", markersize=3.2, linestyle="none", zorder=3)
        seen.add(budget)
    name = {"train": "training", "held-out": "held-out"}.get(chosen, f"held-out: {chosen}")
    dress(ax, "Loss while training", "Training compute so far (FLOPs)", f"Loss, {_plain(name)} (nats per token)")
    if len(drawn):
        _curve_limits(ax, drawn)
        log_axis(ax, "x", "flops")
        _budget_legend(ax)
    linear_axis(ax, "y")
    return ax


def plot_overview(fit: ProfileFit, fig: Figure | None = None) -> np.ndarray:
    """Profiles, N*(C) and D*(C) side by side; an array of three Axes (the figure: `axes[0].figure`)."""
    fig = fig if fig is not None else Figure(figsize=(14.0, 4.4), layout="constrained")
    axes = fig.subplots(1, 3, width_ratios=(1.35, 1.0, 1.0))
    plot_profiles(fit, axes[0])
    plot_law(fit, "params", axes[1])
    plot_law(fit, "tokens", axes[2])
    return axes


def default_split(frame: pd.DataFrame) -> str:
    """The first split that is not `train`, else `train`."""
    return next((s for s in sorted(set(frame["split"].astype(str))) if s != "train"), "train")


def _unit(fit: ProfileFit, unit: str) -> str:
    return f"{unit}, {_COUNTS[fit.n]}" if unit == "parameters" else unit


def _profile(ax: Axes, fit: ProfileFit, row: dict[str, Any], points: pd.DataFrame, colour: str) -> None:
    x, y = column(points, fit.axis), column(points, "loss")
    label = flops_label(row["budget"])
    if not row["used"]:
        note = f"{label} ({row['status'].replace('_', ' ')}, not used)"
        ax.plot(x, y, color=colour, marker="o", markersize=5, markerfacecolor="white", linestyle=":", lw=1, label=note)
        return
    ax.plot(x, y, color=colour, marker="o", markersize=4.5, linestyle="none", label=label)
    curve = np.geomspace(x[0], x[-1], 120)
    ax.plot(curve, fit.curve(row["budget"], curve), color=colour, linewidth=1.3)


def _optima(ax: Axes, fit: ProfileFit) -> None:
    """Diamonds at the optima with the interval as a bar, cut at the frame."""
    used = rows(fit.profiles, mask(fit.profiles, "used"))
    x, y = column(used, f"{fit.axis}_opt"), column(used, "loss_opt")
    low, high = _cut(ax, column(used, "low"), column(used, "high"))
    ax.errorbar(x, y, xerr=(x - low, high - x), fmt="none", ecolor=INK, elinewidth=1.4, capsize=3.5, zorder=4)
    style = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": INK, "linestyle": "none"}
    ax.plot(x, y, zorder=5, label=f"optimum, {fit.confidence:.0%} interval", **cast(Any, style))


def _cut(ax: Axes, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = ax.get_xlim()
    return np.clip(np.nan_to_num(low, nan=left), left, right), np.clip(np.nan_to_num(high, nan=right), left, right)


def _band(ax: Axes, grid: np.ndarray, law: pd.DataFrame, fit: ProfileFit) -> None:
    value = column(law, "value")
    low = np.clip(column(law, "low"), value * 1e-6, None)
    high = np.clip(column(law, "high"), None, value * 1e6)
    ax.fill_between(grid, low, high, color="#3b82f6", alpha=0.16, linewidth=0, label=f"{fit.confidence:.0%} interval")


def _law_points(ax: Axes, fit: ProfileFit, quantity: Quantity) -> None:
    colours = budget_colours(column(fit.profiles, "budget"))
    known = fit.profiles.dropna(subset=[f"{quantity}_opt"])
    for row in records(known):
        colour, value, used = colours[row["budget"]], row[f"{quantity}_opt"], row["used"]
        face = colour if used else "white"
        ax.plot([row["flops"]], [value], marker="o", markersize=6, color=colour, markerfacecolor=face, zorder=4)
        if used and quantity == fit.axis and np.isfinite([row["low"], row["high"]]).all():
            ax.vlines(row["flops"], row["low"], row["high"], color=colour, linewidth=1.6, zorder=3)
    if not mask(known, "used").all():
        ax.plot([], [], marker="o", markersize=6, color=MUTED, markerfacecolor="white", ls="none", label="not used")


def _law_label(letter: str, exponent: dict[Any, Any]) -> str:
    low, high = exponent["low"], exponent["high"]
    return rf"${letter}^* \propto C^{{{exponent['value']:.3f}}}$  [{low:.3f}, {high:.3f}]"


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(np.min(values)), float(np.max(values))


def _margins(values: np.ndarray, factor: float) -> tuple[float, float]:
    low, high = _ends(values)
    return low / factor, high * factor


def _curve_limits(ax: Axes, drawn: pd.DataFrame) -> None:
    """Leaves out the first, steepest part of the curves, so that their ends can be told apart."""
    loss, flops = column(drawn, "loss"), column(drawn, "train_flops")
    last = drawn.groupby("run_id")["train_flops"].transform("max").to_numpy(dtype=np.float64)
    low, high = float(loss.min()), float(loss[flops >= 0.02 * last].max())
    pad = 0.04 * max(high - low, 1e-3)
    ax.set_ylim(low - pad, high + pad)
    ax.set_xlim(*_margins(flops[loss <= high], 1.3))


def _plain(text: str) -> str:
    """A name from outside, without what would be read as mathematical text."""
    return text.replace("$", r"\$")


def _thinned(flops: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(flops) <= CURVE_POINTS:
        return flops, loss
    wanted = np.searchsorted(flops, np.geomspace(flops[0], flops[-1], CURVE_POINTS))
    keep = np.unique(np.append(np.minimum(wanted, len(flops) - 1), len(flops) - 1))
    return flops[keep], loss[keep]


def _budget_legend(ax: Axes) -> None:
    """Beside the axes, the largest budget on top where its curve is lowest: least to most, read downwards."""
    handles, _ = ax.get_legend_handles_labels()
    columns = 1 + (len(handles) - 1) // _MOST_LEGEND_ROWS
    legend = ax.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        fontsize=SMALL,
        frameon=False,
        ncols=columns,
        title="Budget (FLOPs)",
    )
    legend.get_title().set_fontsize(FONT)
