"""HTML of a fit for Jupyter: headline, estimates, the gravest findings; the rest folded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import pandas as pd

from isoflop.fitting.terms import Finding
from isoflop.frames import records
from isoflop.text import count_text, flops_text, percent_text

MAX_OPEN_FINDINGS = 3
_HTML_ESTIMATE_LABELS = {
    "a": "a, of N* ~ C^a",
    "b": "b, of D* ~ C^b",
    "ratio": "b / a",
    "left": "falling arm",
    "right": "rising arm",
}
_HIDDEN_ESTIMATES = ("k_params", "k_tokens")


def fit_html(
    *,
    headline: str,
    facts: str,
    intervals: pd.DataFrame,
    confidence: float,
    profiles: pd.DataFrame | None,
    axis: str,
    findings: Sequence[Finding],
) -> str:
    """Return a few lines and tables without styles of their own.

    Args:
        headline, facts: text, one line each.
        intervals: rows of estimates, columns value, low, high.
        confidence: level of the intervals.
        profiles: see `ProfileFit.profiles`; None for a fit without profiles.
        axis: axis of the profiles.
        findings: the gravest first; those beyond the third are folded.
    """
    head = f"<p><b>{escape(headline)}</b><br><small>{escape(facts)}</small></p>"
    blocks = [head, _estimates(intervals, confidence)]
    if profiles is not None:
        blocks.append(_folded(f"{len(profiles)} budgets", _profiles(profiles, axis)))
    blocks.append(_findings(findings[:MAX_OPEN_FINDINGS]))
    if folded := findings[MAX_OPEN_FINDINGS:]:
        title = f"{len(folded)} more finding{'s' if len(folded) > 1 else ''}"
        blocks.append(_folded(title, _findings(folded)))
    return "\n".join(block for block in blocks if block)


def _estimates(table: pd.DataFrame, confidence: float) -> str:
    cells = [
        [
            _HTML_ESTIMATE_LABELS.get(str(name), str(name)),
            f"{row['value']:.5g}",
            _span(row["low"], row["high"]),
        ]
        for name, row in table.to_dict("index").items()
        if name not in _HIDDEN_ESTIMATES
    ]
    return _table(("", "value", f"{percent_text(confidence)} interval"), cells)


def _span(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}" if math.isfinite(high - low) else "unbounded"


def _profiles(profiles: pd.DataFrame, axis: str) -> str:
    letter = "N*" if axis == "params" else "D*"
    cells = []
    for row in records(profiles):
        counts = [count_text(row[name]) for name in ("params_opt", "tokens_opt", "low", "high")]
        status = row["status"].replace("_", " ") + ("" if row["used"] else ", not used")
        loss = "-" if math.isnan(row["loss_opt"]) else f"{row['loss_opt']:.4f}"
        cells.append([flops_text(row["budget"]), *counts, loss, status])
    return _table(("budget", "N*", "D*", f"{letter} from", "to", "loss", "profile"), cells)


def _findings(findings: Sequence[Finding]) -> str:
    items = "".join(
        f"<li><code>{escape(finding['code'])}</code> {escape(finding['message'])}</li>"
        for finding in findings
    )
    return f"<ul>{items}</ul>" if items else ""


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return pd.DataFrame(cells, columns=list(headings)).to_html(index=False, border=0)
