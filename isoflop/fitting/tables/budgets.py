"""Which budget a run belongs to, where no plan says it: clusters of training FLOPs in log space, never rounding.

Runs of one budget scatter (whole steps, whole layers, another formula for FLOPs), and budgets can lie close: 1.8e19 and
2e19 are two. So no fixed width decides. A split into budgets is believed where

* every gap between two budgets is wider than the widest budget,
* no budget holds several sizes twice, with other FLOPs each time (it would be two budgets),
* a budget of one or two sizes lies far from the others (it would be a straggler of its neighbour),

and of several such splits the finest is taken. Where there is none, FLOPs can't decide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isoflop.errors import FitError
from isoflop.fitting.terms import Finding, finding

Floats = np.ndarray

OWN = "(flops)"
"""How the budgets were made of runs that fall into none: each its FLOPs."""

LABELLED = 1.05  # times that a label may lie off the FLOPs of its runs
MIN_GAP = 0.02  # in ln FLOPs: rounding to whole steps alone moves a run by up to 1 %
MAX_SPAN = 0.35  # in ln FLOPs: runs that differ by more are not of one budget
FEW_SIZES_GAP = 0.05  # where budgets have too few sizes to tell
MIN_SIZES = 3
_SAME = 1e-6  # planned budgets that differ less than this differ by how they were printed
_SHARE = 0.8  # of the runs must lie in budgets with that many sizes


class Grouping(NamedTuple):
    """Budgets found among FLOPs.

    Attributes:
        labels: number of each run's budget, ascending with its FLOPs.
        gap: narrowest gap between two budgets in ln FLOPs; infinite for one budget.
        span: width of the widest budget in ln FLOPs.
    """

    labels: np.ndarray
    gap: float
    span: float


class Labelled(NamedTuple):
    """Each run's budget, how it was made, and what is not certain about it."""

    budgets: Floats
    how: str
    findings: list[Finding]


def label_as_planned(budgets: Floats) -> Floats:
    """Planned budgets, those that differ only by how they were printed made equal."""
    labels = cluster(budgets, _SAME)
    return np.array([group.min() for group in split(budgets, labels)])[labels]


def label_by_flops(flops: Floats, sizes: Floats, where: str, needed: bool) -> Labelled:
    """Budgets of runs without a plan: the geometric mean of the FLOPs of each group.

    Args:
        flops, sizes: training FLOPs and parameters of each run.
        where: for messages.
        needed: refuse FLOPs that can't be grouped; else each run's budget is its own FLOPs.

    Raises:
        FitError: FLOPs that can't be grouped.
    """
    found = group_budgets(flops, sizes)
    if found is None:
        span = f"{flops.min():.3g} to {flops.max():.3g}"
        words = f"the FLOPs don't fall into budgets ({span}, with no gaps wider than the scatter between them)"
        if needed:
            raise FitError(f"{where}: {words}; name a column of budgets with --budget")
        return Labelled(flops, OWN, [finding("no_budgets", f"{words[0].upper()}{words[1:]}.")])
    logs, labels = np.log(flops), found.labels
    budgets = np.exp((np.bincount(labels, logs) / np.bincount(labels))[labels])
    return Labelled(budgets, "(flops, clustered)", _uncertain(found, flops, budgets))


def _uncertain(found: Grouping, flops: Floats, budgets: Floats) -> list[Finding]:
    mend = "name a column of planned budgets to be sure."
    double = doubtful(found, flops)
    if double is not None:
        budget = float(budgets[found.labels == double][0])
        words = f"The budget of {budget:.4g} FLOPs is wider and has more runs than the others: it may be two"
        return [finding("budgets_unclear", f"{words}; {mend}")]
    if found.gap < min(2.0 * found.span, MAX_SPAN):
        words = f"Budgets were told apart by FLOPs that scatter by {np.expm1(found.span):.0%} within one and are"
        return [
            finding(
                "budgets_unclear", f"{words} {np.expm1(found.gap):.0%} apart between two; {mend}"
            )
        ]
    return []


