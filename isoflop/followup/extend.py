"""Follow-up runs of a study: its fitted law says which, and a sweep with them added is laid out like any other."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from isoflop.config.identity import budget_label
from isoflop.config.schema import Point, Replicate, Sweep
from isoflop.errors import ConfigError, FitError
from isoflop.fitting import fit_joint, fit_parametric, read_table
from isoflop.fitting.estimators.fisher import Aim
from isoflop.fitting.recipe_check import unchecked
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.diagnostics import LACK, flops_text
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.tables.runs_table import ParamCount, RunsTable
from isoflop.followup.bracketing import Repair, repairs
from isoflop.followup.candidates import Place, places_of
from isoflop.followup.finished_study import Study
from isoflop.followup.power_analysis import FURTHER
from isoflop.followup.selection import Caps, Pick, Search
from isoflop.planning.plan import Plan, plan
from isoflop.planning.run_spec import RunSpec

Purpose = Literal["exponents", "loss"]
Entry = tuple[Point | Replicate, Pick]
MOST_RUNS = 24


@dataclass(frozen=True, eq=False)
class Extension:
    """Follow-up runs.

    Attributes:
        before: the study as it was, all of its runs.
        after: with the runs that were added; the others keep their names.
        picks: what was added, in the order in which it was chosen: repairs first.
        entries: the points and replicates that were added to the sweep, with their picks.
        left: profiles that are not mended, since the caps or the sweep's limits don't allow it.
        fit: the law that chose.
        aim: `a`, or `loss` at `target` FLOPs.
        now: half of the interval of the aim (of a, or of ln loss) by the fit.
        scale: what expected intervals are multiplied with: where the noise is clearly uneven, the fit's interval over
            that by Fisher information, which takes it for even; else 1.
    """

    before: Plan
    after: Plan
    picks: tuple[Pick, ...]
    entries: tuple[Entry, ...]
    left: tuple[Repair, ...]
    fit: ParametricFit
    aim: Aim
    target: float
    now: float
    scale: float
    caps: Caps

    @property
    def then(self) -> float:
        """Half of the interval that the new runs should bring."""
        return self.picks[-1].half * self.scale if self.picks else self.now

    @property
    def added(self) -> list[RunSpec]:
        """The runs that are new."""
        known = {run.run_id for run in self.before.runs}
        return [run for run in self.after.runs if run.run_id not in known]

    @property
    def flops(self) -> int:
        """Training FLOPs of the new runs."""
        return sum(run.train_flops for run in self.added)

    def headline(self) -> str:
        """What was asked, and what the new runs should bring, in one line."""
        what = "a" if self.aim.name == "a" else f"the loss at {budget_label(self.target)} FLOPs"
        return (
            f"{len(self.added)} runs added to {self.before.sweep.name} ({flops_text(self.flops)} FLOPs) for {what}: "
            f"from +/- {self.told(self.now)} to +/- {self.told(self.then)}, if the fitted law is true"
        )

    def told(self, half: float) -> str:
        """Half of an interval in words: of a as it is, of the loss as a share."""
        return f"{half:.4f}" if self.aim.name == "a" else f"{100 * half:.2f} %"

    def reason(self, pick: Pick) -> str:
        """Why a place was chosen, in a few words."""
        if pick.kind == "repair":
            return pick.reason
        less = 100.0 * (1.0 - pick.half / pick.before)
        where = f"{np.exp(pick.offset):.2g} N*, interval -{less:.1f} %"
        return f"one of four about N*, {where}" if pick.kind == "budget" else where

    def why(self, pick: Pick) -> str:
        """The reason, and the interval that is then expected."""
        return f"{pick.kind}: {self.reason(pick)}, to +/- {self.told(pick.half * self.scale)}"

    def to_dict(self) -> dict[str, Any]:
        """The document of `isoflop extend --json`."""
        return {
            "schema": 1,
            "sweep": self.before.sweep.name,
            "for": {"quantity": self.aim.name, "value": self.aim.value, "flops": self.target},
            "caps": {"train_flops": self.caps.flops, "runs": self.caps.runs},
            "half_interval": {"now": self.now, "expected": self.then},
            "runs": [run.row() for run in self.added],
            "picks": [
                {
                    "budget": pick.place.budget,
                    "width": pick.place.width,
                    "runs": pick.seeds,
                    "kind": pick.kind,
                    "reason": self.why(pick),
                    "train_flops": float(pick.train_flops),
                    "half_interval": pick.half * self.scale,
                }
                for pick in self.picks
            ],
            "not_mended": [
                {"budget": repair.budget, "reason": repair.reason} for repair in self.left
            ],
        }


def extend(
    sweep: Sweep,
    runs: pd.DataFrame,
    *,
    purpose: Purpose = "exponents",
    target: float | None = None,
    max_flops: float | None = None,
    max_runs: int = MOST_RUNS,
    enough: float = 0.0,
    n: ParamCount = "total",
    loss: str | None = None,
    confidence: float = 0.95,
) -> Extension:
    """Chooses follow-up runs: first those that mend profiles, then those that tell most for their price.

    Args:
        sweep: the study's definition.
        runs: its runs as `read_runs` has them; of those without a loss, all but the diverged count as coming.
        purpose: whose interval is to become narrow: the `exponents`, or the `loss` at the target.
        target: FLOPs; by default 10 times the largest budget.
        max_flops: of all new runs; by default as many as the study has had.
        max_runs: how many.
        enough: half of the expected interval (of a, or of ln loss) at which nothing more is proposed.
        n: which parameter count the law is about.
        loss: column of the loss; default `loss`.

    Raises:
        ConfigError: runs that are not of a sweep.
        FitError: runs that can't be fitted.
    """
    if missing := [
        name for name in ("budget", "width", "seed", "state") if name not in runs.columns
    ]:
        raise ConfigError(
            f"the runs have no column {missing[0]!r}: only a sweep's own runs can be extended"
        )
    before, runs = plan(sweep), unchecked(runs)
    table = read_table(runs, n=n, loss=loss, need_budgets=False)
    fit = fit_parametric(table, bootstrap=0, confidence=confidence)
    study, spent = _study(before, runs, fit, n)
    target = FURTHER * max(run.budget for run in before.runs) if target is None else target
    aim = study.design.exponent() if purpose == "exponents" else study.design.loss(target)
    now = _half_of(fit, purpose, target, confidence)
    uneven = float(fit.estimate.even[0]) < LACK
    scale = now / study.design.half_width(aim, confidence) if uneven else 1.0
    caps = Caps(spent if max_flops is None else max_flops, max_runs, enough / scale)
    search, left = choose(study, aim, caps, _joint(table, confidence), confidence)
    entries = entries_of(before, search.picks)
    return Extension(
        before=before,
        after=plan(_with(sweep, entries)) if entries else before,
        picks=tuple(search.picks),
        entries=tuple(entries),
        left=tuple(left),
        fit=fit,
        aim=aim,
        target=target,
        now=now,
        scale=scale,
        caps=caps,
    )


def choose(
    study: Study, aim: Aim, caps: Caps, joint: Fit | None, confidence: float = 0.95
) -> tuple[Search, list[Repair]]:
    """Repairs, then what tells most for its price; and the repairs that were not possible."""
    options = study.options()
    search = Search(options, study.rows.T @ study.rows, study.configurations, aim, caps, confidence)
    left = search.mend(
        repairs(study.profiles(joint), [option.place for option in options], study.n)
    )
    search.spend()
    return search, left


def _study(
    before: Plan, runs: pd.DataFrame, fit: ParametricFit, n: ParamCount
) -> tuple[Study, float]:
    """The study, and the FLOPs of its runs that are done."""
    names = ["budget", "width", "seed", "state"]
    states = {
        tuple(key): str(state)
        for *key, state in runs.loc[:, names].itertuples(index=False, name=None)
    }
    by_state: dict[str, list[RunSpec]] = {"done": [], "diverged": [], "coming": []}
    for run in (run for run in before.runs if not run.check):
        state = states.get((run.budget, run.width, run.seed), "pending")
        by_state[state if state in by_state else "coming"].append(run)
    done = Counter((run.budget, run.width) for run in by_state["done"])
    coming = Counter(Place(run.budget, run.candidate) for run in by_state["coming"])
    banned = {(run.budget, run.width) for run in by_state["diverged"]}
    places, first = places_of(before.sweep), len(before.sweep.seeds)
    spent = float(sum(run.train_flops for run in by_state["done"]))
    sd, dof = fit.noise.replicate_sd, fit.noise.replicate_dof
    seeds = (sd**2 * dof, dof) if dof else (0.0, 0)
    return Study.of(fit.sample, fit.estimate, coming, done, places, first, n, seeds, banned), spent


def _joint(table: RunsTable, confidence: float) -> Fit | None:
    try:
        return fit_joint(table, confidence=confidence)
    except FitError:
        return None  # too few budgets for it: the surface places the optima


def _half_of(fit: ParametricFit, purpose: Purpose, target: float, confidence: float) -> float:
    if purpose == "loss":
        return fit.law_at(target, confidence)["loss"].width / 2.0
    row = fit.conf_int(confidence).loc["a"]
    return float(row["high"] - row["low"]) / 2.0


def entries_of(before: Plan, picks: Sequence[Pick]) -> list[Entry]:
    """Picks as extra points of a sweep, and as replicates of places that it has, each with its last pick."""
    seeds: dict[tuple[float, int], list[int]] = {}
    for run in (run for run in before.runs if not run.check):
        seeds.setdefault((run.budget, run.width), []).append(run.seed)
    points: list[Entry] = []
    more: dict[tuple[float, int], tuple[tuple[int, ...], Pick]] = {}
    for pick in picks:
        budget, width = key = pick.place.key
        if key not in seeds:
            points.append((Point(budget=budget, width=width), pick))
            seeds[key] = list(before.sweep.seeds)
            continue
        new = tuple(max(seeds[key]) + 1 + k for k in range(pick.seeds))
        more[key] = (*more.get(key, ((),))[0], *new), pick
        seeds[key] += new
    return points + [
        (Replicate(budget=budget, width=width, seeds=new), pick)
        for (budget, width), (new, pick) in more.items()
    ]


def _with(sweep: Sweep, entries: Sequence[Entry]) -> Sweep:
    replicates = tuple(entry for entry, _ in entries if isinstance(entry, Replicate))
    extra = tuple(entry for entry, _ in entries if not isinstance(entry, Replicate))
    return dataclasses.replace(
        sweep, extra=sweep.extra + extra, replicates=sweep.replicates + replicates
    )
