"""What to train with a budget: N*, D* and the loss by each law, how flat the optimum is, and one run to launch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from isoflop.config.schema import Sweep
from isoflop.errors import FitError
from isoflop.fitting.comparison import gap_text, no_law_notes
from isoflop.fitting.estimators.intervals import Interval, check_confidence, exponential
from isoflop.fitting.fitfile.read import FitFile, load_fit, named_laws
from isoflop.fitting.prediction.optimum import Optimum, closed_form, over_shapes
from isoflop.fitting.prediction.recipe_models import Family, find_sweep, one_run_yaml
from isoflop.fitting.results.fitted_laws import Laws
from isoflop.fitting.results.parametric_fit import SurfaceCore
from isoflop.fitting.terms import ENDS, STATISTICAL
from isoflop.frames import cell, records
from isoflop.json_values import plain
from isoflop.planning.plan import Plan
from isoflop.shapes import ModelShape
from isoflop.text import count_text, flops_text

ORDER = ("parametric", "joint", "isoflop", "envelope")
"""Whose optimum is trained where no interval says which N* is surest: the law that knows costs and losses first."""
FAR = 1.5
"""Decades beyond the budgets fitted, or below them, from which a prediction says how far it reaches."""


@dataclass(frozen=True, eq=False)
class MethodPrediction:
    """What one law says of a budget.

    Attributes:
        name: of the law.
        law: itself.
        table: rows params, tokens and, where the law has it, loss; columns value, low, high (with the law's own error
            beyond its runs, as far as it is known), statistical_low, statistical_high (right where the law is true).
        optimum: the parametric law's, over the recipe's models and their FLOPs where the recipe is known, else with
            C = 6ND; None for another method. `table` is its.
        closed_form: rows as `table`, with C = 6ND, where `optimum` is over models.
        shape: the recipe's model at the optimum: the best, or that with N nearest N*; None without a recipe.
    """

    name: str
    law: Laws
    table: pd.DataFrame
    optimum: Optimum | None
    closed_form: pd.DataFrame | None
    shape: ModelShape | None

    def own_error_known(self, flops: float) -> bool:
        """Whether low and high tell of the law's own error at the budget; true of a law without any interval."""
        return math.isnan(cell(self.table, "params", "low")) or self.law.own_error_known(flops)

    def size(self) -> Interval:
        """N* with the law's own error."""
        return Interval(*(cell(self.table, "params", end) for end in ENDS))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        own: dict[str, Any] = {
            "law": self.name,
            "method": self.law.method,
            "n": self.law.n,
            **_quantities(self.table),
        }
        own["width"] = None if self.shape is None else self.shape.width
        if self.optimum is None:
            return own
        own["over"] = "6ND" if self.closed_form is None else "shapes"
        if self.closed_form is not None:
            own["closed_form"] = _quantities(self.closed_form)
        own["near_optimal"] = [vars(near) for near in self.optimum.near]
        own["equal_loss"] = [other._asdict() for other in self.optimum.equal_loss]
        return own


