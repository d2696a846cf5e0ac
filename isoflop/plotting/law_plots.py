"""Laws against compute, N*(C), D*(C) and L*(C), with both intervals; and the roll-outs that one of them comes from."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isoflop.errors import FitError
from isoflop.fitting.methods.envelope import EnvelopeFit
from isoflop.fitting.results.base import Fit, ProfileFit
from isoflop.frames import column, mask, records, rows
from isoflop.plotting.style import (
    BAND,
    INK,
    MUTED,
    PANEL,
    budget_colours,
    budget_legend,
    dress,
    ends,
    flops_label,
    linear_axis,
    log_axis,
    margins,
    new_axes,
    size_unit,
    times_axis,
)

Quantity = Literal["params", "tokens", "loss"]
WORDS = {"params": ("Model size", "parameters", "N"), "tokens": ("Training data", "tokens", "D")}
_TITLES = {"params": "Optimal model size", "tokens": "Optimal data", "loss": "Loss at the optimum"}
_BEYOND = 10.0  # how far a law is drawn beyond its data, times their compute
_BEFORE = 3.0
_AWAY = 1e4
_POINTS = 160


def plot_law(fit: Fit, quantity: Quantity = "params", ax: Axes | None = None) -> Axes:
    """Optimal size, data or loss against compute: the law, two bands, what it was fitted to; dashed beyond the data.

    The inner band (statistical) is right where the law is true; the outer one allows for the law's own error beyond
    the data, as the roll-out shows it (with model error), or for the skew of parabolas alone where there is no roll-out
    (with skew): the columns of `Fit.predict`. Points are the optima of
    budgets, the frontier, or, for a surface, the runs.

    Raises:
        FitError: the loss of a fit that has no law of it.
    """
    if quantity == "loss" and "loss" not in fit.law_at(1e18, fit.confidence):
        raise FitError(f"the {fit.method} fit has no law of the loss: fit_parametric has")
    ax = new_axes(ax, 7.2, 4.2)
    low, high = ends(compute_of(fit))
    grid = np.geomspace(low / _BEFORE, high * _BEYOND, _POINTS)
    law = cast(pd.DataFrame, fit.predict(grid).xs(quantity, level="quantity"))
    value, inside = column(law, "value"), (grid >= low) & (grid <= high)
    ax.axvspan(low, high, color=PANEL, linewidth=0, zorder=0, label="range of the data")
    _bands(ax, grid, law, fit)
    ax.plot(grid, value, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    ax.plot(grid[inside], value[inside], color=INK, linewidth=1.7, label=_law_label(fit, quantity))
    points = _points(ax, fit, quantity)
    dress(ax, _TITLES[quantity], "Training compute (FLOPs)", _y_label(fit, quantity))
    ax.set_xlim(low / _BEFORE, high * _BEYOND)
    _y_axis(ax, quantity, value, points)
    log_axis(ax, "x", "flops")
    budget_legend(ax, None)
    return ax


def plot_rollout(fit: Fit, quantity: Quantity | None = None, ax: Axes | None = None) -> Axes:
    """Hidden budgets as the smaller ones predict them: the error against how far the budget lies beyond those kept.

    Bars are what an error could be by noise alone (a standard error). The band is what predictions are widened by: it
    grows as the square of ln(distance) and holds the worst roll-out of those that reach far enough to tell
    (`RollOut.allowance`).

    Args:
        quantity: `params`, `tokens` or `loss`; default the loss where the law has it, else what profiles are in.

    Raises:
        FitError: a fit with too few budgets to hide one; the loss of a fit that has no law of it.
    """
    if fit.rollout is None:
        raise FitError(
            f"the {fit.method} fit was not rolled out: it has too few budgets to hide one"
        )
    known = dict.fromkeys(name for miss in fit.rollout.misses for name in miss.errors)
    chosen = quantity or ("loss" if "loss" in known else getattr(fit, "axis", "params"))
    if chosen not in known:
        raise FitError(f"the {fit.method} fit rolls out {', '.join(known)}, not the {chosen}")
    ax = new_axes(ax, 5.6, 4.2)
    misses = [miss for miss in fit.rollout.misses if chosen in miss.errors]
    distances = np.array([m.distance for m in misses])
    farthest = float(distances.max()) * 1.08
    grid = np.linspace(0.0, farthest, 100)
    rate = fit.rollout.allowance(chosen, fit.rollout.reach[1] * np.e).item()
    band = _percent(rate * grid**2), _percent(-rate * grid**2)
    ax.fill_between(
        np.exp(grid), *band, color=BAND, alpha=0.14, linewidth=0, label="what predictions allow for"
    )
    ax.axhline(0.0, color=INK, linewidth=1.0)
    colours = budget_colours([m.budget for m in misses])
    seen: set[float] = set()
    lowest = highest = 0.0
    for miss in sorted(misses, key=lambda m: m.budget):
        error, se = miss.errors[chosen].item(), miss.ses[chosen].item()
        at, low, high = _percent(np.array([error, error - se, error + se]))
        label = None if miss.budget in seen else flops_label(miss.budget)
        colour = colours[miss.budget]
        x = float(np.exp(miss.distance))
        ax.errorbar(
            [x],
            [at],
            yerr=([at - low], [high - at]),
            color=colour,
            marker="o",
            ms=5,
            capsize=2.5,
            lw=1.2,
            label=label,
        )
        lowest, highest = min(lowest, float(low)), max(highest, float(high))
        seen.add(miss.budget)
    names = {"params": "N*", "tokens": "D*", "loss": "loss"}
    dress(
        ax,
        f"Hidden budgets, predicted: {names[chosen]}",
        "Compute beyond the largest budget kept",
        f"Predicted over measured {names[chosen]} (%)",
    )
    ax.set_xlim(1.0, float(np.exp(farthest)))
    room = max(0.15 * (highest - lowest), 0.01)
    ax.set_ylim(lowest - room, highest + room)
    times_axis(ax)
    linear_axis(ax, "y")
    budget_legend(ax, "Hidden budget (FLOPs)")
    return ax


def _percent(ln_ratio: np.ndarray) -> np.ndarray:
    """Of a ratio's excess over 1; what no figure can show is cut."""
    return 100.0 * np.expm1(np.clip(ln_ratio, -50.0, 50.0))


