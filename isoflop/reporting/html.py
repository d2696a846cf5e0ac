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
from isoflop.fitting.diagnostics import flops_text
from isoflop.fitting.frames import column, mask, records, rows
from isoflop.fitting.result import IsoflopFit
from isoflop.fitting.summary import number
from isoflop.reporting import page
from isoflop.reporting.figures import inline_svg, study_figures, write_figures

STATUS_WORDS = {
    "interior": "the minimum lies inside the sizes that were run, with two sizes or more on either side",
    "one_sided": "inside, but the best run is at an end, or a single size holds one side",
    "edge": "the minimum lies outside the sizes that were run: an extrapolation",
    "concave": "the parabola bends the wrong way: there is no minimum",
    "too_few": "fewer than four sizes: nothing is left to tell a minimum from noise",
}
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
    fit: IsoflopFit | None,
    curves: pd.DataFrame | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    refusal: str = "",
    more_fits: Sequence[IsoflopFit] = (),
) -> Path:
    """Writes report.html and figures/*.png, *.svg into a directory.

    Args:
        directory: made if missing.
        runs: a row a run: the columns of runs.parquet; those that are missing are not shown.
        fit: the laws; None where the fit was refused, then `refusal` says why.
        curves: `run_id, budget, train_flops, split, kind, loss` of all steps.
        metadata: `name` of the study, `simulated` (true puts a banner on the page; so does a column `simulated` of
            the runs), `wall_hours`; anything else is listed under provenance as it is.
        refusal: why there is no fit.
        more_fits: other laws of the same runs (a kind of token, another axis), listed beside.

    Returns:
        The path of report.html.
    """
    directory, facts = Path(directory), dict(metadata or {})
    figures = study_figures(fit, curves)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_figures(directory / "figures", figures)
        art = {name: inline_svg(drawing) for name, drawing in figures.items() if name != "overview"}
        text = _page(runs, fit, facts, art, refusal, more_fits)
        with replace_file(directory / "report.html") as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FitError(f"{directory}: the report can't be written: {error.strerror or error}") from error
    return directory / "report.html"


def _page(
    runs: pd.DataFrame,
    fit: IsoflopFit | None,
    facts: dict[str, Any],
    art: dict[str, str],
    refusal: str,
    more_fits: Sequence[IsoflopFit],
) -> str:
    name = str(facts.pop("name", "IsoFLOP study"))
    parts = [
        _banner(facts, runs),
        f'<p class="eyebrow">IsoFLOP study {escape(name)}</p>',
        *(_headline(fit) if fit is not None else _refused(refusal)),
        _what_was_run(runs, facts),
        _profile_section(fit, art) if fit is not None else "",
        _law_section(fit, art, more_fits) if fit is not None else "",
        page.section("How sure is this", page.notes(d["message"] for d in fit.diagnostics)) if fit is not None else "",
        _curves_section(art),
        page.section(f"All {len(runs)} runs", _run_table(runs)),
        _reading(fit) if fit is not None else "",
        _provenance(fit, facts),
    ]
    return page.document(f"{name}: IsoFLOP study", parts)


def _banner(facts: dict[str, Any], runs: pd.DataFrame) -> str:
    cells = list(runs["simulated"]) if "simulated" in runs.columns else []
    marked = any(str(cell).lower() in ("true", "1", "1.0") for cell in cells)
    if not (facts.pop("simulated", False) or marked):
        return ""
    text = "Simulated runs: these losses were drawn from a formula with noise. No model was trained."
    return f'<div class="banner" role="note">{text}</div>'


def _headline(fit: IsoflopFit) -> list[str]:
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
    return [f"<h1>{escape(sentence)}</h1>", f'<p class="lead">{_powers(laws)}. {escape(ten)}</p>', page.facts(numbers)]


def _powers(laws: str) -> str:
    """C^0.37 as C with a raised exponent."""
    return re.sub(r"\^(-?[\d.]+)", r"<sup>\1</sup>", escape(laws))


def _span(row: Mapping[Any, float], digits: int = 3) -> str:
    if not math.isfinite(row["high"] - row["low"]):
        return "unbounded"
    return f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"


