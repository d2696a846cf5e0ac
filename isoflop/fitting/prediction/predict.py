"""Prediction at a budget: N*, D* and the loss by each law, the width of the optimum, and one run to
train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from isoflop.config.schema import Sweep
from isoflop.errors import FitError
from isoflop.fitting.comparison import gap_text, no_law_notes
from isoflop.fitting.estimators.intervals import Interval, check_confidence, exponential
from isoflop.fitting.estimators.token_cost import SIX_ND_COST, TokenCost
from isoflop.fitting.fitfile.read import FitFile, load_fit, named_laws
from isoflop.fitting.prediction.notes import (
    cost_note,
    distance_notes,
    undetermined_note,
    unknown_error_note,
)
from isoflop.fitting.prediction.optimum import Optimum, optimum_over_models, optimum_over_sizes
from isoflop.fitting.prediction.recipe_models import RecipeModels, find_sweep, one_run_yaml
from isoflop.fitting.results.fitted_laws import Laws
from isoflop.fitting.results.surface_law import SurfaceLawEstimate
from isoflop.fitting.terms import ENDS, STATISTICAL
from isoflop.frames import cell, records
from isoflop.json_values import to_json_value
from isoflop.planning.plan import Plan
from isoflop.shapes import ModelShape
from isoflop.text import count_text, flops_text

METHOD_PREFERENCE = ("parametric", "joint", "isoflop", "envelope")
"""Order of preference between methods whose N* is equally certain: first the law that has costs and
losses.
"""


@dataclass(frozen=True, eq=False)
class MethodPrediction:
    """Prediction of one law at a budget.

    Attributes:
        name: name of the law.
        law: the law.
        table: rows params, tokens and, where the law has it, loss (nats per token); columns value,
            low, high (with the law's own error beyond its runs, as far as it is known),
            statistical_low, statistical_high (valid if the law is true).
        optimum: optimum of the parametric law, over the recipe's models and their FLOPs if the
            recipe is known, else over all sizes at the runs' cost of a token; None for another
            method. `table` belongs to it.
        over_sizes: rows as in `table`, over all sizes; None unless `optimum` is over models.
        shape: the recipe's model at the optimum: the best one, or the one with N nearest to N*;
            None without a recipe.
    """

    name: str
    law: Laws
    table: pd.DataFrame
    optimum: Optimum | None
    over_sizes: pd.DataFrame | None
    shape: ModelShape | None

    def has_model_error(self, flops: float) -> bool:
        """Return whether low and high include the law's own error at the budget; true for a law
        without intervals.
        """
        return math.isnan(cell(self.table, "params", "low")) or self.law.has_model_error(flops)

    @property
    def cost(self) -> TokenCost:
        """Cost of a token by the law's runs; C = 6ND for a law that needs none."""
        estimate = self.law.law_estimate
        return estimate.cost if isinstance(estimate, SurfaceLawEstimate) else SIX_ND_COST

    @property
    def extrapolates_cost(self) -> bool:
        """True if N* lies where the runs do not show the cost of a token, and no recipe does."""
        low, high = self.cost.size_range
        return self.over_sizes is None and not low <= self.size().value <= high

    def size(self) -> Interval:
        """Return N*, with the interval that includes the law's own error."""
        return Interval(*(cell(self.table, "params", end) for end in ENDS))

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        entry: dict[str, Any] = {
            "law": self.name,
            "method": self.law.method,
            "n": self.law.n,
            **_quantities(self.table),
        }
        entry["width"] = None if self.shape is None else self.shape.width
        if self.optimum is None:
            return entry
        entry["over"] = "shapes"
        if self.over_sizes is None:
            entry["over"] = "6ND" if self.cost.is_six_nd else "table"
        else:
            entry["over_sizes"] = _quantities(self.over_sizes)
            entry["closed_form"] = entry["over_sizes"]  # the name in 0.1, for one release
        entry["near_optimal"] = [vars(sizes) for sizes in self.optimum.near_optimal]
        entry["equal_loss"] = [other._asdict() for other in self.optimum.equal_loss]
        return entry


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of all laws of a file at a budget.

    Attributes:
        flops: the budget, training FLOPs.
        confidence: level of the intervals.
        methods: a prediction for each law.
        chosen: the prediction whose optimum `configuration` trains.
        configuration: the plan of one run; None if no recipe is known.
        notes: limits of the prediction, a line each.
    """

    flops: float
    confidence: float
    methods: tuple[MethodPrediction, ...]
    chosen: MethodPrediction
    configuration: Plan | None
    notes: tuple[str, ...]

    @property
    def gap(self) -> str:
        """Sentence on the ratio between the largest and the smallest N* of the laws; empty for one
        law.
        """
        return gap_text({method.name: method.size() for method in self.methods}, self.flops)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each law and quantity (params, tokens, loss); columns value, low, high,
        statistical_low, statistical_high.
        """
        return pd.concat({method.name: method.table for method in self.methods}, names=["law"])

    def yaml(self) -> str:
        """Return the configuration as a sweep file of one run, for `sweep-plan` and `isoflop run`.

        Raises:
            FitError: no recipe is known.
        """
        if self.configuration is None:
            raise FitError(
                "a training configuration needs a recipe: give --recipe soda, or a sweep file"
            )
        law, table = self.chosen, self.chosen.table
        size, data = (count_text(cell(table, name, "value")) for name in ("params", "tokens"))
        optimum = f"N* {size}, D* {data}"
        if "loss" in table.index:
            optimum += f", loss {cell(table, 'loss', 'value'):.4f}"
        comments = [
            f"One run of {flops_text(self.flops)} training FLOPs, written by isoflop predict.",
            f"By the law {law.name}: {optimum}.",
            "Plan it with `sweep-plan FILE`; train it with `isoflop run FILE`, on a cluster with "
            "`isoflop submit`.",
        ]
        return one_run_yaml(self.configuration, comments)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        run = None if self.configuration is None else self.configuration.rows()[0]
        document = {
            "flops": self.flops,
            "confidence": self.confidence,
            "laws": [method.to_dict() for method in self.methods],
            "gap": self.gap,
            "chosen": self.chosen.name,
            "configuration": run,
            "yaml": None if self.configuration is None else self.yaml(),
            "notes": list(self.notes),
        }
        return to_json_value(document)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(float_format=lambda v: f"{v:.4g}")


def predict(
    fit: Laws | FitFile | Sequence[Laws] | str | Path,
    flops: float,
    *,
    recipe: str | Path | Sweep | None = None,
    method: str | None = None,
    confidence: float | None = None,
) -> Prediction:
    """Predict N*, D* and the loss at a budget by each law, and plan one run of the most certain
    optimum.

    Args:
        fit: a fit, several, a fit.json or the name of a known law (see `load_fit`).
        flops: the budget in training FLOPs.
        recipe: a sweep file, the name of a shipped one, or a Sweep, for the models to choose from;
            by default the sweep of the runs, if the file has it.
        method: the method whose optimum is trained; by default the law whose N* has the narrowest
            interval with its own error. A fit that is no law, or has skewed profiles (see `skew`),
            is taken only if there is no other.
        confidence: level of the intervals; by default the fit's.

    Raises:
        FitError: no fit, no budget, a method that was not fitted, no law with an optimum at the
            budget, or a budget too small for the recipe.
        ConfigError: no such recipe.
    """
    if not (math.isfinite(flops) and flops > 0.0):
        raise FitError("a budget is a number of FLOPs above 0")
    if isinstance(fit, str | Path):
        fit = load_fit(fit)
    fit_sweep = fit.sweep if isinstance(fit, FitFile) else None
    notes = list(fit.notes) if isinstance(fit, FitFile) else []
    laws = named_laws([fit] if isinstance(fit, Laws) else list(fit))
    if not laws:
        raise FitError("there is no law to predict by")
    sweep = fit_sweep if recipe is None else find_sweep(recipe, fit_sweep)
    level = next(iter(laws.values())).confidence if confidence is None else confidence
    check_confidence(level)
    tables = {name: law.predict(flops, level) for name, law in laws.items()}
    unusable = [name for name, table in tables.items() if not _has_optimum(table)]
    notes += [undetermined_note(name, flops) for name in unusable]
    methods = tuple(
        _predict_method(name, law, tables[name], flops, sweep, level)
        for name, law in laws.items()
        if name not in unusable
    )
    if not methods:
        raise FitError(
            f"no law has an optimum at {flops_text(flops)} FLOPs: the runs do not determine it"
        )
    chosen = _choose(methods, method)
    notes += no_law_notes(laws)
    notes += distance_notes(flops, laws)
    notes += [cost_note(m.name, m.cost) for m in methods if m.extrapolates_cost]
    notes += [unknown_error_note(m.name, m.law) for m in methods if not m.has_model_error(flops)]
    configuration = None
    if sweep is None:
        notes.append("no recipe is known, so there is no training configuration; give --recipe")
    else:
        models, shape = RecipeModels(sweep, chosen.law.n), cast(ModelShape, chosen.shape)
        configuration = models.train_nearest(flops, shape)
        notes += configuration.warnings
        if configuration.runs[0].shape != chosen.shape:
            notes.append(
                "the recipe can't train the best model at this budget; the configuration is the "
                "next best"
            )
    return Prediction(float(flops), level, methods, chosen, configuration, tuple(notes))


def _has_optimum(table: pd.DataFrame) -> bool:
    """Return whether N* and D* are finite: if the runs do not determine a law, they may not be."""
    return all(0.0 < cell(table, name, "value") < math.inf for name in ("params", "tokens"))


def _predict_method(
    name: str, law: Laws, table: pd.DataFrame, flops: float, sweep: Sweep | None, confidence: float
) -> MethodPrediction:
    """Return the prediction of one law; `table` is its `Laws.predict` at the budget."""
    models = None if sweep is None else RecipeModels(sweep, law.n)
    estimate = law.law_estimate
    if not isinstance(estimate, SurfaceLawEstimate):
        shape = None if models is None else models.nearest(cell(table, "params", "value"))
        return MethodPrediction(name, law, table, None, None, shape)
    if models is None:
        best = optimum_over_sizes(estimate, flops)
        return MethodPrediction(name, law, table, best, None, None)
    best = optimum_over_models(estimate, flops, models)
    intervals = best.intervals(estimate, flops, confidence)
    best_table = _prediction_table(intervals, law, flops, confidence)
    return MethodPrediction(name, law, best_table, best, table, best.shape)


def _prediction_table(
    inner: dict[str, Interval], law: Laws, flops: float, confidence: float
) -> pd.DataFrame:
    """Return rows as in `Laws.predict` from intervals of logarithms."""
    rows = {}
    for name, interval in inner.items():
        outer = law.widen(interval, name, flops, confidence)
        rows[name] = [*exponential(outer), *exponential(interval)[1:]]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[*ENDS, *STATISTICAL])
    frame.index.name = "quantity"
    return frame


