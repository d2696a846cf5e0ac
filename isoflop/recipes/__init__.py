"""Recipes: from a width and a compute budget to a complete training configuration.

A recipe is data (the constants of its rules, each with its source) and one small function (width to
depth). The planner uses only `name`, `version`, `shape` and `solve`, so a lab's own recipe is a
`Recipe` with other numbers, or any object with those four. A sweep names it as
`recipe: package.module:attribute`.
"""

from isoflop.recipes.recipe_lookup import find_recipe
from isoflop.recipes.rules import (
    BatchRule,
    Beta2Rule,
    Candidate,
    Dropped,
    DropReason,
    LearningRateRule,
    Limits,
    Recipe,
    RecipeLike,
    Unit,
)
from isoflop.recipes.shipped_recipes import (
    POCKET,
    RECIPES,
    SODA,
    pocket_depth,
    pocket_heads,
    soda_depth,
    soda_heads,
)

__all__ = [
    "POCKET",
    "RECIPES",
    "SODA",
    "BatchRule",
    "Beta2Rule",
    "Candidate",
    "DropReason",
    "Dropped",
    "LearningRateRule",
    "Limits",
    "Recipe",
    "RecipeLike",
    "Unit",
    "find_recipe",
    "pocket_depth",
    "pocket_heads",
    "soda_depth",
    "soda_heads",
]
