"""The text of `Fit.summary()`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoflop.fitting.results.base import Fit, ProfileFit
from isoflop.fitting.results.diagnostics import flops_text
from isoflop.frames import mask, records

if TYPE_CHECKING:
    from isoflop.fitting.methods.envelope import EnvelopeFit

WIDTH = 92
TITLES = {
    "isoflop": "IsoFLOP profiles",
    "joint": "IsoFLOP profiles, jointly",
    "parametric": "L = E + A / N^alpha + B / D^beta",
    "envelope": "Envelope",
}
_LAWS = {
    "a": "a    (N* ~ C^a)",
    "b": "b    (D* ~ C^b)",
    "ratio": "b/a",
    "left": "falling arm",
    "right": "rising arm",
}


def summary_text(fit: Fit) -> str:
    """Headline, facts, laws, what the method adds, findings; no line wider than 92 characters."""
    blocks = [
        TITLES[fit.method].center(WIDTH).rstrip(),
        "=" * WIDTH,
        *textwrap.wrap(fit.headline(), WIDTH),
        "-" * WIDTH,
        *_facts(fit),
        "-" * WIDTH,
        *_laws(fit),
        "-" * WIDTH,
        *_own(fit),
        "=" * WIDTH,
        *_findings(fit),
    ]
    return "\n".join(blocks)


def _facts(fit: Fit) -> list[str]:
    noise, axis = fit.noise, getattr(fit, "axis", None)
    seeds = (
        f"{noise.replicate_sd:.3%} ({noise.replicate_dof} dof)"
        if noise.replicate_dof
        else "no replicates"
    )
    off = (
        f"{noise.residual_sd:.3%} ({noise.residual_dof} dof)"
        if noise.residual_sd == noise.residual_sd
        else "-"
    )
    pairs = [
        ("Runs", f"{len(fit.runs)}"),
        ("Configurations", f"{fit.runs.frame['config'].nunique()}"),
        ("Loss", f"{fit.runs.columns['loss']} (nats)"),
        ("N counts", fit.n.replace("_", " ")),
        ("Off the fit", off),
        ("Between seeds", seeds),
    ]
    if isinstance(fit, ProfileFit):
        used = f"{np.count_nonzero(mask(fit.profiles, 'used'))} of {len(fit.profiles)}"
        pairs += [("Budgets used", used), ("Profiles in", f"ln {'N' if axis == 'params' else 'D'}")]
    if fit.method == "parametric":
        delta = float(fit.estimate.delta[0])  # pyright: ignore[reportAttributeAccessIssue]
        pairs += [("Huber's delta", f"{delta:.3g}"), ("Objective", f"{fit.objective:.10g}")]  # pyright: ignore
    cells = [f"{name + ':':<16}{value}" for name, value in pairs]
    half = WIDTH // 2
    return [
        f"Source:         {fit.runs.source}",
        *(
            f"{left[: half - 1]:<{half}}{right}"
            for left, right in zip(cells[::2], cells[1::2], strict=True)
        ),
    ]


def _laws(fit: Fit) -> list[str]:
    table = fit.intervals()
    both = "bootstrap_low" in table
    level = f"[{fit.confidence:.0%} interval]"
    more = f"{'bootstrap':>21}{'line':>20}" if both else ""
    lines = [f"{'':<18}{'value':>9}  {level:>20}{more}"]
    for name, words in _LAWS.items():
        if name in table.index:
            row = table.loc[name]
            spans = [_range(row, p) for p in (("", "bootstrap_", "line_") if both else ("",))]
            lines.append(
                f"{words:<18}{row['value']:>9.4f}  {spans[0]:>20}"
                + "".join(f"{s:>20}" for s in spans[1:])
            )
    return lines


def _range(row: pd.Series, prefix: str) -> str:
    return f"{row[f'{prefix}low']:.4f}, {row[f'{prefix}high']:.4f}"


def _own(fit: Fit) -> list[str]:
    if isinstance(fit, ProfileFit):
        return _profiles(fit.profiles, fit.axis)
    if fit.method == "parametric":
        return _parameters(fit)
    return _frontier(fit)  # pyright: ignore[reportArgumentType]


def _parameters(fit: Fit) -> list[str]:
    table = fit.intervals().loc[["E", "A", "B", "alpha", "beta"]]
    return [
        f"{name:<18}{row['value']:>12.7g}  [{row['low']:.6g}, {row['high']:.6g}]"
        for name, row in zip(table.index, records(table), strict=True)
    ]


def _frontier(fit: EnvelopeFit) -> list[str]:
    lines = [f"{'budget':>9}{'N':>11}{'D':>11}{'loss':>9}"]
    for row in records(fit.frontier):
        lines.append(
            f"{flops_text(row['budget']):>9}{number(row['params']):>11}{number(row['tokens']):>11}{row['loss']:>9.4f}"
        )
    return lines


def _profiles(profiles: pd.DataFrame, axis: str) -> list[str]:
    letter, deep = "N*" if axis == "params" else "D*", "depth" in profiles
    lines = [
        f"{'budget':>9}{'N*':>11}{'D*':>11}{f'[{letter} low':>12}{'high]':>10}{'loss':>9}"
        + (f"{'depth':>9}{'/noise':>8}" if deep else f"{'[1 % low':>10}{'high]':>9}")
        + "  status"
    ]
    for row in records(profiles):
        cells = [row["params_opt"], row["tokens_opt"], row["low"], row["high"]]
        text = "".join(f"{number(v):>{w}}" for v, w in zip(cells, (11, 11, 12, 10), strict=True))
        tail = f"{_fixed(row['loss_opt'], 4):>9}"
        if deep:
            tail += f"{_fixed(row['depth'], 4):>9}{_fixed(row['depth_to_noise'], 1):>8}"
        else:
            tail += f"{number(row['near_1_low']):>10}{number(row['near_1_high']):>9}"
        mark = "" if row["used"] else " *"
        lines.append(f"{flops_text(row['budget']):>9}{text}{tail}  {row['status']}{mark}")
    if not mask(profiles, "used").all():
        lines.append("* not used in the power laws")
    return lines


def _findings(fit: Fit) -> list[str]:
    lines: list[str] = []
    for finding in fit.diagnostics:
        lines += textwrap.wrap(
            f"[{finding['code']}] {finding['message']}", WIDTH, subsequent_indent="  "
        )
    return lines


def number(value: float) -> str:
    """1.23M for 1234567: parameters and tokens; a dash for what isn't known."""
    if value != value:
        return "-"
    if value in (float("inf"), float("-inf")):
        return "unbounded"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if 0.9995 * size <= value < 1e18:
            return (
                f"{value / size:.3g}{letter}"
                if value / size < 999.5
                else f"{value / size:.0f}{letter}"
            )
    return f"{value:.3g}"


def _fixed(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