def _tokens_per_parameter(fit: IsoflopFit) -> str:
    flops = column(fit.profiles, "flops")[mask(fit.profiles, "used")]
    ends = [fit.predict(float(c))["value"].to_dict() for c in (flops.min(), flops.max())]
    return " → ".join(f"{e['tokens'] / e['params']:.3g}" for e in ends)


def _refused(refusal: str) -> list[str]:
    return ["<h1>No law could be fitted</h1>", page.paragraph(refusal or "The runs were not fitted.", "lead")]


def _what_was_run(runs: pd.DataFrame, facts: dict[str, Any]) -> str:
    done = rows(runs, (runs["state"] == "done").to_numpy(dtype=bool)) if "state" in runs.columns else runs
    items = [("Runs", f"{len(runs)}", "" if len(done) == len(runs) else f"{len(done)} done")]
    if "budget" in runs.columns and len(runs):
        budgets = column(runs, "budget")
        span = f"{flops_text(float(budgets.min()))} to {flops_text(float(budgets.max()))} FLOPs"
        items.append(("Budgets", f"{len(set(budgets))}", span))
    flops = next((c for c in ("train_flops", "flops", "budget") if c in runs.columns), None)
    if flops:
        items.append(("Training compute", flops_text(float(f"{column(done, flops).sum():.3g}")), "FLOPs, done runs"))
    if "tokens" in runs.columns:
        items.append(("Tokens seen", number(float(column(done, "tokens").sum())), "done runs together"))
    items += [(words, *_hours(runs, facts, key)) for key, words in _HOURS.items() if _hours(runs, facts, key)[0]]
    return page.section("What was run", page.facts(items))


_HOURS = {"wall_hours": "Wall time", "gpu_hours": "GPU time"}


def _hours(runs: pd.DataFrame, facts: dict[str, Any], key: str) -> tuple[str, str]:
    value = facts.get(key)
    if value is None and key in runs.columns:
        value = float(np.nansum(column(runs, key)))
    if not isinstance(value, (int, float)) or not value > 0:
        return "", ""
    return (f"{value:.3g} h", "") if value >= 1 else (f"{value * 60:.2g} min", "")


def _profile_section(fit: IsoflopFit, art: dict[str, str]) -> str:
    caption = (
        "Each colour is one budget: models of many sizes, all trained with the same compute. Too small a model can't "
        "use the data, too large a one sees too little of it. The diamond is the best size, its bar the "
        f"{fit.confidence:.0%} interval. Hollow points belong to profiles that the laws leave out."
    )
    seen = list(dict.fromkeys(fit.profiles["status"]))
    words = page.notes(page.Markup(f"<b>{s.replace('_', ' ')}</b>: {escape(STATUS_WORDS[s])}.") for s in seen)
    drawing = page.figure(art["profiles"], caption, "IsoFLOP profiles: loss against size for each budget")
    return page.section("IsoFLOP profiles", drawing, _profile_table(fit), words)


def _profile_table(fit: IsoflopFit) -> str:
    letter = "N*" if fit.axis == "params" else "D*"
    headings = ("Budget", "N*", "D*", f"{letter} from", "to", "Loss", "Depth", "Depth/noise", "Sizes", "Profile")
    rows = []
    for row in records(fit.profiles):
        counts = [number(row[c]) for c in ("params_opt", "tokens_opt", "low", "high")]
        fixed = [_fixed(row["loss_opt"], 4), _fixed(row["depth"], 4), _fixed(row["depth_to_noise"], 1)]
        status = page.badge(f"{row['status'].replace('_', ' ')}{'' if row['used'] else ', not used'}", not row["used"])
        rows.append([flops_text(row["budget"]), *counts, *fixed, str(row["n_points"]), status])
    return page.table(headings, rows, text=(9,))


