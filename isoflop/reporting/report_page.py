"""One self-contained HTML page about a study: laws, runs, intervals, findings and provenance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.files import replace_file
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.frames import column, records, rows
from isoflop.plotting.curve_plots import default_split
from isoflop.reporting import markup as page
from isoflop.reporting.figures import study_figures, write_figures
from isoflop.reporting.fit_sections import (
    findings_section,
    first_law,
    law_section,
    prediction_section,
    profile_section,
    reading_section,
    surface_section,
)
from isoflop.text import count_text, duration_text, flops_text, gpu_hours_text

_RUNS_TABLE_COLUMNS = {
    "run_id": ("Run", "text"),
    "budget": ("Budget", "flops"),
    "width": ("Width", "plain"),
    "layers": ("Layers", "plain"),
    "params": ("N", "count"),
    "params_total": ("N", "count"),
    "tokens": ("D", "count"),
    "train_flops": ("FLOPs", "flops"),
    "lr": ("LR", "plain"),
    "batch_size": ("Batch", "plain"),
    "seed": ("Seed", "plain"),
    "epochs": ("Epochs", "plain"),
    "loss": ("Loss", "loss"),
    "state": ("State", "text"),
    "restarts": ("Restarts", "plain"),
    "reason": ("Reason", "text"),
}
"""Columns of the runs that are printed if they have values: heading and format by name."""

_HOURS = {"wall_hours": "Wall time", "gpu_hours": "GPU time"}


def write_report(
    directory: str | Path,
    runs: pd.DataFrame,
    fit: Fit | None,
    curves: pd.DataFrame | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    refusal: str = "",
    more_fits: Sequence[Fit] = (),
    refused: Mapping[str, str] | None = None,
    kind: str = "all",
) -> Path:
    """Write report.html and figures/*.png, *.svg into a directory.

    Args:
        directory: created if missing.
        runs: a row per run, with columns of runs.parquet; missing columns are left out.
        fit: the fit that the page is about; None if all were refused (see `refusal`).
        curves: `run_id, budget, train_flops, split, kind, loss` of all steps.
        metadata: `name` of the study; `simulated`, which adds a banner if true (so does a column
            `simulated` of the runs); `wall_hours`. Other entries are listed under provenance.
        refusal: reason for the missing fit.
        more_fits: other fits of the same runs: by another method, of another token kind or on
            another axis.
        refused: reasons of refused methods, by method.
        kind: token kind of the column `loss` and of the loss curves.

    Returns:
        The path of report.html.

    Raises:
        FitError: the directory can't be written.
    """
    directory, facts = Path(directory), dict(metadata or {})
    name = str(facts.setdefault("name", "IsoFLOP study"))
    fits = [] if fit is None else [fit, *more_fits]
    figures = study_figures(fits, curves, kind)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        art = write_figures(directory / "figures", figures)
        body = _body(runs, fits, curves, facts, art, refusal, refused or {}, kind)
        text = page.document(f"{name}: IsoFLOP study", body)
        with replace_file(directory / "report.html") as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FitError(
            f"{directory}: the report can't be written: {error.strerror or error}"
        ) from error
    return directory / "report.html"


def _body(
    runs: pd.DataFrame,
    fits: Sequence[Fit],
    curves: pd.DataFrame | None,
    facts: dict[str, Any],
    art: dict[str, str],
    refusal: str,
    refused: Mapping[str, str],
    kind: str,
) -> list[str]:
    return [
        _banner(facts, runs),
        f'<p class="eyebrow">IsoFLOP study {escape(str(facts.pop("name")))}</p>',
        *(_headline(fits, kind) if fits else _refusal(refusal)),
        _runs_summary(runs, facts),
        *(_fit_sections(fits[0], fits[1:], art, refused, kind) if fits else ()),
        _curves_section(art, curves, kind),
        page.section(f"All {len(runs)} runs", _run_table(runs)),
        reading_section(fits[0]) if fits else "",
        _provenance(fits[0] if fits else None, facts),
    ]


def _fit_sections(
    fit: Fit, more: Sequence[Fit], art: dict[str, str], refused: Mapping[str, str], kind: str
) -> list[str]:
    return [
        profile_section(fit, art) if isinstance(fit, IsoflopFit) else "",
        law_section(fit, art, more, refused, kind),
        surface_section(art),
        prediction_section(fit, more),
        findings_section(fit, more, art),
    ]


def _banner(facts: dict[str, Any], runs: pd.DataFrame) -> str:
    cells = list(runs["simulated"]) if "simulated" in runs.columns else []
    marked = any(str(cell).lower() in ("true", "1", "1.0") for cell in cells)
    if not (facts.pop("simulated", False) or marked):
        return ""
    text = (
        "Simulated runs: these losses were drawn from a formula with noise. No model was trained."
    )
    return f'<div class="banner" role="note">{text}</div>'


def _headline(fits: Sequence[Fit], kind: str) -> list[str]:
    """Return the headline: the first valid law, in words and numbers."""
    fit = first_law(fits)
    loss_kind = "" if kind == "all" else f" The loss is that of {kind} tokens."
    if fit is None:
        lead = f"{fits[0].no_law} The fits are listed below.{loss_kind}"
        return ["<h1>No law of compute from these runs</h1>", page.paragraph(lead, "lead")]
    sentence, _, laws = fit.headline().partition(": ")
    a, b, ratio = (fit.intervals().loc[name].to_dict() for name in ("a", "b", "ratio"))
    advice = (
        f"Ten times the compute is best spent on a model {10 ** a['value']:.2g} times as large, "
        f"trained on {10 ** b['value']:.2g} times as much data."
    )
    numbers = [
        ("a: model size exponent", f"{a['value']:.3f}", _span(a)),
        ("b: data exponent", f"{b['value']:.3f}", _span(b)),
        ("b / a", f"{ratio['value']:.2f}", _span(ratio, 2)),
        ("Tokens per parameter", _tokens_per_parameter(fit), "at the smallest and largest budget"),
    ]
    lead = f'<p class="lead">{_powers(laws)}. {escape(advice + loss_kind)}</p>'
    return [f"<h1>{escape(sentence)}</h1>", lead, page.facts(numbers)]


def _powers(laws: str) -> str:
    """Return text with raised exponents: C^0.37 becomes C<sup>0.37</sup>."""
    return re.sub(r"\^(-?[\d.]+)", r"<sup>\1</sup>", escape(laws))


def _span(row: Mapping[Any, float], digits: int = 3) -> str:
    if not math.isfinite(row["high"] - row["low"]):
        return "unbounded"
    return f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"


def _tokens_per_parameter(fit: Fit) -> str:
    flops = fit.fitted_flops
    ends = [fit.predict(float(c))["value"].to_dict() for c in (flops.min(), flops.max())]
    return " → ".join(f"{e['tokens'] / e['params']:.3g}" for e in ends)


def _refusal(refusal: str) -> list[str]:
    return [
        "<h1>No law could be fitted</h1>",
        page.paragraph(refusal or "The runs were not fitted.", "lead"),
    ]


def _runs_summary(runs: pd.DataFrame, facts: dict[str, Any]) -> str:
    done = runs
    if "state" in runs.columns:
        done = rows(runs, (runs["state"] == "done").to_numpy(dtype=bool))
    items = [("Runs", f"{len(runs)}", "" if len(done) == len(runs) else f"{len(done)} done")]
    if "budget" in runs.columns and len(runs):
        budgets = column(runs, "budget")
        ends = (flops_text(float(end)) for end in (budgets.min(), budgets.max()))
        items.append(("Budgets", f"{len(set(budgets))}", f"{' to '.join(ends)} FLOPs"))
    flops = next((c for c in ("train_flops", "flops", "budget") if c in runs.columns), None)
    if flops:
        compute = flops_text(float(column(done, flops).sum()), 3)
        items.append(("Training compute", compute, "FLOPs, done runs"))
    if "tokens" in runs.columns:
        tokens = count_text(float(column(done, "tokens").sum()))
        items.append(("Training tokens", tokens, "done runs together"))
    for key, heading in _HOURS.items():
        if hours := _hours(runs, facts, key):
            text = gpu_hours_text(hours) if key == "gpu_hours" else duration_text(3600 * hours)
            items.append((heading, text, ""))
    return page.section("Runs", page.facts(items))


def _hours(runs: pd.DataFrame, facts: dict[str, Any], key: str) -> float:
    """Return the hours of the metadata, else the sum of their column; 0 if unknown."""
    value = facts.get(key)
    if value is None and key in runs.columns:
        value = float(np.nansum(column(runs, key)))
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.0


def _curves_section(art: dict[str, str], curves: pd.DataFrame | None, kind: str) -> str:
    if "loss_curves" not in art or curves is None:
        return ""
    tokens = "" if kind == "all" else f" of {kind} tokens"
    if default_split(curves, kind) == "train" and bool((curves["split"] != "train").any()):
        line = f": the loss{tokens} on training batches"
        dot = f"the held-out loss{tokens}"
    else:
        line, dot = "", f"the loss{tokens}"
    caption = (
        f"One line per run, coloured by budget{line}; the dot is {dot} after the last step, which "
        "is fitted."
    )
    drawing = page.figure(art["loss_curves"], caption, "Loss against training compute")
    return page.section("Loss while training", drawing)


def _run_table(runs: pd.DataFrame) -> str:
    names = [c for c in _RUNS_TABLE_COLUMNS if c in runs.columns and bool(runs[c].notna().any())]
    if "params" in names and "params_total" in names:
        names.remove("params_total")
    columns = [_RUNS_TABLE_COLUMNS[name] for name in names]
    cells = [
        [_cell_text(value, kind) for value, (_, kind) in zip(row.values(), columns, strict=True)]
        for row in records(runs.loc[:, names])
    ]
    texts = [i for i, (_, kind) in enumerate(columns) if kind == "text"]
    return page.table([heading for heading, _ in columns], cells, text=texts, tall=True)


def _cell_text(value: Any, kind: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return "-"
    if kind == "text" or isinstance(value, str):
        return str(value)
    if kind == "flops":
        return flops_text(float(value))
    if kind == "count":
        return count_text(float(value))
    return f"{float(value):.4f}" if kind == "loss" else f"{float(value):.6g}"


def _provenance(fit: Fit | None, facts: dict[str, Any]) -> str:
    rows = [
        (str(key).replace("_", " "), str(value))
        for key, value in facts.items()
        if value not in (None, "")
    ]
    if fit is not None:
        columns = ", ".join(f"{k} from {v}" for k, v in fit.runs.columns.items())
        rows += [
            ("data read from", fit.runs.source),
            ("data hash (SHA-256)", fit.runs.hash),
            ("columns", columns),
            ("confidence", f"{fit.confidence:g}"),
        ]
    if isinstance(fit, IsoflopFit):
        rows += [
            ("resamples, seed", f"{fit.bootstrap}, {fit.seed}"),
            ("profiles used for the laws", ", ".join(fit.use)),
        ]
    table = page.table((), rows, text=(0, 1), kind="provenance") if rows else ""
    return page.section("Provenance", table)
