"""Loss curves of runs while they train."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from isoflop.frames import column, rows
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
"""A run's curve is thinned to so many points, evenly in log FLOPs."""


def plot_loss_curves(
    frame: pd.DataFrame, ax: Axes | None = None, *, split: str | None = None, kind: str = "all"
) -> Axes:
    """Loss against training FLOPs so far, a line a run, a colour a budget, a dot at the end of each.

    Args:
        frame: columns `run_id, budget, train_flops, split, kind, loss`.
        split: which loss; default the first that is not `train`, or where that is no curve, since no run has two
            points of it, `train`, with dots of the other.
        kind: of token, whose loss it is.
    """
    ax = new_axes(ax)
    chosen = split or default_split(frame, kind)
    drawn = _points_of(frame, chosen, kind)
    dots = split or _heldout(frame) or chosen
    ends = _ends(_points_of(frame, dots, kind))
    colours = budget_colours(column(frame, "budget"))
    seen: set[float] = set()
    for run_id, run in drawn.groupby("run_id", sort=False):
        x, y = _thinned(column(run, "train_flops"), column(run, "loss"))
        budget = float(column(run, "budget")[0])
        colour, label = colours[budget], None if budget in seen else flops_label(budget)
        ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.75, label=label)
        end = rows(ends, (ends["run_id"] == run_id).to_numpy(dtype=bool))
        x, y = column(end, "train_flops"), column(end, "loss")
        ax.plot(x, y, color=colour, marker="o", markersize=3.2, linestyle="none", zorder=3)
        seen.add(budget)
    name = {"train": "training", "held-out": "held-out"}.get(chosen, f"held-out: {chosen}")
    name += "" if dots == chosen else "; dots: held-out"
    what = "Loss" if kind == "all" else f"Loss of {kind} tokens"
    style_axes(
        ax,
        "Loss while training",
        "Training compute so far (FLOPs)",
        f"{what}, {_plain(name)} (nats per token)",
    )
    if len(drawn):
        _curve_limits(ax, pd.concat([drawn, ends]))
        log_axis(ax, "x", "flops")
        budget_legend(ax)
    linear_axis(ax, "y")
    return ax


def default_split(frame: pd.DataFrame, kind: str = "all") -> str:
    """The first split that is not `train`, if a run has two points of it or there is no other; else `train`."""
    heldout = _heldout(frame)
    if heldout is None:
        return "train"
    points, others = _points_of(frame, heldout, kind), _points_of(frame, "train", kind)
    return heldout if len(_ends(points)) < len(points) or not len(others) else "train"


def _heldout(frame: pd.DataFrame) -> str | None:
    return next((s for s in sorted(set(frame["split"].astype(str))) if s != "train"), None)


def _points_of(frame: pd.DataFrame, split: str, kind: str) -> pd.DataFrame:
    """What can be drawn of a loss, run by run."""
    wanted = ((frame["split"] == split) & (frame["kind"] == kind)).to_numpy(dtype=bool)
    wanted = wanted & np.isfinite(column(frame, "loss")) & (column(frame, "train_flops") > 0)
    return rows(frame, wanted).sort_values(by=["budget", "run_id", "train_flops"], kind="stable")


def _ends(points: pd.DataFrame) -> pd.DataFrame:
    """The last point of each run."""
    return points.drop_duplicates("run_id", keep="last")


def _curve_limits(ax: Axes, drawn: pd.DataFrame) -> None:
    """Leaves out the first, steepest part of the curves, so that their ends can be told apart."""
    loss, flops = column(drawn, "loss"), column(drawn, "train_flops")
    last = drawn.groupby("run_id")["train_flops"].transform("max").to_numpy(dtype=np.float64)
    low, high = float(loss.min()), float(loss[flops >= 0.02 * last].max())
    pad = 0.04 * max(high - low, 1e-3)
    ax.set_ylim(low - pad, high + pad)
    ax.set_xlim(*margins(flops[loss <= high], 1.3))


def _plain(text: str) -> str:
    """A name from outside, without what would be read as mathematical text."""
    return text.replace("$", r"\$")


def _thinned(flops: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(flops) <= MAX_CURVE_POINTS:
        return flops, loss
    wanted = np.searchsorted(flops, np.geomspace(flops[0], flops[-1], MAX_CURVE_POINTS))
    keep = np.unique(np.append(np.minimum(wanted, len(flops) - 1), len(flops) - 1))
    return flops[keep], loss[keep]
