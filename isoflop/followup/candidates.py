"""Candidate points of a sweep: budgets and widths solved into training configurations."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from isoflop.config.schema import Sweep
from isoflop.errors import ConfigError
from isoflop.planning.grid import MAX_TOKENS
from isoflop.planning.plan import count_epochs
from isoflop.planning.sweep_recipe import SweepRecipe
from isoflop.recipes import Candidate, Dropped, Limits
from isoflop.shapes import ParamCount

MAX_WIDTH_FACTOR = 2.0
"""Widest candidate, relative to the widest model of the sweep."""
MAX_CANDIDATE_WIDTHS = 64
"""Number of candidate widths besides those of the sweep."""
BUDGET_STEP_FACTOR = 10.0**0.25
BUDGET_STEPS_ABOVE = 4
"""New budgets above the largest, up to a decade: beyond it the law can't be trusted to select."""
MAX_BUDGET_GAP_FACTOR = 1.5
"""Adjacent budgets further apart than this get a candidate between them."""


@dataclass(frozen=True)
class CandidatePoint:
    """A budget and a training configuration that could be run at it."""

    budget: float
    candidate: Candidate

    @property
    def width(self) -> int:
        """Return the width of the model."""
        return self.candidate.shape.width

    @property
    def key(self) -> tuple[float, int]:
        """Return budget and width, which identify the point."""
        return self.budget, self.width

    @property
    def tokens(self) -> int:
        """Return the training tokens."""
        return self.candidate.tokens

    @property
    def train_flops(self) -> int:
        """Return the training FLOPs of the whole run (3 x forward)."""
        return self.candidate.train_flops

    def params(self, n: ParamCount) -> int:
        """Return the parameter count `n`."""
        return getattr(self.candidate.shape, f"params_{n}")


def candidate_widths(sweep: Sweep) -> tuple[int, ...]:
    """Return the widths of the sweep and multiples of their greatest common divisor, ascending.

    The widest is `MAX_WIDTH_FACTOR` times the sweep's widest. Multiples of the divisor keep to the
    multiples that heads and GPUs require.
    """
    widths = {width for budget in sweep.budgets for width in sweep.widths_at(budget)}
    widths |= {point.width for point in sweep.extra}
    unit, widest = math.gcd(*widths), int(MAX_WIDTH_FACTOR * max(widths))
    lattice = np.arange(max(1, min(widths) // unit), widest // unit + 1) * unit
    picks = np.unique(
        np.searchsorted(lattice, np.geomspace(lattice[0], lattice[-1], MAX_CANDIDATE_WIDTHS))
    )
    return tuple(sorted(widths | {int(lattice[i]) for i in picks}))


def candidate_budgets(sweep: Sweep) -> tuple[float, ...]:
    """Return the sweep's budgets, one in each wide gap between them, and some moderately above."""
    budgets = sorted({*sweep.budgets, *(point.budget for point in sweep.extra)})
    between = [
        _round_budget(math.sqrt(low * high))
        for low, high in itertools.pairwise(budgets)
        if high / low > MAX_BUDGET_GAP_FACTOR
    ]
    above = [
        _round_budget(budgets[-1] * BUDGET_STEP_FACTOR**step)
        for step in range(1, BUDGET_STEPS_ABOVE + 1)
    ]
    return tuple(sorted({*budgets, *between, *above}))


def list_candidate_points(sweep: Sweep) -> list[CandidatePoint]:
    """Return all points within the recipe's rules and the sweep's limits, by budget and width.

    Points with more epochs of a source than `data.max_epochs` are left out: repeated data teach
    less, which no law of N and D contains.
    """
    recipe, limits = SweepRecipe(sweep), Limits(sweep.min_batch, sweep.max_steps)
    points = []
    for budget, width in itertools.product(candidate_budgets(sweep), candidate_widths(sweep)):
        try:
            solved = recipe.solve(budget, recipe.shape(width), limits)
        except ConfigError:
            continue  # a custom recipe may support only the points of its sweep
        if isinstance(solved, Dropped) or solved.tokens > MAX_TOKENS:
            continue
        epochs = max(count_epochs(sweep.data, solved.tokens).values(), default=0.0)
        if epochs <= sweep.data.max_epochs:
            points.append(CandidatePoint(budget, solved))
    return points


def _round_budget(budget: float) -> float:
    """Return a budget in two digits."""
    return float(f"{budget:.1e}")
