"""Profiles that can't place their own optimum, and the runs that would bracket it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from isoflop.config.identity import budget_label
from isoflop.fitting.estimators.parabola import MIN_PER_SIDE, SAME_SIZE, distinct
from isoflop.fitting.results.summary import number
from isoflop.fitting.tables.runs_table import ParamCount
from isoflop.followup.candidates import Place

Floats = np.ndarray
STEPS = (np.log(1.4), np.log(2.0))
"""Where the runs of a bracket are wanted: on either side at a factor 1.4 and 2 from the optimum."""

CLOSE = np.log(1.15)
"""A size nearer than this to one that is there tells little that it did not."""

FEWEST = 2
"""A lone run is no profile, and nothing asks for one there."""


@dataclass(frozen=True, eq=False)
class ProfileSizes:
    """What is known of one budget.

    Attributes:
        budget: FLOPs.
        sizes: ln N of its configurations, those that are still to be run among them.
        optimum: ln N* as the best fit has it.
        best: ln N of the run with the least loss; NaN where none is done.
    """

    budget: float
    sizes: Floats
    optimum: float
    best: float

    def counts(self) -> tuple[int, int]:
        """Distinct sizes below and above the optimum."""
        return distinct(self.sizes[self.sizes < self.optimum]), distinct(
            self.sizes[self.sizes > self.optimum]
        )


@dataclass(frozen=True)
class Repair:
    """Runs that mend a profile, and why; or none, and why not."""

    budget: float
    places: tuple[Place, ...]
    reason: str


def repairs(
    profiles: Iterable[ProfileSizes], options: Iterable[Place], n: ParamCount
) -> list[Repair]:
    """What each profile needs to place its optimum; by ascending budget, nothing for those that can.

    A profile can if it has two sizes or more on either side of its optimum, and its best run is not at an end: the
    conditions of the status `interior`.
    """
    by_budget: dict[float, list[Place]] = {}
    for place in options:
        by_budget.setdefault(place.budget, []).append(place)
    found = (
        _repair(profile, by_budget.get(profile.budget, []), n)
        for profile in sorted(profiles, key=_budget)
    )
    return [repair for repair in found if repair]


def _budget(profile: ProfileSizes) -> float:
    return profile.budget


def _repair(profile: ProfileSizes, options: list[Place], n: ParamCount) -> Repair | None:
    if distinct(profile.sizes) < FEWEST:
        return None
    below, above = profile.counts()
    places, sizes = [], profile.sizes
    for side, count in ((-1, below), (1, above)):
        wanted = [profile.optimum + side * step for step in STEPS]
        if count >= MIN_PER_SIDE and _best_at(profile, side):
            count, wanted = MIN_PER_SIDE - 1, [profile.best + side * STEPS[0]]
        for _ in range(MIN_PER_SIDE - count):
            place = _nearest(wanted, profile, side, sizes, options, n)
            if place is not None:
                places.append(place)
                sizes = np.append(sizes, np.log(place.params(n)))
    reason = _reason(profile, below, above)
    return Repair(profile.budget, tuple(places), reason) if reason else None


def _best_at(profile: ProfileSizes, side: int) -> bool:
    end = profile.sizes.min() if side < 0 else profile.sizes.max()
    return bool(abs(profile.best - end) <= SAME_SIZE)


def _nearest(
    wanted: list[float],
    profile: ProfileSizes,
    side: int,
    sizes: Floats,
    options: list[Place],
    n: ParamCount,
) -> Place | None:
    """The option nearest to the first wanted size that nothing is near to yet; one beyond the optimum on that side."""
    free = [
        (float(np.log(place.params(n))), place)
        for place in options
        if np.min(np.abs(sizes - np.log(place.params(n)))) >= CLOSE
    ]
    free = [(x, place) for x, place in free if side * (x - profile.optimum) > 0.0]
    if not free:
        return None
    open_ = [at for at in wanted if np.min(np.abs(sizes - at)) >= CLOSE] or wanted
    return min(free, key=lambda pair: abs(pair[0] - open_[0]))[1]


def _reason(profile: ProfileSizes, below: int, above: int) -> str:
    at = f"{budget_label(profile.budget)}: "
    best = f"the optimum (N* = {number(float(np.exp(profile.optimum)))})"
    if not below or not above:
        return f"{at}{best} lies {'below' if not below else 'above'} all sizes run"
    if min(below, above) < MIN_PER_SIDE:
        return f"{at}one size alone lies {'below' if below < above else 'above'} {best}"
    for side, name in ((-1, "smallest"), (1, "largest")):
        if _best_at(profile, side):
            return f"{at}the {name} model is the best so far"
    return ""
