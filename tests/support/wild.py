"""A recipe of one's own, by which the smallest budget's widest model has a learning rate that no model survives."""

from __future__ import annotations

import dataclasses

from isoflop.recipes import POCKET, Candidate, Dropped, Limits, Recipe
from isoflop.shapes import ModelShape

LIMITS = Limits()


class Wild(Recipe):
    def solve(
        self, budget: float, shape: ModelShape, limits: Limits = LIMITS, **scales: float
    ) -> Candidate | Dropped:
        found = super().solve(budget, shape, limits, **scales)
        if isinstance(found, Candidate) and budget == 5e8 and shape.width == 16:
            return dataclasses.replace(found, lr=1e30)
        return found


RECIPE = Wild(
    **{
        **{item.name: getattr(POCKET, item.name) for item in dataclasses.fields(POCKET)},
        "name": "wild",
    }
)
