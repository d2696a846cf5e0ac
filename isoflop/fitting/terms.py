"""Terms that all of fitting shares: axes, kinds of interval, columns of intervals, findings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from isoflop.choices import Axis as Axis
from isoflop.choices import FinalRule as FinalRule
from isoflop.choices import LossUnit as LossUnit

Quantity = Literal["params", "tokens", "loss"]
IntervalKind = Literal["t", "percentile"]

ENDS = ["value", "low", "high"]
STATISTICAL = ["statistical_low", "statistical_high"]
EXPONENT_LETTERS = {"params": "a", "tokens": "b"}
METHOD_TITLES = {
    "isoflop": "IsoFLOP profiles",
    "joint": "IsoFLOP profiles, jointly",
    "parametric": "L = E + A / N^alpha + B / D^beta",
    "envelope": "Envelope",
}
"""Name of each method in texts and pages."""


class Finding(TypedDict):
    """Fact about a fit or its table for the reader: `code` for programs, `message` for people.

    docs/findings.md has an entry for each code.
    """

    code: str
    message: str


def finding(code: str, message: str) -> Finding:
    """Return a finding."""
    return Finding(code=code, message=message)


def span_text(row: Mapping[Any, float]) -> str:
    """Return `value [low, high]`; the value alone if it has no interval."""
    value, low, high = (row[end] for end in ENDS)
    if math.isnan(low):
        return f"{value:.3f}"
    if not math.isfinite(high - low):
        return f"{value:.3f} [unbounded]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
