"""The IsoFLOP grid: budgets and widths to run, their seeds, and the candidates that are dropped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from isoflop.config.identity import budget_label
from isoflop.config.schema import Sweep
from isoflop.config.validation import SchemaError
from isoflop.planning.sweep_recipe import SweepRecipe, point_label
from isoflop.recipes import Candidate, Dropped, Limits
from isoflop.text import count_text

MAX_TOKENS = 2**63 - 1
CHECK_FACTORS = {
    "lr x 0.5": (0.5, 1.0),
    "lr x 2": (2.0, 1.0),
    "batch x 0.5": (1.0, 0.5),
    "batch x 2": (1.0, 2.0),
}
"""Factors on learning rate and batch of the runs that check a recipe."""

MAX_CHECK_BUDGET_RATIO = 10.0 * (1.0 + 1e-9)
"""Budget over the smallest one up to which the recipe is checked, 10 with tolerance."""

CHECK_POSITIONS = (1 / 6, 1 / 2, 5 / 6)
"""Positions of the checked sizes among a budget's sizes, from 0 to 1."""

Position = tuple[float, int]
"""Budget and width."""


@dataclass(frozen=True)
class GridPoint:
    """A point of the grid: a training configuration at a budget, run once per seed.

    `check` names the difference from the recipe, such as `lr x 0.5`; it is empty except for the
    points of `recipe_check`.
    """

    budget: float
    candidate: Candidate
    seeds: tuple[int, ...]
    check: str = ""

    @property
    def width(self) -> int:
        """Return the width of the model."""
        return self.candidate.shape.width

    @property
    def label(self) -> str:
        """Name of the point, e.g. `3e18 at width 768`."""
        return point_label(self.budget, self.width)


@dataclass(frozen=True)
class Grid:
    """Points to run, by budget and width, and the candidates that the rules drop."""

    points: tuple[GridPoint, ...]
    dropped: tuple[Dropped, ...]


def build_grid(recipe: SweepRecipe) -> Grid:
    """Solve every candidate of a sweep.

    Extra points are exempt from `min_batch` and `max_steps`, like SODA's hand-set points; an extra
    point restores a candidate that the rules dropped. Budgets that differ only by rounding are the
    same: extra points and replicates take the grid's.

    Raises:
        SchemaError: a budget or a point given twice, an extra point without a solution, a replicate
            of no point, or a lab's recipe that fails.
    """
    sweep = recipe.sweep
    limits, budgets = Limits(sweep.min_batch, sweep.max_steps), _budgets_by_label(sweep.budgets)

    def solve(budget: float, width: int, limits: Limits) -> Candidate | Dropped:
        solution = recipe.solve(budget, recipe.shape(width), limits)
        if isinstance(solution, Candidate) and solution.tokens > MAX_TOKENS:
            raise SchemaError(
                "budgets",
                f"{point_label(budget, width)} would take {count_text(solution.tokens)} tokens, "
                "more than a table can hold; lower the budget or start with wider models",
            )
        return solution

    candidates: dict[Position, Candidate] = {}
    dropped: dict[Position, Dropped] = {}
    for budget in sweep.budgets:
        for width in sweep.widths_at(budget):
            solution = solve(budget, width, limits)
            if isinstance(solution, Dropped):
                dropped[budget, width] = solution
            else:
                candidates[budget, width] = solution

    for i, extra in enumerate(sweep.extra):
        position = (budgets.setdefault(budget_label(extra.budget), extra.budget), extra.width)
        label = point_label(*position)
        if position in candidates:
            raise SchemaError(f"extra[{i}]", f"{label} is in the plan already; leave it out")
        solution = solve(*position, Limits())
        if isinstance(solution, Dropped):
            raise SchemaError(f"extra[{i}]", f"{label} can't be run: {solution.detail}")
        dropped.pop(position, None)
        candidates[position] = solution

    seeds = _seeds_by_position(sweep, candidates, budgets)
    points = tuple(
        GridPoint(position[0], candidates[position], seeds[position])
        for position in sorted(candidates)
    )
    if sweep.recipe_check:
        points += _check_points(recipe, candidates)
    return Grid(points, tuple(dropped[position] for position in sorted(dropped)))


