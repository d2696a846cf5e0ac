"""Text of the expected intervals of a plan, and of follow-up runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.reporting.terminal.console import print_table, warn
from isoflop.text import count_text, flops_text, percent_text

if TYPE_CHECKING:
    from isoflop.followup.extend import Extension
    from isoflop.followup.power_analysis import ConfigurationEffect, ExpectedIntervals

SELECTION_FINDINGS = ("not_converged", "at_bound", "e_near_zero", "ill_conditioned", "lack_of_fit")
"""Findings on the fit that weaken the selection of follow-up runs."""


def print_expectation(expected: ExpectedIntervals) -> None:
    """Print the expected intervals, and the configurations that affect them most."""
    print(
        f"\nif {expected.law.name}'s law is true and runs scatter by "
        f"{percent_text(expected.noise, 2)} ({percent_text(expected.confidence)} intervals, "
        f"{expected.dof} degrees of freedom):"
    )
    rows = [
        [name, f"{row.value:.4f}", f"{row.low:.4f}", f"{row.high:.4f}", f"{expected.sds[name]:.4f}"]
        for name, row in expected.intervals.items()
    ]
    rows += [
        [
            f"loss at {flops_text(flops, 3)}",
            f"{row.value:.4f}",
            f"{row.low:.4f}",
            f"{row.high:.4f}",
            percent_text(expected.sds[flops]),
        ]
        for flops, row in expected.losses.items()
    ]
    print_table(["expected", "value", "low", "high", "sd"], rows, text=["expected"])
    print(f"a differs from 0.5 in {percent_text(expected.power, 2)} of such studies\n")
    header = ["a's interval", "change", "FLOPs"]
    rows = [
        [f"without {_name(effect)}", _change(effect.without), flops_text(_flops(effect), 3)]
        for effect in expected.most_influential
    ]
    rows += [
        [
            f"one more of {_name(effect)}",
            _change(effect.replicate),
            flops_text(effect.run.train_flops, 3),
        ]
        for effect in expected.best_replicates
    ]
    print_table(header, rows, text=["a's interval"])


def print_extension(extension: Extension, file: Path | None, next_step: str) -> None:
    """Print the picks with their reasons and expected intervals, and the next step on stderr."""
    for finding in extension.fit.diagnostics:
        if finding["code"] in SELECTION_FINDINGS:
            warn(f"the law used for the selection: {finding['message']}")
    for repair in extension.unrepaired:
        warn(f"not repaired within the caps and the sweep's limits: {repair.reason}")
    if not extension.picks:
        name, reason = extension.before.sweep.name, _stop_reason(extension)
        print(f"{name}: nothing to add: {reason}", file=sys.stderr)
        return
    rows = [
        [
            flops_text(pick.point.budget),
            str(pick.point.width),
            str(pick.runs),
            count_text(pick.point.params(extension.fit.runs.n)),
            count_text(pick.point.tokens),
            flops_text(pick.train_flops, 3),
            extension.half_width_text(pick.half_width * extension.scale),
            pick.kind,
            extension.reason(pick),
        ]
        for pick in extension.picks
    ]
    interval = "a +/-" if extension.quantity.name == "a" else "loss +/-"
    headers = ["budget", "width", "runs", "params", "tokens", "FLOPs", interval, "kind", "reason"]
    print_table(headers, rows, text=["budget", "kind", "reason"])
    print(f"\n{extension.headline()}")
    if file is not None:
        sys.stdout.flush()
        print(f"wrote {file}\n{next_step}", file=sys.stderr)


def _stop_reason(extension: Extension) -> str:
    reason = "no run within the caps narrows the interval enough for its compute"
    if extension.caps.goal_half_width:
        return f"the interval is as narrow as requested, or {reason}"
    return f"{reason}; raise --max-flops or --runs"


def _name(effect: ConfigurationEffect) -> str:
    """Return the run id without its seed and hash."""
    return effect.run.run_id.rpartition("-")[0].rpartition("-s")[0]


def _flops(effect: ConfigurationEffect) -> float:
    return float(effect.run.train_flops * effect.seeds)


def _change(share: float) -> str:
    return percent_text(share, signed=True) if share < 100.0 else "unbounded"
