"""Reader of fit.json and fit.npz, and of published laws by name: laws to predict from and to
compare.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.config.schema import Sweep
from isoflop.config.sweep_file import load_sweep, shipped_sweeps, sweep_from_mapping
from isoflop.errors import ConfigError, FitError
from isoflop.fitting.estimators.newton import PARAMETER_NAMES
from isoflop.fitting.fitfile.saved_fit import DamagedError, SavedFit, mapping_at, saved_fit
from isoflop.fitting.fitfile.write import SCHEMA, draws_hash
from isoflop.fitting.results.fitted_laws import Laws
from isoflop.fitting.tables.provenance import Provenance
from isoflop.frames import Floats
from isoflop.laws import SURFACES


@dataclass(frozen=True, eq=False)
class FitFile:
    """Fits of one source.

    Attributes:
        label: path of the file, or the name of a law.
        fits: the fits in the order of the file.
        recipe: recipe of the runs; None if unknown.
        sweep: sweep that made the runs; None if unknown.
        notes: limits of the file, a line each.
    """

    label: str
    fits: tuple[SavedFit, ...]
    recipe: str | None = None
    sweep: Sweep | None = None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[SavedFit]:
        return iter(self.fits)

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, key: int | str) -> SavedFit:
        """Return a fit by its index, or the first of a method.

        Raises:
            FitError: no fit by this method.
        """
        if isinstance(key, int):
            return self.fits[key]
        fit = next((fit for fit in self.fits if fit.method == key), None)
        if fit is None:
            methods = ", ".join(dict.fromkeys(fit.method for fit in self.fits))
            raise FitError(f"{self.label}: has no fit by {key!r}; it has {methods}")
        return fit


def load_fit(source: str | Path) -> FitFile:
    """Read a fit.json with the fit.npz beside it.

    Args:
        source: the file, its directory, or the name of a published law (`soda`, `chinchilla`).

    Raises:
        FitError: a file that is missing, damaged, of another schema, or no fit; in one line.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "fit.json"
    if not path.exists():
        if str(source) in SURFACES:
            return known_law(str(source))
        raise FitError(
            f"{path}: no such file; write one with: isoflop fit SOURCE --output DIR, or name a "
            f"published law ({', '.join(SURFACES)})"
        )
    document = _read_document(path)
    try:
        return _read_fits(document, path)
    except DamagedError as problem:
        raise FitError(
            f"{path}: {problem}; write it again with: isoflop fit SOURCE --output DIR"
        ) from None


def known_law(name: str) -> FitFile:
    """Return a published surface as a fit without intervals."""
    surface = SURFACES[name]
    params = {key: float(getattr(surface, key)) for key in PARAMETER_NAMES}
    entry = {"method": "parametric", "n": "total", "params": params}
    fit = saved_fit(entry, {}, Provenance(name, ""))
    note = f"{name}: published without an uncertainty, so it has no intervals"
    sweep = load_sweep(name) if name in shipped_sweeps() else None
    return FitFile(name, (fit,), sweep and sweep.recipe, sweep, (note,))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FitError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise FitError(
            f"{path}: not JSON ({' '.join(str(error).split())[:120]}); is it a fit.json?"
        ) from None
    if not isinstance(document, dict) or not {"schema", "fits"} <= document.keys():
        raise FitError(
            f"{path}: not a fit of isoflop: it has no `schema` and `fits`; "
            "isoflop fit SOURCE writes one"
        )
    if document["schema"] != SCHEMA:
        raise FitError(
            f"{path}: has schema {document['schema']!r}, and this isoflop reads {SCHEMA}; "
            "write it again with: isoflop fit SOURCE --output DIR"
        )
    return document