@dataclass(frozen=True, eq=False)
class Prediction:
    """What all laws of a file say of a budget.

    Attributes:
        flops: training FLOPs.
        confidence: of the intervals.
        methods: one for each law.
        chosen: whose optimum `configuration` trains.
        configuration: the plan of one run; None where no recipe is known.
        notes: what the reader must know, a line each.
    """

    flops: float
    confidence: float
    methods: tuple[MethodPrediction, ...]
    chosen: MethodPrediction
    configuration: Plan | None
    notes: tuple[str, ...]

    @property
    def gap(self) -> str:
        """How far apart the laws place N*, in words; empty for one law."""
        return gap_text({method.name: method.size() for method in self.methods}, self.flops)

    def to_frame(self) -> pd.DataFrame:
        """Rows law and quantity (params, tokens, loss); columns value, low, high, statistical_low, statistical_high."""
        return pd.concat({method.name: method.table for method in self.methods}, names=["law"])

    def yaml(self) -> str:
        """The configuration as a sweep file of one run, which `sweep-plan` lays out and `isoflop run` trains.

        Raises:
            FitError: no recipe is known.
        """
        if self.configuration is None:
            raise FitError(
                "a training configuration needs a recipe: give --recipe soda, or a sweep file"
            )
        law, table = self.chosen, self.chosen.table
        said = f"N* {count_text(cell(table, 'params', 'value'))}, D* {count_text(cell(table, 'tokens', 'value'))}"
        if "loss" in table.index:
            said += f", loss {cell(table, 'loss', 'value'):.4f}"
        comments = [
            f"One run of {flops_text(self.flops)} training FLOPs, written by isoflop predict.",
            f"By the law {law.name}: {said}.",
            "Lay it out with `sweep-plan FILE`; train it with `isoflop run FILE`, on a cluster with `isoflop submit`.",
        ]
        return one_run_yaml(self.configuration, comments)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
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
        return plain(document)

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
    """What to train with a budget.

    Args:
        fit: a fit, several, a fit.json or the name of a known law (see `load_fit`).
        flops: the budget in training FLOPs.
        recipe: a sweep file, the name of a shipped one, or a Sweep, whose models are chosen among; by default that of
            the runs, where the file says so.
        method: whose optimum is trained; by default the law whose N* has the narrowest interval with its own error;
            what is no law, or has skewed profiles (see `skew`), only where there is no other.
        confidence: of the intervals; by default the fit's.

    Raises:
        FitError: no fit, no budget, or a method that was not fitted.
        ConfigError: no such recipe.
    """
    if not (math.isfinite(flops) and flops > 0.0):
        raise FitError("a budget is a number of FLOPs above 0")
    if isinstance(fit, str | Path):
        fit = load_fit(fit)
    known = fit.sweep if isinstance(fit, FitFile) else None
    notes = list(fit.notes) if isinstance(fit, FitFile) else []
    laws = named_laws([fit] if isinstance(fit, Laws) else list(fit))
    if not laws:
        raise FitError("there is no law to predict by")
    sweep = known if recipe is None else find_sweep(recipe, known)
    level = next(iter(laws.values())).confidence if confidence is None else confidence
    check_confidence(level)
    tables = {name: law.predict(flops, level) for name, law in laws.items()}
    lost = [name for name, table in tables.items() if not _has_optimum(table)]
    notes += [
        f"{name}: left out, since N* at {flops_text(flops)} FLOPs is no number: its runs don't fix it"
        for name in lost
    ]
    methods = tuple(
        _by_law(name, law, tables[name], flops, sweep, level)
        for name, law in laws.items()
        if name not in lost
    )
    if not methods:
        raise FitError(
            f"no law has an optimum at {flops_text(flops)} FLOPs: their runs don't fix it"
        )
    chosen = _choose(methods, method)
    notes += no_law_notes(laws)
    notes += _far(flops, laws)
    notes += [_own_error_unknown(m) for m in methods if not m.own_error_known(flops)]
    configuration = None
    if sweep is None:
        notes.append(
            "no recipe is known, so C = 6ND and there is no training configuration; give --recipe"
        )
    else:
        configuration = _configure(chosen, sweep, flops)
        notes += configuration.warnings
        if configuration.runs[0].shape != chosen.shape:
            notes.append(
                "the recipe can't train the best model at this budget; the configuration is the next best"
            )
    return Prediction(float(flops), level, methods, chosen, configuration, tuple(notes))


def _has_optimum(table: pd.DataFrame) -> bool:
    """Whether N* and D* are numbers: a law that the runs don't fix may place them beyond all."""
    return all(0.0 < cell(table, name, "value") < math.inf for name in ("params", "tokens"))


def _by_law(
    name: str, law: Laws, table: pd.DataFrame, flops: float, sweep: Sweep | None, confidence: float
) -> MethodPrediction:
    """What a law says, whose `Laws.predict` at the budget is `table`."""
    family = None if sweep is None else Family(sweep, law.n)
    if not isinstance(law.core, SurfaceCore):
        shape = None if family is None else family.nearest(cell(table, "params", "value"))
        return MethodPrediction(name, law, table, None, None, shape)
    if family is None:
        return MethodPrediction(name, law, table, closed_form(law.core, flops), None, None)
    best = over_shapes(law.core, flops, family)
    real = _table(best.intervals(law.core, flops, confidence), law, flops, confidence)
    return MethodPrediction(name, law, real, best, table, best.shape)


