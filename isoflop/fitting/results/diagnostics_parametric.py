"""What a reader must know before trusting a fitted surface, a joint fit or an envelope; see `diagnostics`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from isoflop.fitting.estimators.newton import LEAST_E
from isoflop.fitting.estimators.surface_estimate import optimum
from isoflop.fitting.results.diagnostics import (
    LACK,
    alike,
    few_budgets,
    of_noise,
    of_rollout,
    of_rows,
    of_table,
)
from isoflop.fitting.results.envelope_fit import EnvelopeFit
from isoflop.fitting.results.joint_fit import JointFit
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.terms import EXPONENT_LETTERS, Finding, finding
from isoflop.frames import column, rows
from isoflop.text import flops_text

Floats = np.ndarray
SLOPE = 1e-5
CONDITION = 1e4
AGREEING = 0.5
OUTLIER = 4.0  # robust standard deviations
NUDGE = 1.0  # standard errors of a that one configuration may move it
FLOOR = 0.01  # E below this share of the least loss
SMALL_DELTA = 0.5  # of a robust standard deviation


def diagnose_surface(fit: ParametricFit) -> list[Finding]:
    """Findings on a surface, the gravest first."""
    groups = (
        _search(fit),
        of_table(fit.runs),
        _bounds(fit),
        _condition(fit),
        _edge(fit),
        few_budgets(len(np.unique(fit.sample.budget))),
        _outliers(fit),
        _influence(fit),
        _uneven(fit),
        alike(fit.neighbours, fit.recurring),
        _delta(fit),
        of_noise(fit.noise, "the law is not the whole shape"),
        of_rollout(fit.rollout),
        of_rows(fit.runs),
    )
    return list(chain.from_iterable(groups))


def diagnose_joint(fit: JointFit) -> list[Finding]:
    """Findings on a joint fit of profiles."""
    found = _joint_bounds(fit)
    beyond = rows(fit.profiles, fit.profiles["status"].to_numpy() == "edge")
    if len(beyond):
        budgets = ", ".join(flops_text(float(b)) for b in column(beyond, "budget"))
        found.append(
            finding(
                "edge",
                f"{budgets} FLOPs: the minimum lies beyond the sizes run; the other budgets place it.",
            )
        )
    groups = (
        of_table(fit.runs),
        found,
        few_budgets(fit.curves.budgets),
        _outliers_of_profiles(fit),
        _uneven(fit),
        alike(fit.neighbours, fit.recurring),
        of_noise(fit.noise, "the shape is not the same in all budgets"),
        of_rollout(fit.rollout),
        of_rows(fit.runs),
    )
    return list(chain.from_iterable(groups))


def _joint_bounds(fit: JointFit) -> list[Finding]:
    names, found = fit.at_bounds, []
    if {"left", "right"} & set(names):
        arms = "The arms' exponents are at a bound: these profiles do not show how an arm bends. Wider ones do."
        found.append(finding("at_bound", arms))
    values = dict(
        zip(
            ("curvature", "left", "right", "k", EXPONENT_LETTERS[fit.axis]),
            fit.estimate.theta[0],
            strict=True,
        )
    )
    for name in names:
        if name not in ("left", "right"):
            words = f"{'ln curvature' if name == 'curvature' else name} is at its bound {values[name]:g}"
            found.append(finding("at_bound", f"{words}: the runs do not fix it."))
    return found


def diagnose_envelope(fit: EnvelopeFit) -> list[Finding]:
    """Findings on an envelope."""
    words = (
        f"The envelope takes its {len(fit.frontier)} optima from the sizes that were run: they are no nearer to the "
        "best than the sizes lie apart."
    )
    groups = (
        of_table(fit.runs),
        [finding("nearest_run", words)],
        few_budgets(len(fit.frontier)),
        of_rows(fit.runs),
    )
    return list(chain.from_iterable(groups))


def _search(fit: ParametricFit) -> list[Finding]:
    slope, agreeing = float(fit.estimate.slope[0]), fit.estimate.agreeing
    found = []
    if not slope <= SLOPE:
        words = f"The fit did not converge: residuals and Jacobian are {slope:.1e} from a right angle at the end."
        found.append(finding("not_converged", words))
    if agreeing < AGREEING:
        found.append(
            finding(
                "few_starts",
                f"{agreeing:.0%} of the 48 starts reached this optimum: there may be a better one.",
            )
        )
    return found


def _bounds(fit: ParametricFit) -> list[Finding]:
    found: list[Finding] = []
    params: dict[Any, float] = fit.params.to_dict()
    least = float(fit.sample.points.loss.min())
    if params["E"] < FLOOR * least:
        near = fit.theta[0] - float(np.log(fit.sample.points.loss).mean()) <= -LEAST_E
        where = "at its bound, nothing" if near else f"{params['E'] / least:.2%} of the least loss"
        found.append(
            finding("e_near_zero", f"E is {where}: these runs do not show an irreducible loss.")
        )
    for name in fit.at_bounds:
        found.append(
            finding("at_bound", f"{name} is at its bound {params[name]:g}: the runs do not fix it.")
        )
    return found


def _condition(fit: ParametricFit) -> list[Finding]:
    if fit.condition < CONDITION:
        return []
    words = f"Condition number {fit.condition:.1e}: these runs hardly tell the parameters apart."
    return [finding("ill_conditioned", words)]


def _edge(fit: ParametricFit) -> list[Finding]:
    """Budgets whose runs all lie on one side of the optimum; which N is best for a run's own 6ND decides its side."""
    sample, points = fit.sample, fit.sample.points
    size, data = points.x + points.x_mean, points.y + points.y_mean
    above = size - optimum(points, fit.theta, 6.0 * np.exp(size + data))[0][:, 0]
    budgets = np.unique(sample.budget)
    beyond = [
        b
        for b in budgets
        if not above[sample.budget == b].min() <= 0.0 <= above[sample.budget == b].max()
    ]
    if not beyond:
        return []
    if len(beyond) == len(budgets):
        return [
            finding(
                "edge",
                "At no budget do the sizes that were run bracket the law's optimum: N* is an extrapolation.",
            )
        ]
    names = ", ".join(flops_text(float(b)) for b in beyond[:8]) + (
        ", ..." if len(beyond) > 8 else ""
    )
    return [
        finding(
            "edge",
            f"{names} FLOPs: the law's optimum lies beyond the sizes run; the other budgets place it.",
        )
    ]


