"""Findings on fits of profiles, and the findings that all methods share: facts that a reader must
know before trusting a fit.

docs/findings.md has an entry for each code.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import pandas as pd

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import GroupedResiduals
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.skew import Skew
from isoflop.fitting.results.base import MIN_LAW_BUDGETS
from isoflop.fitting.tables.runs_table import RunsTable
from isoflop.fitting.terms import Axis, Finding, finding
from isoflop.frames import Bools, Floats, column, mask, records, rows
from isoflop.text import flops_text

MAX_EPOCHS = 4.0
MIN_DEPTH_TO_NOISE = 5.0
FEW_BUDGETS = 5
FINDING_ALPHA = 0.01
"""p-value below which a test of noise or form is reported."""
_MAX_INTERPOLATION_ERROR = 0.02  # rms, of ln of the other axis
_MIN_LOST_SHARE = 0.01  # of the resamples
_MIN_SKEW_SHIFT = 0.005  # of ln N*, at the least or the greatest budget
_WIDENED_T_INTERVALS = "The t intervals allow for it; percentile intervals do not."

AXIS_NAMES = {
    "params": ("model", "smallest", "largest"),
    "tokens": ("token count", "smallest", "largest"),
}


def diagnose_profiles(
    table: RunsTable,
    profiles: pd.DataFrame,
    noise: Noise,
    axis: Axis,
    optimum: Floats,
    rollout: HoldOut | None,
    skew: Skew | None,
    budget_residuals: GroupedResiduals | None,
) -> list[Finding]:
    """Return findings on parabolas, the gravest first.

    Args:
        table: the runs.
        profiles: see `IsoflopFit.profiles`.
        noise: noise of the runs.
        axis: axis of the profiles.
        optimum: draws of ln(optimum), (R, budgets), NaN without a minimum.
        rollout: hold-out tests.
        skew: skew of the profiles.
        budget_residuals: residuals within budgets.
    """
    groups = (
        table_findings(table),
        _status_findings(profiles),
        _no_minimum_findings(profiles, optimum),
        _skew_findings(profiles, skew),
        few_budgets_findings(int(np.count_nonzero(mask(profiles, "used")))),
        _shallow_findings(profiles, noise),
        shared_noise_findings(
            budget_residuals,
            widened="Intervals of single optima are at least as wide as the optima scatter about "
            "the law.",
        ),
        noise_findings(noise, "the profiles are not parabolas"),
        rollout_findings(rollout),
        _interpolation_findings(profiles, axis),
        dropped_rows_findings(table),
    )
    return list(chain.from_iterable(groups))


def explain_status(
    status: para.Status, profile: para.Profile, parabola: para.Parabola | None, axis: Axis
) -> str:
    """Return a status with its reason, for the message of a refusal."""
    name, smallest, largest = AXIS_NAMES[axis]
    if status == "too_few":
        sizes = f"{profile.sizes} distinct size{'s' if profile.sizes > 1 else ''}"
        return f"too_few ({sizes}, {para.MIN_PROFILE_SIZES} needed)"
    if status == "edge" and parabola is not None:
        is_below = float(parabola.vertices(parabola.coefficients)) < profile.x[0]
        side = f"below the {smallest}" if is_below else f"above the {largest}"
        return f"edge (the minimum is {side} {name})"
    return status


def _budgets_text(profiles: pd.DataFrame) -> str:
    return ", ".join(flops_text(float(b)) for b in column(profiles, "budget"))


def _status_findings(profiles: pd.DataFrame) -> list[Finding]:
    reasons = {
        "edge": "the minimum lies outside the sizes that were run",
        "one_sided": "the best run is the smallest or the largest, or one side has fewer than 2 "
        "sizes",
        "concave": "the parabola has no minimum",
        "too_few": f"fewer than {para.MIN_PROFILE_SIZES} sizes",
    }
    findings = []
    for status, reason in reasons.items():
        has_status = (profiles["status"] == status).to_numpy(dtype=bool)
        for is_used, code, use in (
            (False, "profile_excluded", "not used"),
            (True, "profile_used", "used because `use` allows it"),
        ):
            members = rows(profiles, has_status & (mask(profiles, "used") == is_used))
            if len(members):
                text = f"{_budgets_text(members)} FLOPs: {status}, {use}: {reason}."
                findings.append(finding(code, text))
    return findings


def _no_minimum_findings(profiles: pd.DataFrame, optimum: Floats) -> list[Finding]:
    share = np.isnan(optimum).mean(axis=0) if len(optimum) else np.zeros(len(profiles))
    lost: Bools = (share >= _MIN_LOST_SHARE) & mask(profiles, "used")
    if not lost.any():
        return []
    pairs = zip(column(profiles, "budget")[lost], share[lost], strict=True)
    shares = ", ".join(
        f"{flops_text(float(budget))} ({lost_share:.0%})" for budget, lost_share in pairs
    )
    text = (
        f"Share of the resamples in which a profile has no minimum: {shares}. These resamples "
        "count as unbounded in the intervals."
    )
    return [finding("no_minimum", text)]


def _skew_findings(profiles: pd.DataFrame, skew: Skew | None) -> list[Finding]:
    """Return a finding if one arm of the profiles is steeper than the other."""
    if skew is None or skew.p >= FINDING_ALPHA:
        return []
    shift, flops = skew.shifts["params"], column(profiles, "flops")[mask(profiles, "used")]
    low, top = float(np.min(flops)), float(np.max(flops))
    if max(abs(shift.at(low)), abs(shift.at(top))) < _MIN_SKEW_SHIFT:
        return []
    error = float(np.expm1(shift.at(top)))
    side = "below" if skew.ratio < 0.0 else "above"
    text = (
        f"The profiles are steeper {side} the optimum than on the other side (a cubic term common "
        f"to all, p = {skew.p:.2g}), and parabolas are symmetric: N* is about "
        f"{100.0 * abs(error):.2g}% too {'high' if error > 0.0 else 'low'} at {flops_text(top)} "
        f"FLOPs, and a about {abs(shift.slope):.2g} too {'high' if shift.slope > 0.0 else 'low'}. "
        "The intervals of a, b, N* and D* allow for it; joint and parametric have no such error."
    )
    return [finding("skewed", text)]


def few_budgets_findings(count: int) -> list[Finding]:
    """Return a finding if fewer than 5 budgets enter the law."""
    if count >= FEW_BUDGETS:
        return []
    if count < MIN_LAW_BUDGETS:
        text = (
            f"{count} budget{'' if count == 1 else 's'} can't show how the optimum grows with "
            "compute: the exponents come from the formula alone. A law needs "
            f"{MIN_LAW_BUDGETS} budgets or more."
        )
    else:
        dof = count - 2
        text = (
            f"With {count} budgets the power laws have {dof} degree{'s' if dof != 1 else ''} of "
            "freedom, so the intervals are wide."
        )
    return [finding("few_budgets", text)]


def _shallow_findings(profiles: pd.DataFrame, noise: Noise) -> list[Finding]:
    is_shallow = column(profiles, "depth_to_noise") < MIN_DEPTH_TO_NOISE
    shallow = rows(profiles, mask(profiles, "used") & is_shallow)
    if not len(shallow):
        return []
    kind = "between seeds" if noise.replicate_dof else "about the parabolas"
    pairs = zip(column(shallow, "budget"), column(shallow, "depth_to_noise"), strict=True)
    ratios = ", ".join(f"{flops_text(float(budget))} ({ratio:.1f})" for budget, ratio in pairs)
    text = (
        f"Profiles less than {MIN_DEPTH_TO_NOISE:g} times as deep as the noise {kind} (depth over "
        f"noise): {ratios}. Their optima are uncertain: run a wider range of sizes or more seeds."
    )
    return [finding("shallow", text)]


def noise_findings(noise: Noise, misfit: str) -> list[Finding]:
    """Return findings on the noise between seeds, and on a fit that misses by more (F test).

    Args:
        noise: noise of the runs.
        misfit: clause that names a wrong form of the fit, for the message.
    """
    equal_seeds = _equal_seeds_findings(noise)
    if not noise.replicate_dof:
        text = "No configuration was run with two seeds: noise can't be separated from misfit."
        return equal_seeds or [finding("no_replicates", text)]
    text = (
        f"Seeds of one configuration differ by {noise.replicate_sd:.2%} of the loss (standard "
        f"deviation, {noise.replicate_dof} degrees of freedom); runs lie {noise.residual_sd:.2%} "
        "off the fit."
    )
    findings = [finding("replicate_noise", text), *equal_seeds]
    if noise.lack_of_fit < FINDING_ALPHA:
        text = (
            f"Runs lie farther off the fit than seeds differ (F test, p = {noise.lack_of_fit:.2g})"
            f": {misfit}, or the recipe suits some sizes worse than others."
        )
        findings.insert(0, finding("lack_of_fit", text))
    return findings


def _equal_seeds_findings(noise: Noise) -> list[Finding]:
    if not noise.copies:
        return []
    text = (
        f"In {noise.copies} configuration{'s' if noise.copies > 1 else ''} seeds have the same "
        "loss to the last digit (one run listed twice, or rounded losses?). Equal losses carry no "
        "information on the noise."
    )
    return [finding("equal_seeds", text)]


def shared_noise_findings(
    budget_residuals: GroupedResiduals | None,
    size_residuals: GroupedResiduals | None = None,
    widened: str = _WIDENED_T_INTERVALS,
) -> list[Finding]:
    """Return findings on correlated residuals: of neighbouring sizes, or of one size over budgets.

    Args:
        budget_residuals: residuals within budgets; None without budgets.
        size_residuals: residuals of each size over its budgets; None if they are not tested.
        widened: sentence on the intervals that allow for the correlation.
    """
    findings = []
    if budget_residuals is not None and budget_residuals.p < FINDING_ALPHA:
        text = (
            "Residuals of neighbouring sizes within a budget are correlated "
            f"(p = {budget_residuals.p:.2g}): either the recipe suits some sizes worse than "
            f"others, or the form of the fit is wrong. {_interval_text(budget_residuals, widened)}"
        )
        findings.append(finding("shared_noise", text))
    if size_residuals is not None and size_residuals.p < FINDING_ALPHA:
        text = (
            "Sizes deviate from the fit in one direction at all their budgets "
            f"(p = {size_residuals.p:.2g}): either their learning rate, depth or number of heads "
            "suits them badly, or the form of the fit is wrong. Tune these sizes, or leave them "
            f"out, and fit again. {_interval_text(size_residuals, widened)}"
        )
        findings.append(finding("shared_noise", text))
    return findings


def _interval_text(residuals: GroupedResiduals, widened: str) -> str:
    if residuals.clustered_covariance is None:
        return "The intervals do not allow for it and are too narrow."
    return widened


def rollout_findings(rollout: HoldOut | None, level: str = "budget") -> list[Finding]:
    """Return a finding on the errors at the largest budgets, hidden from the fit.

    Args:
        rollout: hold-out tests; None if there is none.
        level: `budget`, or `band` for runs without budgets, in bands of compute.
    """
    if rollout is None:
        text = (
            "No budget could be hidden and predicted: there are too few budgets, or too few runs "
            "without the hidden one. The error of the law beyond its data is not known."
        )
        return [finding("no_rollout", text)]
    tests = []
    for row in records(rollout.table()):
        if row["hidden"] == 1 or row["budget"] == rollout.reach[1]:
            errors = [
                f"{label} {row[name]:+.1%} (noise {row[f'{name}_se']:.1%})"
                for name, label in (("params", "N*"), ("loss", "loss"))
                if name in row and row[name] == row[name]
            ]
            count = "" if row["hidden"] == 1 else f"{row['hidden']:.0f} "
            hidden = f"{count}largest {level}{'s' if count else ''}"
            budget = flops_text(row["budget"])
            target = budget if level == "budget" else f"the {level} up to {budget}"
            tests.append(
                f"without the {hidden}, {target} is predicted with an error of "
                f"{' and '.join(errors)}"
            )
    return [finding("rollout", f"Hold-out test: {'; '.join(tests)}.")]


def table_findings(table: RunsTable) -> list[Finding]:
    """Return findings on the runs themselves."""
    return [*_simulated_findings(table), *_epochs_findings(table), *table.findings]


def dropped_rows_findings(table: RunsTable) -> list[Finding]:
    """Return findings on the rows that were left out."""
    return [
        finding("rows_dropped", f"Left out: {name}: {reason}.") for name, reason in table.dropped
    ]


def _simulated_findings(table: RunsTable) -> list[Finding]:
    if "simulated" not in table.frame:
        return []
    count = int(np.count_nonzero(table.array("simulated")))
    if not count:
        return []
    losses = "All losses are"
    if count < len(table.frame):
        losses = f"{count} of {len(table.frame)} losses are"
    text = (
        f"{losses} simulated (train.trainer): drawn from a law, not trained. Nothing here is a "
        "result."
    )
    return [finding("simulated", text)]


def _epochs_findings(table: RunsTable) -> list[Finding]:
    if "epochs" not in table.frame:
        return []
    epochs = table.array("epochs")
    count = int(np.count_nonzero(epochs > MAX_EPOCHS))
    if not count:
        return []
    runs = "1 run passes over its data" if count == 1 else f"{count} runs pass over their data"
    text = (
        f"{runs} more than {MAX_EPOCHS:g} times (at most {np.nanmax(epochs):.1f} times): repeated "
        "data teach less than new data."
    )
    return [finding("epochs", text)]


def _interpolation_findings(profiles: pd.DataFrame, axis: Axis) -> list[Finding]:
    worst = float(np.max(column(profiles, "interpolation_error")[mask(profiles, "used")]))
    if worst <= _MAX_INTERPOLATION_ERROR:
        return []
    other = "tokens" if axis == "params" else "parameters"
    text = (
        f"The {other} at an optimum are read from a smooth curve through the runs, which lie up to "
        f"{worst:.1%} (rms) off it."
    )
    return [finding("interpolation", text)]
