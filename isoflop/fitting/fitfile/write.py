"""fit.json and fit.npz: everything needed to repeat a fit or to predict from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.config.sweep_definition import to_mapping
from isoflop.errors import FitError
from isoflop.files import replace_file
from isoflop.fitting.results.base import Fit
from isoflop.json_values import plain

if TYPE_CHECKING:
    from isoflop.config.schema import Sweep

SCHEMA = 1
_OPTIONS = ("use", "bootstrap", "seed", "huber_delta", "resampling", "drop_outliers")


def fit_document(
    fits: Sequence[Fit],
    *,
    recipe: str | None = None,
    sweep: Sweep | None = None,
    options: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of fit.json for fits of one source.

    Args:
        fits: at least one; the first names source, columns and data.
        recipe: of the sweep that made the runs, where known; by default the sweep's.
        sweep: that made the runs; from it a prediction makes a training configuration.
        options: what else was asked for; added to the options that the fits record themselves.
        more: further keys of the document.
    """
    if not fits:
        raise FitError("there is no fit to write")
    first = fits[0]
    own: dict[str, Any] = {
        "columns": first.runs.columns,
        "n": first.n,
        "loss_unit": first.runs.loss_unit,
    }
    own["confidence"] = first.confidence
    for fit in reversed(fits):
        own |= {name: getattr(fit, name) for name in _OPTIONS if hasattr(fit, name)}
    if own.get("huber_delta") == float("inf"):
        own["huber_delta"] = "inf"  # JSON has no infinity
    document = {
        "schema": SCHEMA,
        "version": _version(),
        "source": first.runs.source,
        "options": own | dict(options or {}),
        "data": {
            "hash": first.runs.hash,
            "rows": len(first.runs),
            "dropped": [d._asdict() for d in first.runs.dropped],
            "run_ids": sorted(frozenset().union(*(fit.origin.run_ids for fit in fits))),
        },
        "recipe": recipe if sweep is None else sweep.recipe,
        "sweep": None if sweep is None else to_mapping(sweep),
        "draws": draws_hash(named_draws(fits)),
        "fits": [fit.to_dict() for fit in fits],
    }
    return plain(document | dict(more or {}))


def write_fit(
    directory: str | Path,
    fits: Sequence[Fit],
    *,
    recipe: str | None = None,
    sweep: Sweep | None = None,
    options: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Writes fit.json and fit.npz (draws, named `<index of the fit>_<draw>`), each beside and renamed.

    Returns:
        The path of fit.json; see `fit_document` for the arguments.
    """
    directory = Path(directory)
    entry = fit_document(fits, recipe=recipe, sweep=sweep, options=options, more=more)
    document = json.dumps(entry, indent=2, allow_nan=False)
    try:
        with replace_file(directory / "fit.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **named_draws(fits))  # pyright: ignore[reportArgumentType]
        with replace_file(directory / "fit.json") as path:
            path.write_text(document + "\n", encoding="utf-8")
    except OSError as error:
        raise FitError(
            f"{directory}: the fit can't be written: {error.strerror or error}"
        ) from error
    return directory / "fit.json"


def named_draws(fits: Sequence[Fit]) -> dict[str, np.ndarray]:
    """The resamples of all fits, by their names in fit.npz."""
    return {
        f"{i}_{name}": values for i, fit in enumerate(fits) for name, values in _draws(fit).items()
    }


def draws_hash(draws: Mapping[str, np.ndarray]) -> str:
    """What fit.json knows its fit.npz by."""
    digest = hashlib.sha256()
    for name in sorted(draws):
        digest.update(name.encode() + np.ascontiguousarray(draws[name], dtype="<f8").tobytes())
    return digest.hexdigest()[:16]


def _draws(fit: Fit) -> dict[str, np.ndarray]:
    """Resamples by name: those of a surface are its `theta`."""
    drawn: Any = getattr(fit, "draws", {})
    return drawn if isinstance(drawn, dict) else {"theta": drawn}


def _version() -> str | None:
    try:
        return version("isoflop")
    except PackageNotFoundError:
        return None
