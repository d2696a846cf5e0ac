"""Laws side by side: exponents, what they predict, and whether they differ by more than their intervals allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from scipy.special import stdtr, stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators.intervals import Interval, check_confidence
from isoflop.fitting.results.fitted_laws import Laws
from isoflop.fitting.terms import ENDS
from isoflop.frames import column
from isoflop.json_values import plain
from isoflop.text import count_text, flops_text

BEYOND = 10.0
"""Predictions are compared at so many times the largest budget that all laws have seen."""
SYMBOLS = {"a": "a", "b": "b", "params": "N*", "tokens": "D*", "loss": "loss"}


class Difference(NamedTuple):
    """One quantity of two laws.

    Attributes:
        quantity: `a`, `b`, `params`, `tokens` or `loss`.
        value: the second less the first; of N*, D* and loss the ratio of the second to the first.
        p: probability of a difference as large if there were none (Welch's t test on the standard errors); NaN where
            it is not tested.
        p_model: the same, with the laws' own error: beyond their runs as the roll-outs show it, and of skewed
            parabolas, which is in a and b too.
    """

    quantity: str
    value: float
    p: float
    p_model: float


@dataclass(frozen=True)
class Pair:
    """Two laws against each other.

    Attributes:
        first, second: their names.
        differences: of each quantity that both have.
        untested: why nothing is tested; empty where it is.
        level: p below which they differ.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    untested: str
    level: float

    @property
    def differing(self) -> list[str]:
        """Quantities that differ by more than noise and the laws' own error explain."""
        return [d.quantity for d in self.differences if d.p_model < self.level]

    @property
    def verdict(self) -> str:
        """In words."""
        if self.untested:
            return f"not tested: {self.untested}"
        if all(math.isnan(d.p_model) for d in self.differences):
            return "not tested: no intervals"
        names = [SYMBOLS[name] for name in self.differing]
        return f"differ in {', '.join(names)}" if names else "not told apart"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Laws side by side.

    Attributes:
        flops: the budget of the predictions.
        confidence: of the intervals and the tests.
        table: a row a law: `law, method, n, loss_column`, and for each of `a, b, params, tokens, loss` its value,
            `_low` and `_high`, the last three at `flops`, with the laws' own error.
        pairs: each law against the first of its method, or else the first of all.
        notes: what the reader must know, a line each.
    """

    flops: float
    confidence: float
    table: pd.DataFrame
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> str:
        """How far apart the laws place N*, in words; empty for one law."""
        return gap_text(
            {
                str(row["law"]): Interval(row["params"], row["params_low"], row["params_high"])
                for row in self._rows()
            },
            self.flops,
        )

    def to_frame(self) -> pd.DataFrame:
        """`table`."""
        return self.table

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        pairs = [
            {
                "first": pair.first,
                "second": pair.second,
                "independent": not pair.untested,
                "differences": [d._asdict() for d in pair.differences],
                "verdict": pair.verdict,
            }
            for pair in self.pairs
        ]
        own = {"flops": self.flops, "confidence": self.confidence, "laws": self._rows()}
        return plain(own | {"gap": self.gap, "pairs": pairs, "notes": list(self.notes)})

    def _rows(self) -> list[dict[str, Any]]:
        return self.table.to_dict("records")  # pyright: ignore[reportReturnType]

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format=lambda v: f"{v:.4g}", index=False)


def compare(
    laws: Mapping[str, Laws], flops: float | None = None, confidence: float | None = None
) -> Comparison:
    """Compares laws: fits of one study by several methods, arms of an ablation, other data, published laws.

    Two laws of the same runs share their noise, so nothing is tested between them.

    Args:
        laws: by name.
        flops: a budget to predict at; by default 10 x the largest that all laws with runs have seen.
        confidence: of the intervals, and of the tests; by default the first law's.

    Raises:
        FitError: no law, a confidence that is none, or no budget where no law knows its runs.
    """
    if not laws:
        raise FitError("there is no law to compare")
    level = next(iter(laws.values())).confidence if confidence is None else confidence
    check_confidence(level)
    budget = flops or shared_budget(laws)
    rows = {name: _row(name, law, budget, level) for name, law in laws.items()}
    pairs = tuple(_pair(first, second, laws, rows, budget, level) for first, second in _pairs(laws))
    return Comparison(
        budget, level, pd.DataFrame(list(rows.values())), pairs, tuple(no_law_notes(laws))
    )


def no_law_notes(laws: Mapping[str, Laws]) -> list[str]:
    """Which laws are none, and why."""
    return [
        f"{name}: no law of compute: {why}" for name, law in laws.items() if (why := law.no_law)
    ]


def shared_budget(laws: Mapping[str, Laws]) -> float:
    """10 x the largest budget that all laws have seen.

    Raises:
        FitError: no law knows its runs.
    """
    tops = [law.reach[1] for law in laws.values() if law.reach is not None]
    if not tops:
        raise FitError(
            "these laws don't know the budgets of their runs; name one to compare at, e.g. --flops 1e22"
        )
    return BEYOND * min(tops)


def gap_text(sizes: Mapping[str, Interval], flops: float) -> str:
    """How far apart several laws place N* at a budget."""
    sizes = {name: size for name, size in sizes.items() if 0.0 < size.value < math.inf}
    if len(sizes) < 2:
        return ""
    ordered = sorted(sizes, key=lambda name: sizes[name].value)
    low, high = ordered[0], ordered[-1]
    span = f"{count_text(sizes[low].value)} ({low}) to {count_text(sizes[high].value)} ({high})"
    words = f"At {flops_text(flops)} FLOPs N* is {span}, {sizes[high].value / sizes[low].value:.2f}x apart"
    if any(math.isnan(sizes[name].low) for name in (low, high)):
        return f"{words}."
    apart = sizes[low].high < sizes[high].low
    return f"{words}; the intervals of the two {'do not overlap' if apart else 'overlap'}."


def _row(name: str, law: Laws, flops: float, confidence: float) -> dict[str, Any]:
    table, there = law.intervals(confidence), law.predict(flops, confidence)
    row: dict[str, Any] = {
        "law": name,
        "method": law.method,
        "n": law.n,
        "loss_column": law.loss_column,
    }
    for quantity in SYMBOLS:
        source = table if quantity in table.index else there
        known = quantity in source.index
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            row[quantity + suffix] = (
                float(column(source, end)[source.index.get_loc(quantity)]) if known else math.nan
            )
    return row


def _pairs(laws: Mapping[str, Laws]) -> list[tuple[str, str]]:
    """Each law with the first of its method; the first of a method with the first of all."""
    leaders: dict[str, str] = {}
    pairs = []
    for name, law in laws.items():
        if law.method in leaders:
            pairs.append((leaders[law.method], name))
        elif leaders:
            pairs.append((next(iter(leaders.values())), name))
        leaders.setdefault(law.method, name)
    return pairs


def _pair(
    first: str,
    second: str,
    laws: Mapping[str, Laws],
    rows: dict[str, dict[str, Any]],
    flops: float,
    confidence: float,
) -> Pair:
    one, two = laws[first], laws[second]
    untested = "the same runs, so not independent" if one.origin.shares_runs(two.origin) else ""
    differences = []
    for quantity in SYMBOLS:
        if quantity in ("params", "a", "b") and one.n != two.n:
            continue  # they count N otherwise
        left, right = rows[first][quantity], rows[second][quantity]
        logs = quantity in ("params", "tokens", "loss")
        if not all(math.isfinite(value) and (value > 0.0 or not logs) for value in (left, right)):
            continue  # not known, or not fixed by its runs
        value = right / left if logs else right - left
        tests = [math.nan, math.nan]
        if not untested:
            left, right = (_errors(law, quantity, flops, confidence) for law in (one, two))
            gap = math.log(value) if logs else value
            tests = [_p(gap, (left[k], one.dof), (right[k], two.dof)) for k in (0, 1)]
        differences.append(Difference(quantity, value, *tests))
    return Pair(first, second, tuple(differences), untested, 1.0 - confidence)


def _errors(law: Laws, quantity: str, flops: float, confidence: float) -> tuple[float, float]:
    """Standard error of an exponent or of a logarithm: by noise, and with the law's own error; NaN: not known."""
    if quantity in ("a", "b"):
        tables = (law.core.intervals(confidence), law.intervals(confidence))
        spans = [Interval(*table.loc[quantity, ENDS]) for table in tables]
    else:
        inner = law.law_at(flops, confidence)[quantity]
        spans = [inner, law.widen(inner, quantity, flops, confidence)]
    quantile = float(stdtrit(law.dof, 0.5 + confidence / 2.0)) if law.dof else 1.0
    both = [max(span.value - span.low, span.high - span.value) / quantile for span in spans]
    return both[0], both[1]


def _p(gap: float, first: tuple[float, int], second: tuple[float, int]) -> float:
    """Welch's t test, two-sided, of two standard errors and their dof; a law without intervals is taken as exact."""
    known = [(se, dof) for se, dof in (first, second) if not math.isnan(se)]
    variance = sum(se**2 for se, _ in known)
    if not known or math.isinf(variance) or variance == 0.0:
        return math.nan
    dof = variance**2 / sum(se**4 / dof for se, dof in known)
    return float(2.0 * stdtr(dof, -abs(gap) / math.sqrt(variance)))
