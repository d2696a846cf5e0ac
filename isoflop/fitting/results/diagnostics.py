"""What a reader must know before trusting a fit, in codes and words."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pandas as pd

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import Neighbours
from isoflop.fitting.estimators.holdout import RollOut
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.skew import Skew
from isoflop.fitting.results.base import MIN_LAW_BUDGETS
from isoflop.fitting.tables.runs_table import RunsTable
from isoflop.fitting.terms import Axis, Finding, finding
from isoflop.frames import column, mask, records, rows
from isoflop.text import flops_text

MAX_EPOCHS = 4.0
MIN_DEPTH = 5.0  # a profile's depth in units of the noise between runs
FEW_BUDGETS = 5
_INTERPOLATION = 0.02
LACK = 0.01  # probability below which a misfit is named
_LOST = 0.01
_SHIFTED = (
    0.005  # of ln N*: a skew that moves it by less, at the least and greatest budget, does no harm
)
_ALLOWED = "The t intervals allow for it; percentiles of resamples don't."

AXIS_WORDS = {
    "params": ("model", "smallest", "largest"),
    "tokens": ("token count", "smallest", "largest"),
}


def diagnose(
    table: RunsTable,
    profiles: pd.DataFrame,
    noise: Noise,
    axis: Axis,
    optimum: np.ndarray,
    rollout: RollOut | None,
    skew: Skew | None,
    neighbours: Neighbours | None,
) -> list[Finding]:
    """Findings on parabolas, the gravest first. `optimum` holds the draws (R, budgets), NaN without a minimum."""
    groups = (
        of_table(table),
        _status(profiles),
        _lost(profiles, optimum),
        _skewed(profiles, skew),
        few_budgets(int(np.count_nonzero(mask(profiles, "used")))),
        _shallow(profiles, noise),
        alike(
            neighbours,
            allowed="Intervals of single optima reach as far as optima scatter about the law.",
        ),
        of_noise(noise, "the parabola is not the whole shape"),
        of_rollout(rollout),
        _interpolation(profiles, axis),
        of_rows(table),
    )
    return list(chain.from_iterable(groups))


def explain_status(
    status: para.Status, profile: para.Profile, parabola: para.Parabola | None, axis: Axis
) -> str:
    """A status with the fact behind it, for the message of a refusal."""
    what, smallest, largest = AXIS_WORDS[axis]
    if status == "too_few":
        sizes = f"{profile.sizes} distinct size{'s' if profile.sizes > 1 else ''}"
        return f"too_few ({sizes}, {para.MIN_SIZES} needed)"
    if status == "edge" and parabola is not None:
        below = float(parabola.vertices(parabola.coefficients)) < profile.x[0]
        return f"edge (the minimum is {'below' if below else 'above'} the {smallest if below else largest} {what})"
    return status


def _list(profiles: pd.DataFrame) -> str:
    return ", ".join(flops_text(float(b)) for b in column(profiles, "budget"))


def _status(profiles: pd.DataFrame) -> list[Finding]:
    reasons = {
        "edge": "the minimum lies outside the sizes that were run",
        "one_sided": "the best run is at an end, or one run alone holds one side",
        "concave": "the parabola has no minimum",
        "too_few": f"fewer than {para.MIN_SIZES} sizes",
    }
    found = []
    for status, reason in reasons.items():
        here = (profiles["status"] == status).to_numpy(dtype=bool)
        for used, code, word in (
            (False, "profile_excluded", "not used"),
            (True, "profile_used", "used all the same"),
        ):
            some = rows(profiles, here & (mask(profiles, "used") == used))
            if len(some):
                found.append(finding(code, f"{_list(some)} FLOPs: {status}, {word}: {reason}."))
    return found


def _lost(profiles: pd.DataFrame, optimum: np.ndarray) -> list[Finding]:
    share = np.isnan(optimum).mean(axis=0) if len(optimum) else np.zeros(len(profiles))
    some = (share >= _LOST) & mask(profiles, "used")
    if not some.any():
        return []
    words = ", ".join(
        f"{flops_text(float(b))} ({s:.0%})"
        for b, s in zip(column(profiles, "budget")[some], share[some], strict=True)
    )
    text = f"Share of resamples in which a profile has no minimum: {words}. These count as unbounded in the intervals."
    return [finding("no_minimum", text)]


def _skewed(profiles: pd.DataFrame, skew: Skew | None) -> list[Finding]:
    """Profiles with one arm steeper than the other, which a parabola has not."""
    if skew is None or skew.p >= LACK:
        return []
    shift, flops = skew.shifts["params"], column(profiles, "flops")[mask(profiles, "used")]
    low, top = float(np.min(flops)), float(np.max(flops))
    if max(abs(shift.at(low)), abs(shift.at(top))) < _SHIFTED:
        return []
    off = float(np.expm1(shift.at(top)))
    arm = "below" if skew.ratio < 0.0 else "above"
    words = (
        f"The profiles are steeper {arm} the optimum, which no parabola is (a cubic term common to all, p = "
        f"{skew.p:.2g}): N* is about {100.0 * abs(off):.2g} % too {'high' if off > 0.0 else 'low'} at "
        f"{flops_text(top)} FLOPs, and a about {abs(shift.slope):.2g} too {'high' if shift.slope > 0.0 else 'low'}."
    )
    allowed = (
        "The intervals of a, b, N* and D* allow for it; joint and parametric have no such error."
    )
    return [finding("skewed", f"{words} {allowed}")]


def few_budgets(count: int) -> list[Finding]:
    if count >= FEW_BUDGETS:
        return []
    if count < MIN_LAW_BUDGETS:
        have = f"{count} budget{'' if count == 1 else 's'} can't show how the optimum grows with compute"
        return [
            finding(
                "few_budgets",
                f"{have}: the exponents are as good as the formula. A law needs 3 budgets or more.",
            )
        ]
    left = count - 2
    degrees = f"{left} degree{'s' if left != 1 else ''} of freedom"
    return [
        finding(
            "few_budgets",
            f"{count} budgets leave the power laws {degrees}: the intervals are wide for that.",
        )
    ]


def _shallow(profiles: pd.DataFrame, noise: Noise) -> list[Finding]:
    shallow = rows(
        profiles, mask(profiles, "used") & (column(profiles, "depth_to_noise") < MIN_DEPTH)
    )
    if not len(shallow):
        return []
    kind = "between seeds" if noise.replicate_dof else "about the parabolas"
    pairs = zip(column(shallow, "budget"), column(shallow, "depth_to_noise"), strict=True)
    ratios = ", ".join(f"{flops_text(float(b))} ({r:.1f})" for b, r in pairs)
    message = f"Profiles no deeper than {MIN_DEPTH:g} times the noise {kind} (depth over noise): {ratios}."
    return [
        finding(
            "shallow", f"{message} Their optima are poorly placed: wider grids or more seeds help."
        )
    ]


def of_noise(noise: Noise, else_what: str) -> list[Finding]:
    """What seeds say: how large pure error is, and whether the fit misses by more (F test)."""
    equal = _equal_seeds(noise)
    if not noise.replicate_dof:
        return equal or [
            finding(
                "no_replicates",
                "No configuration was run with two seeds: noise can't be told from misfit.",
            )
        ]
    facts = (
        f"Seeds of one configuration differ by {noise.replicate_sd:.2%} of the loss (sd, {noise.replicate_dof} degrees "
        f"of freedom); runs lie {noise.residual_sd:.2%} off what was fitted."
    )
    found = [finding("replicate_noise", facts), *equal]
    if noise.lack_of_fit < LACK:
        words = (
            f"Runs lie further off what was fitted than seeds differ (F test, p = {noise.lack_of_fit:.2g}): "
            f"{else_what}, or the recipe is uneven over sizes."
        )
        found.insert(0, finding("lack_of_fit", words))
    return found


def _equal_seeds(noise: Noise) -> list[Finding]:
    if not noise.copies:
        return []
    where = f"{noise.copies} configuration{'s' if noise.copies > 1 else ''}"
    words = f"In {where} seeds have one loss to the last digit: listed twice, or rounded? They tell nothing of noise."
    return [finding("equal_seeds", words)]


def alike(
    neighbours: Neighbours | None, recurring: Neighbours | None = None, allowed: str = _ALLOWED
) -> list[Finding]:
    """Runs of neighbouring sizes, or of one size, on the same side of the fit more often than chance has it."""
    found = []
    if neighbours is not None and neighbours.p < LACK:
        words = (
            f"Neighbouring sizes of a budget share their deviation from the fit (p = {neighbours.p:.2g}): the noise is "
            "shared (a recipe uneven over sizes?), or the shape is not the whole of it."
        )
        found.append(finding("shared_noise", f"{words} {_spoken(neighbours, allowed)}"))
    if recurring is not None and recurring.p < LACK:
        words = (
            f"A size keeps its deviation from the fit at all its budgets (p = {recurring.p:.2g}): its rate, depth or "
            "heads suit it badly, or the shape is not the whole of it. Tune the sizes that lie off anew, or leave them "
            "out, and fit again."
        )
        found.append(finding("shared_noise", f"{words} {_spoken(recurring, allowed)}"))
    return found


def _spoken(neighbours: Neighbours, allowed: str) -> str:
    return "The intervals are too narrow for that." if neighbours.shared is None else allowed


def of_rollout(rollout: RollOut | None) -> list[Finding]:
    """How well the fit predicts its own largest budgets when they are hidden."""
    if rollout is None:
        return [
            finding(
                "no_rollout",
                "Too few budgets to hide one and predict it: how the law fails beyond them is not known.",
            )
        ]
    parts = []
    for row in records(rollout.table()):
        if row["hidden"] == 1 or row["budget"] == rollout.reach[1]:
            errors = [
                f"{words} {row[name]:+.1%} (noise {row[f'{name}_se']:.1%})"
                for name, words in (("params", "N*"), ("loss", "loss"))
                if name in row and row[name] == row[name]
            ]
            hidden = (
                "the top budget hidden"
                if row["hidden"] == 1
                else f"the top {row['hidden']:.0f} hidden"
            )
            parts.append(
                f"{hidden}, {flops_text(row['budget'])} is predicted with {' and '.join(errors)} off"
            )
    return [finding("rollout", f"Roll-out: {'; '.join(parts)}.")]


def of_table(table: RunsTable) -> list[Finding]:
    """What the runs themselves call for."""
    return [*_simulated(table), *_epochs(table), *table.findings]


def of_rows(table: RunsTable) -> list[Finding]:
    """Rows that were left out."""
    return [finding("rows_dropped", f"Left out: {what}: {why}.") for what, why in table.dropped]


def _simulated(table: RunsTable) -> list[Finding]:
    if "simulated" not in table.frame or not (
        drawn := int(np.count_nonzero(table.array("simulated")))
    ):
        return []
    which = (
        "All losses are"
        if drawn == len(table.frame)
        else f"{drawn} of {len(table.frame)} losses are"
    )
    return [
        finding(
            "simulated",
            f"{which} simulated (train.trainer): drawn from a law, not trained. Nothing here is a result.",
        )
    ]


def _epochs(table: RunsTable) -> list[Finding]:
    if "epochs" not in table.frame:
        return []
    epochs = table.array("epochs")
    over = int(np.count_nonzero(epochs > MAX_EPOCHS))
    if not over:
        return []
    runs = f"{over} run{'s see' if over > 1 else ' sees'} its data more than {MAX_EPOCHS:g} times"
    return [
        finding(
            "epochs",
            f"{runs} (at most {np.nanmax(epochs):.1f}): repeated data teach less than new data.",
        )
    ]


def _interpolation(profiles: pd.DataFrame, axis: Axis) -> list[Finding]:
    worst = float(np.max(column(profiles, "interpolation_error")[mask(profiles, "used")]))
    if worst <= _INTERPOLATION:
        return []
    other = "tokens" if axis == "params" else "parameters"
    text = f"The {other} at an optimum are read off a smooth curve; the runs lie up to {worst:.1%} (rms) off it."
    return [finding("interpolation", text)]
