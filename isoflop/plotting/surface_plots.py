"""Figures of the fitted surface L(N, D), and of the uncertainty of its exponents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from scipy.special import fdtri

from isoflop.frames import Floats
from isoflop.plotting.law_plots import FACTOR_ABOVE_DATA
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
    new_axes,
    size_unit,
    style_axes,
)
from isoflop.text import percent_text

_MESH_POINTS = 160
_LEVEL_COUNT = 11
MAX_LN_OFF_RUNS = float(np.log(1e3))
MAX_DRAWS_SHOWN = 4000
CONTOUR, CONTOUR_INK = "#94a3b8", "#64748b"


@dataclass(frozen=True)
class SurfaceData:
    """A fitted surface L(N, D) and its runs, to draw.

    Attributes:
        params, tokens, budget: of the K configurations, (K,) each.
        max_flops, min_flops: of the configurations, training FLOPs.
        optimum: from training FLOPs, (M,), to ln N*, ln D* and ln L*, (M, 3).
        ln_tokens: ln D from ln N, (K,), and ln C: a line of equal compute.
        ln_flops: ln C from ln N and ln D.
        is_six_nd: C = 6ND.
        loss_at: loss at N and D, nats per token; broadcasts.
        tokens_for: tokens with which N parameters reach a loss; NaN if none do.
        params_for: parameters with which D tokens reach a loss; NaN if none do.
        n: parameter count of a model size, such as `total`.
        budgets_are_flops: runs without common budgets, each with a budget of its own.
    """

    params: Floats
    tokens: Floats
    budget: Floats
    min_flops: float
    max_flops: float
    optimum: Callable[[Floats], Floats]
    ln_tokens: Callable[[Floats, float], Floats]
    ln_flops: Callable[[float, float], Any]
    is_six_nd: bool
    loss_at: Callable[[Floats, Floats], Floats]
    tokens_for: Callable[[float, float], float]
    params_for: Callable[[float, float], float]
    n: str
    budgets_are_flops: bool


@dataclass(frozen=True)
class ExponentData:
    """Exponents of a fitted surface, to draw.

    Attributes:
        alpha, beta: estimates.
        draws: resamples of both, (R, 2).
        covariance: of both, (2, 2).
        dof: degrees of freedom of the covariance.
        intervals: t intervals of `alpha`, `beta` and `a` = beta / (alpha + beta), each with value,
            low and high.
        a_name: name of the latter: `a` where C / (ND) is constant.
        confidence: level of the intervals.
    """

    alpha: float
    beta: float
    draws: Floats
    covariance: Floats
    dof: int
    intervals: Mapping[str, Mapping[str, float]]
    a_name: str
    confidence: float


def plot_surface(data: SurfaceData, ax: Axes | None = None) -> Axes:
    """Draw contours of the loss over size and data, the runs, the optima and equal compute.

    The path of the optimum is dashed beyond the compute that was run.
    """
    ax = new_axes(ax, 7.2, 5.0)
    runs = np.log(data.params), np.log(data.tokens)
    low, high = np.log(data.min_flops), np.log(data.max_flops)
    ln_c = np.linspace(low, high + np.log(FACTOR_ABOVE_DATA), 120)
    path = data.optimum(np.exp(ln_c))
    for k, sizes in enumerate(runs):  # a far optimum is cut off, so that the runs stay readable
        path[:, k] = np.clip(
            path[:, k], sizes.min() - MAX_LN_OFF_RUNS, sizes.max() + MAX_LN_OFF_RUNS
        )
    limits = [ends(np.concatenate([sizes, path[:, k]])) for k, sizes in enumerate(runs)]
    mesh = [np.linspace(least - 0.3, most + 0.3, _MESH_POINTS) for least, most in limits]
    x, y = np.exp(mesh[0]), np.exp(mesh[1])
    levels = _levels(path[:, 2])
    loss = data.loss_at(x[None, :], y[:, None])
    ax.contour(x, y, loss, levels=levels, colors=CONTOUR, linewidths=0.9)
    ax.set_xlim(*ends(x))
    ax.set_ylim(*ends(y))
    log_axis(ax, "x", "count")
    log_axis(ax, "y", "count")
    _label_levels(ax, data, levels)
    _draw_runs(ax, data)
    size, tokens = np.exp(path[:, 0]), np.exp(path[:, 1])
    inside = ln_c <= high
    ax.plot(size, tokens, color=INK, linewidth=1.3, linestyle=(0, (4, 3)), zorder=4)
    path_style = {"linewidth": 2.0, "zorder": 4, "label": "optimum N*, D*"}
    ax.plot(size[inside], tokens[inside], color=INK, **path_style)
    _draw_equal_compute(ax, mesh, data)
    x_label = f"Model size N ({size_unit(data.n, 'parameters')})"
    style_axes(ax, "Loss over size and data", x_label, "Training data D (tokens)")
    ax.grid(False)
    title = "Compute up to (FLOPs)" if data.budgets_are_flops else "Budget (FLOPs)"
    budget_legend(ax, title, beside=1.09)
    return ax


def plot_exponents(data: ExponentData, ax: Axes | None = None) -> Axes:
    """Draw resamples of alpha and beta, the t intervals of both and their joint region, and as a
    wedge the t interval of beta / (alpha + beta), which is constant on a ray from the origin.
    """
    ax = new_axes(ax, 5.4, 4.6)
    alpha, beta = data.alpha, data.beta
    draws = data.draws[:MAX_DRAWS_SHOWN]
    if len(draws):
        style = {"marker": "o", "ms": 1.8, "mew": 0, "color": MUTED, "alpha": 0.3, "ls": "none"}
        ax.plot(*draws.T, label="resamples", zorder=2, **style)
    _limit_view(ax, draws, data.intervals)
    a = data.intervals["a"]
    _draw_wedge(
        ax, a["low"], a["high"], f"{data.a_name}, {percent_text(data.confidence)} t interval"
    )
    ray = np.array(ax.get_xlim())
    slope = a["value"] / (1.0 - a["value"])
    label = f"{data.a_name} = {a['value']:.3f}"
    ax.plot(ray, ray * slope, color=BAND, linewidth=1.1, label=label)
    ax.add_patch(_joint_region(data))
    for name in ("alpha", "beta"):
        span = [data.intervals[name]["low"], data.intervals[name]["high"]]
        x, y = (span, [beta, beta]) if name == "alpha" else ([alpha, alpha], span)
        label = "t intervals" if name == "alpha" else None
        ax.plot(x, y, color=INK, linewidth=1.6, zorder=4, label=label)
    style = {"marker": "D", "ms": 5, "color": INK, "mfc": "white", "ls": "none", "zorder": 5}
    ax.plot([alpha], [beta], label="estimate", **style)
    title = "Uncertainty of the exponents"
    style_axes(ax, title, "alpha, of A / N^alpha", "beta, of B / D^beta")
    linear_axis(ax, "x")
    linear_axis(ax, "y")
    legend = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    ax.legend(fontsize=SMALL_FONT_POINTS, frameon=False, **legend)
    return ax


def _levels(ln_loss: Floats) -> list[float]:
    """Return contour losses in three digits, ascending: even steps in ln loss over the optimum's
    range, and over half that range above it.
    """
    steps = np.linspace(ln_loss[-1], ln_loss[0] + 0.5 * (ln_loss[0] - ln_loss[-1]), _LEVEL_COUNT)
    return sorted({float(f"{level:.3g}") for level in np.exp(steps)})


def _label_levels(ax: Axes, data: SurfaceData, levels: list[float]) -> None:
    """Print each contour's loss where it leaves the frame: on the right, else on top."""
    (x_min, x_max), (y_min, y_max) = ax.get_xlim(), ax.get_ylim()
    style: dict[str, Any] = {"fontsize": SMALL_FONT_POINTS - 1, "color": CONTOUR_INK}
    style |= {"textcoords": "offset points", "annotation_clip": False}
    for level in levels:
        tokens, size = data.tokens_for(x_max, level), data.params_for(y_max, level)
        if y_min < tokens < y_max:
            end = (x_max, tokens)
            ax.annotate(f"{level:g}", end, xytext=(3, 0), ha="left", va="center", **style)
        elif x_min < size < x_max and size**2 > x_min * x_max:  # beside the title
            end = (size, y_max)
            ax.annotate(f"{level:g}", end, xytext=(0, 2), ha="center", va="bottom", **style)