def levels_of(budget: Floats, flops: Floats, weight: Floats) -> Floats:
    """FLOPs of the budget that each run belongs to: its label where all labels are FLOPs that lie among those of their
    runs, else (labels in EFLOPs, ranks, forward FLOPs) the geometric mean of these.
    """
    labels, group = np.unique(budget, return_inverse=True)
    low, high = np.full(len(labels), np.inf), np.zeros(len(labels))
    np.minimum.at(low, group, flops)
    np.maximum.at(high, group, flops)
    if np.all((labels >= low / LABELLED) & (labels <= high * LABELLED)):
        return budget
    return np.exp(np.bincount(group, weight * np.log(flops)) / np.bincount(group, weight))[group]


def cluster(values: Floats | Sequence[float], gap: float) -> np.ndarray:
    """Numbers the groups of positive values that are separated by more than a gap in ln(value), from 0 upwards."""
    logs = np.log(np.asarray(values, dtype=np.float64))
    order = np.argsort(logs, kind="stable")
    labels = np.empty(len(logs), dtype=np.int64)
    labels[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > gap)])
    return labels


def group_budgets(flops: Floats, sizes: Floats) -> Grouping | None:
    """Groups runs into budgets; None where their FLOPs can't decide it.

    Args:
        flops: training FLOPs of each run.
        sizes: parameters of each run; a budget is told by the sizes that were run at it.
    """
    widths = np.unique(np.diff(np.sort(np.log(flops))))
    for gap in (MIN_GAP, *widths[widths > MIN_GAP]):  # from the finest split to none at all
        found = _grouping(flops, gap)
        if (
            _is_believed(found)
            and not _holds_two(found, flops, sizes)
            and _has_sizes(found, flops, sizes)
        ):
            return found
    few = _grouping(flops, FEW_SIZES_GAP)
    return few if _is_believed(few) and not _holds_two(few, flops, sizes) else None


def doubtful(found: Grouping, flops: Floats) -> int | None:
    """The number of a budget that is so much wider and fuller than the others that it may be two."""
    groups = split(flops, found.labels)
    if len(groups) < MIN_SIZES:
        return None
    spans = np.array([np.log(group.max() / group.min()) for group in groups])
    counts = np.array([len(group) for group in groups])
    widest = int(np.argmax(spans))
    others = np.arange(len(groups)) != widest
    apart = spans[widest] > max(1.6 * np.median(spans[others]), MIN_GAP)
    return widest if apart and counts[widest] > 1.6 * np.median(counts[others]) else None


def split(values: Floats, labels: np.ndarray) -> list[Floats]:
    """The values of each group, by its number."""
    order = np.argsort(labels, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(labels[order])) + 1)


def _grouping(flops: Floats, gap: float) -> Grouping:
    labels, logs = cluster(flops, gap), np.sort(np.log(flops))
    steps = np.diff(logs)
    first = np.flatnonzero(np.concatenate([[True], steps > gap]))
    last = np.concatenate([first[1:] - 1, [len(logs) - 1]])
    return Grouping(
        labels,
        float(steps[steps > gap].min(initial=np.inf)),
        float((logs[last] - logs[first]).max()),
    )


def _is_believed(found: Grouping) -> bool:
    return found.span <= MAX_SPAN and found.gap > found.span


def _holds_two(found: Grouping, flops: Floats, sizes: Floats) -> bool:
    """Whether some budget holds several sizes twice with other FLOPs."""
    for number in range(int(found.labels.max()) + 1):
        here = found.labels == number
        twice = 0
        for size in np.unique(sizes[here]):
            same = flops[here & (sizes == size)]
            twice += bool(np.log(same.max() / same.min()) > MIN_GAP)
        if twice >= MIN_SIZES:
            return True
    return False


def _has_sizes(found: Grouping, flops: Floats, sizes: Floats) -> bool:
    """Whether budgets have enough sizes, those far from all others aside."""
    few = np.array([len(np.unique(group)) < MIN_SIZES for group in split(sizes, found.labels)])
    ends = np.log([(group.min(), group.max()) for group in split(flops, found.labels)])
    gaps = np.concatenate([[np.inf], ends[1:, 0] - ends[:-1, 1], [np.inf]])
    stray = few & (np.minimum(gaps[:-1], gaps[1:]) <= MAX_SPAN)
    return not stray.any() and float((~few)[found.labels].mean()) >= _SHARE
