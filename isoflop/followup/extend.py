"""Follow-up runs of a study, selected by its fitted law, and the sweep extended by them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from isoflop.config.grid_schema import Point, Replicate
from isoflop.config.schema import Sweep
from isoflop.errors import ConfigError, FitError
from isoflop.fitting import fit_joint, fit_parametric, read_table
from isoflop.fitting.estimators.fisher import Target
from isoflop.fitting.recipe_check import select_recipe_runs
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.diagnostics import FINDING_ALPHA
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.followup.bracketing import Repair, find_repairs
from isoflop.followup.candidates import CandidatePoint, list_candidate_points
from isoflop.followup.finished_study import FinishedStudy
from isoflop.followup.power_analysis import TARGET_FACTOR
from isoflop.followup.selection import Caps, Pick, Search
from isoflop.planning.plan import Plan, plan
from isoflop.planning.run_spec import RunSpec
from isoflop.shapes import ParamCount
from isoflop.text import flops_text, percent_text

Purpose = Literal["exponents", "loss"]
Entry = tuple[Point | Replicate, Pick]
MAX_RUNS = 24
_SWEEP_COLUMNS = ["budget", "width", "seed", "state"]


@dataclass(frozen=True, eq=False)
class Extension:
    """Follow-up runs.

    Attributes:
        before: plan of the study with all of its runs.
        after: plan with the added runs; the others keep their names.
        picks: selected points in order, repairs first.
        entries: points and replicates added to the sweep, with their picks.
        unrepaired: repairs that the caps or the sweep's limits don't allow.
        fit: the law used for the selection.
        quantity: `a`, or `loss` at `target_flops`.
        target_flops: training FLOPs at which the loss is predicted.
        half_width: half of the interval of the quantity (of a, or of ln loss) by the fit.
        scale: factor on expected intervals. If the noise is clearly uneven it is the fit's interval
            over that by Fisher information, which assumes even noise; else 1.
        caps: limits on the new runs.
    """

    before: Plan
    after: Plan
    picks: tuple[Pick, ...]
    entries: tuple[Entry, ...]
    unrepaired: tuple[Repair, ...]
    fit: ParametricFit
    quantity: Target
    target_flops: float
    half_width: float
    scale: float
    caps: Caps

    @property
    def expected_half_width(self) -> float:
        """Half of the expected interval with the new runs."""
        return self.picks[-1].half_width * self.scale if self.picks else self.half_width

    @property
    def added(self) -> list[RunSpec]:
        """The new runs."""
        known = {run.run_id for run in self.before.runs}
        return [run for run in self.after.runs if run.run_id not in known]

    @property
    def flops(self) -> int:
        """Training FLOPs of the new runs."""
        return sum(run.train_flops for run in self.added)

    def headline(self) -> str:
        """Return the new runs, their cost and the expected interval in one line."""
        label = f"the loss at {flops_text(self.target_flops)} FLOPs"
        quantity = "a" if self.quantity.name == "a" else label
        ends = (self.half_width, self.expected_half_width)
        old, new = (self.half_width_text(half_width) for half_width in ends)
        return (
            f"{len(self.added)} runs added to {self.before.sweep.name} "
            f"({flops_text(self.flops)} FLOPs) for {quantity}: from +/- {old} to +/- {new}, "
            "if the fitted law is true"
        )

    def half_width_text(self, half_width: float) -> str:
        """Return half of an interval as text: of a as a number, of ln loss in percent."""
        return f"{half_width:.4f}" if self.quantity.name == "a" else percent_text(half_width)

    def reason(self, pick: Pick) -> str:
        """Return the reason for a pick in a few words."""
        if pick.kind == "repair":
            return pick.reason
        fall = 1.0 - pick.half_width / pick.previous_half_width
        text = f"{np.exp(pick.offset):.2g} N*, interval {percent_text(-fall, signed=True)}"
        return f"one of four around N*, {text}" if pick.kind == "budget" else text

    def comment(self, pick: Pick) -> str:
        """Return the kind of a pick, its reason and the expected interval."""
        half_width = self.half_width_text(pick.half_width * self.scale)
        return f"{pick.kind}: {self.reason(pick)}, to +/- {half_width}"

    def to_dict(self) -> dict[str, Any]:
        """Return the document of `isoflop extend --json`."""
        quantity = {"quantity": self.quantity.name, "value": self.quantity.value}
        not_repaired = [
            {"budget": repair.budget, "reason": repair.reason} for repair in self.unrepaired
        ]
        return {
            "schema": 1,
            "sweep": self.before.sweep.name,
            "for": quantity | {"flops": self.target_flops},
            "caps": {"train_flops": self.caps.flops, "runs": self.caps.runs},
            "half_interval": {"now": self.half_width, "expected": self.expected_half_width},
            "runs": [run.row() for run in self.added],
            "picks": [
                {
                    "budget": pick.point.budget,
                    "width": pick.point.width,
                    "runs": pick.runs,
                    "kind": pick.kind,
                    "reason": self.comment(pick),
                    "train_flops": float(pick.train_flops),
                    "half_interval": pick.half_width * self.scale,
                }
                for pick in self.picks
            ],
            "not_repaired": not_repaired,
            "not_mended": not_repaired,  # the name in 0.1, for one release
        }


def extend(
    sweep: Sweep,
    runs: pd.DataFrame,
    *,
    purpose: Purpose = "exponents",
    target: float | None = None,
    max_flops: float | None = None,
    max_runs: int = MAX_RUNS,
    enough: float = 0.0,
    n: ParamCount = "total",
    loss: str | None = None,
    confidence: float = 0.95,
) -> Extension:
    """Select follow-up runs: first repairs of profiles, then the most informative for their price.

    Args:
        sweep: the study's definition.
        runs: its runs, as returned by `read_runs`. Runs without a loss count as unfinished, unless
            they diverged.
        purpose: quantity whose interval is to become narrow: `exponents`, or the `loss` at the
            target.
        target: training FLOPs; by default 10 times the largest budget.
        max_flops: cap on the FLOPs of all new runs; by default the FLOPs of the finished runs.
        max_runs: cap on the number of new runs.
        enough: half of the expected interval (of a, or of ln loss) at which selection stops.
        n: parameter count of the law.
        loss: column of the loss; default `loss`.
        confidence: level of the intervals.

    Raises:
        ConfigError: the runs are not those of a sweep.
        FitError: the runs can't be fitted.
    """
    if missing := [name for name in _SWEEP_COLUMNS if name not in runs.columns]:
        raise ConfigError(
            f"the runs have no column {missing[0]!r}: only a sweep's own runs can be extended"
        )
    before, runs = plan(sweep), select_recipe_runs(runs)
    table = read_table(runs, n=n, loss=loss, need_budgets=False)
    fit = fit_parametric(table, bootstrap=0, confidence=confidence)
    study, spent = _build_study(before, runs, fit, n)
    target = TARGET_FACTOR * max(run.budget for run in before.runs) if target is None else target
    quantity = study.design.exponent() if purpose == "exponents" else study.design.loss(target)
    half_width = _half_width(fit, purpose, target, confidence)
    uneven = float(fit.estimate.evenness_p[0]) < FINDING_ALPHA
    scale = half_width / study.design.half_width(quantity, confidence) if uneven else 1.0
    caps = Caps(spent if max_flops is None else max_flops, max_runs, enough / scale)
    joint = _fit_joint(table, confidence)
    search, unrepaired = select_runs(study, quantity, caps, joint, confidence)
    entries = sweep_entries(before, search.picks)
    return Extension(
        before=before,
        after=plan(_with_entries(sweep, entries)) if entries else before,
        picks=tuple(search.picks),
        entries=tuple(entries),
        unrepaired=tuple(unrepaired),
        fit=fit,
        quantity=quantity,
        target_flops=target,
        half_width=half_width,
        scale=scale,
        caps=caps,
    )


def select_runs(
    study: FinishedStudy,
    quantity: Target,
    caps: Caps,
    joint: Fit | None,
    confidence: float = 0.95,
) -> tuple[Search, list[Repair]]:
    """Select repairs, then the most informative runs for their price.

    Returns:
        The search with its picks, and the repairs that the caps or options don't allow.
    """
    options = study.options()
    information = study.rows.T @ study.rows
    search = Search(options, information, study.configurations, quantity, caps, confidence)
    points = [option.point for option in options]
    unrepaired = search.add_repairs(find_repairs(study.profiles(joint), points, study.n))
    search.add_best()
    return search, unrepaired


def _build_study(
    before: Plan, runs: pd.DataFrame, fit: ParametricFit, n: ParamCount
) -> tuple[FinishedStudy, float]:
    """Return the study, and the training FLOPs of its finished runs."""
    states = {
        tuple(key): str(state)
        for *key, state in runs.loc[:, _SWEEP_COLUMNS].itertuples(index=False, name=None)
    }
    by_state: dict[str, list[RunSpec]] = {"done": [], "diverged": [], "unfinished": []}
    for run in (run for run in before.runs if not run.check):
        state = states.get((run.budget, run.width, run.seed), "pending")
        by_state[state if state in by_state else "unfinished"].append(run)
    sd, dof = fit.noise.replicate_sd, fit.noise.replicate_dof
    study = FinishedStudy.from_estimate(
        fit.sample,
        fit.estimate,
        unfinished=Counter(
            CandidatePoint(run.budget, run.candidate) for run in by_state["unfinished"]
        ),
        done=Counter((run.budget, run.width) for run in by_state["done"]),
        points=list_candidate_points(before.sweep),
        first_runs=len(before.sweep.seeds),
        n=n,
        replicates=(sd**2 * dof, dof) if dof else (0.0, 0),
        excluded={(run.budget, run.width) for run in by_state["diverged"]},
    )
    return study, float(sum(run.train_flops for run in by_state["done"]))


def _fit_joint(table: RunsTable, confidence: float) -> Fit | None:
    """Return the joint fit, or None if it is refused, such as for too few budgets."""
    try:
        return fit_joint(table, confidence=confidence)
    except FitError:
        return None


def _half_width(fit: ParametricFit, purpose: Purpose, target: float, confidence: float) -> float:
    if purpose == "loss":
        return fit.law_at(target, confidence)["loss"].width / 2.0
    row = fit.conf_int(confidence).loc["a"]
    return float(row["high"] - row["low"]) / 2.0


def sweep_entries(before: Plan, picks: Sequence[Pick]) -> list[Entry]:
    """Return picks as extra points of the sweep, and as replicates of its own points.

    Each entry comes with its last pick.
    """
    seeds: dict[tuple[float, int], list[int]] = {}
    for run in (run for run in before.runs if not run.check):
        seeds.setdefault((run.budget, run.width), []).append(run.seed)
    points: list[Entry] = []
    replicates: dict[tuple[float, int], tuple[tuple[int, ...], Pick]] = {}
    for pick in picks:
        budget, width = key = pick.point.key
        if key not in seeds:
            points.append((Point(budget=budget, width=width), pick))
            seeds[key] = list(before.sweep.seeds)
            continue
        new = tuple(max(seeds[key]) + 1 + k for k in range(pick.runs))
        replicates[key] = (*replicates.get(key, ((),))[0], *new), pick
        seeds[key] += new
    return points + [
        (Replicate(budget=budget, width=width, seeds=new), pick)
        for (budget, width), (new, pick) in replicates.items()
    ]


def _with_entries(sweep: Sweep, entries: Sequence[Entry]) -> Sweep:
    replicates = tuple(entry for entry, _ in entries if isinstance(entry, Replicate))
    extra = tuple(entry for entry, _ in entries if not isinstance(entry, Replicate))
    return dataclasses.replace(
        sweep, extra=sweep.extra + extra, replicates=sweep.replicates + replicates
    )
