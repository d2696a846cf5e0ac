"""Grouping of runs into budgets by their training FLOPs, for tables without planned budgets.

Runs of one budget scatter: by whole steps, by whole layers, by another formula for FLOPs. Two
budgets can lie close together, such as 1.8e19 and 2e19. So FLOPs are clustered in log space, never
rounded, and no fixed width separates budgets. A split into budgets is accepted if

* every gap between two budgets is wider than the widest budget,
* no budget has several sizes twice with different FLOPs (it would be two budgets),
* every budget of one or two sizes lies far from the others (else its runs are stragglers of a
  neighbouring budget).

The finest accepted split is used. If there is none, FLOPs cannot separate the budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isoflop.errors import FitError
from isoflop.fitting.tables.columns import option_text
from isoflop.fitting.terms import Finding, finding
from isoflop.frames import Floats, Ints
from isoflop.text import flops_text, percent_text

FLOPS_AS_BUDGET = "(flops)"
"""Name of the budget column of runs that fall into no budgets: each has its FLOPs as its budget."""

MAX_LABEL_RATIO = 1.05  # between the label of a budget and the FLOPs of its runs
MIN_LOG_GAP = 0.02  # in ln FLOPs: rounding to whole steps alone moves a run by up to 1%
MAX_LOG_SPAN = 0.35  # in ln FLOPs: runs that differ by more are not of one budget
FEW_SIZES_LOG_GAP = 0.05  # in ln FLOPs: between budgets, if too few of them have MIN_SIZES sizes
MIN_SIZES = 3
_MIN_COMPARED_BUDGETS = 3  # to compare one budget with the others
_DOUBLE_FACTOR = 1.6  # width and runs of a double budget, against the median of the others
_ROUNDING_LOG_GAP = 1e-6  # in ln FLOPs: planned budgets this close differ only in printed digits
_MIN_SHARE = 0.8  # of the runs that lie in budgets with MIN_SIZES sizes


class BudgetGroups(NamedTuple):
    """Budgets detected among FLOPs.

    Attributes:
        labels: number of each run's budget, ascending with its FLOPs.
        gap: narrowest gap between two budgets in ln FLOPs; infinite for one budget.
        span: width of the widest budget in ln FLOPs.
    """

    labels: Ints
    gap: float
    span: float


class LabelledBudgets(NamedTuple):
    """Budget of each run, in FLOPs.

    Attributes:
        budgets: one value a run.
        column: name for the column of budgets, in brackets: the method that made it.
        findings: doubts about the grouping.
    """

    budgets: Floats
    column: str
    findings: list[Finding]


def merge_rounded_budgets(budgets: Floats) -> Floats:
    """Return planned budgets, made equal where they differ only in printed digits."""
    labels = cluster(budgets, _ROUNDING_LOG_GAP)
    return np.array([group.min() for group in split_by_label(budgets, labels)])[labels]


def label_by_flops(flops: Floats, sizes: Floats, where: str, needed: bool) -> LabelledBudgets:
    """Return budgets for runs without a plan: the geometric mean of the FLOPs of each group.

    Args:
        flops, sizes: training FLOPs and parameters of each run.
        where: name of the source in messages.
        needed: refuse FLOPs that cannot be grouped; otherwise each run's budget is its own FLOPs.

    Raises:
        FitError: FLOPs that cannot be grouped.
    """
    groups = group_budgets(flops, sizes)
    if groups is None:
        limits = f"{flops_text(flops.min(), 3)} to {flops_text(flops.max(), 3)}"
        reason = f"FLOPs don't fall into budgets ({limits}, no gap wider than the scatter)"
        if needed:
            option = option_text(where, "budget")
            raise FitError(f"{where}: the {reason}; name a column of budgets with {option}")
        return LabelledBudgets(flops, FLOPS_AS_BUDGET, [finding("no_budgets", f"The {reason}.")])
    logs, labels = np.log(flops), groups.labels
    budgets = np.exp((np.bincount(labels, logs) / np.bincount(labels))[labels])
    return LabelledBudgets(budgets, "(flops, clustered)", _check_groups(groups, flops, budgets))


def _check_groups(groups: BudgetGroups, flops: Floats, budgets: Floats) -> list[Finding]:
    """Return a finding for a grouping that may be wrong."""
    double = find_double_budget(groups, flops)
    if double is not None:
        budget = flops_text(float(budgets[groups.labels == double][0]))
        doubt = (
            f"The budget of {budget} FLOPs is wider and has more runs than the others: "
            "it may be two"
        )
    elif groups.gap < min(2.0 * groups.span, MAX_LOG_SPAN):
        scatter, gap = np.expm1(groups.span), np.expm1(groups.gap)
        doubt = (
            f"Budgets were separated by FLOPs, which scatter by {percent_text(scatter, 2)} "
            f"within a budget and differ by {percent_text(gap, 2)} between two"
        )
    else:
        return []
    return [finding("budgets_unclear", f"{doubt}; name a column of planned budgets to be sure.")]


def resolve_budget_flops(budget: Floats, flops: Floats, weight: Floats) -> Floats:
    """Return the FLOPs of each run's budget.

    These are the labels if every label lies among the FLOPs of its runs. Otherwise (labels in
    EFLOPs, ranks, forward FLOPs) they are the geometric means of the FLOPs at each label.

    Args:
        budget: label of each run's budget.
        flops: training FLOPs of each run.
        weight: weight of each run in the mean.
    """
    labels, group = np.unique(budget, return_inverse=True)
    low, high = np.full(len(labels), np.inf), np.zeros(len(labels))
    np.minimum.at(low, group, flops)
    np.maximum.at(high, group, flops)
    if np.all((labels >= low / MAX_LABEL_RATIO) & (labels <= high * MAX_LABEL_RATIO)):
        return budget
    return np.exp(np.bincount(group, weight * np.log(flops)) / np.bincount(group, weight))[group]


def cluster(values: Floats | Sequence[float], gap: float) -> Ints:
    """Return the group number of each positive value, ascending from 0.

    Args:
        values: positive numbers.
        gap: two groups are more than this apart in ln(value).
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    order = np.argsort(logs, kind="stable")
    labels = np.empty(len(logs), dtype=np.int64)
    labels[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > gap)])
    return labels


