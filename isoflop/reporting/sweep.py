"""The report of a sweep's directory: reads its files, repeats its fit, writes the page."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.base import Axis, Fit
from isoflop.fitting.files import RUNS_FILE, read_frame
from isoflop.fitting.frames import records
from isoflop.fitting.parametric import PRESETS
from isoflop.fitting.table import ParamCount
from isoflop.fitting.together import METHODS, USUAL, Options, fit_laws
from isoflop.reporting.html import write_report

GATHERED_FILE = "losses.parquet"
"""All loss logs of a sweep in one table, with `run_id` and `budget`: a kept result has it, and no run directories."""

CURVE_COLUMNS = ["step", "tokens", "train_flops", "split", "kind", "loss"]
_KEPT = ("loss_unit", "use", "huber_delta", "bootstrap", "seed", "confidence", "drop_outliers")
_PACKAGES = ("isoflop", "torch", "numpy", "scipy", "pandas")


def report_sweep(directory: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Writes report.html and figures of a sweep's directory (`runs.parquet`, `fit.json`, `<run_id>/loss/*.parquet`).

    The fits are repeated with the options in fit.json: the same seed gives the same digits. Without fit.json the
    defaults are taken. The methods that it lacks are fitted beside; where one is refused, the page says why.

    Args:
        directory: of the sweep.
        metadata: see `write_report`; name, recipe and versions are filled in.
    """
    directory = Path(directory)
    runs = read_frame(directory)
    document = _fit_document(directory)
    fits, refused = _fits(directory, document)
    facts = {"name": directory.resolve().name, "recipe": document.get("recipe"), "versions": _versions()}
    if document and fits and fits[0].runs.hash != document.get("data", {}).get("hash"):
        facts["note"] = f"{RUNS_FILE} has changed since fit.json was written; this page fits the runs as they are now"
    curves = loss_curves(directory, runs)
    first, refusal = (fits[0], "") if fits else (None, refused["isoflop"])
    facts |= metadata or {}
    return write_report(directory, runs, first, curves, facts, refusal=refusal, more_fits=fits[1:], refused=refused)


def loss_curves(directory: str | Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """The loss logs of all runs that have one, with `run_id` and `budget`; None where there are none."""
    parts = []
    if (gathered := Path(directory) / GATHERED_FILE).exists():
        return pd.read_parquet(gathered)
    if not {"run_id", "budget"} <= set(runs.columns):
        return None
    for row in records(runs.loc[:, ["run_id", "budget"]]):
        for path in sorted((Path(directory) / str(row["run_id"]) / "loss").glob("*.parquet")):
            frame = pd.read_parquet(path, columns=CURVE_COLUMNS)
            parts.append(frame.assign(run_id=str(row["run_id"]), budget=float(row["budget"])))
    parts = [p for p in parts if len(p)]
    return pd.concat(parts, ignore_index=True) if parts else None


def _fit_document(directory: Path) -> dict[str, Any]:
    path = directory / "fit.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FitError(f"{path}: not JSON: {error}; write it anew with: isoflop fit {directory}") from error
    if not isinstance(document, dict):
        raise FitError(f"{path}: not a fit; write it anew with: isoflop fit {directory}")
    return document


def _fits(directory: Path, document: dict[str, Any]) -> tuple[list[Fit], dict[str, str]]:
    """The fits of the document, repeated, and the usual methods that it lacks; what was refused, and why."""
    entries = [e for e in document.get("fits", []) if e.get("method") in METHODS]
    wanted = [(e["method"], e.get("axis", "params"), e.get("loss", "loss"), e.get("n", "total")) for e in entries]
    _, axis, loss, n = wanted[0] if wanted else ("", "params", "loss", document.get("options", {}).get("n", "total"))
    there = {(method, of_loss, of_n) for method, _, of_loss, of_n in wanted}
    wanted += [(method, axis, loss, n) for method in USUAL if (method, loss, n) not in there]
    fits: list[Fit] = []
    refused: dict[str, str] = {}
    for method, *what in sorted(wanted, key=lambda w: w[0] != "isoflop"):
        try:
            fits += fit_laws(directory, [method], _options(document, method, *what)).fits
        except FitError as error:
            refused[method] = str(error)
    return fits, refused


def _options(document: dict[str, Any], method: str, axis: Axis, loss: str, n: ParamCount) -> Options:
    """As in fit.json; of the surface no resamples, since the page shows its t intervals."""
    options = document.get("options", {})
    columns = {k: v for k, v in options.get("columns", {}).items() if not str(v).startswith("(")} | {"loss": loss}
    if n != options.get("n", n):
        columns.pop("params", None)
    kept: dict[str, Any] = {k: options[k] for k in _KEPT if options.get(k) is not None}
    if "huber_delta" in kept and kept["huber_delta"] not in PRESETS:
        kept["huber_delta"] = float(kept["huber_delta"])
    if method == "parametric":
        kept["bootstrap"] = 0
    return Options(axis=axis, n=n, columns=columns, **kept)


def _versions() -> str:
    return ", ".join([f"Python {platform.python_version()}", *(f"{p} {v}" for p in _PACKAGES if (v := _installed(p)))])


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
