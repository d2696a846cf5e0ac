"""A recipe with one diverging model: the widest one of the smallest budget."""

from __future__ import annotations

import dataclasses

from isoflop.recipes import POCKET, Candidate, Dropped, Limits, Recipe
from isoflop.shapes import ModelShape

NO_LIMITS = Limits()
DIVERGING_BUDGET, DIVERGING_WIDTH = 2.5e8, 16


class DivergingRecipe(Recipe):
    """The pocket recipe, with a learning rate of 1e30 for one model."""

    def solve(
        self, budget: float, shape: ModelShape, limits: Limits = NO_LIMITS, **scales: float
    ) -> Candidate | Dropped:
        solution = super().solve(budget, shape, limits, **scales)
        if isinstance(solution, Candidate) and (budget, shape.width) == (
            DIVERGING_BUDGET,
            DIVERGING_WIDTH,
        ):
            return dataclasses.replace(solution, lr=1e30)
        return solution


RECIPE = DivergingRecipe(
    **{
        **{field.name: getattr(POCKET, field.name) for field in dataclasses.fields(POCKET)},
        "name": "diverging",
    }
)
