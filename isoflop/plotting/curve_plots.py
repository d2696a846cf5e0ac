"""Loss curves of training runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isoflop.frames import Floats, column, rows
from isoflop.plotting.style import (
    budget_colours,
    budget_legend,
    flops_label,
    linear_axis,
    log_axis,
    margins,
    new_axes,
    style_axes,
)

MAX_CURVE_POINTS = 300
"""A longer curve is thinned to this many points, evenly in log FLOPs."""
MIN_FLOPS_SHARE_IN_VIEW = 0.02
"""Losses from this share of a run's FLOPs on set the top of the frame."""


def plot_loss_curves(
    frame: pd.DataFrame, ax: Axes | None = None, *, split: str | None = None, kind: str = "all"
) -> Axes:
    """Draw loss against training FLOPs so far: a line per run with a dot at its end, a colour per
    budget.

    Args:
        frame: columns `run_id, budget, train_flops, split, kind, loss` (nats per token).
        split: split of the curves. Default: the first split other than `train`. If no run has two
            points of that, curves are of `train` and dots of the other split.
        kind: token kind of the loss.
    """
    ax = new_axes(ax)
    line_split = split or default_split(frame, kind)
    curves = _points(frame, line_split, kind)
    dot_split = split or _heldout_split(frame) or line_split
    ends = _last_points(_points(frame, dot_split, kind))
    colours = budget_colours(column(frame, "budget"))
    labelled: set[float] = set()
    for run_id, run in curves.groupby("run_id", sort=False):
        x, y = _thin(column(run, "train_flops"), column(run, "loss"))
        budget = float(column(run, "budget")[0])
        colour, label = colours[budget], None if budget in labelled else flops_label(budget)
        ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.75, label=label)
        end = rows(ends, (ends["run_id"] == run_id).to_numpy(dtype=bool))
        x, y = column(end, "train_flops"), column(end, "loss")
        ax.plot(x, y, color=colour, marker="o", markersize=3.2, linestyle="none", zorder=3)
        labelled.add(budget)
    names = {"train": "training", "held-out": "held-out"}
    name = names.get(line_split, f"held-out: {line_split}")
    name += "" if dot_split == line_split else "; dots: held-out"
    loss = "Loss" if kind == "all" else f"Loss of {kind} tokens"
    style_axes(
        ax,
        "Loss while training",
        "Training compute so far (FLOPs)",
        f"{loss}, {_escape_mathtext(name)} (nats per token)",
    )
    if len(curves):
        _limit_view(ax, pd.concat([curves, ends]))
        log_axis(ax, "x", "flops")
        budget_legend(ax)
    linear_axis(ax, "y")
    return ax


def default_split(frame: pd.DataFrame, kind: str = "all") -> str:
    """Return the first split other than `train` if a run has two points of it, or if `train` has
    none; else `train`.
    """
    heldout = _heldout_split(frame)
    if heldout is None:
        return "train"
    points, training = _points(frame, heldout, kind), _points(frame, "train", kind)
    return heldout if len(_last_points(points)) < len(points) or not len(training) else "train"


def _heldout_split(frame: pd.DataFrame) -> str | None:
    return next((s for s in sorted(set(frame["split"].astype(str))) if s != "train"), None)


def _points(frame: pd.DataFrame, split: str, kind: str) -> pd.DataFrame:
    """Return the finite losses of a split and kind, ordered by budget, run and FLOPs."""
    keep = ((frame["split"] == split) & (frame["kind"] == kind)).to_numpy(dtype=bool)
    keep = keep & np.isfinite(column(frame, "loss")) & (column(frame, "train_flops") > 0)
    return rows(frame, keep).sort_values(by=["budget", "run_id", "train_flops"], kind="stable")


def _last_points(points: pd.DataFrame) -> pd.DataFrame:
    """Return the last point of each run."""
    return points.drop_duplicates("run_id", keep="last")


def _limit_view(ax: Axes, points: pd.DataFrame) -> None:
    """Cut off the first, steepest section of the curves, so that their ends are distinguishable."""
    loss, flops = column(points, "loss"), column(points, "train_flops")
    last = points.groupby("run_id")["train_flops"].transform("max").to_numpy(dtype=np.float64)
    low, high = float(loss.min()), float(loss[flops >= MIN_FLOPS_SHARE_IN_VIEW * last].max())
    pad = 0.04 * max(high - low, 1e-3)
    ax.set_ylim(low - pad, high + pad)
    ax.set_xlim(*margins(flops[loss <= high], 1.3))


def _escape_mathtext(text: str) -> str:
    """Return text with `$` escaped, which starts a formula in matplotlib."""
    return text.replace("$", r"\$")


def _thin(flops: Floats, loss: Floats) -> tuple[Floats, Floats]:
    if len(flops) <= MAX_CURVE_POINTS:
        return flops, loss
    nearest = np.searchsorted(flops, np.geomspace(flops[0], flops[-1], MAX_CURVE_POINTS))
    keep = np.unique(np.append(np.minimum(nearest, len(flops) - 1), len(flops) - 1))
    return flops[keep], loss[keep]
