"""Choices that the command line and the library share; imports nothing else, so help is instant."""

from __future__ import annotations

from typing import Literal

ParamCount = Literal["total", "one_embedding", "non_embedding"]
"""Name of a parameter count of `isoflop.shapes.ModelShape`, without `params_`."""

Axis = Literal["params", "tokens"]
LossUnit = Literal["nats", "bits"]
FinalRule = Literal["auto", "line", "mean", "last"]
"""Rule that estimates the final loss of a run from its log."""
