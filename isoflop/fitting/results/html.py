"""A fit as Jupyter shows it: the headline, what was estimated, the gravest findings; the rest folded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from isoflop.fitting.results.base import Fit, ProfileFit
from isoflop.fitting.results.diagnostics import flops_text
from isoflop.fitting.results.summary import TITLES, number
from isoflop.frames import records

if TYPE_CHECKING:
    from isoflop.fitting.results.diagnostics import Diagnostic

SHOWN = 3  # findings that are not folded
_WORDS = {
    "a": "a, of N* ~ C^a",
    "b": "b, of D* ~ C^b",
    "ratio": "b / a",
    "left": "falling arm",
    "right": "rising arm",
}
_LEFT_OUT = ("k_params", "k_tokens")


def fit_html(fit: Fit) -> str:
    """A few lines and tables without styles of their own."""
    parts = [
        f"<p><b>{escape(fit.headline())}</b><br><small>{escape(_facts(fit))}</small></p>",
        _estimates(fit),
    ]
    if isinstance(fit, ProfileFit):
        parts.append(_folded(f"{len(fit.profiles)} budgets", _profiles(fit)))
    first, rest = fit.diagnostics[:SHOWN], fit.diagnostics[SHOWN:]
    parts.append(_findings(first))
    if rest:
        parts.append(
            _folded(f"{len(rest)} more finding{'s' if len(rest) > 1 else ''}", _findings(rest))
        )
    return "\n".join(part for part in parts if part)


def _facts(fit: Fit) -> str:
    facts = [
        TITLES[fit.method],
        f"{len(fit.runs)} runs",
        f"loss: {fit.runs.columns['loss']}",
        f"N counts {fit.n}",
    ]
    if not math.isnan(fit.noise.residual_sd):
        facts.append(f"runs lie {fit.noise.residual_sd:.2%} off the fit")
    return "; ".join(facts).replace("_", " ")


def _estimates(fit: Fit) -> str:
    table = fit.intervals()
    rows = {
        _WORDS.get(name, name): row
        for name, row in table.to_dict("index").items()
        if name not in _LEFT_OUT
    }
    level = f"{fit.confidence:.0%} interval"
    cells = [
        [name, f"{row['value']:.5g}", _span(row["low"], row["high"])] for name, row in rows.items()
    ]
    return _table(("", "value", level), cells)


def _span(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}" if math.isfinite(high - low) else "unbounded"


def _profiles(fit: ProfileFit) -> str:
    letter = "N*" if fit.axis == "params" else "D*"
    cells = []
    for row in records(fit.profiles):
        counts = [number(row[name]) for name in ("params_opt", "tokens_opt", "low", "high")]
        status = row["status"].replace("_", " ") + ("" if row["used"] else ", not used")
        loss = "-" if math.isnan(row["loss_opt"]) else f"{row['loss_opt']:.4f}"
        cells.append([flops_text(row["budget"]), *counts, loss, status])
    return _table(("budget", "N*", "D*", f"{letter} from", "to", "loss", "profile"), cells)


def _findings(found: Sequence[Diagnostic]) -> str:
    items = "".join(
        f"<li><code>{escape(d['code'])}</code> {escape(d['message'])}</li>" for d in found
    )
    return f"<ul>{items}</ul>" if items else ""


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return pd.DataFrame(cells, columns=list(headings)).to_html(index=False, border=0)
