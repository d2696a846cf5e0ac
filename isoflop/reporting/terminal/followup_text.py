"""What the commands print of a plan's expected intervals and of its follow-up runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.config.identity import budget_label
from isoflop.reporting.terminal.console import flops, print_table, short, warn

if TYPE_CHECKING:
    from isoflop.followup.extend import Extension
    from isoflop.followup.power_analysis import Expectation, Part

DOUBTS = ("not_converged", "at_bound", "e_near_zero", "ill_conditioned", "lack_of_fit")
"""Findings on the fit by which what is proposed must be judged."""


def print_expectation(expected: Expectation) -> None:
    """The intervals to expect, and the configurations on which they depend most, a few lines each."""
    print(
        f"\nif {expected.law.name}'s law is true and runs scatter by {100 * expected.noise:.2g} % "
        f"({100 * expected.confidence:g} % intervals, {expected.dof} degrees of freedom):"
    )
    rows = [
        [name, f"{row.value:.4f}", f"{row.low:.4f}", f"{row.high:.4f}", f"{expected.sds[name]:.4f}"]
        for name, row in expected.intervals.items()
    ]
    rows += [
        [
            f"loss at {flops(at)}",
            f"{row.value:.4f}",
            f"{row.low:.4f}",
            f"{row.high:.4f}",
            f"{100 * expected.sds[at]:.2f} %",
        ]
        for at, row in expected.losses.items()
    ]
    print_table(["expected", "value", "low", "high", "sd"], rows, text=["expected"])
    print(f"a differs from 0.5 in {100 * expected.power:.0f} % of such studies\n")
    header = ["a's interval", "change", "FLOPs"]
    rows = [
        [f"without {_name(part)}", _change(part.without), flops(_cost(part))]
        for part in expected.matter_most
    ]
    rows += [
        [f"one more of {_name(part)}", _change(part.replicate), flops(part.run.train_flops)]
        for part in expected.best_replicates
    ]
    print_table(header, rows, text=["a's interval"])


def print_extension(extension: Extension, file: Path | None, next_step: str) -> None:
    """The picks with reasons, what each should bring, and the sum on stdout; what to do next on stderr."""
    for finding in extension.fit.diagnostics:
        if finding["code"] in DOUBTS:
            warn(f"the law that chooses: {finding['message']}")
    for repair in extension.left:
        warn(f"not mended within the caps and the sweep's limits: {repair.reason}")
    if not extension.picks:
        print(
            f"{extension.before.sweep.name}: nothing to add: {_why_nothing(extension)}",
            file=sys.stderr,
        )
        return
    rows = [
        [
            budget_label(pick.place.budget),
            str(pick.place.width),
            str(pick.seeds),
            short(pick.place.params(extension.fit.runs.n)),
            short(pick.place.tokens),
            flops(pick.train_flops),
            extension.told(pick.half * extension.scale),
            pick.kind,
            extension.reason(pick),
        ]
        for pick in extension.picks
    ]
    what = "a +/-" if extension.aim.name == "a" else "loss +/-"
    headers = ["budget", "width", "runs", "params", "tokens", "FLOPs", what, "kind", "reason"]
    print_table(headers, rows, text=["budget", "kind", "reason"])
    print(f"\n{extension.headline()}")
    if file is not None:
        sys.stdout.flush()
        print(f"wrote {file}\n{next_step}", file=sys.stderr)


def _why_nothing(extension: Extension) -> str:
    if extension.caps.enough:
        return "the interval is as narrow as asked for, or no run that the caps allow is worth its price"
    return "no run that the caps allow is worth its price; raise --max-flops or --runs"


def _name(part: Part) -> str:
    return part.run.run_id.rpartition("-")[0].rpartition("-s")[0]


def _cost(part: Part) -> float:
    return float(part.run.train_flops * part.seeds)


def _change(share: float) -> str:
    return f"{100 * share:+.1f} %" if share < 100.0 else "unbounded"
