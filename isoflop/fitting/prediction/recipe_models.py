"""Models that a recipe can make: which sizes there are, what they cost, and how one of them is trained at a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from isoflop.config.identity import budget_label
from isoflop.config.schema import MAX_WIDTH, Sweep, WidthRule
from isoflop.config.sweep_definition import load_sweep, to_mapping
from isoflop.errors import ConfigError, FitError
from isoflop.planning.checked_recipe import Rules
from isoflop.planning.plan import Plan, plan
from isoflop.recipes import Candidate, find_recipe
from isoflop.shapes import ModelShape, ParamCount

Floats = np.ndarray
_SPACING = 1.015  # of the widths that are looked at: 1.5 % apart, which is 3 to 5 % in parameters
_MOST = 400  # widths beside each other that are looked at


@dataclass(frozen=True)
class Family:
    """The models of a sweep's recipe, of every width that is a multiple of what all of the sweep's widths are.

    Attributes:
        sweep: has the recipe, the window, the vocabulary and all that a training configuration needs.
        n: which parameter count is meant by N.
    """

    sweep: Sweep
    n: ParamCount

    @cached_property
    def rules(self) -> Rules:
        """The sweep's recipe."""
        return Rules(self.sweep)

    @cached_property
    def step(self) -> int:
        """The greatest number that all of the sweep's widths are multiples of."""
        widths = {width for budget in self.sweep.budgets for width in self.sweep.widths_at(budget)}
        return math.gcd(*widths, *(point.width for point in self.sweep.extra))

    def size(self, shape: ModelShape) -> int:
        """N of a shape."""
        return int(getattr(shape, f"params_{self.n}"))

    def shapes(self, least: float, most: float) -> list[ModelShape]:
        """Models from N = `least` to N = `most`, 1.5 % or one step apart in width, and the next one on either side."""
        found: list[ModelShape] = []
        for width in self._widths():
            shape = self._shape(width)
            if shape is None:
                continue
            if self.size(shape) < least:
                found = []
            found.append(shape)
            if self.size(shape) > most:
                break
        if not found:
            raise FitError(
                f"recipe {self.sweep.recipe}: has no model of {least:.3g} to {most:.3g} parameters"
            )
        return found

    def between(self, first: int, last: int) -> list[ModelShape]:
        """Models of all widths from one to another; where these are more than 400, some evenly among them."""
        count = (last - first) // self.step + 1
        stride = self.step * max(1, -(-count // _MOST))
        shapes = (self._shape(width) for width in range(first, last + 1, stride))
        return [shape for shape in shapes if shape is not None]

    def nearest(self, size: float) -> ModelShape:
        """The model whose N is nearest to a size, in logarithms."""

        def away(shape: ModelShape) -> float:
            return abs(math.log(self.size(shape) / size))

        shapes = self.shapes(size, size)
        widths = [shape.width for shape in shapes]
        return min((shapes[0], *self.between(min(widths), max(widths))), key=away)

    def train(self, budget: float, shapes: list[ModelShape]) -> Plan | None:
        """The plan of one run: of the first of some models that the recipe can train at a budget."""
        for shape in shapes:
            if isinstance(self.rules.solve(budget, shape), Candidate):
                return plan(self._sweep(budget, shape.width))
        return None

    def _sweep(self, budget: float, width: int) -> Sweep:
        """The sweep of one run."""
        name = f"{self.sweep.name[:80]}-{budget_label(budget)}"
        return dataclasses.replace(
            self.sweep, name=name, budgets=(budget,), widths=(WidthRule(values=(width,)),), extra=(), replicates=(),
            seeds=(0,), min_batch=1, max_steps=None,
        )  # fmt: skip

    def _widths(self) -> Iterator[int]:
        place = 1
        while place * self.step <= MAX_WIDTH:
            yield place * self.step
            place = max(place + 1, round(place * _SPACING))

    def _shape(self, width: int) -> ModelShape | None:
        rules = self.rules  # what keeps the recipe itself from being found is no matter of a width
        try:
            return rules.shape(width)
        except ConfigError:
            return None  # a lab's recipe need not make every width


def find_sweep(given: str | Path | Sweep, known: Sweep | None) -> Sweep:
    """The sweep that a recipe is taken from.

    Args:
        given: a sweep file, the name of a shipped sweep or recipe, a recipe of one's own (`module:attribute`), or a
            Sweep.
        known: the sweep of the fit; it gives window, data and training to a recipe of one's own.

    Raises:
        ConfigError: no such sweep or recipe, or a recipe alone.
    """
    if isinstance(given, Sweep):
        return given
    if ":" in str(given) and not Path(given).exists():
        find_recipe(str(given))
        if known is None:
            raise ConfigError(
                f"recipe {given}: has no window and vocabulary of its own; give a sweep file that uses it"
            )
        return dataclasses.replace(known, recipe=str(given))
    if known is not None and str(given) == known.recipe:
        return known
    return load_sweep(given)


def one_run_yaml(plan: Plan, comments: Sequence[str]) -> str:
    """A sweep of one run as a file, with comments above and without the keys that have their defaults."""
    import yaml

    values = _without_defaults(to_mapping(plan.sweep), Sweep)
    values |= {"schema": plan.sweep.schema, "widths": [run.width for run in plan.runs]}
    first = ("schema", "name", "recipe", "seq_len", "budgets", "widths")
    ordered = {key: values.pop(key) for key in first} | values

    class Dumper(yaml.SafeDumper):
        """Large numbers as 5.0e+13."""

    def number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
        short = np.format_float_scientific(value, trim="0", exp_digits=1)
        text = short if value >= 1e6 else repr(value)
        return dumper.represent_scalar("tag:yaml.org,2002:float", text)

    Dumper.add_representer(float, number)
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
    """A mapping of a schema's keys without those that have their defaults."""
    hints, kept = get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        if field.name not in values:
            continue
        value = values[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            value = _without_defaults(value, hints[field.name])
            if not value:
                continue
        elif field.default is not dataclasses.MISSING and value == (
            list(field.default) if isinstance(field.default, tuple) else field.default
        ):
            continue
        kept[field.name] = value
    return kept
