"""Repairs: runs that bracket the optimum of a profile that does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from isoflop.fitting.estimators.parabola import MIN_PER_SIDE, SAME_SIZE_LN, count_distinct
from isoflop.followup.candidates import CandidatePoint
from isoflop.frames import Floats
from isoflop.shapes import ParamCount
from isoflop.text import count_text, flops_text

BRACKET_LN_OFFSETS = (np.log(1.4), np.log(2.0))
"""Targets of a bracket in ln N: on either side, factors of 1.4 and 2 from the optimum."""
MIN_LN_SIZE_GAP = np.log(1.15)
"""A size nearer than this to another one adds little information."""
MIN_REPAIRED_SIZES = 2
"""A single size is not a profile and is not repaired."""


@dataclass(frozen=True, eq=False)
class ProfileSizes:
    """Sizes of one budget.

    Attributes:
        budget: training FLOPs.
        sizes: ln N of its configurations, finished and unfinished.
        optimum: ln N* by the best available fit.
        best: ln N of the run with the least loss; NaN if none is finished.
    """

    budget: float
    sizes: Floats
    optimum: float
    best: float

    def counts(self) -> tuple[int, int]:
        """Return the numbers of distinct sizes below and above the optimum."""
        below, above = self.sizes < self.optimum, self.sizes > self.optimum
        return count_distinct(self.sizes[below]), count_distinct(self.sizes[above])


@dataclass(frozen=True)
class Repair:
    """Points that complete a profile, possibly none, and the reason for them."""

    budget: float
    points: tuple[CandidatePoint, ...]
    reason: str


def find_repairs(
    profiles: Iterable[ProfileSizes], options: Iterable[CandidatePoint], n: ParamCount
) -> list[Repair]:
    """Return a repair for each profile that does not bracket its optimum, by ascending budget.

    A profile brackets its optimum if it has two or more sizes on either side and its best run is
    not at an end: the conditions of the status `interior`.

    Args:
        profiles: the profiles.
        options: points that may be run.
        n: parameter count of the sizes.
    """
    by_budget: dict[float, list[CandidatePoint]] = {}
    for point in options:
        by_budget.setdefault(point.budget, []).append(point)
    ordered = sorted(profiles, key=lambda profile: profile.budget)
    repairs = [_repair(profile, by_budget.get(profile.budget, []), n) for profile in ordered]
    return [repair for repair in repairs if repair]


def _repair(profile: ProfileSizes, options: list[CandidatePoint], n: ParamCount) -> Repair | None:
    if count_distinct(profile.sizes) < MIN_REPAIRED_SIZES:
        return None
    below, above = profile.counts()
    points, sizes = [], profile.sizes
    for side, count in ((-1, below), (1, above)):
        targets = [profile.optimum + side * offset for offset in BRACKET_LN_OFFSETS]
        if count >= MIN_PER_SIDE and _is_best_at_end(profile, side):
            count, targets = MIN_PER_SIDE - 1, [profile.best + side * BRACKET_LN_OFFSETS[0]]
        for _ in range(MIN_PER_SIDE - count):
            point = _nearest(targets, profile, side, sizes, options, n)
            if point is not None:
                points.append(point)
                sizes = np.append(sizes, np.log(point.params(n)))
    reason = _reason(profile, below, above)
    return Repair(profile.budget, tuple(points), reason) if reason else None


def _is_best_at_end(profile: ProfileSizes, side: int) -> bool:
    end = profile.sizes.min() if side < 0 else profile.sizes.max()
    return bool(abs(profile.best - end) <= SAME_SIZE_LN)


def _nearest(
    targets: list[float],
    profile: ProfileSizes,
    side: int,
    sizes: Floats,
    options: list[CandidatePoint],
    n: ParamCount,
) -> CandidatePoint | None:
    """Return the option nearest to the first target without a size near it, on a side of the
    optimum; None without options there.
    """
    free = [
        (float(np.log(point.params(n))), point)
        for point in options
        if np.min(np.abs(sizes - np.log(point.params(n)))) >= MIN_LN_SIZE_GAP
    ]
    free = [(x, point) for x, point in free if side * (x - profile.optimum) > 0.0]
    if not free:
        return None
    unmet = [x for x in targets if np.min(np.abs(sizes - x)) >= MIN_LN_SIZE_GAP]
    target = (unmet or targets)[0]
    return min(free, key=lambda pair: abs(pair[0] - target))[1]


def _reason(profile: ProfileSizes, below: int, above: int) -> str:
    label = flops_text(profile.budget)
    optimum = f"the optimum (N* = {count_text(float(np.exp(profile.optimum)))})"
    if not below or not above:
        return f"{label}: {optimum} lies {'below' if not below else 'above'} all sizes run"
    if min(below, above) < MIN_PER_SIDE:
        return f"{label}: only one size lies {'below' if below < above else 'above'} {optimum}"
    for side, name in ((-1, "smallest"), (1, "largest")):
        if _is_best_at_end(profile, side):
            return f"{label}: the {name} model is the best so far"
    return ""
