"""The text of `IsoflopFit.summary()`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoflop.fitting.diagnostics import flops_text
from isoflop.fitting.frames import mask, records

if TYPE_CHECKING:
    from isoflop.fitting.result import IsoflopFit

WIDTH = 92


def summary_text(fit: IsoflopFit) -> str:
    """Headline, facts, laws, profiles, findings; no line wider than 92 characters."""
    blocks = [
        "IsoFLOP profiles".center(WIDTH).rstrip(),
        "=" * WIDTH,
        *textwrap.wrap(fit.headline(), WIDTH),
        "-" * WIDTH,
        *_facts(fit),
        "-" * WIDTH,
        *_laws(fit),
        "-" * WIDTH,
        *_profiles(fit.profiles, fit.axis),
        "=" * WIDTH,
        *_findings(fit),
    ]
    return "\n".join(blocks)


def _facts(fit: IsoflopFit) -> list[str]:
    noise = fit.noise
    seeds = f"{noise.replicate_sd:.3%} ({noise.replicate_dof} dof)" if noise.replicate_dof else "no replicates"
    used = f"{np.count_nonzero(mask(fit.profiles, 'used'))} of {len(fit.profiles)}"
    pairs = [
        ("Runs", f"{len(fit.runs)}"),
        ("Configurations", f"{fit.runs.frame['config'].nunique()}"),
        ("Loss", f"{fit.runs.columns['loss']} (nats)"),
        ("Budgets used", used),
        ("N counts", fit.n.replace("_", " ")),
        ("Parabola in", f"ln {'N' if fit.axis == 'params' else 'D'}"),
        ("Off parabolas", f"{noise.residual_sd:.3%} ({noise.residual_dof} dof)"),
        ("Between seeds", seeds),
    ]
    cells = [f"{name + ':':<16}{value}" for name, value in pairs]
    half = WIDTH // 2
    pairs_of_cells = zip(cells[::2], cells[1::2], strict=True)
    return [
        f"Source:         {fit.runs.source}",
        *(f"{left[: half - 1]:<{half}}{right}" for left, right in pairs_of_cells),
    ]


def _laws(fit: IsoflopFit) -> list[str]:
    names = {"a": "a    (N* ~ C^a)", "b": "b    (D* ~ C^b)", "ratio": "b/a"}
    level = f"[{fit.confidence:.0%} interval]"
    lines = [f"{'':<18}{'value':>9}  {level:>20}{'bootstrap':>21}{'line':>20}"]
    table = fit.intervals()
    for name, words in names.items():
        row = table.loc[name]
        spans = [_range(row, p) for p in ("", "bootstrap_", "line_")]
        lines.append(f"{words:<18}{row['value']:>9.4f}  {spans[0]:>20}{spans[1]:>21}{spans[2]:>20}")
    return lines


def _range(row: pd.Series, prefix: str) -> str:
    return f"{row[f'{prefix}low']:.4f}, {row[f'{prefix}high']:.4f}"


def _profiles(profiles: pd.DataFrame, axis: str) -> list[str]:
    letter = "N*" if axis == "params" else "D*"
    lines = [
        f"{'budget':>9}{'N*':>11}{'D*':>11}{f'[{letter} low':>12}{'high]':>10}"
        f"{'loss':>9}{'depth':>9}{'/noise':>8}  status"
    ]
    for row in records(profiles):
        cells = [row["params_opt"], row["tokens_opt"], row["low"], row["high"]]
        text = "".join(f"{number(v):>{w}}" for v, w in zip(cells, (11, 11, 12, 10), strict=True))
        tail = f"{_fixed(row['loss_opt'], 4):>9}{_fixed(row['depth'], 4):>9}{_fixed(row['depth_to_noise'], 1):>8}"
        mark = "" if row["used"] else " *"
        lines.append(f"{flops_text(row['budget']):>9}{text}{tail}  {row['status']}{mark}")
    if not mask(profiles, "used").all():
        lines.append("* not used in the power laws")
    return lines


def _findings(fit: IsoflopFit) -> list[str]:
    lines: list[str] = []
    for finding in fit.diagnostics:
        lines += textwrap.wrap(f"[{finding['code']}] {finding['message']}", WIDTH, subsequent_indent="  ")
    return lines


def number(value: float) -> str:
    """1.23M for 1234567: parameters and tokens; a dash for what isn't known."""
    if value != value:
        return "-"
    if value in (float("inf"), float("-inf")):
        return "unbounded"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if 0.9995 * size <= value < 1e18:
            return f"{value / size:.3g}{letter}" if value / size < 999.5 else f"{value / size:.0f}{letter}"
    return f"{value:.3g}"


def _fixed(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
