"""Comparison of laws: exponents, predictions, and tests of their differences."""

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
from isoflop.frames import cell
from isoflop.json_values import to_json_value
from isoflop.text import count_text, flops_text

COMPARISON_FACTOR = 10.0
"""Budget of the comparison, over the largest budget that all laws were fitted to."""
SYMBOLS = {"a": "a", "b": "b", "params": "N*", "tokens": "D*", "loss": "loss"}


class Difference(NamedTuple):
    """Difference of two laws in one quantity.

    Attributes:
        quantity: `a`, `b`, `params`, `tokens` or `loss`.
        value: the second less the first; for N*, D* and loss the ratio of the second to the first.
        p: p-value of no difference (Welch's t test on the standard errors); NaN if it is not
            tested.
        p_model: the same with the laws' own error: beyond their data that of hold-out tests, and
            that of skewed parabolas, which a and b have too.
    """

    quantity: str
    value: float
    p: float
    p_model: float


@dataclass(frozen=True)
class Pair:
    """Comparison of two laws.

    Attributes:
        first, second: names of the laws.
        differences: a difference for each quantity that both have.
        untested: reason why nothing is tested; empty if it is.
        level: p-value below which the laws differ.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    untested: str
    level: float

    @property
    def differing(self) -> list[str]:
        """Quantities that differ by more than noise and the laws' own error."""
        return [d.quantity for d in self.differences if d.p_model < self.level]

    @property
    def verdict(self) -> str:
        """Result of the tests in a few words."""
        if self.untested:
            return f"not tested: {self.untested}"
        if all(math.isnan(d.p_model) for d in self.differences):
            return "not tested: no intervals"
        names = [SYMBOLS[name] for name in self.differing]
        return f"differ in {', '.join(names)}" if names else "no significant difference"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Laws side by side.

    Attributes:
        flops: budget of the predictions, training FLOPs.
        confidence: level of the intervals and the tests.
        table: a row a law: `law, method, n, loss_column`, and for each of `a, b, params, tokens,
            loss` its value, `_low` and `_high`, the last three at `flops`, with the laws' own
            error.
        pairs: each law against the first of its method, or else the first of all.
        notes: limits of the comparison, a line each.
    """

    flops: float
    confidence: float
    table: pd.DataFrame
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> str:
        """Sentence on the ratio between the largest and the smallest N* of the laws; empty for one
        law.
        """
        return gap_text(
            {
                str(row["law"]): Interval(row["params"], row["params_low"], row["params_high"])
                for row in self._rows()
            },
            self.flops,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return `table`."""
        return self.table

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON types."""
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
        document = {
            "flops": self.flops,
            "confidence": self.confidence,
            "laws": self._rows(),
            "gap": self.gap,
            "pairs": pairs,
            "notes": list(self.notes),
        }
        return to_json_value(document)

    def _rows(self) -> list[dict[str, Any]]:
        return self.table.to_dict("records")  # pyright: ignore[reportReturnType]

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format=lambda v: f"{v:.4g}", index=False)


def compare(
    laws: Mapping[str, Laws], flops: float | None = None, confidence: float | None = None
) -> Comparison:
    """Compare laws: fits of one study by several methods, arms of an ablation, fits of other data,
    published laws.

    Two laws of the same runs share their noise, so nothing is tested between them.

    Args:
        laws: laws by name.
        flops: budget to predict at, training FLOPs; by default 10 x the largest budget that all
            laws with runs were fitted to.
        confidence: level of the intervals and the tests, a share; by default the first law's.

    Raises:
        FitError: no law, a confidence that is not a share between 0 and 1, or no budget if the
            runs of no law are known.
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
    """Return a note for each fit that is no law of compute, with the reason."""
    return [
        f"{name}: no law of compute: {reason}"
        for name, law in laws.items()
        if (reason := law.no_law)
    ]


def shared_budget(laws: Mapping[str, Laws]) -> float:
    """Return 10 x the largest budget that all laws were fitted to, training FLOPs.

    Raises:
        FitError: the runs of no law are known.
    """
    tops = [law.reach[1] for law in laws.values() if law.reach is not None]
    if not tops:
        raise FitError(
            "the budgets of these laws are not known; name one to compare at, e.g. --flops 1e22"
        )
    return COMPARISON_FACTOR * min(tops)


