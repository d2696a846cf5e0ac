"""Terms that all of fitting shares: axes, kinds of interval, columns of intervals, findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import numpy as np

Axis = Literal["params", "tokens"]
Quantity = Literal["params", "tokens", "loss"]
IntervalKind = Literal["t", "percentile"]
LossUnit = Literal["nats", "bits"]

ENDS = ["value", "low", "high"]
STATISTICAL = ["statistical_low", "statistical_high"]
EXPONENT_LETTERS = {"params": "a", "tokens": "b"}
TITLES = {
    "isoflop": "IsoFLOP profiles",
    "joint": "IsoFLOP profiles, jointly",
    "parametric": "L = E + A / N^alpha + B / D^beta",
    "envelope": "Envelope",
}
"""Name of each method in texts and pages."""


class Finding(TypedDict):
    """A fact about a fit or its table that a reader must know: `code` for programs, `message`
    for people.
    """

    code: str
    message: str


def finding(code: str, message: str) -> Finding:
    """Return a finding."""
    return Finding(code=code, message=message)


def span_text(row: Mapping[Any, float]) -> str:
    """Return `value [low, high]`; the value alone where it has no interval."""
    value, low, high = (row[end] for end in ENDS)
    if np.isnan(low):
        return f"{value:.3f}"
    if not np.isfinite(high - low):
        return f"{value:.3f} [unbounded]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
