"""fit.json and fit.npz: everything needed to repeat a fit or to predict from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.files import replace_file
from isoflop.fitting.base import Fit
from isoflop.fitting.entries import fit_entry
from isoflop.fitting.plain import plain

SCHEMA = 1
_OPTIONS = ("use", "bootstrap", "seed", "huber_delta", "resampling")


def fit_document(
    fits: Sequence[Fit], *, recipe: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document of fit.json for fits of one source.

    Args:
        fits: at least one; the first names source, columns and data.
        recipe: of the sweep that made the runs, where known.
        options: what else was asked for; added to the options that the fits record themselves.
    """
    if not fits:
        raise FitError("there is no fit to write")
    first = fits[0]
    own: dict[str, Any] = {"columns": first.runs.columns, "n": first.n, "loss_unit": first.runs.loss_unit}
    own["confidence"] = first.confidence
    for fit in reversed(fits):
        own |= {name: getattr(fit, name) for name in _OPTIONS if hasattr(fit, name)}
    document = {
        "schema": SCHEMA,
        "version": _version(),
        "source": first.runs.source,
        "options": own | dict(options or {}),
        "data": {
            "hash": first.runs.hash,
            "rows": len(first.runs),
            "dropped": [d._asdict() for d in first.runs.dropped],
        },
        "recipe": recipe,
        "fits": [fit_entry(f) for f in fits],
    }
    return plain(document)


def write_fit(
    directory: str | Path,
    fits: Sequence[Fit],
    *,
    recipe: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Writes fit.json and fit.npz (draws, named `<index of the fit>_<draw>`), each beside and renamed.

    Returns:
        The path of fit.json.
    """
    directory = Path(directory)
    document = json.dumps(fit_document(fits, recipe=recipe, options=options), indent=2, allow_nan=False)
    draws = {f"{i}_{name}": values for i, fit in enumerate(fits) for name, values in _draws(fit).items()}
    try:
        with replace_file(directory / "fit.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **draws)  # pyright: ignore[reportArgumentType]
        with replace_file(directory / "fit.json") as path:
            path.write_text(document + "\n", encoding="utf-8")
    except OSError as error:
        raise FitError(f"{directory}: the fit can't be written: {error.strerror or error}") from error
    return directory / "fit.json"


def _draws(fit: Fit) -> dict[str, np.ndarray]:
    """Resamples by name: those of a surface are its `theta`."""
    drawn: Any = getattr(fit, "draws", {})
    return drawn if isinstance(drawn, dict) else {"theta": drawn}


def _version() -> str | None:
    try:
        return version("isoflop")
    except PackageNotFoundError:
        return None