def _choose(methods: Sequence[MethodPrediction], name: str | None) -> MethodPrediction:
    if name is None:
        return min(methods, key=_uncertainty)
    chosen = next((m for m in methods if name in (m.law.method, m.name)), None)
    if chosen is None:
        raise FitError(
            f"there is no law by {name!r}; there is {', '.join(m.name for m in methods)}"
        )
    return chosen


def _uncertainty(method: MethodPrediction) -> tuple[bool, bool, bool, float, int]:
    """Return a sort key, most trustworthy first: a valid law, unskewed profiles, a hold-out error,
    a narrow interval of N*.
    """
    _, low, high = method.size()
    width = math.log(high / low) if low > 0.0 and math.isfinite(high) else math.inf
    return (
        bool(method.law.no_law),
        any(finding["code"] == "skewed" for finding in method.law.diagnostics),
        method.law.rollout is None,
        width,
        METHOD_PREFERENCE.index(method.law.method),
    )


def _quantities(table: pd.DataFrame) -> dict[str, Any]:
    quantities = {}
    for name, row in zip(table.index, records(table), strict=True):
        quantities[str(name)] = {
            "value": row["value"],
            "statistical": [row["statistical_low"], row["statistical_high"]],
            "with_model_error": [row["low"], row["high"]],
        }
    return quantities
