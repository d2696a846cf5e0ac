"""Findings on fits of profiles; see `diagnostics`."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pandas as pd

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import GroupedResiduals
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.shallow_profiles import MIN_CURVATURE_SES
from isoflop.fitting.estimators.skew import Skew
from isoflop.fitting.results.diagnostics import (
    FINDING_ALPHA,
    dropped_rows_findings,
    few_budgets_findings,
    noise_findings,
    rollout_findings,
    shared_noise_findings,
    table_findings,
)
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import Axis, Finding, finding
from isoflop.frames import Bools, Floats, column, mask, rows
from isoflop.text import flops_text, percent_text

_MAX_INTERPOLATION_ERROR = 0.02  # rms, of ln of the other axis
_MIN_LOST_SHARE = 0.01  # of the resamples
_MIN_SKEW_SHIFT = 0.005  # of ln N*, at the least or the greatest budget

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
        _shallow_findings(profiles),
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
        "shallow": "its curvature is hardly above zero",
    }
    findings = []
    statuses, used = profiles["status"].to_numpy(dtype=object), mask(profiles, "used")
    for status, reason in reasons.items():
        for is_used, code, use in (
            (False, "profile_excluded", "not used"),
            (True, "profile_used", "used because `use` allows it"),
        ):
            members = (statuses == status) & (used == is_used)
            if members.any() and not (is_used and status == "shallow"):
                budgets = _budgets_text(rows(profiles, members))
                findings.append(finding(code, f"{budgets} FLOPs: {status}, {use}: {reason}."))
    return findings


def _no_minimum_findings(profiles: pd.DataFrame, optimum: Floats) -> list[Finding]:
    share = np.isnan(optimum).mean(axis=0) if len(optimum) else np.zeros(len(profiles))
    lost: Bools = (share >= _MIN_LOST_SHARE) & mask(profiles, "used")
    if not lost.any():
        return []
    pairs = zip(column(profiles, "budget")[lost], share[lost], strict=True)
    shares = ", ".join(
        f"{flops_text(float(budget))} ({percent_text(lost_share, 2)})"
        for budget, lost_share in pairs
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
        f"{percent_text(abs(error), 2)} too {'high' if error > 0.0 else 'low'} at "
        f"{flops_text(top)} FLOPs, and a about {abs(shift.slope):.2g} too "
        f"{'high' if shift.slope > 0.0 else 'low'}. The intervals of a, b, N* and D* "
        "allow for it; joint and parametric have no such error."
    )
    return [finding("skewed", text)]


def _shallow_findings(profiles: pd.DataFrame) -> list[Finding]:
    """Return a finding on the profiles that take their curvature from all budgets."""
    members = profiles["status"].to_numpy(dtype=object) == "shallow"
    members &= mask(profiles, "used")
    if not members.any():
        return []
    text = (
        f"{_budgets_text(rows(profiles, members))} FLOPs: shallow: the curvature is less than "
        f"{MIN_CURVATURE_SES:g} standard errors above zero, so the profile alone does not place "
        "its minimum. It takes the curvature of all budgets, and each budget has weight in the "
        "laws by its variance. Run a wider range of sizes or more seeds."
    )
    return [finding("shallow", text)]


def _interpolation_findings(profiles: pd.DataFrame, axis: Axis) -> list[Finding]:
    worst = float(np.max(column(profiles, "interpolation_error")[mask(profiles, "used")]))
    if worst <= _MAX_INTERPOLATION_ERROR:
        return []
    other = "tokens" if axis == "params" else "parameters"
    text = (
        f"The {other} at an optimum are read from a smooth curve through the runs, with residuals "
        f"of up to {percent_text(worst)} (rms)."
    )
    return [finding("interpolation", text)]