def group_budgets(flops: Floats, sizes: Floats) -> BudgetGroups | None:
    """Group runs into budgets; return None if their FLOPs cannot separate the budgets.

    Args:
        flops: training FLOPs of each run.
        sizes: parameters of each run; a budget is recognised by the sizes that were run at it.
    """
    widths = np.unique(np.diff(np.sort(np.log(flops))))
    for gap in (MIN_LOG_GAP, *widths[widths > MIN_LOG_GAP]):  # from the finest split to none
        groups = _split_at_gaps(flops, gap)
        if (
            _are_separated(groups)
            and not _has_double_budget(groups, flops, sizes)
            and _have_enough_sizes(groups, flops, sizes)
        ):
            return groups
    groups = _split_at_gaps(flops, FEW_SIZES_LOG_GAP)
    if _are_separated(groups) and not _has_double_budget(groups, flops, sizes):
        return groups
    return None


def find_double_budget(groups: BudgetGroups, flops: Floats) -> int | None:
    """Return the number of a budget that may be two: much wider and with more runs than others."""
    values = split_by_label(flops, groups.labels)
    if len(values) < _MIN_COMPARED_BUDGETS:
        return None
    spans = np.array([np.log(group.max() / group.min()) for group in values])
    counts = np.array([len(group) for group in values])
    widest = int(np.argmax(spans))
    others = np.arange(len(values)) != widest
    is_wide = spans[widest] > max(_DOUBLE_FACTOR * np.median(spans[others]), MIN_LOG_GAP)
    is_full = counts[widest] > _DOUBLE_FACTOR * np.median(counts[others])
    return widest if is_wide and is_full else None


def split_by_label(values: Floats, labels: Ints) -> list[Floats]:
    """Return the values of each group, in the order of the groups' numbers."""
    order = np.argsort(labels, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(labels[order])) + 1)


def _split_at_gaps(flops: Floats, gap: float) -> BudgetGroups:
    """Split FLOPs wherever neighbours are more than `gap` apart in ln FLOPs."""
    labels, logs = cluster(flops, gap), np.sort(np.log(flops))
    steps = np.diff(logs)
    first = np.flatnonzero(np.concatenate([[True], steps > gap]))
    last = np.concatenate([first[1:] - 1, [len(logs) - 1]])
    narrowest = float(steps[steps > gap].min(initial=np.inf))
    return BudgetGroups(labels, narrowest, float((logs[last] - logs[first]).max()))


def _are_separated(groups: BudgetGroups) -> bool:
    """Return whether the gaps between budgets are wider than the budgets."""
    return groups.span <= MAX_LOG_SPAN and groups.gap > groups.span


def _has_double_budget(groups: BudgetGroups, flops: Floats, sizes: Floats) -> bool:
    """Return whether a budget has at least MIN_SIZES sizes twice, with different FLOPs."""
    for number in range(int(groups.labels.max()) + 1):
        in_budget = groups.labels == number
        repeated = 0
        for size in np.unique(sizes[in_budget]):
            values = flops[in_budget & (sizes == size)]
            repeated += bool(np.log(values.max() / values.min()) > MIN_LOG_GAP)
        if repeated >= MIN_SIZES:
            return True
    return False


def _have_enough_sizes(groups: BudgetGroups, flops: Floats, sizes: Floats) -> bool:
    """Return whether most runs are in budgets of several sizes and other budgets lie far away."""
    few = np.array([len(np.unique(g)) < MIN_SIZES for g in split_by_label(sizes, groups.labels)])
    ends = np.log([(g.min(), g.max()) for g in split_by_label(flops, groups.labels)])
    gaps = np.concatenate([[np.inf], ends[1:, 0] - ends[:-1, 1], [np.inf]])
    stray = few & (np.minimum(gaps[:-1], gaps[1:]) <= MAX_LOG_SPAN)
    return not stray.any() and float((~few)[groups.labels].mean()) >= _MIN_SHARE
