"""The IsoFLOP grid: which budgets and widths are run, with which seeds, and what the rules drop."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from isoflop.config.identity import budget_label
from isoflop.config.schema import Sweep
from isoflop.config.validation import SchemaError
from isoflop.planning.checked_recipe import Rules, place_label
from isoflop.recipes import Candidate, Dropped, Limits

MOST_TOKENS = 2**63 - 1
CHECKS = {
    "lr x 0.5": (0.5, 1.0),
    "lr x 2": (2.0, 1.0),
    "batch x 0.5": (1.0, 0.5),
    "batch x 2": (1.0, 2.0),
}
"""Factors on learning rate and batch of the runs that check a recipe."""

CHECK_UP_TO = 10.0 * (1.0 + 1e-9)


@dataclass(frozen=True)
class GridPoint:
    """One place of the grid that is run: a training configuration at a budget, once for each seed.

    `check` says how it differs from the recipe, such as `lr x 0.5`; it is empty but for the points of `recipe_check`.
    """

    budget: float
    candidate: Candidate
    seeds: tuple[int, ...]
    check: str = ""

    @property
    def width(self) -> int:
        return self.candidate.shape.width

    @property
    def label(self) -> str:
        """E.g. `3e18 at width 768`."""
        return place_label(self.budget, self.width)


@dataclass(frozen=True)
class Grid:
    """The points that are run, by budget and width, and the candidates of the rules that are not."""

    points: tuple[GridPoint, ...]
    dropped: tuple[Dropped, ...]


def lay_out(rules: Rules) -> Grid:
    """Solves every candidate of a sweep.

    Extra points keep to the recipe but not to `min_batch` and `max_steps` (as SODA's hand-set points);
    one that names a candidate the rules dropped brings it back. Budgets that differ by rounding only are one: extra
    points and replicates take the grid's.

    Raises:
        SchemaError: a budget or a point given twice, an extra point that has no solution, a replicate of no point, or
            a lab's recipe that fails.
    """
    sweep = rules.sweep
    limits, own = Limits(sweep.min_batch, sweep.max_steps), _distinct(sweep.budgets)

    def solve(budget: float, width: int, limits: Limits) -> Candidate | Dropped:
        solution = rules.solve(budget, rules.shape(width), limits)
        if isinstance(solution, Candidate) and solution.tokens > MOST_TOKENS:
            message = f"{place_label(budget, width)} would take {solution.tokens:.2g} tokens, more than a table can hold"
            raise SchemaError("budgets", f"{message}; lower the budget or start with wider models")
        return solution

    kept: dict[tuple[float, int], Candidate] = {}
    dropped: dict[tuple[float, int], Dropped] = {}
    for budget in sweep.budgets:
        for width in sweep.widths_at(budget):
            solution = solve(budget, width, limits)
            if isinstance(solution, Dropped):
                dropped[budget, width] = solution
            else:
                kept[budget, width] = solution

    for i, point in enumerate(sweep.extra):
        place = (own.setdefault(budget_label(point.budget), point.budget), point.width)
        if place in kept:
            raise SchemaError(
                f"extra[{i}]", f"{place_label(*place)} is in the plan already; leave it out"
            )
        solution = solve(*place, Limits())
        if isinstance(solution, Dropped):
            raise SchemaError(
                f"extra[{i}]", f"{place_label(*place)} can't be run: {solution.detail}"
            )
        dropped.pop(place, None)
        kept[place] = solution

    seeds = _seeds(sweep, set(kept), own)
    points = tuple(GridPoint(place[0], kept[place], seeds[place]) for place in sorted(kept))
    if sweep.recipe_check:
        points += _checks(rules, kept)
    return Grid(points, tuple(dropped[place] for place in sorted(dropped)))


def _distinct(budgets: tuple[float, ...]) -> dict[str, float]:
    """Budgets by label."""
    own: dict[str, float] = {}
    for budget in budgets:
        label = budget_label(budget)
        if label in own:
            message = f"{own[label]!r} and {budget!r} differ by rounding only and would both be {label}; leave one out"
            raise SchemaError("budgets", message)
        own[label] = budget
    return own


def _checks(rules: Rules, kept: dict[tuple[float, int], Candidate]) -> tuple[GridPoint, ...]:
    """Each of some points at half and double learning rate, and batch; exempt from the limits, as extra points are.

    A batch that can't be halved is left out: one side shows less, but no less truly.
    """
    points = []
    for budget, width in _checked(set(kept)):
        for check, factors in CHECKS.items():
            solution = rules.solve(budget, kept[budget, width].shape, Limits(), *factors)
            if isinstance(solution, Candidate):
                points.append(GridPoint(budget, solution, rules.sweep.seeds[:1], check))
    return tuple(points)


def _checked(places: set[tuple[float, int]]) -> list[tuple[float, int]]:
    """A small, a middle and a large size of the least budget, and of the largest up to 10 times that.

    The ends of the middle two thirds of a budget's sizes lie near its optimum in a grid that brackets it. Small
    budgets, since a recipe that is off by the size shows it there too, at a small share of the study's cost.
    """
    by_budget: dict[float, list[int]] = {}
    for budget, width in sorted(places):
        by_budget.setdefault(budget, []).append(width)
    fit = [budget for budget, widths in by_budget.items() if len(widths) >= 3]
    chosen = (
        sorted({min(fit), max(budget for budget in fit if budget <= CHECK_UP_TO * min(fit))})
        if fit
        else []
    )
    return [
        (budget, by_budget[budget][i])
        for budget in chosen
        for i in sorted(
            {round(share * (len(by_budget[budget]) - 1)) for share in (1 / 6, 1 / 2, 5 / 6)}
        )
    ]


def _seeds(
    sweep: Sweep, places: set[tuple[float, int]], own: dict[str, float]
) -> dict[tuple[float, int], tuple[int, ...]]:
    seeds = dict.fromkeys(places, sweep.seeds)
    for i, replicate in enumerate(sweep.replicates):
        place = (own.get(budget_label(replicate.budget), replicate.budget), replicate.width)
        if place not in seeds:
            message = f"{place_label(*place)} is not in the plan{_nearest(*place, places)}"
            raise SchemaError(f"replicates[{i}]", message)
        twice = sorted(set(seeds[place]) & set(replicate.seeds))
        if twice:
            message = f"{place_label(*place)} has seed {twice[0]} already; leave it out"
            raise SchemaError(f"replicates[{i}].seeds", message)
        seeds[place] += replicate.seeds
    return seeds


def _nearest(budget: float, width: int, places: set[tuple[float, int]]) -> str:
    widths = sorted(there for at, there in places if at == budget)
    if widths:
        nearest = min(widths, key=lambda there: abs(there - width))
        return f"; the nearest width at this budget is {nearest}"
    budgets = [budget_label(at) for at in sorted({at for at, _ in places})]
    near = difflib.get_close_matches(budget_label(budget), budgets, n=1, cutoff=0.0)
    return f"; did you mean budget {near[0]}?" if near else ""
