"""Known loss surfaces, to simulate studies from and to predict their results by."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.shapes import ParamCount

DEFAULT_RELATIVE_NOISE = 0.003
"""Standard deviation of the loss between seeds as a share of it, if unknown: near SODA's runs."""


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token, with C = 6 N D.

    Source: Hoffmann et al. 2022, Approach 3.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of N*(C): beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D*(C): alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Return the loss in nats per token, without noise."""
        return (
            self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)
        )

    def optimum(self, flops: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return N* = G (C/6)^a and D* = (C/6)^b / G.

        G is (alpha A / (beta B))^(1 / (alpha + beta)).
        """
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta))
        sixth = np.asarray(flops, dtype=np.float64) / 6.0
        return scale * sixth**self.a, sixth**self.b / scale


SURFACES = {
    # The optimum of Chinchilla's 240 rows as digitised by Epoch AI, Huber delta 1e-3.
    "chinchilla": Surface(E=1.8172181, A=477.82587, B=2143.4174, alpha=0.34731050, beta=0.36717243),
    # SODA's published parametric fit, as quoted by Open-Athena.
    "soda": Surface(E=3.169, A=215_886.0, B=4750.0, alpha=0.684, beta=0.439),
}


@dataclass(frozen=True)
class ExpectedLaw:
    """A surface to expect losses by.

    Attributes:
        name: name of a published surface, or path of a fit.json.
        surface: the loss surface.
        n: parameter count that the surface is about.
        noise: standard deviation of the runs that the surface was fitted to; None if unknown.
    """

    name: str
    surface: Surface
    n: ParamCount = "total"
    noise: float | None = None


def expected_law(name: str) -> ExpectedLaw:
    """Return a published surface by name, or the parametric entry of a fit.json.

    Raises:
        FitError: a name or file that can't be used.
    """
    if name in SURFACES:
        return ExpectedLaw(name, SURFACES[name])
    path = Path(name)
    if not path.is_file():
        nearest = difflib.get_close_matches(name, SURFACES, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise FitError(
            f"{name}: no law of that name and no such file; {hint}known: {', '.join(SURFACES)}"
        )
    try:
        fits = json.loads(path.read_text(encoding="utf-8"))["fits"]
        methods = [str(fit["method"]) for fit in fits]
        if "parametric" in methods:
            return _law_from_entry(name, fits[methods.index("parametric")])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise FitError(f"{name}: not a fit.json ({type(error).__name__}: {reason})") from None
    raise FitError(
        f"{name}: has no parametric fit (it has {', '.join(methods) or 'none'}); fit with"
        " --method parametric"
    )


def _law_from_entry(name: str, entry: dict[str, Any]) -> ExpectedLaw:
    surface = Surface(
        **{field.name: float(entry["params"][field.name]) for field in fields(Surface)}
    )
    noise = entry["noise"]
    sd = noise["replicate_sd"] if noise.get("replicate_dof") else noise["residual_sd"]
    return ExpectedLaw(name, surface, entry["n"], sd if sd and sd > 0.0 else None)
