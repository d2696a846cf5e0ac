"""A sweep's recipe as others ask it: with the sweep's vocabulary, window and scales, and its answers checked."""

from __future__ import annotations

import math
from typing import Any

from isoflop.config.identity import budget_label
from isoflop.config.schema import LARGEST_BUDGET, Sweep
from isoflop.config.validation import SchemaError, require, show
from isoflop.errors import IsoflopError
from isoflop.recipes import Candidate, Dropped, Limits, RecipeLike, find_recipe
from isoflop.shapes import ModelShape


class Rules:
    """What a sweep's recipe says of widths and budgets; a lab's own may fail in any way, which is one line here.

    Attributes:
        sweep: whose recipe it is.
        recipe: the rules themselves.
    """

    def __init__(self, sweep: Sweep, recipe: RecipeLike | None = None) -> None:
        """A sweep's own recipe, or another in its place.

        Raises:
            ConfigError: no such recipe, codec or tokenizer, or a recipe whose name or version is none.
        """
        from isoflop.data.vocabulary import vocabulary_size

        self.sweep = sweep
        self.recipe: RecipeLike = recipe or find_recipe(sweep.recipe)
        self._vocab_size = vocabulary_size(sweep.data.codec, sweep.data.text_tokenizer)
        self._shapes: dict[int, ModelShape] = {}
        name, version = show(self.recipe.name), show(self.recipe.version)
        require(
            isinstance(self.recipe.name, str),
            "recipe",
            f"{sweep.recipe}: name: expected text, got {name}",
        )
        message = f"{sweep.recipe}: version: expected a whole number or text, got {version}"
        require(isinstance(self.recipe.version, int | str), "recipe", message)

    def shape(self, width: int) -> ModelShape:
        """The model of a width.

        Raises:
            ConfigError: the recipe makes none.
        """
        if width not in self._shapes:
            where = f"width {width}"
            shape = self._ask("shape", where, width, self._vocab_size, self.sweep.seq_len)
            if not isinstance(shape, ModelShape):
                raise self._error("shape", where, f"expected a ModelShape, got {show(shape)}")
            self._shapes[width] = shape
        return self._shapes[width]

    def solve(
        self,
        budget: float,
        shape: ModelShape,
        limits: Limits | None = None,
        by_lr: float = 1.0,
        by_batch: float = 1.0,
    ) -> Candidate | Dropped:
        """How a model is trained at a budget, with factors on the sweep's own scales.

        Raises:
            ConfigError: the recipe fails.
        """
        train, where = self.sweep.train, place_label(budget, shape.width)
        scales = {"lr_scale": train.lr_scale * by_lr, "batch_scale": train.batch_scale * by_batch}
        solution = self._ask("solve", where, budget, shape, limits or Limits(), **scales)
        if (fault := _fault(solution)) is not None:
            raise self._error("solve", where, fault)
        return solution

    def _ask(self, rule: str, where: str, *arguments: Any, **scales: float) -> Any:
        try:
            return getattr(self.recipe, rule)(*arguments, **scales)
        except IsoflopError:
            raise
        except Exception as problem:
            raise self._error(rule, where, f"{type(problem).__name__} ({problem})") from problem

    def _error(self, rule: str, where: str, message: str) -> SchemaError:
        return SchemaError("recipe", f"{self.sweep.recipe}: {rule} of {where}: {message}")


def place_label(budget: float, width: int) -> str:
    """E.g. `3e18 at width 768`."""
    return f"{budget_label(budget)} at width {width}"


def _fault(solution: object) -> str | None:
    """What is wrong with a recipe's answer, in words."""
    if isinstance(solution, Dropped):
        return None
    if not isinstance(solution, Candidate):
        return f"expected a Candidate or Dropped, got {show(solution)}"
    if not isinstance(solution.shape, ModelShape):
        return f"shape: expected a ModelShape, got {show(solution.shape)}"
    for name in ("batch_size", "steps"):
        value = getattr(solution, name)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 1 <= value <= LARGEST_BUDGET
        ):
            return f"{name}: expected a whole number (int) above 0 and up to {LARGEST_BUDGET:g}, got {show(value)}"
    if not isinstance(solution.lr, float) or not 0 < solution.lr < math.inf:
        return f"lr: expected a finite number (float) above 0, got {show(solution.lr)}"
    if not isinstance(solution.beta2, float | int) or not 0 <= solution.beta2 < 1:
        return f"beta2: expected a number (float) from 0 to under 1, got {show(solution.beta2)}"
    return None
