"""Text of `Fit.summary()` from the numbers of a fit; no line is wider than 92 characters."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd

from isoflop.fitting.terms import Finding
from isoflop.frames import mask, records
from isoflop.text import count_text, flops_text, percent_text

LINE_CHARACTERS = 92
_ESTIMATE_LABELS = {
    "a": "a    (N* ~ C^a)",
    "b": "b    (D* ~ C^b)",
    "ratio": "b/a",
    "left": "falling arm",
    "right": "rising arm",
}


def summary_text(
    *,
    title: str,
    headline: str,
    source: str,
    facts: Sequence[tuple[str, str]],
    intervals: pd.DataFrame,
    confidence: float,
    details: Sequence[str],
    findings: Sequence[Finding],
) -> str:
    """Return headline, facts, exponents, the method's own lines and findings, with rules between.

    Args:
        title: name of the method.
        headline: the result in a sentence.
        source: file or table that the runs were read from.
        facts: name and value, an even number of pairs; printed in two columns.
        intervals: rows of estimates, columns value, low, high; see `Laws.intervals`.
        confidence: level of the intervals.
        details: lines of the method.
        findings: printed last.
    """
    lines = [
        title.center(LINE_CHARACTERS).rstrip(),
        "=" * LINE_CHARACTERS,
        *textwrap.wrap(headline, LINE_CHARACTERS),
        "-" * LINE_CHARACTERS,
        f"Source:         {source}",
        *_two_columns(facts),
        "-" * LINE_CHARACTERS,
        *_estimate_lines(intervals, confidence),
        "-" * LINE_CHARACTERS,
        *details,
        "=" * LINE_CHARACTERS,
    ]
    for finding in findings:
        text = f"[{finding['code']}] {finding['message']}"
        lines += textwrap.wrap(text, LINE_CHARACTERS, subsequent_indent="  ")
    return "\n".join(lines)


def parameter_lines(intervals: pd.DataFrame) -> list[str]:
    """Return a line for each parameter of the surface L = E + A/N^alpha + B/D^beta."""
    table = intervals.loc[["E", "A", "B", "alpha", "beta"]]
    return [
        f"{name:<18}{row['value']:>12.7g}  [{row['low']:.6g}, {row['high']:.6g}]"
        for name, row in zip(table.index, records(table), strict=True)
    ]


def frontier_lines(frontier: pd.DataFrame) -> list[str]:
    """Return a line for each configuration of an envelope's frontier."""
    lines = [f"{'budget':>9}{'N':>11}{'D':>11}{'loss':>9}"]
    for row in records(frontier):
        counts = "".join(f"{count_text(row[name]):>11}" for name in ("params", "tokens"))
        lines.append(f"{flops_text(row['budget']):>9}{counts}{row['loss']:>9.4f}")
    return lines


def profile_lines(profiles: pd.DataFrame, axis: str) -> list[str]:
    """Return a line for each budget's profile; see `ProfileFit.profiles`."""
    letter, has_depth = "N*" if axis == "params" else "D*", "depth" in profiles
    header = f"{'budget':>9}{'N*':>11}{'D*':>11}{f'[{letter} low':>12}{'high]':>10}{'loss':>9}"
    header += f"{'depth':>9}{'/noise':>8}" if has_depth else f"{'[1% low':>10}{'high]':>9}"
    lines = [header + "  status"]
    for row in records(profiles):
        cells = [row["params_opt"], row["tokens_opt"], row["low"], row["high"]]
        sizes = zip(cells, (11, 11, 12, 10), strict=True)
        text = "".join(f"{count_text(value):>{width}}" for value, width in sizes)
        text += f"{_fixed(row['loss_opt'], 4):>9}"
        if has_depth:
            text += f"{_fixed(row['depth'], 4):>9}{_fixed(row['depth_to_noise'], 1):>8}"
        else:
            text += f"{count_text(row['near_1_low']):>10}{count_text(row['near_1_high']):>9}"
        mark = "" if row["used"] else " *"
        lines.append(f"{flops_text(row['budget']):>9}{text}  {row['status']}{mark}")
    if not mask(profiles, "used").all():
        lines.append("* not used in the power laws")
    return lines


def _two_columns(facts: Sequence[tuple[str, str]]) -> list[str]:
    cells = [f"{name + ':':<16}{value}" for name, value in facts]
    half = LINE_CHARACTERS // 2
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return [f"{first[: half - 1]:<{half}}{second}" for first, second in pairs]


def _estimate_lines(table: pd.DataFrame, confidence: float) -> list[str]:
    prefixes = ("", "bootstrap_", "line_") if "bootstrap_low" in table else ("",)
    header = f"{'':<18}{'value':>9}  {f'[{percent_text(confidence)} interval]':>20}"
    lines = [header + (f"{'bootstrap':>21}{'line':>20}" if len(prefixes) > 1 else "")]
    for name, label in _ESTIMATE_LABELS.items():
        if name in table.index:
            row = table.loc[name]
            spans = [f"{row[f'{p}low']:.4f}, {row[f'{p}high']:.4f}" for p in prefixes]
            line = f"{label:<18}{row['value']:>9.4f}  {spans[0]:>20}"
            lines.append(line + "".join(f"{span:>20}" for span in spans[1:]))
    return lines


def _fixed(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
