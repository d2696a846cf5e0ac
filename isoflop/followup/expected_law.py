"""Laws to expect a study's losses by: a published surface, or one that was fitted."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import FitError
from isoflop.fitting.estimators.newton import NAMES
from isoflop.fitting.tables.runs_table import ParamCount
from isoflop.laws import SURFACES, Surface

NOISE = 0.003
"""Standard deviation of the loss between seeds, as a share of it, where nothing is known: SODA-sized runs have about
as much."""


@dataclass(frozen=True)
class ExpectedLaw:
    """A surface, which parameter count it is about, and the noise of the runs that it was fitted to, where known."""

    name: str
    surface: Surface
    n: ParamCount = "total"
    noise: float | None = None


def expected_law(name: str) -> ExpectedLaw:
    """A published surface by name, or the parametric entry of a fit.json.

    Raises:
        FitError: a name or file that can't be used.
    """
    if name in SURFACES:
        return ExpectedLaw(name, SURFACES[name])
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, SURFACES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise FitError(
            f"{name}: no law of that name and no such file; {hint}known: {', '.join(SURFACES)}"
        )
    try:
        fits = json.loads(path.read_text(encoding="utf-8"))["fits"]
        entry = next((fit for fit in fits if fit["method"] == "parametric"), None)
        return (
            _of_entry(name, entry) if entry else _refuse(name, [str(fit["method"]) for fit in fits])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FitError(
            f"{name}: not a fit.json ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None


def _of_entry(name: str, entry: dict[str, Any]) -> ExpectedLaw:
    surface = Surface(**{key: float(entry["params"][key]) for key in NAMES})
    noise = entry["noise"]
    sd = noise["replicate_sd"] if noise.get("replicate_dof") else noise["residual_sd"]
    return ExpectedLaw(name, surface, entry["n"], sd if sd and sd > 0.0 else None)


def _refuse(name: str, methods: list[str]) -> ExpectedLaw:
    raise FitError(
        f"{name}: has no parametric fit (it has {', '.join(methods) or 'none'}); fit with --method parametric"
    )