def _law_section(fit: IsoflopFit, art: dict[str, str], more_fits: Sequence[IsoflopFit]) -> str:
    captions = {
        "law_params": "The best model size of each budget and the power law through them; dashed beyond the data.",
        "law_tokens": "The same for training data. The band is the interval of the law, if it goes on as a power law.",
    }
    pair = "".join(page.figure(art[name], text, text) for name, text in captions.items())
    return page.section("The laws", f'<div class="pair">{pair}</div>', _law_table([fit, *more_fits]))


def _law_table(fits: Sequence[IsoflopFit]) -> str:
    """Exponents with both intervals, a row an exponent and fit."""
    rows = []
    for fit in fits:
        table = fit.intervals()
        for name in ("a", "b", "ratio"):
            row = table.loc[name].to_dict()
            spans = [f"{row[f'{k}low']:.4f} to {row[f'{k}high']:.4f}" for k in ("", "bootstrap_", "line_")]
            what = "b / a" if name == "ratio" else name
            rows.append([fit.runs.columns["loss"], what, f"{row['value']:.4f}", *spans])
    headings = ("Loss", "Exponent", "Value", "Interval (the wider)", "Bootstrap", "Line over budgets")
    return page.table(headings, rows, text=(0, 1))


def _curves_section(art: dict[str, str]) -> str:
    if "loss_curves" not in art:
        return ""
    caption = "One line a run, coloured by budget; the dot is the loss after the last step, the one that is fitted."
    return page.section(
        "Loss while training", page.figure(art["loss_curves"], caption, "Loss against training compute")
    )


def _run_table(runs: pd.DataFrame) -> str:
    shown = [c for c in _RUN_COLUMNS if c in runs.columns and bool(runs[c].notna().any())]
    if "params" in shown and "params_total" in shown:
        shown.remove("params_total")
    texts = [i for i, c in enumerate(shown) if _RUN_COLUMNS[c][1] == "text"]
    rows = [[_print(row[c], _RUN_COLUMNS[c][1]) for c in shown] for row in records(runs.loc[:, shown])]
    return page.table([_RUN_COLUMNS[c][0] for c in shown], rows, text=texts, tall=True)


def _print(value: Any, kind: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return "-"
    if kind == "text" or isinstance(value, str):
        return str(value)
    printers = {"flops": flops_text, "count": number, "loss": lambda v: f"{v:.4f}", "plain": lambda v: f"{v:.6g}"}
    return printers[kind](float(value))


def _fixed(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _reading(fit: IsoflopFit) -> str:
    axis = "model size" if fit.axis == "params" else "number of tokens"
    items = [
        f"Loss is in nats per token. N counts {_n_words(fit.n)}. C is training FLOPs, forward and backward.",
        f"Per budget a parabola in the logarithm of the {axis} is fitted to the runs; its lowest point is the optimum. "
        "A straight line through the logarithms of the optima is the power law.",
        "a and b need not add up to 1: with embeddings counted, compute is not 6ND.",
        "Depth is how far the lower of the two arms rises above the minimum. Below five times the noise of a run, "
        "the minimum can hardly be placed.",
        "Two intervals are computed: a bootstrap of the runs' residuals about the parabolas, and the t interval of the "
        "line over budgets. The wider one is stated. Neither knows how a power law fails far beyond the data.",
    ]
    return page.section("How to read this", page.notes(items))


def _n_words(n: str) -> str:
    words = {"one_embedding": "one embedding table (of two) and the body", "non_embedding": "the body, no embeddings"}
    return words.get(n, "all parameters, embedding and head included")


def _provenance(fit: IsoflopFit | None, facts: dict[str, Any]) -> str:
    rows = [(str(key).replace("_", " "), str(value)) for key, value in facts.items() if value not in (None, "")]
    if fit is not None:
        columns = ", ".join(f"{k} from {v}" for k, v in fit.runs.columns.items())
        rows += [
            ("data read from", fit.runs.source),
            ("data hash (SHA-256)", fit.runs.hash),
            ("columns", columns),
            ("resamples, seed, confidence", f"{fit.bootstrap}, {fit.seed}, {fit.confidence:g}"),
            ("profiles let into the laws", ", ".join(fit.use)),
        ]
    return page.section("Provenance", page.table((), rows, text=(0, 1), kind="provenance")) if rows else ""