def _table(inner: dict[str, Interval], law: Laws, flops: float, confidence: float) -> pd.DataFrame:
    """Rows of `Laws.predict` from intervals of logarithms."""
    rows = {}
    for name, interval in inner.items():
        outer = law.widen(interval, name, flops, confidence)
        rows[name] = [*exponential(outer), *exponential(interval)[1:]]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[*ENDS, *STATISTICAL])
    frame.index.name = "quantity"
    return frame


def _choose(methods: Sequence[MethodPrediction], wanted: str | None) -> MethodPrediction:
    if wanted is not None:
        found = next((m for m in methods if wanted in (m.law.method, m.name)), None)
        if found is None:
            raise FitError(
                f"there is no law by {wanted!r}; there is {', '.join(m.name for m in methods)}"
            )
        return found

    def doubt(method: MethodPrediction) -> tuple[bool, bool, bool, float, int]:
        """How unsure N* is; what is no law has none, one that could not be rolled out does not know its own error, and
        one whose profiles are skewed is off however narrow its interval is.
        """
        _, low, high = method.size()
        width = math.log(high / low) if low > 0.0 and math.isfinite(high) else math.inf
        skewed = any(found["code"] == "skewed" for found in method.law.diagnostics)
        return (
            bool(method.law.no_law),
            skewed,
            method.law.rollout is None,
            width,
            ORDER.index(method.law.method),
        )

    return min(methods, key=doubt)


def _far(flops: float, laws: Mapping[str, Laws]) -> list[str]:
    """How far a budget lies from those of the law that it lies farthest from."""
    reaches = {name: law.reach for name, law in laws.items() if law.reach is not None}
    found = [
        (math.log10(flops / top), "beyond the largest", top, name)
        for name, (_, top) in reaches.items()
    ]
    found += [
        (math.log10(low / flops), "below the smallest", low, name)
        for name, (low, _) in reaches.items()
    ]
    decades, side, end, name = max(found, default=(0.0, "", 0.0, ""))
    if decades < FAR:
        return []
    fitted = "fitted" if len(set(reaches.values())) == 1 else f"that {name} was fitted to"
    run = "there" if side.startswith("below") else "in between"
    return [
        f"{flops_text(flops)} FLOPs are {decades:.1f} decades {side} budget {fitted} ({flops_text(end)}): a run {run} "
        "would tell more than any interval"
    ]


def _own_error_unknown(method: MethodPrediction) -> str:
    few = any(found["code"] == "no_rollout" for found in method.law.diagnostics)
    why = "too few budgets" if few else "no roll-out"
    return f"{method.name}: {why} to tell its own error beyond the runs"


def _configure(chosen: MethodPrediction, sweep: Sweep, flops: float) -> Plan:
    """One run of the chosen law's model, or of the next best that the recipe can train at the budget."""
    family, shape = Family(sweep, chosen.law.n), cast(ModelShape, chosen.shape)
    size = family.size(shape)

    def away(other: ModelShape) -> float:
        return abs(math.log(family.size(other) / size))

    plan = family.train(flops, [shape, *sorted(family.shapes(size / 4.0, size * 4.0), key=away)])
    if plan is None:
        raise FitError(
            f"recipe {sweep.recipe}: can't train {count_text(size)} parameters with {flops_text(flops)} FLOPs: whole steps "
            "miss the budget; predict for a larger one"
        )
    return plan


def _quantities(table: pd.DataFrame) -> dict[str, Any]:
    quantities = {}
    for name, row in zip(table.index, records(table), strict=True):
        quantities[str(name)] = {
            "value": row["value"],
            "statistical": [row["statistical_low"], row["statistical_high"]],
            "with_model_error": [row["low"], row["high"]],
        }
    return quantities