def gap_text(sizes: Mapping[str, Interval], flops: float) -> str:
    """Return a sentence on the ratio between the largest and the smallest N* at a budget; empty for
    fewer than two finite N*.

    Args:
        sizes: N* by name of the law.
        flops: the budget, training FLOPs.
    """
    sizes = {name: size for name, size in sizes.items() if 0.0 < size.value < math.inf}
    if len(sizes) < 2:
        return ""
    ordered = sorted(sizes, key=lambda name: sizes[name].value)
    low, high = ordered[0], ordered[-1]
    span = f"{count_text(sizes[low].value)} ({low}) to {count_text(sizes[high].value)} ({high})"
    ratio = sizes[high].value / sizes[low].value
    text = f"At {flops_text(flops)} FLOPs N* is {span}, {ratio:.2f}x apart"
    if any(math.isnan(sizes[name].low) for name in (low, high)):
        return f"{text}."
    is_apart = sizes[low].high < sizes[high].low
    return f"{text}; the intervals of the two {'do not overlap' if is_apart else 'overlap'}."


def _row(name: str, law: Laws, flops: float, confidence: float) -> dict[str, Any]:
    table, prediction = law.intervals(confidence), law.predict(flops, confidence)
    row: dict[str, Any] = {
        "law": name,
        "method": law.method,
        "n": law.n,
        "loss_column": law.loss_column,
    }
    for quantity in SYMBOLS:
        source = table if quantity in table.index else prediction
        is_known = quantity in source.index
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            row[quantity + suffix] = cell(source, quantity, end) if is_known else math.nan
    return row


def _pairs(laws: Mapping[str, Laws]) -> list[tuple[str, str]]:
    """Return each law with the first of its method, and the first of a method with the first of
    all.
    """
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
    law, other = laws[first], laws[second]
    shares_runs = law.provenance.shares_runs(other.provenance)
    untested = "the same runs, so not independent" if shares_runs else ""
    differences = []
    for quantity in SYMBOLS:
        if quantity in ("params", "a", "b") and law.n != other.n:
            continue  # the laws have different counts of N
        value, other_value = rows[first][quantity], rows[second][quantity]
        is_log = quantity in ("params", "tokens", "loss")
        if not all(math.isfinite(v) and (v > 0.0 or not is_log) for v in (value, other_value)):
            continue  # unknown, or not determined by the runs
        difference = other_value / value if is_log else other_value - value
        p_values = [math.nan, math.nan]
        if not untested:
            errors, other_errors = (
                _standard_errors(each, quantity, flops, confidence) for each in (law, other)
            )
            gap = math.log(difference) if is_log else difference
            p_values = [
                _welch_p(gap, (errors[k], law.dof), (other_errors[k], other.dof)) for k in (0, 1)
            ]
        differences.append(Difference(quantity, difference, *p_values))
    return Pair(first, second, tuple(differences), untested, 1.0 - confidence)


def _standard_errors(
    law: Laws, quantity: str, flops: float, confidence: float
) -> tuple[float, float]:
    """Return the standard error of an exponent or of a logarithm: by noise alone, and with the
    law's own error; NaN if it is not known.
    """
    if quantity in ("a", "b"):
        tables = (law.law_estimate.intervals(confidence), law.intervals(confidence))
        intervals = [Interval(*table.loc[quantity, ENDS]) for table in tables]
    else:
        inner = law.law_at(flops, confidence)[quantity]
        intervals = [inner, law.widen(inner, quantity, flops, confidence)]
    quantile = float(stdtrit(law.dof, 0.5 + confidence / 2.0)) if law.dof else 1.0
    statistical, with_model_error = (
        max(value - low, high - value) / quantile for value, low, high in intervals
    )
    return statistical, with_model_error


def _welch_p(gap: float, first: tuple[float, int], second: tuple[float, int]) -> float:
    """Return the two-sided p-value of Welch's t test of a gap, from two standard errors with their
    degrees of freedom; a law without intervals counts as exact.
    """
    known = [(se, dof) for se, dof in (first, second) if not math.isnan(se)]
    variance = sum(se**2 for se, _ in known)
    if not known or math.isinf(variance) or variance == 0.0:
        return math.nan
    dof = variance**2 / sum(se**4 / dof for se, dof in known)
    return float(2.0 * stdtr(dof, -abs(gap) / math.sqrt(variance)))