def _draw_equal_compute(ax: Axes, mesh: list[Floats], surface: SurfaceData) -> None:
    """Draw dotted lines at powers of ten of compute, labelled inside the frame at their lower
    ends.
    """
    (x_min, x_max), (y_min, y_max) = (ends(m) for m in mesh)
    corners = ((x_min, y_min), (x_max, y_max))
    low, high = (float(surface.ln_flops(*corner)) / np.log(10.0) for corner in corners)
    sizes = np.linspace(x_min, x_max, _MESH_POINTS)
    inset = 0.045
    x_last, y_last = x_max - inset * (x_max - x_min), y_min + inset * (y_max - y_min)
    first, last = int(np.ceil(low + 0.4)), int(np.floor(high - 0.3))
    line = {"color": MUTED, "lw": 0.9, "ls": ":"}
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    style: dict[str, Any] = {
        "fontsize": SMALL_FONT_POINTS - 1,
        "color": MUTED,
        "ha": "center",
        "va": "center",
    }
    for power in range(first, last + 1, max(1, round((high - low) / 8.0))):
        data = surface.ln_tokens(sizes, power * np.log(10.0))
        ax.plot(np.exp(sizes), np.exp(data), zorder=1, **line)
        inside = np.flatnonzero((sizes <= x_last) & (data >= y_last))
        if len(inside):
            point = float(np.exp(sizes[inside[-1]])), float(np.exp(data[inside[-1]]))
            ax.text(*point, flops_label(10.0**power), bbox=box, **style)
    label = "equal compute, 6ND" if surface.is_six_nd else "equal compute"
    ax.plot([], [], label=label, **line)
    ax.plot([], [], color=CONTOUR, linewidth=0.9, label="equal loss (nats per token)")