def _read_fits(document: dict[str, Any], path: Path) -> FitFile:
    """Return the fits of a document.

    Raises:
        DamagedError: an entry, the draws or the sweep are damaged.
    """
    entries = document["fits"]
    if not isinstance(entries, list) or not entries:
        raise DamagedError("fits: expected a list of fits")
    draws, notes = _read_draws(path.with_name("fit.npz"), document)
    data = mapping_at(document, "data") if "data" in document else {}
    ids = frozenset(map(str, data.get("run_ids") or ()))
    fits = []
    for i, entry in enumerate(entries):
        fit_draws = {
            name.partition("_")[2]: values
            for name, values in draws.items()
            if name.startswith(f"{i}_")
        }
        try:
            origin = Provenance(
                str(document.get("source", "")),
                str(entry.get("hash") or data.get("hash") or ""),
                ids,
            )
            fits.append(saved_fit(entry, fit_draws, origin))
        except DamagedError as problem:
            raise DamagedError(f"fits[{i}].{problem}") from None
        except AttributeError:
            raise DamagedError(f"fits[{i}]: expected a mapping") from None
    notes += [
        f"fits[{i}] ({fit.method}): the file has only its values, so it has no intervals"
        for i, fit in enumerate(fits)
        if "law" not in fit.entry and math.isnan(fit.exponents.loc["a", "low"])
    ]
    simulated = (
        finding["message"]
        for fit in fits
        for finding in fit.diagnostics
        if finding.get("code") == "simulated"
    )
    notes += [f"{path}: {message}" for message in dict.fromkeys(simulated)]
    sweep = document.get("sweep")
    if sweep is not None:
        try:
            sweep = sweep_from_mapping(mapping_at(document, "sweep"), "sweep")
        except ConfigError as problem:
            raise DamagedError(str(problem)) from None
    return FitFile(str(path), tuple(fits), document.get("recipe"), sweep, tuple(notes))


def _read_draws(path: Path, document: dict[str, Any]) -> tuple[dict[str, Floats], list[str]]:
    """Return the arrays of fit.npz that belong to the document, and notes.

    Raises:
        DamagedError: the file is damaged or belongs to another fit.
    """
    if not path.exists():
        has_lines = any(
            entry.get("method") == "isoflop" and "law" in entry for entry in document["fits"]
        )
        note = "no fit.npz beside it: intervals are the t intervals alone"
        return {}, [note] if has_lines else []
    try:
        with path.open("rb") as file:
            arrays = np.load(file)
            draws = {name: np.asarray(arrays[name], dtype=np.float64) for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        raise DamagedError(f"{path.name} beside it is damaged") from None
    expected_hash = document.get("draws")
    if expected_hash is not None and draws_hash(draws) != expected_hash:
        raise DamagedError(f"{path.name} beside it belongs to another fit")
    return draws, []


def laws_by_name(files: Sequence[FitFile]) -> dict[str, Laws]:
    """Return the fits of several files, named by file (or its directory) and by `named_laws`."""
    if len(files) == 1:
        return named_laws(files[0].fits)
    labels = [_label(file.label) for file in files]
    if len(set(labels)) < len(labels):
        labels = [file.label for file in files]
    names: dict[str, Laws] = {}
    for label, file in zip(labels, files, strict=True):
        names |= {f"{label} {name}": law for name, law in named_laws(file.fits).items()}
    return names


def named_laws(laws: Sequence[Laws]) -> dict[str, Laws]:
    """Return laws by method; the name adds the loss and the count of N where these differ, and a
    number where names repeat.
    """
    losses, counts = {law.loss_column for law in laws}, {law.n for law in laws}
    names: dict[str, Laws] = {}
    for law in laws:
        terms = [
            law.method,
            *([law.loss_column] if len(losses) > 1 else []),
            *([law.n] if len(counts) > 1 else []),
        ]
        name, number = " ".join(terms), 2
        while name in names:
            name, number = f"{' '.join(terms)} {number}", number + 1
        names[name] = law
    return names


def _label(file: str) -> str:
    path = Path(file)
    return path.resolve().parent.name if path.name == "fit.json" else path.stem
