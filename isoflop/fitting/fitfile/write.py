"""Writer of fit.json and fit.npz: all that is needed to repeat a fit or to predict from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.config.sweep_file import to_mapping
from isoflop.errors import FitError
from isoflop.files import replace_file
from isoflop.fitting.results.base import Fit
from isoflop.json_values import to_json_value

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
    """Return the document of fit.json for fits of one source.

    Args:
        fits: at least one; the first names source, columns and data.
        recipe: recipe of the runs, if known; by default the sweep's.
        sweep: sweep that made the runs; predictions take the training configuration from it.
        options: further options of the command, added to those that the fits record.
        more: further keys of the document.

    Raises:
        FitError: no fit.
    """
    if not fits:
        raise FitError("there is no fit to write")
    first = fits[0]
    fit_options: dict[str, Any] = {
        "columns": first.runs.columns,
        "n": first.n,
        "loss_unit": first.runs.loss_unit,
        "confidence": first.confidence,
    }
    for fit in reversed(fits):
        fit_options |= {name: getattr(fit, name) for name in _OPTIONS if hasattr(fit, name)}
    if fit_options.get("huber_delta") == float("inf"):
        fit_options["huber_delta"] = "inf"  # JSON has no infinity
    document = {
        "schema": SCHEMA,
        "version": _version(),
        "source": first.runs.source,
        "options": fit_options | dict(options or {}),
        "data": {
            "hash": first.runs.hash,
            "rows": len(first.runs),
            "dropped": [d._asdict() for d in first.runs.dropped],
            "run_ids": sorted(frozenset().union(*(fit.provenance.run_ids for fit in fits))),
        },
        "recipe": recipe if sweep is None else sweep.recipe,
        "sweep": None if sweep is None else to_mapping(sweep),
        "draws": draws_hash(named_draws(fits)),
        "fits": [fit.to_dict() for fit in fits],
    }
    return to_json_value(document | dict(more or {}))


def write_fit(
    directory: str | Path,
    fits: Sequence[Fit],
    *,
    recipe: str | None = None,
    sweep: Sweep | None = None,
    options: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write fit.json and fit.npz (draws, named `<index of the fit>_<draw>`); each is written beside
    its place and renamed. See `fit_document` for the arguments.

    Returns:
        The path of fit.json.

    Raises:
        FitError: no fit, or a file that can't be written.
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
    """Return the resamples of all fits, by their names in fit.npz."""
    return {
        f"{i}_{name}": values for i, fit in enumerate(fits) for name, values in _draws(fit).items()
    }


def draws_hash(draws: Mapping[str, np.ndarray]) -> str:
    """Return the hash by which fit.json identifies its fit.npz: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(draws):
        digest.update(name.encode() + np.ascontiguousarray(draws[name], dtype="<f8").tobytes())
    return digest.hexdigest()[:16]


def _draws(fit: Fit) -> dict[str, np.ndarray]:
    """Return the resamples of a fit by name; those of a surface are its `theta`."""
    draws: Any = getattr(fit, "draws", {})
    return draws if isinstance(draws, dict) else {"theta": draws}


def _version() -> str | None:
    try:
        return version("isoflop")
    except PackageNotFoundError:
        return None
