"""The report of a sweep's directory: its files are read, its fits repeated, its page written."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.config.sweep_file import load_directory_sweep
from isoflop.errors import FitError, RunError
from isoflop.fitting.methods.fit_all import DEFAULT_METHODS, METHODS, FitOptions, fit_laws
from isoflop.fitting.methods.parametric import HUBER_PRESETS
from isoflop.fitting.results.base import Fit
from isoflop.fitting.tables.table_files import RUNS_FILE, read_frame
from isoflop.fitting.terms import Axis
from isoflop.frames import records, rows
from isoflop.reporting.report_page import write_report
from isoflop.runs.run_directory import RunDirectory
from isoflop.shapes import ParamCount

GATHERED_LOSSES_FILE = "losses.parquet"
"""All loss logs of a sweep in one table, with `run_id` and `budget`, in an archived study without
run directories."""

CURVE_COLUMNS = ["step", "tokens", "train_flops", "split", "kind", "loss"]
_OPTION_TYPES: dict[str, type | tuple[type, ...]] = {
    "loss_unit": str,
    "use": (str, list),
    "huber_delta": (str, int, float),
    "bootstrap": int,
    "seed": int,
    "confidence": (int, float),
    "drop_outliers": (int, float),
}
"""Types of the options in fit.json that a repeated fit uses."""

_STRING_KEYS = ("method", "axis", "loss", "n")
_REPORTED_PACKAGES = ("isoflop", "torch", "numpy", "scipy", "pandas")


def report_sweep(directory: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write report.html and figures of a sweep from `runs.parquet`, `fit.json` and
    `<run_id>/loss/*.parquet`.

    The fits are repeated with the options in fit.json (default options without that file), so the
    same seed gives the same digits. Default methods missing from fit.json are fitted too. The page
    gives the reason for each refused method. The metric in sweep.yaml selects the loss curves.

    Args:
        directory: the sweep's directory.
        metadata: see `write_report`; name, recipe and versions are filled in.

    Returns:
        The path of report.html.

    Raises:
        FitError: a file is missing, can't be read or is not a fit.json.
    """
    directory = Path(directory)
    runs, sweep = read_frame(directory), load_directory_sweep(directory)
    document = _fit_document(directory)
    fits, refused = _fits(directory, document)
    facts = {
        "name": directory.resolve().name,
        "recipe": document.get("recipe"),
        "versions": _versions(),
    }
    if document and fits and fits[0].runs.hash != document.get("data", {}).get("hash"):
        facts["note"] = (
            f"{RUNS_FILE} has changed since fit.json was written; this page fits the current runs"
        )
    curves, kind = loss_curves(directory, runs), sweep.metric.kind if sweep else "all"
    if curves is not None and sweep:
        curves = rows(
            curves, curves["split"].isin(("train", sweep.metric.set)).to_numpy(dtype=bool)
        )
    first, refusal = (fits[0], "") if fits else (None, refused["isoflop"])
    facts |= metadata or {}
    texts: dict[str, Any] = {"refusal": refusal, "refused": refused, "kind": kind}
    return write_report(directory, runs, first, curves, facts, more_fits=fits[1:], **texts)


