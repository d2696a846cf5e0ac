"""A sweep's recipe with the sweep's vocabulary, window and scales, and with checked results."""

from __future__ import annotations

import math
from typing import Any

from isoflop.config.grid_schema import MAX_BUDGET_FLOPS
from isoflop.config.identity import budget_label
from isoflop.config.schema import Sweep
from isoflop.config.validation import SchemaError, format_value, require
from isoflop.errors import IsoflopError
from isoflop.recipes import Candidate, Dropped, Limits, RecipeLike, find_recipe
from isoflop.shapes import ModelShape
from isoflop.text import flops_text


class SweepRecipe:
    """A sweep's recipe. Any failure of a lab's own recipe becomes a one-line error.

    Attributes:
        sweep: sweep of the recipe.
        recipe: the recipe itself.
    """

    def __init__(self, sweep: Sweep, recipe: RecipeLike | None = None) -> None:
        """Take the recipe that the sweep names, or `recipe` instead.

        Raises:
            ConfigError: no such recipe, codec or tokenizer, or a recipe with an invalid name or
                version.
        """
        from isoflop.data.vocabulary import vocabulary_size

        self.sweep = sweep
        self.recipe: RecipeLike = recipe or find_recipe(sweep.recipe)
        self._vocab_size = vocabulary_size(sweep.data.codec, sweep.data.text_tokenizer)
        self._shapes: dict[int, ModelShape] = {}
        name, version = format_value(self.recipe.name), format_value(self.recipe.version)
        require(
            isinstance(self.recipe.name, str),
            "recipe",
            f"{sweep.recipe}: name: expected text, got {name}",
        )
        require(
            isinstance(self.recipe.version, int | str),
            "recipe",
            f"{sweep.recipe}: version: expected a whole number or text, got {version}",
        )

    def shape(self, width: int) -> ModelShape:
        """Return the model of a width.

        Raises:
            ConfigError: the recipe makes none.
        """
        if width not in self._shapes:
            label = f"width {width}"
            shape = self._call("shape", label, width, self._vocab_size, self.sweep.seq_len)
            if not isinstance(shape, ModelShape):
                fault = f"expected a ModelShape, got {format_value(shape)}"
                raise self._error("shape", label, fault)
            self._shapes[width] = shape
        return self._shapes[width]

    def solve(
        self,
        budget: float,
        shape: ModelShape,
        limits: Limits | None = None,
        lr_factor: float = 1.0,
        batch_factor: float = 1.0,
    ) -> Candidate | Dropped:
        """Return a model's training configuration at a budget, or the reason for dropping it.

        The factors multiply the sweep's own scales of learning rate and batch.

        Raises:
            ConfigError: the recipe fails.
        """
        train, label = self.sweep.train, point_label(budget, shape.width)
        scales = {
            "lr_scale": train.lr_scale * lr_factor,
            "batch_scale": train.batch_scale * batch_factor,
        }
        solution = self._call("solve", label, budget, shape, limits or Limits(), **scales)
        if (fault := _find_fault(solution)) is not None:
            raise self._error("solve", label, fault)
        return solution

    def _call(self, rule: str, label: str, *arguments: Any, **scales: float) -> Any:
        try:
            return getattr(self.recipe, rule)(*arguments, **scales)
        except IsoflopError:
            raise
        except Exception as problem:
            raise self._error(rule, label, f"{type(problem).__name__} ({problem})") from problem

    def _error(self, rule: str, label: str, message: str) -> SchemaError:
        return SchemaError("recipe", f"{self.sweep.recipe}: {rule} of {label}: {message}")


def point_label(budget: float, width: int) -> str:
    """Return the name of a point of the grid, e.g. `3e18 at width 768`."""
    return f"{budget_label(budget)} at width {width}"


def _find_fault(solution: object) -> str | None:
    """Return the fault of a recipe's result, or None."""
    if isinstance(solution, Dropped):
        return None
    if not isinstance(solution, Candidate):
        return f"expected a Candidate or Dropped, got {format_value(solution)}"
    if not isinstance(solution.shape, ModelShape):
        return f"shape: expected a ModelShape, got {format_value(solution.shape)}"
    for name in ("batch_size", "steps"):
        value = getattr(solution, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not 1 <= value <= MAX_BUDGET_FLOPS:
            return (
                f"{name}: expected a whole number (int) above 0 and up to "
                f"{flops_text(MAX_BUDGET_FLOPS)}, got {format_value(value)}"
            )
    if not isinstance(solution.lr, float) or not 0 < solution.lr < math.inf:
        return f"lr: expected a finite number (float) above 0, got {format_value(solution.lr)}"
    if not isinstance(solution.beta2, float | int) or not 0 <= solution.beta2 < 1:
        value = format_value(solution.beta2)
        return f"beta2: expected a number (float) from 0 to under 1, got {value}"
    return None