def compute_of(fit: Fit) -> np.ndarray:
    """Training FLOPs of what the laws were fitted to."""
    if isinstance(fit, ProfileFit):
        return column(rows(fit.profiles, mask(fit.profiles, "used")), "flops")
    return (
        column(fit.frontier, "flops") if isinstance(fit, EnvelopeFit) else fit.runs.array("flops")
    )


def _bands(ax: Axes, grid: np.ndarray, law: pd.DataFrame, fit: Fit) -> None:
    value, level = column(law, "value"), f"{fit.confidence:.0%}"

    def band(prefix: str, alpha: float, label: str) -> None:
        low = np.clip(column(law, f"{prefix}low"), value * 1e-6, None)
        high = np.clip(column(law, f"{prefix}high"), None, np.minimum(value, 1e300) * 1e6)
        ax.fill_between(grid, low, high, color=BAND, alpha=alpha, linewidth=0, label=label)

    if fit.rollout is not None or fit.skew is not None:
        band("", 0.15, f"{level} with {'skew' if fit.rollout is None else 'model error'}")
    band("statistical_", 0.3, f"{level} statistical")


def _points(ax: Axes, fit: Fit, quantity: Quantity) -> np.ndarray:
    """Draws what the law goes through, or what it was fitted to; returns all that must be in view."""
    if isinstance(fit, ProfileFit):
        return _optima(ax, fit, quantity)
    if isinstance(fit, EnvelopeFit):
        x, y = column(fit.frontier, "flops"), column(fit.frontier, quantity)
        ax.plot(
            x,
            y,
            marker="o",
            markersize=5,
            color=INK,
            linestyle="none",
            zorder=4,
            label="best run so far",
        )
        return y
    x, y = fit.runs.array("flops"), fit.runs.array(quantity)
    ax.plot(
        x,
        y,
        marker="o",
        markersize=3,
        color=MUTED,
        alpha=0.55,
        linestyle="none",
        zorder=2,
        label="runs",
    )
    return y


def _optima(ax: Axes, fit: ProfileFit, quantity: Quantity) -> np.ndarray:
    colours = budget_colours(column(fit.profiles, "budget"))
    known = fit.profiles.dropna(subset=[f"{quantity}_opt"])
    for row in records(known):
        colour, value, used = colours[row["budget"]], row[f"{quantity}_opt"], row["used"]
        face = colour if used else "white"
        ax.plot(
            [row["flops"]],
            [value],
            marker="o",
            markersize=6,
            color=colour,
            markerfacecolor=face,
            zorder=4,
        )
        if used and quantity == fit.axis and np.isfinite([row["low"], row["high"]]).all():
            ax.vlines(row["flops"], row["low"], row["high"], color=colour, linewidth=1.6, zorder=3)
    if not mask(known, "used").all():
        ax.plot(
            [],
            [],
            marker="o",
            markersize=6,
            color=MUTED,
            markerfacecolor="white",
            ls="none",
            label="not used",
        )
    return column(rows(known, mask(known, "used")), f"{quantity}_opt")


def _law_label(fit: Fit, quantity: Quantity) -> str:
    if quantity == "loss":
        return "$L^*(C)$ at $C = 6ND$"
    row: dict[Any, Any] = fit.exponents.loc["a" if quantity == "params" else "b"].to_dict()
    span = (
        f"{row['low']:.3f}, {row['high']:.3f}"
        if np.isfinite(row["high"] - row["low"])
        else "unbounded"
    )
    return rf"${WORDS[quantity][2]}^* \propto C^{{{row['value']:.3f}}}$  [{span}]"


def _y_label(fit: Fit, quantity: Quantity) -> str:
    if quantity == "loss":
        return "Loss (nats per token)"
    title, unit, letter = WORDS[quantity]
    return f"{title} {letter}* ({size_unit(fit.n, unit)})"


def _y_axis(ax: Axes, quantity: Quantity, value: np.ndarray, points: np.ndarray) -> None:
    # A law that its runs don't fix may lead anywhere: it leaves the frame, and the points stay readable.
    least, most = ends(points)
    value = np.clip(value, least / _AWAY, most * _AWAY)
    if quantity != "loss":
        ax.set_ylim(*margins(np.concatenate([value, points]), 1.6))
        log_axis(ax, "y", "count")
        return
    low, high = ends(np.concatenate([value, points]))
    ax.set_ylim(low - 0.08 * (high - low), high + 0.05 * (high - low))
    linear_axis(ax, "y")
