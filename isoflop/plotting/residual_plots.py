"""How runs lie about what was fitted, and how much each of them decides."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from isoflop.fitting.results.base import ProfileFit
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.tables.budgets import OWN, cluster
from isoflop.frames import column
from isoflop.plotting.style import (
    BAND,
    INK,
    MUTED,
    SMALL,
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
)

Against = Literal["params", "tokens", "flops"]
_X_LABELS = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs"}
_TITLES = {"params": "model size", "tokens": "training data", "flops": "training compute"}
_IN_A_BIN = 8
_BINS = 10


def plot_residuals(
    fit: ProfileFit | ParametricFit, against: Against = "params", ax: Axes | None = None
) -> Axes:
    """Residuals in robust standard deviations of one run, against size, data or compute; a colour a budget.

    The line joins medians, of budgets or of equally many runs (8 or more): where it leaves zero the fit misses in one
    direction. See the fit's `residuals` for the numbers.
    """
    ax = new_axes(ax)
    table = fit.residuals
    x, y, budgets = (column(table, name) for name in (against, "sds", "budget"))
    colours = budget_colours(budgets)
    for budget, colour in colours.items():
        here = budgets == budget
        ax.plot(
            x[here],
            y[here],
            marker="o",
            ms=4.2,
            color=colour,
            ls="none",
            alpha=0.85,
            label=flops_label(budget),
        )
    for level, style in ((0.0, "-"), (2.0, ":"), (-2.0, ":")):
        ax.axhline(level, color=MUTED, linewidth=0.9, linestyle=style, zorder=1)
    parts = _groups(x)
    if len(parts) > 1:
        middle = (
            [np.exp(np.mean(np.log(x[part]))) for part in parts],
            [np.median(y[part]) for part in parts],
        )
        ax.plot(*middle, color=INK, linewidth=1.6, zorder=4, label="median")
    sd = float(table.attrs["robust_sd"])
    in_nats = isinstance(fit, ParametricFit) and fit.sample.points.scale == "loss"
    unit, size = ("of the loss", f"{sd:.2g} nats") if in_nats else ("of ln loss", f"{sd:.2%}")
    what = _X_LABELS[against] if against != "params" else size_unit(fit.n, "parameters")
    title = _TITLES[against]
    dress(
        ax,
        f"Residuals against {title}",
        f"{title.capitalize()} ({what})",
        f"Residual {unit} (robust sd = {size})",
    )
    ax.set_xlim(*margins(x, 1.15))
    log_axis(ax, "x", "flops" if against == "flops" else "count")
    linear_axis(ax, "y")
    budget_legend(
        ax, "Compute up to (FLOPs)" if fit.runs.columns.get("budget") == OWN else "Budget (FLOPs)"
    )
    return ax


def _groups(x: np.ndarray) -> list[np.ndarray]:
    """Budgets where the x are those of few, else equally many runs by ascending x."""
    places = cluster(x, 0.1)
    if places.max() < _BINS and len(x) >= _IN_A_BIN // 2 * (places.max() + 1):
        return [np.flatnonzero(places == k) for k in range(places.max() + 1)]
    return np.array_split(np.argsort(x, kind="stable"), max(min(_BINS, len(x) // _IN_A_BIN), 1))


def plot_influence(fit: ParametricFit, ax: Axes | None = None, *, runs: int = 12) -> Axes:
    """The exponent a with one run left out, for the runs that move it most; the band is a's interval with all.

    Args:
        runs: how many are shown; `fit.influence` has all.
    """
    ax = new_axes(ax, 6.4, 0.9 + 0.3 * min(runs, len(fit.influence)))
    table = (
        fit.influence.assign(size=fit.influence["a_shift"].abs())
        .sort_values("size", kind="stable")
        .tail(runs)
    )
    interval = fit.intervals().loc["a"].to_dict()
    without, places = column(table, "a"), np.arange(len(table))
    ax.axvspan(
        interval["low"],
        interval["high"],
        color=BAND,
        alpha=0.14,
        lw=0,
        label=f"{fit.confidence:.0%} interval",
    )
    ax.axvline(
        interval["value"], color=INK, linewidth=1.2, label=f"all runs: a = {interval['value']:.4f}"
    )
    ax.hlines(places, interval["value"], without, color=MUTED, linewidth=1.2)
    ax.plot(
        without,
        places,
        marker="o",
        ms=5,
        color=INK,
        linestyle="none",
        zorder=3,
        label="without the run",
    )
    dress(ax, "Runs that move a most when left out", "Exponent a (N* ~ C^a) without the run", "")
    ax.set_yticks(places, [fit.name_of(int(config)) for config in table.index])
    ax.grid(False, axis="y")
    low, high = ends(np.append(without, [interval["low"], interval["high"]]))
    room = max(0.05 * (high - low), 1e-6)
    ax.set_xlim(low - room, high + room)
    linear_axis(ax, "x")
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=SMALL, frameon=False
    )
    return ax