def _budgets_by_label(budgets: Iterable[float]) -> dict[str, float]:
    by_label: dict[str, float] = {}
    for budget in budgets:
        label = budget_label(budget)
        if label in by_label:
            raise SchemaError(
                "budgets",
                f"{by_label[label]!r} and {budget!r} differ only by rounding and would both be "
                f"{label}; leave one out",
            )
        by_label[label] = budget
    return by_label


def _check_points(
    recipe: SweepRecipe, candidates: dict[Position, Candidate]
) -> tuple[GridPoint, ...]:
    """Return some points at half and double learning rate, and at half and double batch.

    They are exempt from the limits, like extra points. A batch that can't be halved is left out:
    one side then shows less, but nothing false.
    """
    points = []
    for budget, width in _checked_positions(candidates):
        for check, factors in CHECK_FACTORS.items():
            solution = recipe.solve(budget, candidates[budget, width].shape, Limits(), *factors)
            if isinstance(solution, Candidate):
                points.append(GridPoint(budget, solution, recipe.sweep.seeds[:1], check))
    return tuple(points)


def _checked_positions(positions: Iterable[Position]) -> list[Position]:
    """Return a small, a middle and a large size of two budgets: the smallest, and the largest up to
    10 times that.

    The ends of the middle two thirds of a budget's sizes lie near its optimum in a grid that
    brackets it. Budgets are small because an error that depends on the size shows there too, at a
    small share of the study's cost.
    """
    widths_by_budget: dict[float, list[int]] = {}
    for budget, width in sorted(positions):
        widths_by_budget.setdefault(budget, []).append(width)
    budgets = [budget for budget, widths in widths_by_budget.items() if len(widths) >= 3]
    if not budgets:
        return []
    smallest = min(budgets)
    largest = max(b for b in budgets if b <= MAX_CHECK_BUDGET_RATIO * smallest)
    checked = []
    for budget in sorted({smallest, largest}):
        widths = widths_by_budget[budget]
        indices = {round(position * (len(widths) - 1)) for position in CHECK_POSITIONS}
        checked += [(budget, widths[i]) for i in sorted(indices)]
    return checked


def _seeds_by_position(
    sweep: Sweep, positions: Iterable[Position], budgets: dict[str, float]
) -> dict[Position, tuple[int, ...]]:
    seeds = dict.fromkeys(positions, sweep.seeds)
    for i, replicate in enumerate(sweep.replicates):
        budget = budgets.get(budget_label(replicate.budget), replicate.budget)
        position = (budget, replicate.width)
        label = point_label(*position)
        if position not in seeds:
            raise SchemaError(
                f"replicates[{i}]", f"{label} is not in the plan{_nearest_point(*position, seeds)}"
            )
        repeated = sorted(set(seeds[position]) & set(replicate.seeds))
        if repeated:
            raise SchemaError(
                f"replicates[{i}].seeds", f"{label} has seed {repeated[0]} already; leave it out"
            )
        seeds[position] += replicate.seeds
    return seeds


def _nearest_point(budget: float, width: int, positions: Iterable[Position]) -> str:
    """Return a hint at the nearest width of a budget or the nearest budget, e.g. `; did you mean
    budget 3e18?`.
    """
    positions = list(positions)
    widths = sorted(planned for at_budget, planned in positions if at_budget == budget)
    if widths:
        nearest = min(widths, key=lambda planned: abs(planned - width))
        return f"; the nearest width at this budget is {nearest}"
    labels = [budget_label(planned) for planned in sorted({planned for planned, _ in positions})]
    matches = difflib.get_close_matches(budget_label(budget), labels, n=1, cutoff=0.0)
    return f"; did you mean budget {matches[0]}?" if matches else ""
