"""fit.json and fit.npz: everything needed to repeat a fit or to predict from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.files import replace_file
from isoflop.fitting.frames import column, mask, records
from isoflop.fitting.result import IsoflopFit

SCHEMA = 1


def fit_entry(fit: IsoflopFit) -> dict[str, Any]:
    """One entry of `fits`: interface names first, then what a reader needs to check them."""
    table = fit.intervals()
    exponents = {name: _interval(table.loc[name].to_dict()) for name in ("a", "b")}
    entry = {
        "method": "isoflop",
        "axis": fit.axis,
        "n": fit.n,
        "loss": fit.runs.columns["loss"],
        "confidence": fit.confidence,
        "exponents": exponents,
        "ratio": _interval(table.loc["ratio"].to_dict()),
        "coefficients": fit.coefficients.to_dict("index"),
        "noise": vars(fit.noise),
        "profiles": records(fit.profiles),
        "runs_used": int(column(fit.profiles, "n_runs")[mask(fit.profiles, "used")].sum()),
        "diagnostics": [dict(d) for d in fit.diagnostics],
    }
    return plain(entry)


def _interval(row: Mapping[Any, Any]) -> dict[str, Any]:
    """value, low, high (the wider), and the two that it was chosen from."""
    chosen = {key: row[key] for key in ("value", "low", "high")}
    return chosen | {kind: [row[f"{kind}_low"], row[f"{kind}_high"]] for kind in ("bootstrap", "line")}


def fit_document(
    fits: Sequence[IsoflopFit], *, recipe: str | None = None, options: Mapping[str, Any] | None = None
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
    own = {"columns": first.runs.columns, "n": first.n, "loss_unit": first.runs.loss_unit, "use": list(first.use)}
    own |= {"bootstrap": first.bootstrap, "confidence": first.confidence, "seed": first.seed}
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
    fits: Sequence[IsoflopFit],
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
    draws = {f"{i}_{name}": values for i, fit in enumerate(fits) for name, values in fit.draws.items()}
    try:
        with replace_file(directory / "fit.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **draws)  # pyright: ignore[reportArgumentType]
        with replace_file(directory / "fit.json") as path:
            path.write_text(document + "\n", encoding="utf-8")
    except OSError as error:
        raise FitError(f"{directory}: the fit can't be written: {error.strerror or error}") from error
    return directory / "fit.json"


def plain(value: Any) -> Any:
    """Python numbers, lists and dicts only; null for NaN and infinities, which JSON doesn't have."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version() -> str | None:
    try:
        return version("isoflop")
    except PackageNotFoundError:
        return None
