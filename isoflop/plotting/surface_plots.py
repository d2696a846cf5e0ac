"""The fitted surface: contours of the loss in (N, D), and how well its exponents are known."""

from __future__ import annotations

from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from scipy.special import fdtri

from isoflop.fitting.results.parametric_fit import ParametricFit, optimum
from isoflop.fitting.tables.budgets import OWN
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
    new_axes,
    size_unit,
)

_MESH = 160
_LEVELS = 11
_AWAY = float(np.log(1e3))
_BEYOND = 10.0  # the path is drawn so far beyond the data, times their compute
_SHOWN_DRAWS = 4000
CONTOUR, CONTOUR_INK = "#94a3b8", "#64748b"


def plot_surface(fit: ParametricFit, ax: Axes | None = None) -> Axes:
    """Contours of the loss over size and data, the runs, the best N and D for each compute, and lines of equal compute.

    The path of the optimum is dashed beyond the compute that was run.
    """
    ax = new_axes(ax, 7.2, 5.0)
    points = fit.sample.points
    ln_n, ln_d = points.x + points.x_mean, points.y + points.y_mean
    low, high = ends(np.log(fit.sample.flops))
    ln_c = np.linspace(low, high + np.log(_BEYOND), 120)
    path, _ = optimum(points, fit.theta, np.exp(ln_c))
    for k, runs in enumerate(
        (ln_n, ln_d)
    ):  # an optimum far from all runs is cut off, and they stay readable
        path[:, k] = np.clip(path[:, k], runs.min() - _AWAY, runs.max() + _AWAY)
    limits = [ends(np.concatenate([runs, path[:, k]])) for k, runs in enumerate((ln_n, ln_d))]
    mesh = [np.linspace(least - 0.3, most + 0.3, _MESH) for least, most in limits]
    loss = fit.loss_at(np.exp(mesh[0])[None, :], np.exp(mesh[1])[:, None])
    levels = _levels(path[:, 2])
    ax.contour(
        np.exp(mesh[0]), np.exp(mesh[1]), loss, levels=levels, colors=CONTOUR, linewidths=0.9
    )
    ax.set_xlim(*ends(np.exp(mesh[0])))
    ax.set_ylim(*ends(np.exp(mesh[1])))
    log_axis(ax, "x", "count")
    log_axis(ax, "y", "count")
    _name_levels(ax, fit, levels)
    _runs(ax, fit, np.exp(ln_n), np.exp(ln_d))
    size, data = np.exp(path[:, 0]), np.exp(path[:, 1])
    inside = ln_c <= high
    ax.plot(size, data, color=INK, linewidth=1.3, linestyle=(0, (4, 3)), zorder=4)
    ax.plot(size[inside], data[inside], color=INK, linewidth=2.0, zorder=4, label="optimum N*, D*")
    _iso_flops(ax, mesh)
    dress(
        ax,
        "Loss over size and data",
        f"Model size N ({size_unit(fit.n, 'parameters')})",
        "Training data D (tokens)",
    )
    ax.grid(False)
    title = "Compute up to (FLOPs)" if fit.runs.columns.get("budget") == OWN else "Budget (FLOPs)"
    budget_legend(ax, title, beside=1.09)
    return ax


def plot_exponents(fit: ParametricFit, ax: Axes | None = None) -> Axes:
    """Resamples of alpha and beta, the t intervals of both and their joint region, and a's t interval as a wedge.

    a = beta / (alpha + beta) is constant on a ray from the origin, so a wedge holds its interval.
    """
    ax = new_axes(ax, 5.4, 4.6)
    alpha, beta = map(float, fit.theta[3:])
    table = fit.intervals(kind="t")
    draws = fit.draws[:_SHOWN_DRAWS, 3:]
    if len(draws):
        ax.plot(
            *draws.T,
            marker="o",
            ms=1.8,
            mew=0,
            color=MUTED,
            alpha=0.3,
            ls="none",
            label="resamples",
            zorder=2,
        )
    rows = {name: table.loc[name].to_dict() for name in ("alpha", "beta", "a")}
    _limits(ax, draws, rows)
    _wedge(ax, rows["a"]["low"], rows["a"]["high"], fit.confidence)
    share = rows["a"]["value"]
    ends_of_ray = np.array(ax.get_xlim())
    ax.plot(
        ends_of_ray,
        ends_of_ray * share / (1.0 - share),
        color=BAND,
        linewidth=1.1,
        label=f"a = {share:.3f}",
    )
    ax.add_patch(_region(fit))
    for name, place in (("alpha", 0), ("beta", 1)):
        low, high = rows[name]["low"], rows[name]["high"]
        x, y = ([low, high], [beta, beta]) if place == 0 else ([alpha, alpha], [low, high])
        ax.plot(
            x, y, color=INK, linewidth=1.6, zorder=4, label="t intervals" if place == 0 else None
        )
    ax.plot(
        [alpha],
        [beta],
        marker="D",
        ms=5,
        color=INK,
        mfc="white",
        ls="none",
        zorder=5,
        label="estimate",
    )
    dress(ax, "How well the exponents are known", "alpha, of A / N^alpha", "beta, of B / D^beta")
    linear_axis(ax, "x")
    linear_axis(ax, "y")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=SMALL, frameon=False)
    return ax


