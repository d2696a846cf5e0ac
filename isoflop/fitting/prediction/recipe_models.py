"""Models of a recipe: their sizes, their FLOPs, and the plan of one run at a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from isoflop.config.grid_schema import MAX_WIDTH, WidthRule
from isoflop.config.identity import budget_label
from isoflop.config.schema import Sweep
from isoflop.config.sweep_file import load_sweep, to_mapping
from isoflop.config.yaml_values import portable_dumper
from isoflop.errors import ConfigError, FitError
from isoflop.planning.plan import Plan, plan
from isoflop.planning.sweep_recipe import SweepRecipe
from isoflop.recipes import Candidate, find_recipe
from isoflop.shapes import ModelShape, ParamCount
from isoflop.text import count_text, flops_text

_WIDTH_RATIO = 1.015  # of successive widths searched: 3 to 5% in parameters
_MAX_SEARCHED_WIDTHS = 400  # widths searched between two others


@dataclass(frozen=True)
class RecipeModels:
    """Models of a sweep's recipe, of every width that is a multiple of the greatest common divisor
    of the sweep's widths.

    Attributes:
        sweep: source of the recipe, the window, the vocabulary and the training configuration.
        n: parameter count that N stands for.
    """

    sweep: Sweep
    n: ParamCount

    @cached_property
    def sweep_recipe(self) -> SweepRecipe:
        """The sweep's recipe."""
        return SweepRecipe(self.sweep)

    @cached_property
    def step(self) -> int:
        """Greatest common divisor of the sweep's widths."""
        widths = {width for budget in self.sweep.budgets for width in self.sweep.widths_at(budget)}
        return math.gcd(*widths, *(point.width for point in self.sweep.extra))

    def size(self, shape: ModelShape) -> int:
        """Return N of a shape."""
        return int(getattr(shape, f"params_{self.n}"))

    def shapes(self, least: float, most: float) -> list[ModelShape]:
        """Return the models from N = `least` to N = `most`, 1.5% or one step apart in width, and
        the next one on either side.

        Raises:
            FitError: the recipe has no such model.
        """
        shapes: list[ModelShape] = []
        for width in self._widths():
            shape = self._shape(width)
            if shape is None:
                continue
            if self.size(shape) < least:
                shapes = []
            shapes.append(shape)
            if self.size(shape) > most:
                break
        if not shapes:
            raise FitError(
                f"recipe {self.sweep.recipe}: has no model of {count_text(least)} to "
                f"{count_text(most)} parameters"
            )
        return shapes

    def between(self, first: int, last: int) -> list[ModelShape]:
        """Return the models of all widths from `first` to `last`; at most 400 of them, evenly
        spaced in width.
        """
        count = (last - first) // self.step + 1
        stride = self.step * max(1, -(-count // _MAX_SEARCHED_WIDTHS))
        shapes = (self._shape(width) for width in range(first, last + 1, stride))
        return [shape for shape in shapes if shape is not None]

    def nearest(self, size: float) -> ModelShape:
        """Return the model whose N is nearest to a size, in logarithms.

        Raises:
            FitError: the recipe has no such model.
        """

        def distance(shape: ModelShape) -> float:
            return abs(math.log(self.size(shape) / size))

        shapes = self.shapes(size, size)
        widths = [shape.width for shape in shapes]
        return min((shapes[0], *self.between(min(widths), max(widths))), key=distance)

    def train_nearest(self, budget: float, shape: ModelShape) -> Plan:
        """Return the plan of one run of a model, or of the nearest in size that the recipe can
        train at a budget.

        Raises:
            FitError: the recipe can train no model near that size at the budget.
        """
        size = self.size(shape)

        def distance(other: ModelShape) -> float:
            return abs(math.log(self.size(other) / size))

        others = sorted(self.shapes(size / 4.0, size * 4.0), key=distance)
        for candidate in (shape, *others):
            if isinstance(self.sweep_recipe.solve(budget, candidate), Candidate):
                return plan(self._one_run_sweep(budget, candidate.width))
        raise FitError(
            f"recipe {self.sweep.recipe}: can't train {count_text(size)} parameters with "
            f"{flops_text(budget)} FLOPs: whole steps miss the budget; predict for a larger one"
        )

    def _one_run_sweep(self, budget: float, width: int) -> Sweep:
        return dataclasses.replace(
            self.sweep,
            name=f"{self.sweep.name[:80]}-{budget_label(budget)}",
            budgets=(budget,),
            widths=(WidthRule(values=(width,)),),
            extra=(),
            replicates=(),
            seeds=(0,),
            min_batch=1,
            max_steps=None,
        )

    def _widths(self) -> Iterator[int]:
        """Yield the widths to search, ascending."""
        multiple = 1
        while multiple * self.step <= MAX_WIDTH:
            yield multiple * self.step
            multiple = max(multiple + 1, round(multiple * _WIDTH_RATIO))

    def _shape(self, width: int) -> ModelShape | None:
        """Return the recipe's model of a width; None if the recipe refuses the width."""
        recipe = self.sweep_recipe  # outside `try`: an unknown recipe is an error at any width
        try:
            return recipe.shape(width)
        except ConfigError:
            return None


def find_sweep(recipe: str | Path | Sweep, fit_sweep: Sweep | None) -> Sweep:
    """Return the sweep that a recipe is taken from.

    Args:
        recipe: a sweep file, the name of a shipped sweep or recipe, an own recipe
            (`module:attribute`), or a Sweep.
        fit_sweep: the sweep of the fit; an own recipe takes window, data and training from it.

    Raises:
        ConfigError: no such sweep or recipe, or an own recipe without a sweep.
    """
    if isinstance(recipe, Sweep):
        return recipe
    if ":" in str(recipe) and not Path(recipe).exists():
        find_recipe(str(recipe))
        if fit_sweep is None:
            raise ConfigError(
                f"recipe {recipe}: defines no window and no vocabulary; "
                "give a sweep file that uses it"
            )
        return dataclasses.replace(fit_sweep, recipe=str(recipe))
    if fit_sweep is not None and str(recipe) == fit_sweep.recipe:
        return fit_sweep
    return load_sweep(recipe)


def one_run_yaml(plan: Plan, comments: Sequence[str]) -> str:
    """Return the sweep file of one run: comments first, then the keys that differ from their
    defaults.
    """
    import yaml

    values = _without_defaults(to_mapping(plan.sweep), Sweep)
    values |= {"schema": plan.sweep.schema, "widths": [run.width for run in plan.runs]}
    first = ("schema", "name", "recipe", "seq_len", "budgets", "widths")
    ordered = {key: values.pop(key) for key in first} | values

    class Dumper(portable_dumper()):
        """Dumper that writes large and small numbers as 5.0e+13 and 1.0e-15."""

    def represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
        short = np.format_float_scientific(value, trim="0", exp_digits=1)
        text = short if value >= 1e6 or "e" in repr(value) else repr(value)
        return dumper.represent_scalar("tag:yaml.org,2002:float", text)

    Dumper.add_representer(float, represent_float)
    text = yaml.dump(
        ordered,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=120,
    )
    return "".join(f"# {line}\n" for line in comments) + text


def _without_defaults(values: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Return a mapping of a schema's keys without those that equal their defaults."""
    hints, changed = get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        if field.name not in values:
            continue
        value, default = values[field.name], field.default
        if isinstance(default, tuple):
            default = list(default)
        if dataclasses.is_dataclass(hints[field.name]):
            value = _without_defaults(value, hints[field.name])
            if not value:
                continue
        elif default is not dataclasses.MISSING and value == default:
            continue
        changed[field.name] = value
    return changed
