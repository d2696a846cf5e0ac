"""Findings on fitted surfaces, joint fits and envelopes; see `diagnostics`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from isoflop.fitting.estimators.newton import MAX_LN_LOSS_OVER_E
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.fitting.results.diagnostics import (
    FINDING_ALPHA,
    dropped_rows_findings,
    few_budgets_findings,
    noise_findings,
    rollout_findings,
    shared_noise_findings,
    table_findings,
)
from isoflop.fitting.results.envelope_fit import EnvelopeFit
from isoflop.fitting.results.joint_fit import JointFit
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.terms import EXPONENT_LETTERS, Finding, finding
from isoflop.frames import Floats, Ints, column, rows
from isoflop.text import flops_text, percent_text

MAX_GRADIENT_COSINE = 1e-5
ILL_CONDITIONED_NUMBER = 1e4
MIN_AGREEING_SHARE = 0.5
OUTLIER_SDS = 4.0
MAX_INFLUENCE_SES = 1.0
MIN_E_SHARE = 0.01
MIN_DELTA_SDS = 0.5
MIN_COST_GAP = 0.03
"""Share by which C differs from 6ND that is worth a finding."""
MIN_COST_SCATTER = 0.01
_MAX_NAMED_OUTLIERS = 5
_MAX_NAMED_BUDGETS = 8


def diagnose_surface(fit: ParametricFit) -> list[Finding]:
    """Return findings on a surface, the gravest first."""
    groups = (
        _search_findings(fit),
        table_findings(fit.runs),
        _cost_findings(fit),
        _bound_findings(fit),
        _condition_findings(fit),
        _edge_findings(fit),
        few_budgets_findings(len(np.unique(fit.sample.budget))),
        _outlier_findings(fit),
        _influence_findings(fit),
        _uneven_noise_findings(fit),
        shared_noise_findings(fit.budget_residuals, fit.size_residuals),
        _delta_findings(fit),
        noise_findings(fit.noise, "the losses are not a sum of power laws"),
        rollout_findings(fit.rollout, "band" if fit.runs.budgets_are_flops else "budget"),
        dropped_rows_findings(fit.runs),
    )
    return list(chain.from_iterable(groups))


def diagnose_joint(fit: JointFit) -> list[Finding]:
    """Return findings on a joint fit of profiles, the gravest first."""
    groups = (
        table_findings(fit.runs),
        _joint_bound_findings(fit),
        _joint_edge_findings(fit),
        few_budgets_findings(fit.curves.budget_count),
        _joint_outlier_findings(fit),
        _uneven_noise_findings(fit),
        shared_noise_findings(fit.budget_residuals, fit.size_residuals),
        noise_findings(fit.noise, "the profiles do not have one shape"),
        rollout_findings(fit.rollout),
        dropped_rows_findings(fit.runs),
    )
    return list(chain.from_iterable(groups))


def diagnose_envelope(fit: EnvelopeFit) -> list[Finding]:
    """Return findings on an envelope, the gravest first."""
    text = (
        f"The envelope takes its {len(fit.frontier)} optima from the sizes that were run: they are "
        "only as precise as the spacing of these sizes."
    )
    groups = (
        table_findings(fit.runs),
        [finding("nearest_run", text)],
        few_budgets_findings(len(fit.frontier)),
        dropped_rows_findings(fit.runs),
    )
    return list(chain.from_iterable(groups))


def _joint_bound_findings(fit: JointFit) -> list[Finding]:
    names, findings = fit.at_bounds, []
    if {"left", "right"} & set(names):
        text = (
            "The exponents of the arms are at a bound: these profiles do not show how an arm "
            "bends. Run a wider range of sizes."
        )
        findings.append(finding("at_bound", text))
    parameters = ("curvature", "left", "right", "k", EXPONENT_LETTERS[fit.axis])
    values = dict(zip(parameters, fit.estimate.theta[0], strict=True))
    for name in names:
        if name not in ("left", "right"):
            label = "ln curvature" if name == "curvature" else name
            findings.append(_bound_finding(label, values[name]))
    return findings


def _bound_finding(name: str, value: float) -> Finding:
    text = f"{name} is at its bound {value:g}: the runs do not determine it."
    return finding("at_bound", text)


def _joint_edge_findings(fit: JointFit) -> list[Finding]:
    beyond = rows(fit.profiles, fit.profiles["status"].to_numpy() == "edge")
    if not len(beyond):
        return []
    budgets = ", ".join(flops_text(float(budget)) for budget in column(beyond, "budget"))
    text = (
        f"{budgets} FLOPs: the minimum lies beyond the sizes run; its position is extrapolated "
        "from the other budgets."
    )
    return [finding("edge", text)]


def _search_findings(fit: ParametricFit) -> list[Finding]:
    cosine, agreeing = float(fit.estimate.gradient_cosine[0]), fit.estimate.agreeing
    findings = []
    if not cosine <= MAX_GRADIENT_COSINE:
        text = (
            "The fit did not converge: residuals and Jacobian are not orthogonal at the end "
            f"(largest cosine {cosine:.1e})."
        )
        findings.append(finding("not_converged", text))
    if agreeing < MIN_AGREEING_SHARE:
        text = (
            f"{percent_text(agreeing)} of the 48 starts reached this optimum: there may be a "
            "better one."
        )
        findings.append(finding("few_starts", text))
    return findings


def _bound_findings(fit: ParametricFit) -> list[Finding]:
    findings: list[Finding] = []
    params: dict[Any, float] = fit.params.to_dict()
    loss = fit.sample.points.loss
    least = float(loss.min())
    if params["E"] < MIN_E_SHARE * least:
        is_at_bound = fit.theta[0] - float(np.log(loss).mean()) <= -MAX_LN_LOSS_OVER_E
        share = f"{percent_text(params['E'] / least)} of the least loss"
        value = "at its lower bound, practically 0" if is_at_bound else share
        text = f"E is {value}: these runs do not show an irreducible loss."
        findings.append(finding("e_near_zero", text))
    return findings + [_bound_finding(name, params[name]) for name in fit.at_bounds]


def _cost_findings(fit: ParametricFit) -> list[Finding]:
    """Return findings on FLOPs that are not 6ND."""
    cost = fit.sample.cost
    ratios = [float(np.exp(end)) for end in cost.span]
    if max(ratios[1], 1.0 / ratios[0]) < 1.0 + MIN_COST_GAP:
        return []
    name = fit.runs.columns["flops"].strip("()")
    curve = "as a constant" if cost.is_constant else "as a curve over N"
    if np.any(cost.shift):
        curve += " and budget"
    text = (
        f"C / (6ND) of the runs is {ratios[0]:.2f} to {ratios[1]:.2f}: N* and D* at a budget are "
        f"at C = {name}, by C / (ND) {curve}, held at its edges beyond the sizes run."
    )
    if cost.scatter > MIN_COST_SCATTER:
        text += (
            f" Runs scatter by {percent_text(cost.scatter)} about it: tokens cost more in some "
            "than in others of their size."
        )
    return [finding("flops_not_6nd", text)]


def _condition_findings(fit: ParametricFit) -> list[Finding]:
    if fit.condition < ILL_CONDITIONED_NUMBER:
        return []
    text = (
        f"Condition number {fit.condition:.1e}: different parameter values give almost the same "
        "losses, so single parameters are uncertain."
    )
    return [finding("ill_conditioned", text)]


def _edge_findings(fit: ParametricFit) -> list[Finding]:
    """Return a finding on budgets whose runs all lie on one side of the optimum.

    The side of a run is that of its N from the best N at its own FLOPs.
    """
    sample, points = fit.sample, fit.sample.points
    best = optimum(points, fit.theta, sample.flops, sample.cost)[0][:, 0]
    above = points.x + points.x_mean - best
    budgets = np.unique(sample.budget)
    beyond = [
        budget
        for budget in budgets
        if not above[sample.budget == budget].min() <= 0.0 <= above[sample.budget == budget].max()
    ]
    if not beyond:
        return []
    is_band = fit.runs.budgets_are_flops
    level = "band of compute" if is_band else "budget"
    if len(beyond) == len(budgets):
        text = (
            f"At no {level} do the sizes that were run bracket the law's optimum: N* is an "
            "extrapolation."
        )
        return [finding("edge", text)]
    names = [flops_text(float(budget)) for budget in beyond[:_MAX_NAMED_BUDGETS]]
    listed = ", ".join(names + ["..."] * (len(beyond) > _MAX_NAMED_BUDGETS))
    label = f"Bands of compute up to {listed} FLOPs" if is_band else f"{listed} FLOPs"
    others = "bands" if is_band else "budgets"
    text = (
        f"{label}: the law's optimum lies beyond the sizes run; its position is extrapolated from "
        f"the other {others}."
    )
    return [finding("edge", text)]


def _outlier_findings(fit: ParametricFit) -> list[Finding]:
    table = fit.influence
    configs = table.index.to_numpy(dtype=np.int64)
    text = _outlier_text(fit, column(table, "sds"), configs, "law")
    fix = (
        f"Kept; --drop-outliers {OUTLIER_SDS:g} (in Python "
        f"fit_parametric(drop_outliers={OUTLIER_SDS:g})) drops such runs."
    )
    return [finding("outliers", f"{text} {fix}")] if text else []


def _joint_outlier_findings(fit: JointFit) -> list[Finding]:
    table = fit.residuals
    configs = fit.runs.configurations.loc[table.index, "config"].to_numpy(dtype=np.int64)
    text = _outlier_text(fit, column(table, "sds"), configs, "profiles")
    fix = (
        "Kept; --drop-outliers X (in Python fit_parametric(drop_outliers=X)) drops runs more than "
        "X robust standard deviations off the parametric law."
    )
    return [finding("outliers", f"{text} {fix}")] if text else []


def _outlier_text(fit: ParametricFit | JointFit, sds: Floats, configs: Ints, fitted: str) -> str:
    """Return a sentence that names configurations far off the fit, the farthest first; empty if
    none is.
    """
    far = np.flatnonzero(np.abs(sds) > OUTLIER_SDS)
    if not len(far):
        return ""
    worst = far[np.argsort(-np.abs(sds[far]), kind="stable")][:_MAX_NAMED_OUTLIERS]
    names = ", ".join(f"{fit.configuration_name(int(configs[k]))} ({sds[k]:+.1f})" for k in worst)
    more = f" and {len(far) - len(worst)} more" if len(far) > len(worst) else ""
    lie = "run lies" if len(far) == 1 else "runs lie"
    text = (
        f"{len(far)} {lie} more than {OUTLIER_SDS:g} robust standard deviations off the {fitted}: "
        f"{names}{more}."
    )
    if _is_uneven(fit):
        text += " The noise is not equal for all runs; where it is high, these may not be outliers."
    return text


def _influence_findings(fit: ParametricFit) -> list[Finding]:
    shifts = np.abs(column(fit.influence, "a_shift"))
    configs = fit.influence.index.to_numpy(dtype=np.int64)
    worst = int(np.argmax(shifts))
    if not shifts[worst] > MAX_INFLUENCE_SES:
        return []
    without = column(fit.influence, "a")[worst]
    text = (
        f"One run dominates a: without {fit.configuration_name(int(configs[worst]))} a would be "
        f"{without:.4f}, more than {MAX_INFLUENCE_SES:g} standard error away ({shifts[worst]:.1f})."
    )
    return [finding("influence", text)]


def _is_uneven(fit: ParametricFit | JointFit) -> bool:
    return float(fit.estimate.evenness_p[0]) < FINDING_ALPHA


def _uneven_noise_findings(fit: ParametricFit | JointFit) -> list[Finding]:
    if not _is_uneven(fit):
        return []
    text = (
        "The size of the residuals depends on compute or on the distance from the optimum "
        f"(p = {float(fit.estimate.evenness_p[0]):.2g}); the intervals allow for it."
    )
    return [finding("uneven_noise", text)]


def _delta_findings(fit: ParametricFit) -> list[Finding]:
    delta = float(fit.estimate.delta[0])
    if not delta < MIN_DELTA_SDS * fit.robust_sd:
        return []
    text = (
        f"Huber's delta {delta:.2g} is far below the noise ({fit.robust_sd:.2g}): the fit is close "
        "to least absolute deviations, which uses less of the data. Its t intervals are rough; "
        "percentile intervals are better."
    )
    return [finding("small_delta", text)]