def _levels(ln_loss: np.ndarray) -> list[float]:
    """Losses at even steps of compute along the optimum and as far again above, each at three digits."""
    steps = np.linspace(ln_loss[-1], ln_loss[0] + 0.5 * (ln_loss[0] - ln_loss[-1]), _LEVELS)
    return sorted({float(f"{level:.3g}") for level in np.exp(steps)})


def _name_levels(ax: Axes, fit: ParametricFit, levels: list[float]) -> None:
    """Each contour's loss where it leaves the frame: to the right, else on top."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    style = {
        "fontsize": SMALL - 1,
        "color": CONTOUR_INK,
        "textcoords": "offset points",
        "annotation_clip": False,
    }
    for level in levels:
        data, size = fit.core.tokens_for(right, level), fit.core.params_for(top, level)
        if bottom < data < top:
            ax.annotate(f"{level:g}", (right, data), xytext=(3, 0), ha="left", va="center", **style)
        elif left < size < right and size**2 > left * right:  # the title stands over the left half
            ax.annotate(f"{level:g}", (size, top), xytext=(0, 2), ha="center", va="bottom", **style)


def _iso_flops(ax: Axes, mesh: list[np.ndarray]) -> None:
    """A dotted line at powers of ten of 6ND, each named inside the frame, at its lower end."""
    (left, right), (bottom, top) = (ends(m) for m in mesh)
    low, high = (np.log10(6.0) + (x + y) / np.log(10.0) for x, y in ((left, bottom), (right, top)))
    inset = 0.045
    x_last, y_last = right - inset * (right - left), bottom + inset * (top - bottom)
    for power in range(
        int(np.ceil(low + 0.4)), int(np.floor(high - 0.3)) + 1, max(1, round((high - low) / 8.0))
    ):
        total = power * np.log(10.0) - np.log(6.0)
        ax.plot(
            np.exp([left, right]),
            np.exp([total - left, total - right]),
            color=MUTED,
            lw=0.9,
            ls=":",
            zorder=1,
        )
        x = min(x_last, total - y_last)
        box = {
            "boxstyle": "round,pad=0.12",
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.85,
        }
        place = float(np.exp(x)), float(np.exp(total - x))
        ax.text(
            *place,
            flops_label(10.0**power),
            fontsize=SMALL - 1,
            color=MUTED,
            ha="center",
            va="center",
            bbox=box,
        )
    ax.plot([], [], color=MUTED, linewidth=0.9, linestyle=":", label="equal compute, 6ND")
    ax.plot([], [], color=CONTOUR, linewidth=0.9, label="equal loss (nats per token)")


def _runs(ax: Axes, fit: ParametricFit, size: np.ndarray, data: np.ndarray) -> None:
    for budget, colour in budget_colours(fit.sample.budget).items():
        here = fit.sample.budget == budget
        ax.plot(
            size[here],
            data[here],
            marker="o",
            ms=4.2,
            color=colour,
            ls="none",
            zorder=3,
            label=flops_label(budget),
        )


def _limits(ax: Axes, draws: np.ndarray, rows: dict[str, dict[str, float]]) -> None:
    """Room for the intervals and for 99 % of the resamples, but no more than four times the intervals."""
    for k, (name, setter) in enumerate((("alpha", ax.set_xlim), ("beta", ax.set_ylim))):
        row = rows[name]
        low, high = row["low"], row["high"]
        reach = 1.5 * (high - low)
        if len(draws):
            inner, outer = np.quantile(draws[:, k], [0.005, 0.995])
            low, high = min(low, max(inner, low - reach)), max(high, min(outer, high + reach))
        pad = max(0.12 * (high - low), 0.01 * high)
        setter(max(low - pad, 0.0), high + pad)


def _wedge(ax: Axes, low: float, high: float, confidence: float) -> None:
    x = np.array(ax.get_xlim())
    label = f"a's {confidence:.0%} t interval"
    slopes = [share / (1.0 - share) for share in np.clip([low, high], 1e-3, 1.0 - 1e-3)]
    ax.fill_between(
        x, x * slopes[0], x * slopes[1], color=BAND, alpha=0.15, linewidth=0, label=label, zorder=1
    )


def _region(fit: ParametricFit) -> Ellipse:
    """Joint confidence region of alpha and beta: Hotelling's, on the fit's degrees of freedom."""
    lengths, axes = np.linalg.eigh(fit.estimate.spread[0][3:, 3:])
    radius = np.sqrt(2.0 * float(fdtri(2, fit.sample.dof, fit.confidence)))
    width, height = 2.0 * radius * np.sqrt(np.maximum(lengths, 0.0))
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    centre = cast(tuple[float, float], tuple(map(float, fit.theta[3:])))
    label = f"{fit.confidence:.0%} region of both"
    return Ellipse(
        centre,
        width,
        height,
        angle=angle,
        fill=False,
        edgecolor=INK,
        lw=1.0,
        ls="--",
        zorder=3,
        label=label,
    )
