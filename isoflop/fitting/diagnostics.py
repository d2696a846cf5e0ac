"""What a reader must know before trusting an IsoFLOP fit, in codes and words."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pandas as pd

from isoflop.fitting import parabola as para
from isoflop.fitting.frames import column, mask, rows
from isoflop.fitting.result import Axis, Noise
from isoflop.fitting.table import RunsTable

MAX_EPOCHS = 4.0
MIN_DEPTH = 5.0  # a profile's depth in units of the noise between runs
FEW_BUDGETS = 5
_BUDGET_OFF = 0.05
_INTERPOLATION = 0.02
_MISFIT = 2.0
_LOST = 0.01

AXIS_WORDS = {"params": ("model", "smallest", "largest"), "tokens": ("token count", "smallest", "largest")}


class Diagnostic(TypedDict):
    """A finding: `code` for programs, `message` for people."""

    code: str
    message: str


def diagnose(
    table: RunsTable, profiles: pd.DataFrame, noise: Noise, axis: Axis, optimum: np.ndarray
) -> list[Diagnostic]:
    """All findings, the gravest first. `optimum` holds the draws (R, budgets), NaN where one had no minimum."""
    found = [
        *_simulated(table),
        *_status(profiles),
        *_lost(profiles, optimum),
        *_few_budgets(profiles),
        *_shallow(profiles, noise),
        *_seeds(noise),
        *_epochs(table),
        *table.findings,
        *_budgets_off(profiles),
        *_interpolation(profiles, axis),
        *_dropped(table),
    ]
    return [Diagnostic(code=code, message=message) for code, message in found]


def explain_status(status: para.Status, profile: para.Profile, parabola: para.Parabola | None, axis: Axis) -> str:
    """A status with the fact behind it, for the message of a refusal."""
    what, smallest, largest = AXIS_WORDS[axis]
    if status == "too_few":
        sizes = f"{profile.sizes} distinct size{'s' if profile.sizes > 1 else ''}"
        return f"too_few ({sizes}, {para.MIN_SIZES} needed)"
    if status == "edge" and parabola is not None:
        below = float(parabola.vertices(parabola.coefficients)) < profile.x[0]
        return f"edge (the minimum is {'below' if below else 'above'} the {smallest if below else largest} {what})"
    return status


def flops_text(value: float) -> str:
    """1.8e19 for 1.8e+19."""
    digits, exponent = f"{value:.4g}", 0
    if "e" in digits:
        digits, power = digits.split("e")
        exponent = int(power)
    return f"{digits}e{exponent}" if exponent else digits


def _list(profiles: pd.DataFrame) -> str:
    return ", ".join(flops_text(float(b)) for b in column(profiles, "budget"))


def _status(profiles: pd.DataFrame) -> list[tuple[str, str]]:
    reasons = {
        "edge": "the minimum lies outside the sizes that were run",
        "one_sided": "the best run is at an end, or one run alone holds one side",
        "concave": "the parabola has no minimum",
        "too_few": f"fewer than {para.MIN_SIZES} sizes",
    }
    found = []
    for status, reason in reasons.items():
        here = (profiles["status"] == status).to_numpy(dtype=bool)
        for used, code, word in ((False, "profile_excluded", "not used"), (True, "profile_used", "used all the same")):
            some = rows(profiles, here & (mask(profiles, "used") == used))
            if len(some):
                found.append((code, f"{_list(some)} FLOPs: {status}, {word}: {reason}."))
    return found


def _lost(profiles: pd.DataFrame, optimum: np.ndarray) -> list[tuple[str, str]]:
    share = np.isnan(optimum).mean(axis=0) if len(optimum) else np.zeros(len(profiles))
    some = (share >= _LOST) & mask(profiles, "used")
    if not some.any():
        return []
    words = ", ".join(
        f"{flops_text(float(b))} ({s:.0%})" for b, s in zip(column(profiles, "budget")[some], share[some], strict=True)
    )
    text = f"Share of resamples in which a profile has no minimum: {words}. These count as unbounded in the intervals."
    return [("no_minimum", text)]


def _few_budgets(profiles: pd.DataFrame) -> list[tuple[str, str]]:
    count = int(np.count_nonzero(mask(profiles, "used")))
    if count >= FEW_BUDGETS:
        return []
    left = count - 2
    degrees = f"{left} degree{'s' if left > 1 else ''} of freedom"
    return [("few_budgets", f"{count} budgets leave the power laws {degrees}: the intervals are wide for that.")]


def _shallow(profiles: pd.DataFrame, noise: Noise) -> list[tuple[str, str]]:
    shallow = rows(profiles, mask(profiles, "used") & (column(profiles, "depth_to_noise") < MIN_DEPTH))
    if not len(shallow):
        return []
    kind = "between seeds" if noise.replicate_dof else "about the parabolas"
    pairs = zip(column(shallow, "budget"), column(shallow, "depth_to_noise"), strict=True)
    ratios = ", ".join(f"{flops_text(float(b))} ({r:.1f})" for b, r in pairs)
    message = f"Profiles no deeper than {MIN_DEPTH:g} times the noise {kind} (depth over noise): {ratios}."
    return [("shallow", f"{message} Their optima are poorly placed: wider grids or more seeds help.")]


def _seeds(noise: Noise) -> list[tuple[str, str]]:
    if not noise.replicate_dof:
        text = "No configuration was run with two seeds: noise can't be told from misfit of the parabolas."
        return [("no_replicates", text)]
    facts = (
        f"Seeds of one configuration differ by {noise.replicate_sd:.2%} of the loss (sd, {noise.replicate_dof} degrees "
        f"of freedom); runs lie {noise.residual_sd:.2%} off the parabolas."
    )
    if noise.residual_sd > _MISFIT * noise.replicate_sd:
        facts += " That is more than noise: the parabola is not the whole shape, or the recipe is uneven over sizes."
    return [("replicate_noise", facts)]


def _simulated(table: RunsTable) -> list[tuple[str, str]]:
    if "simulated" not in table.frame or not (drawn := int(np.count_nonzero(table.array("simulated")))):
        return []
    which = "All losses are" if drawn == len(table.frame) else f"{drawn} of {len(table.frame)} losses are"
    return [
        ("simulated", f"{which} simulated (train.trainer): drawn from a law, not trained. Nothing here is a result.")
    ]


def _epochs(table: RunsTable) -> list[tuple[str, str]]:
    if "epochs" not in table.frame:
        return []
    epochs = table.array("epochs")
    over = int(np.count_nonzero(epochs > MAX_EPOCHS))
    if not over:
        return []
    runs = f"{over} run{'s see' if over > 1 else ' sees'} its data more than {MAX_EPOCHS:g} times"
    return [("epochs", f"{runs} (at most {np.nanmax(epochs):.1f}): repeated data teach less than new data.")]


def _budgets_off(profiles: pd.DataFrame) -> list[tuple[str, str]]:
    ratio = column(profiles, "flops") / column(profiles, "budget")
    if np.all(np.abs(np.log(ratio)) <= _BUDGET_OFF):
        return []
    span = f"{float(ratio.min()):.2f} to {float(ratio.max()):.2f}"
    return [("budget_off", f"The runs' FLOPs are {span} times the budget that labels them; the laws use the FLOPs.")]


def _interpolation(profiles: pd.DataFrame, axis: Axis) -> list[tuple[str, str]]:
    worst = float(np.max(column(profiles, "interpolation_error")[mask(profiles, "used")]))
    if worst <= _INTERPOLATION:
        return []
    other = "tokens" if axis == "params" else "parameters"
    text = f"The {other} at an optimum are read off a smooth curve; the runs lie up to {worst:.1%} (rms) off it."
    return [("interpolation", text)]


def _dropped(table: RunsTable) -> list[tuple[str, str]]:
    return [("rows_dropped", f"Left out: {what}: {why}.") for what, why in table.dropped]