def _outliers(fit: ParametricFit) -> list[Finding]:
    table = fit.influence
    configs = table.index.to_numpy(dtype=np.int64)
    text = _far_runs(fit, column(table, "sds"), configs, "law")
    mend = f"Kept; drop_outliers={OUTLIER:g} leaves out what lies so far."
    return [finding("outliers", f"{text} {mend}")] if text else []


def _outliers_of_profiles(fit: JointFit) -> list[Finding]:
    table = fit.residuals
    configs = fit.runs.configurations.loc[table.index, "config"].to_numpy(dtype=np.int64)
    text = _far_runs(fit, column(table, "sds"), configs, "profiles")
    mend = "Kept; fit_parametric(drop_outliers=...) can leave out what lies so far."
    return [finding("outliers", f"{text} {mend}")] if text else []


def _far_runs(fit: ParametricFit | JointFit, sds: Floats, configs: np.ndarray, fitted: str) -> str:
    """Return a sentence that names configurations far off the fit, the farthest first; empty if
    none is.
    """
    far = np.flatnonzero(np.abs(sds) > OUTLIER)
    if not len(far):
        return ""
    worst = far[np.argsort(-np.abs(sds[far]), kind="stable")][:5]
    names = ", ".join(f"{fit.name_of(int(configs[k]))} ({sds[k]:+.1f})" for k in worst)
    more = f" and {len(far) - 5} more" if len(far) > 5 else ""
    lie = "run lies" if len(far) == 1 else "runs lie"
    text = f"{len(far)} {lie} over {OUTLIER:g} robust sd off the {fitted}: {names}{more}."
    if _is_uneven(fit):
        text += (
            " The noise is not the same for all runs, so where it is high these may be no outliers."
        )
    return text


def _influence(fit: ParametricFit) -> list[Finding]:
    shifts, configs = (
        np.abs(column(fit.influence, "a_shift")),
        fit.influence.index.to_numpy(dtype=np.int64),
    )
    worst = int(np.argmax(shifts))
    if not shifts[worst] > NUDGE:
        return []
    without = column(fit.influence, "a")[worst]
    words = f"Without {fit.name_of(int(configs[worst]))} a would be {without:.4f}, {shifts[worst]:.1f} standard errors"
    return [finding("influence", f"One run decides much: {words} away.")]


def _is_uneven(fit: ParametricFit | JointFit) -> bool:
    return float(fit.estimate.even[0]) < LACK


def _uneven(fit: ParametricFit | JointFit) -> list[Finding]:
    if not _is_uneven(fit):
        return []
    even = float(fit.estimate.even[0])
    words = f"The noise is not the same over compute and size (p = {even:.2g}); the intervals allow for it."
    return [finding("uneven_noise", words)]


def _delta(fit: ParametricFit) -> list[Finding]:
    delta = float(fit.estimate.delta[0])
    if not delta < SMALL_DELTA * fit.robust_sd:
        return []
    words = (
        f"Huber's delta {delta:.2g} is far below the noise ({fit.robust_sd:.2g}): nearly least absolute deviations, "
        "which loses a part of what the runs tell; the t intervals are rough then, the percentile ones better."
    )
    return [finding("small_delta", words)]
