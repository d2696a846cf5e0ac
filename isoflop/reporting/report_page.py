"""One self-contained HTML page about a study: what was found, what was run, how sure it is, how to repeat it."""

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
    doubt_section,
    first_that_tells,
    law_section,
    prediction_section,
    profile_section,
    reading_section,
    surface_section,
)
from isoflop.text import count_text, flops_text

# Runs' columns that are shown where they exist: name in the table, heading, how a cell is printed.
_RUN_COLUMNS = {
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
    """Writes report.html and figures/*.png, *.svg into a directory.

    Args:
        directory: made if missing.
        runs: a row a run: the columns of runs.parquet; those that are missing are not shown.
        fit: the laws that the page is about; None where no fit could be made, then `refusal` says why.
        curves: `run_id, budget, train_flops, split, kind, loss` of all steps.
        metadata: `name` of the study, `simulated` (true puts a banner on the page; so does a column `simulated` of
            the runs), `wall_hours`; anything else is listed under provenance as it is.
        refusal: why there is no fit.
        more_fits: other laws of the same runs (by another method, of a kind of token, in another axis), beside it.
        refused: methods that could not be fitted, and why.
        kind: of token, whose loss the column `loss` is, and is drawn while it falls.

    Returns:
        The path of report.html.
    """
    directory, facts = Path(directory), dict(metadata or {})
    name = str(facts.setdefault("name", "IsoFLOP study"))
    fits = [] if fit is None else [fit, *more_fits]
    figures = study_figures(fits, curves, kind)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        art = write_figures(directory / "figures", figures)
        parts = _parts(runs, fits, curves, facts, art, refusal, refused or {}, kind)
        text = page.document(f"{name}: IsoFLOP study", parts)
        with replace_file(directory / "report.html") as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FitError(
            f"{directory}: the report can't be written: {error.strerror or error}"
        ) from error
    return directory / "report.html"


def _parts(
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
        *(_headline(fits, kind) if fits else _refused(refusal)),
        _what_was_run(runs, facts),
        *(_of_fits(fits[0], fits[1:], art, refused, kind) if fits else ()),
        _curves_section(art, curves, kind),
        page.section(f"All {len(runs)} runs", _run_table(runs)),
        reading_section(fits[0]) if fits else "",
        _provenance(fits[0] if fits else None, facts),
    ]


def _of_fits(
    fit: Fit, more: Sequence[Fit], art: dict[str, str], refused: Mapping[str, str], kind: str
) -> list[str]:
    return [
        profile_section(fit, art) if isinstance(fit, IsoflopFit) else "",
        law_section(fit, art, more, refused, kind),
        surface_section(art),
        prediction_section(fit, more),
        doubt_section(fit, more, art),
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
    """The law of the first fit that can tell one, in words and numbers."""
    fit = first_that_tells(fits)
    fitted = "" if kind == "all" else f" The loss is that of {kind} tokens."
    if fit is None:
        lead = f"{fits[0].no_law} What was fitted all the same stands below.{fitted}"
        return ["<h1>These runs tell no law of compute</h1>", page.paragraph(lead, "lead")]
    sentence, _, laws = fit.headline().partition(": ")
    a, b, ratio = (fit.intervals().loc[name].to_dict() for name in ("a", "b", "ratio"))
    ten = f"Ten times the compute is best spent on a model {10 ** a['value']:.2g} times as large, "
    ten += f"trained on {10 ** b['value']:.2g} times as much data."
    numbers = [
        ("a: model size exponent", f"{a['value']:.3f}", _span(a)),
        ("b: data exponent", f"{b['value']:.3f}", _span(b)),
        ("b / a", f"{ratio['value']:.2f}", _span(ratio, 2)),
        ("Tokens per parameter", _tokens_per_parameter(fit), "at the smallest and largest budget"),
    ]
    lead = f'<p class="lead">{_powers(laws)}. {escape(ten + fitted)}</p>'
    return [f"<h1>{escape(sentence)}</h1>", lead, page.facts(numbers)]


def _powers(laws: str) -> str:
    """C^0.37 as C with a raised exponent."""
    return re.sub(r"\^(-?[\d.]+)", r"<sup>\1</sup>", escape(laws))


def _span(row: Mapping[Any, float], digits: int = 3) -> str:
    if not math.isfinite(row["high"] - row["low"]):
        return "unbounded"
    return f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"


def _tokens_per_parameter(fit: Fit) -> str:
    flops = fit.fitted_flops
    ends = [fit.predict(float(c))["value"].to_dict() for c in (flops.min(), flops.max())]
    return " → ".join(f"{e['tokens'] / e['params']:.3g}" for e in ends)


def _refused(refusal: str) -> list[str]:
    return [
        "<h1>No law could be fitted</h1>",
        page.paragraph(refusal or "The runs were not fitted.", "lead"),
    ]


def _what_was_run(runs: pd.DataFrame, facts: dict[str, Any]) -> str:
    done = (
        rows(runs, (runs["state"] == "done").to_numpy(dtype=bool))
        if "state" in runs.columns
        else runs
    )
    items = [("Runs", f"{len(runs)}", "" if len(done) == len(runs) else f"{len(done)} done")]
    if "budget" in runs.columns and len(runs):
        budgets = column(runs, "budget")
        span = f"{flops_text(float(budgets.min()))} to {flops_text(float(budgets.max()))} FLOPs"
        items.append(("Budgets", f"{len(set(budgets))}", span))
    flops = next((c for c in ("train_flops", "flops", "budget") if c in runs.columns), None)
    if flops:
        items.append(
            (
                "Training compute",
                flops_text(float(f"{column(done, flops).sum():.3g}")),
                "FLOPs, done runs",
            )
        )
    if "tokens" in runs.columns:
        items.append(
            ("Tokens seen", count_text(float(column(done, "tokens").sum())), "done runs together")
        )
    items += [
        (words, *_hours(runs, facts, key))
        for key, words in _HOURS.items()
        if _hours(runs, facts, key)[0]
    ]
    return page.section("What was run", page.facts(items))


_HOURS = {"wall_hours": "Wall time", "gpu_hours": "GPU time"}


def _hours(runs: pd.DataFrame, facts: dict[str, Any], key: str) -> tuple[str, str]:
    value = facts.get(key)
    if value is None and key in runs.columns:
        value = float(np.nansum(column(runs, key)))
    if not isinstance(value, (int, float)) or not value > 0:
        return "", ""
    return (f"{value:.3g} h", "") if value >= 1 else (f"{value * 60:.2g} min", "")


def _curves_section(art: dict[str, str], curves: pd.DataFrame | None, kind: str) -> str:
    if "loss_curves" not in art or curves is None:
        return ""
    of = "" if kind == "all" else f" of {kind} tokens"
    if default_split(curves, kind) == "train" and bool((curves["split"] != "train").any()):
        dot = f"the dot is the held-out loss{of} after the last step, the one that is fitted"
        caption = f"One line a run, coloured by budget: the loss{of} on training batches; {dot}."
    else:
        dot = f"the dot is the loss{of} after the last step, the one that is fitted"
        caption = f"One line a run, coloured by budget; {dot}."
    return page.section(
        "Loss while training",
        page.figure(art["loss_curves"], caption, "Loss against training compute"),
    )


def _run_table(runs: pd.DataFrame) -> str:
    shown = [c for c in _RUN_COLUMNS if c in runs.columns and bool(runs[c].notna().any())]
    if "params" in shown and "params_total" in shown:
        shown.remove("params_total")
    texts = [i for i, c in enumerate(shown) if _RUN_COLUMNS[c][1] == "text"]
    rows = [
        [_print(row[c], _RUN_COLUMNS[c][1]) for c in shown] for row in records(runs.loc[:, shown])
    ]
    return page.table([_RUN_COLUMNS[c][0] for c in shown], rows, text=texts, tall=True)


def _print(value: Any, kind: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return "-"
    if kind == "text" or isinstance(value, str):
        return str(value)
    printers = {
        "flops": flops_text,
        "count": count_text,
        "loss": lambda v: f"{v:.4f}",
        "plain": lambda v: f"{v:.6g}",
    }
    return printers[kind](float(value))


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
            ("profiles let into the laws", ", ".join(fit.use)),
        ]
    return (
        page.section("Provenance", page.table((), rows, text=(0, 1), kind="provenance"))
        if rows
        else ""
    )