def _draw_runs(ax: Axes, data: SurfaceData) -> None:
    for budget, colour in budget_colours(data.budget).items():
        members = data.budget == budget
        style: dict[str, Any] = {"marker": "o", "ms": 4.2, "ls": "none", "zorder": 3}
        points = data.params[members], data.tokens[members]
        ax.plot(*points, color=colour, label=flops_label(budget), **style)


def _limit_view(ax: Axes, draws: Floats, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Make room for the intervals and 99% of the resamples, at most four times the intervals."""
    for k, (name, setter) in enumerate((("alpha", ax.set_xlim), ("beta", ax.set_ylim))):
        row = rows[name]
        low, high = row["low"], row["high"]
        reach = 1.5 * (high - low)
        if len(draws):
            inner, outer = np.quantile(draws[:, k], [0.005, 0.995])
            low, high = min(low, max(inner, low - reach)), max(high, min(outer, high + reach))
        pad = max(0.12 * (high - low), 0.01 * high)
        setter(max(low - pad, 0.0), high + pad)


def _draw_wedge(ax: Axes, low: float, high: float, label: str) -> None:
    x = np.array(ax.get_xlim())
    slopes = [share / (1.0 - share) for share in np.clip([low, high], 1e-3, 1.0 - 1e-3)]
    style = {"color": BAND, "alpha": 0.15, "linewidth": 0, "zorder": 1}
    ax.fill_between(x, x * slopes[0], x * slopes[1], label=label, **style)


def _joint_region(data: ExponentData) -> Ellipse:
    """Return the joint confidence region of alpha and beta: Hotelling's, on the fit's degrees of
    freedom.
    """
    lengths, axes = np.linalg.eigh(data.covariance)
    radius = np.sqrt(2.0 * float(fdtri(2, data.dof, data.confidence)))
    width, height = 2.0 * radius * np.sqrt(np.maximum(lengths, 0.0))
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    style: dict[str, Any] = {"fill": False, "edgecolor": INK, "lw": 1.0, "ls": "--", "zorder": 3}
    label = f"{percent_text(data.confidence)} region of both"
    return Ellipse((data.alpha, data.beta), width, height, angle=angle, label=label, **style)
