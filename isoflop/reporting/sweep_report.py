"""The report of a sweep's directory: reads its files, repeats its fit, writes the page."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.config.sweep_definition import sweep_in
from isoflop.errors import FitError, RunError
from isoflop.fitting.methods.fit_all import METHODS, USUAL, Options, fit_laws
from isoflop.fitting.methods.parametric import PRESETS
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.fitted_laws import Axis
from isoflop.fitting.tables.readers import RUNS_FILE, read_frame
from isoflop.fitting.tables.runs_table import ParamCount
from isoflop.frames import records, rows
from isoflop.reporting.report_page import write_report
from isoflop.runs.run_directory import RunDirectory

GATHERED_FILE = "losses.parquet"
"""All loss logs of a sweep in one table, with `run_id` and `budget`: a kept result has it, and no run directories."""

CURVE_COLUMNS = ["step", "tokens", "train_flops", "split", "kind", "loss"]
_KEPT: dict[str, type | tuple[type, ...]] = {
    "loss_unit": str,
    "use": (str, list),
    "huber_delta": (str, int, float),
    "bootstrap": int,
    "seed": int,
    "confidence": (int, float),
    "drop_outliers": (int, float),
}
"""Options of fit.json that a repeated fit takes."""

_NAMED = ("method", "axis", "loss", "n")
_PACKAGES = ("isoflop", "torch", "numpy", "scipy", "pandas")


def report_sweep(directory: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Writes report.html and figures of a sweep's directory (`runs.parquet`, `fit.json`, `<run_id>/loss/*.parquet`).

    The fits are repeated with the options in fit.json: the same seed gives the same digits. Without fit.json the
    defaults are taken. The methods that it lacks are fitted beside; where one is refused, the page says why. Which loss
    it is, and is drawn, says sweep.yaml.

    Args:
        directory: of the sweep.
        metadata: see `write_report`; name, recipe and versions are filled in.
    """
    directory = Path(directory)
    runs, sweep = read_frame(directory), sweep_in(directory)
    document = _fit_document(directory)
    fits, refused = _fits(directory, document)
    facts = {
        "name": directory.resolve().name,
        "recipe": document.get("recipe"),
        "versions": _versions(),
    }
    if document and fits and fits[0].runs.hash != document.get("data", {}).get("hash"):
        facts["note"] = (
            f"{RUNS_FILE} has changed since fit.json was written; this page fits the runs as they are now"
        )
    curves, kind = loss_curves(directory, runs), sweep.metric.kind if sweep else "all"
    if curves is not None and sweep:
        curves = rows(
            curves, curves["split"].isin(("train", sweep.metric.set)).to_numpy(dtype=bool)
        )
    first, refusal = (fits[0], "") if fits else (None, refused["isoflop"])
    facts |= metadata or {}
    more: dict[str, Any] = {
        "refusal": refusal,
        "more_fits": fits[1:],
        "refused": refused,
        "kind": kind,
    }
    return write_report(directory, runs, first, curves, facts, **more)


def loss_curves(directory: str | Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """The loss logs of all runs that have one, with `run_id` and `budget`; None where there are none.

    A log that is damaged has no curve; in the table of runs it has a reason.
    """
    parts = []
    if (gathered := Path(directory) / GATHERED_FILE).exists():
        return read_frame(gathered)
    if not {"run_id", "budget"} <= set(runs.columns):
        return None
    for row in records(runs.loc[:, ["run_id", "budget"]]):
        with contextlib.suppress(RunError):
            frame = RunDirectory(Path(directory) / str(row["run_id"])).log().loc[:, CURVE_COLUMNS]
            parts.append(frame.assign(run_id=str(row["run_id"]), budget=float(row["budget"])))
    parts = [p for p in parts if len(p)]
    return pd.concat(parts, ignore_index=True) if parts else None


def _fit_document(directory: Path) -> dict[str, Any]:
    path = directory / "fit.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FitError(
            f"{path}: not JSON: {' '.join(str(error).split())[:120]}; {_mend(directory)}"
        ) from error
    if problem := _problem(document):
        raise FitError(f"{path}: not a fit ({problem}); {_mend(directory)}")
    return document


def _mend(directory: Path) -> str:
    here = shlex.quote(str(directory))
    return f"delete it, or write it anew with: isoflop fit {here} --output {here}"


def _problem(document: Any) -> str:
    """What of a fit.json, which may have been edited by hand, can't be repeated; empty where all can."""
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
    for place, values in (
        ("options", {"n": options.get("n", "")}),
        *((f"fits[{i}]", e) for i, e in enumerate(fits)),
    ):
        if wrong := [key for key in _NAMED if not isinstance(values.get(key, ""), str)]:
            return f"{place}.{wrong[0]}: expected a name"
    for key, kinds in _KEPT.items():
        if options.get(key) is not None and not isinstance(options[key], kinds):
            return f"options.{key}: can't be {options[key]!r}"
    return ""


def _fits(directory: Path, document: dict[str, Any]) -> tuple[list[Fit], dict[str, str]]:
    """The fits of the document, repeated, and the usual methods that it lacks; what was refused, and why."""
    entries = [e for e in document.get("fits", []) if e.get("method") in METHODS]
    wanted = [
        (e["method"], e.get("axis", "params"), e.get("loss", "loss"), e.get("n", "total"))
        for e in entries
    ]
    _, axis, loss, n = (
        wanted[0]
        if wanted
        else ("", "params", "loss", document.get("options", {}).get("n", "total"))
    )
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


def _options(
    document: dict[str, Any], method: str, axis: Axis, loss: str, n: ParamCount
) -> Options:
    """As in fit.json; of the surface no resamples, since the page shows its t intervals."""
    options = document.get("options", {})
    columns = {
        k: v for k, v in options.get("columns", {}).items() if not str(v).startswith("(")
    } | {"loss": loss}
    if n != options.get("n", n):
        columns.pop("params", None)
    kept: dict[str, Any] = {k: options[k] for k in _KEPT if options.get(k) is not None}
    if "huber_delta" in kept and kept["huber_delta"] not in PRESETS:
        try:
            kept["huber_delta"] = float(kept["huber_delta"])
        except ValueError:
            raise FitError(
                f"fit.json: options.huber_delta: can't be {kept['huber_delta']!r}"
            ) from None
    if method == "parametric":
        kept["bootstrap"] = 0
    return Options(axis=axis, n=n, columns=columns, **kept)


def _versions() -> str:
    return ", ".join(
        [
            f"Python {platform.python_version()}",
            *(f"{p} {v}" for p in _PACKAGES if (v := _installed(p))),
        ]
    )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