def loss_curves(directory: str | Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Return the loss logs of all runs with `run_id` and `budget`, or None without any log.

    A damaged log has no curve; the table of runs gives the reason.
    """
    logs = []
    if (gathered := Path(directory) / GATHERED_LOSSES_FILE).exists():
        return read_frame(gathered)
    if not {"run_id", "budget"} <= set(runs.columns):
        return None
    for row in records(runs.loc[:, ["run_id", "budget"]]):
        with contextlib.suppress(RunError):
            log = RunDirectory(Path(directory) / str(row["run_id"])).log().loc[:, CURVE_COLUMNS]
            logs.append(log.assign(run_id=str(row["run_id"]), budget=float(row["budget"])))
    logs = [log for log in logs if len(log)]
    return pd.concat(logs, ignore_index=True) if logs else None


def _fit_document(directory: Path) -> dict[str, Any]:
    path = directory / "fit.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FitError(
            f"{path}: not JSON: {' '.join(str(error).split())[:120]}; {_fix(directory)}"
        ) from error
    if problem := _problem(document):
        raise FitError(f"{path}: not a fit ({problem}); {_fix(directory)}")
    return document


def _fix(directory: Path) -> str:
    folder = shlex.quote(str(directory))
    return f"delete it, or replace it with: isoflop fit {folder} --output {folder}"


def _problem(document: Any) -> str:
    """Return the first error in a fit.json, which may have been edited by hand; empty if valid."""
    if not isinstance(document, dict):
        return "expected a mapping"
    options, fits = document.get("options", {}), document.get("fits", [])
    for key, value in (("options", options), ("data", document.get("data", {}))):
        if not isinstance(value, dict):
            return f"{key}: expected a mapping"
    columns = options.get("columns", {})
    if not isinstance(columns, dict) or not all(
        isinstance(name, str | None) for name in columns.values()
    ):
        return "options.columns: expected a mapping of names"
    if not isinstance(fits, list) or not all(isinstance(entry, dict) for entry in fits):
        return "fits: expected a list of fits"
    entries = {f"fits[{i}]": entry for i, entry in enumerate(fits)}
    for section, values in ({"options": {"n": options.get("n", "")}} | entries).items():
        if wrong := [key for key in _STRING_KEYS if not isinstance(values.get(key, ""), str)]:
            return f"{section}.{wrong[0]}: expected a name"
    for key, types in _OPTION_TYPES.items():
        if options.get(key) is not None and not isinstance(options[key], types):
            return f"options.{key}: can't be {options[key]!r}"
    return ""


def _fits(directory: Path, document: dict[str, Any]) -> tuple[list[Fit], dict[str, str]]:
    """Repeat the fits of the document and fit the default methods that it lacks.

    Returns:
        The fits, isoflop first, and the reasons of refused methods by method.
    """
    entries = [e for e in document.get("fits", []) if e.get("method") in METHODS]
    specs = [
        (e["method"], e.get("axis", "params"), e.get("loss", "loss"), e.get("n", "total"))
        for e in entries
    ]
    default = ("", "params", "loss", document.get("options", {}).get("n", "total"))
    _, axis, loss, n = specs[0] if specs else default
    fitted = {(method, loss, n) for method, _, loss, n in specs}
    missing = [method for method in DEFAULT_METHODS if (method, loss, n) not in fitted]
    specs += [(method, axis, loss, n) for method in missing]
    fits: list[Fit] = []
    refused: dict[str, str] = {}
    for method, *rest in sorted(specs, key=lambda spec: spec[0] != "isoflop"):
        try:
            fits += fit_laws(directory, [method], _options(document, method, *rest)).fits
        except FitError as error:
            refused[method] = str(error)
    return fits, refused


def _options(
    document: dict[str, Any], method: str, axis: Axis, loss: str, n: ParamCount
) -> FitOptions:
    """Return the options of fit.json, without resamples of the surface: the page has its t
    intervals.
    """
    saved = document.get("options", {})
    names = {k: v for k, v in saved.get("columns", {}).items() if not str(v).startswith("(")}
    columns = names | {"loss": loss}
    if n != saved.get("n", n):
        columns.pop("params", None)
    options: dict[str, Any] = {k: saved[k] for k in _OPTION_TYPES if saved.get(k) is not None}
    if "huber_delta" in options and options["huber_delta"] not in HUBER_PRESETS:
        try:
            options["huber_delta"] = float(options["huber_delta"])
        except ValueError:
            raise FitError(
                f"fit.json: options.huber_delta: can't be {options['huber_delta']!r}"
            ) from None
    if method == "parametric":
        options["bootstrap"] = 0
    return FitOptions(axis=axis, n=n, columns=columns, **options)


def _versions() -> str:
    installed = [f"{name} {number}" for name in _REPORTED_PACKAGES if (number := _installed(name))]
    return ", ".join([f"Python {platform.python_version()}", *installed])


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
