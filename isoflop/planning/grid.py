"""The IsoFLOP grid: which budgets and widths are run, with which seeds, and what the rules drop."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from isoflop.config.identity import budget_label
from isoflop.config.schema import Replicate, Sweep
from isoflop.config.typed import SchemaError
from isoflop.recipes import Candidate, Dropped, Limits, RecipeLike
from isoflop.shapes import ModelShape

MOST_TOKENS = 2**63 - 1
CHECKS = {"lr x 0.5": (0.5, 1.0), "lr x 2": (2.0, 1.0), "batch x 0.5": (1.0, 0.5), "batch x 2": (1.0, 2.0)}
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
        return _label(self.budget, self.width)


@dataclass(frozen=True)
class Grid:
    """The points that are run, by budget and width, and the candidates of the rules that are not."""

    points: tuple[GridPoint, ...]
    dropped: tuple[Dropped, ...]


def lay_out(sweep: Sweep, recipe: RecipeLike, vocab_size: int) -> Grid:
    """Solves every candidate of a sweep.

    Extra points keep to the recipe but not to `min_batch` and `max_steps` (as SODA's hand-set points);
    one that names a candidate the rules dropped brings it back.

    Raises:
        SchemaError: a point given twice, an extra point that has no solution, or a replicate of no point.
    """
    limits = Limits(sweep.min_batch, sweep.max_steps)
    shapes: dict[int, ModelShape] = {}

    def solve(budget: float, width: int, limits: Limits) -> Candidate | Dropped:
        if width not in shapes:
            shapes[width] = recipe.shape(width, vocab_size, sweep.seq_len)
        scales = {"lr_scale": sweep.train.lr_scale, "batch_scale": sweep.train.batch_scale}
        solution = recipe.solve(budget, shapes[width], limits, **scales)
        if isinstance(solution, Candidate) and solution.tokens > MOST_TOKENS:
            message = f"{_label(budget, width)} would take {solution.tokens:.2g} tokens, more than a table can hold"
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
        place = (point.budget, point.width)
        if place in kept:
            raise SchemaError(f"extra[{i}]", f"{_label(*place)} is in the plan already; leave it out")
        solution = solve(*place, Limits())
        if isinstance(solution, Dropped):
            raise SchemaError(f"extra[{i}]", f"{_label(*place)} can't be run: {solution.detail}")
        dropped.pop(place, None)
        kept[place] = solution

    seeds = _seeds(sweep, set(kept))
    points = tuple(GridPoint(place[0], kept[place], seeds[place]) for place in sorted(kept))
    if sweep.recipe_check:
        points += _checks(sweep, recipe, kept)
    return Grid(points, tuple(dropped[place] for place in sorted(dropped)))


def _checks(sweep: Sweep, recipe: RecipeLike, kept: dict[tuple[float, int], Candidate]) -> tuple[GridPoint, ...]:
    """Each of some points at half and double learning rate, and batch; exempt from the limits, as extra points are.

    A batch that can't be halved is left out: one side shows less, but no less truly.
    """
    train, points = sweep.train, []
    for budget, width in _checked(set(kept)):
        for check, (by_lr, by_batch) in CHECKS.items():
            scales = {"lr_scale": train.lr_scale * by_lr, "batch_scale": train.batch_scale * by_batch}
            solution = recipe.solve(budget, kept[budget, width].shape, Limits(), **scales)
            if isinstance(solution, Candidate):
                points.append(GridPoint(budget, solution, sweep.seeds[:1], check))
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
    chosen = sorted({min(fit), max(budget for budget in fit if budget <= CHECK_UP_TO * min(fit))}) if fit else []
    return [
        (budget, by_budget[budget][i])
        for budget in chosen
        for i in sorted({round(share * (len(by_budget[budget]) - 1)) for share in (1 / 6, 1 / 2, 5 / 6)})
    ]


def _seeds(sweep: Sweep, places: set[tuple[float, int]]) -> dict[tuple[float, int], tuple[int, ...]]:
    seeds = dict.fromkeys(places, sweep.seeds)
    for i, replicate in enumerate(sweep.replicates):
        place = (replicate.budget, replicate.width)
        if place not in seeds:
            message = f"{_label(*place)} is not in the plan{_nearest(replicate, places)}"
            raise SchemaError(f"replicates[{i}]", message)
        twice = sorted(set(seeds[place]) & set(replicate.seeds))
        if twice:
            message = f"{_label(*place)} has seed {twice[0]} already; leave it out"
            raise SchemaError(f"replicates[{i}].seeds", message)
        seeds[place] += replicate.seeds
    return seeds


def _nearest(replicate: Replicate, places: set[tuple[float, int]]) -> str:
    widths = sorted(width for budget, width in places if budget == replicate.budget)
    if widths:
        nearest = min(widths, key=lambda width: abs(width - replicate.width))
        return f"; the nearest width at this budget is {nearest}"
    budgets = [budget_label(budget) for budget in sorted({budget for budget, _ in places})]
    near = difflib.get_close_matches(budget_label(replicate.budget), budgets, n=1, cutoff=0.0)
    return f"; did you mean budget {near[0]}?" if near else ""


def _label(budget: float, width: int) -> str:
    return f"{budget_label(budget)} at width {width}"
