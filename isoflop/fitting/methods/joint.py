"""The joint method: one shape for all IsoFLOP profiles (see `joint_estimate`), an Approach 2
without the parabola's bias.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators import joint_estimate as joint
from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.holdout import HoldOut, Predict, hold_out
from isoflop.fitting.estimators.intervals import check_confidence
from isoflop.fitting.estimators.noise import estimate_noise
from isoflop.fitting.methods.isoflop import MIN_BUDGETS, collect_profiles
from isoflop.fitting.results.diagnostics_parametric import diagnose_joint
from isoflop.fitting.results.joint_fit import JointFit, LogLine
from isoflop.fitting.tables.fit_table import ReadOptions, RunsTable, read_table
from isoflop.fitting.terms import Axis
from isoflop.frames import Floats
from isoflop.text import flops_text

MIN_SPARE_CONFIGURATIONS = 3  # configurations beyond the number of parameters
EQUAL_LOSS_TOLERANCE = 1e-9  # share of the loss below which a difference is rounding


def fit_joint(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    axis: Axis = "params",
    huber: bool = True,
    confidence: float = 0.95,
    **columns: Unpack[ReadOptions],
) -> JointFit:
    """Fit N*(C) = k_N C^a through profiles of one asymmetric shape; each budget has its own least
    loss.

    Each budget with two sizes or more is used, even if its minimum lies beyond its sizes: the other
    budgets then determine it. D*(C) is read from the runs as in `fit_isoflop`. Intervals are t
    intervals.

    Args:
        runs: a table of runs, its file, a sweep's directory, or a `RunsTable`; see `read_table`.
        axis: axis of the profiles.
        huber: count residuals beyond 1.345 robust standard deviations linearly; False for least
            squares.
        confidence: level of the intervals, a share.
        **columns: columns and units of the table: `params, tokens, loss, flops, budget, n,
            loss_unit` of `ReadOptions`.

    Raises:
        FitError: input that can't be used; fewer than 3 budgets; too few configurations (3 more
            than the parameters are needed: one parameter a budget, and 5); no budget with its
            minimum among its sizes; a profile that predicts a negative loss.
    """
    if axis not in ("params", "tokens"):
        raise FitError(f"unknown axis {axis!r}: params or tokens")
    check_confidence(confidence)
    table = read_table(runs, **columns)
    profiles = [p for p in collect_profiles(table, axis) if p.sizes >= 2]
    curves, x_mean, c_mean = combine_profiles(profiles)
    _refuse_too_few(table, profiles, curves)
    _refuse_equal_losses(table, profiles)
    delta = None if huber else np.inf
    estimate = fit_best_start(curves, delta)
    dof = len(curves.x) - curves.parameter_count
    fit = JointFit(
        axis=axis,
        runs=table,
        curves=curves,
        estimate=estimate,
        laws=_laws(profiles, estimate, axis, x_mean, c_mean),
        raw_profiles=profiles,
        x_mean=x_mean,
        c_mean=c_mean,
        noise=estimate_noise(table, float(np.sum(estimate.residuals[0] ** 2)), dof),
        rollout=hold_out_joint(curves, estimate, delta, c_mean, axis),
        huber=huber,
        confidence=confidence,
    )
    if all(status == "edge" for status in fit.profiles["status"]):
        raise FitError(
            f"{table.source}: no profile has its minimum among its sizes, so the best size can't "
            "be determined"
        )
    for profile, floor in zip(profiles, estimate.floor[0], strict=True):
        if floor <= 0.0:
            raise FitError(
                f"{table.source}: the profile of {flops_text(profile.budget)} FLOPs predicts a "
                "negative loss; check the loss column and its unit"
            )
    return dataclasses.replace(fit, diagnostics=diagnose_joint(fit))


def combine_profiles(profiles: list[para.Profile]) -> tuple[joint.Curves, float, float]:
    """Return profiles as one sample, the mean of ln(axis), and the mean of ln C over budgets."""
    x = np.concatenate([p.x for p in profiles]) if profiles else np.empty(0)
    sizes = [len(p.x) for p in profiles]
    c = np.log([p.flops for p in profiles])
    group = np.repeat(np.arange(len(profiles)), sizes)
    x_mean, c_mean = (float(values.mean()) if len(values) else 0.0 for values in (x, c))
    loss, seeds = (
        np.concatenate([getattr(p, name) for p in profiles] or [[]]) for name in ("loss", "weight")
    )
    return joint.Curves(x - x_mean, (c - c_mean)[group], group, loss, seeds), x_mean, c_mean


def fit_best_start(curves: joint.Curves, delta: float | None) -> joint.JointEstimate:
    """Return the estimate of one set of losses, started from the best of all starts by least
    squares.
    """
    first = joint.fit_curves(curves, joint.starts(curves), np.inf)
    return joint.fit_curves(curves, first.theta[[int(np.argmin(first.objective))]], delta)


def _refuse_too_few(table: RunsTable, profiles: list[para.Profile], curves: joint.Curves) -> None:
    if len(profiles) < MIN_BUDGETS:
        raise FitError(
            f"{table.source}: {len(profiles)} budgets have two sizes or more, {MIN_BUDGETS} are "
            "needed for a power law"
        )
    needed = curves.parameter_count + MIN_SPARE_CONFIGURATIONS
    if len(curves.x) < needed:
        raise FitError(
            f"{table.source}: {len(curves.x)} configurations in {len(profiles)} budgets; the joint "
            f"fit needs {needed} or more"
        )
    if not any(p.sizes >= 3 for p in profiles):
        raise FitError(
            f"{table.source}: no budget has three sizes, so the curvature of the loss can't be "
            "determined"
        )


def _refuse_equal_losses(table: RunsTable, profiles: list[para.Profile]) -> None:
    """Raise if the losses within each budget are equal up to rounding: there is no minimum."""
    if all(np.ptp(p.loss) <= EQUAL_LOSS_TOLERANCE * p.loss.max() for p in profiles):
        raise FitError(
            f"{table.source}: within each budget all losses are equal, so the best size can't be "
            "determined"
        )


def _laws(
    profiles: list[para.Profile],
    estimate: joint.JointEstimate,
    axis: Axis,
    x_mean: float,
    c_mean: float,
) -> dict[str, LogLine]:
    """Return the lines of ln N* and ln D* on ln C, with their gradients by theta.

    The other axis is read at each budget's optimum, and a line is fitted to the values. Their
    derivative by the optimum is the slope of the other axis there (near -1, since D ~ C/N).
    """
    theta, unit = estimate.theta[0], np.eye(len(joint.SHAPE_PARAMETERS))
    c = np.log([p.flops for p in profiles]) - c_mean
    axis_line = LogLine(float(theta[3]) + x_mean, float(theta[4]), unit[3], unit[4], c_mean)
    optima = theta[3] + x_mean + theta[4] * c
    values, slopes = np.transpose(
        [para.read_other_axis(p, x)[:2] for p, x in zip(profiles, optima, strict=True)]
    )
    weight = c / float(c @ c)
    gradients = slopes[:, None] * (unit[3] + c[:, None] * unit[4])
    other_line = LogLine(
        middle=float(values.mean()),
        slope=float(weight @ values),
        by_middle=gradients.mean(axis=0),
        by_slope=weight @ gradients,
        x_mean=c_mean,
    )
    return {axis: axis_line, "tokens" if axis == "params" else "params": other_line}


def hold_out_joint(
    curves: joint.Curves,
    estimate: joint.JointEstimate,
    delta: float | None,
    c_mean: float,
    axis: Axis,
) -> HoldOut | None:
    """Return hold-out tests of the optimum on the axis, for M sets of losses.

    The optimum of a hidden budget is the estimate's, moved by the shift that minimises the
    residuals of the budget's runs.
    """
    other = "tokens" if axis == "params" else "params"
    budget_flops = np.exp(curves.c + c_mean)

    def hide(keep: np.ndarray) -> Predict | None:
        remaining = curves.select(keep)
        if len(remaining.x) < remaining.parameter_count + 2:
            return None
        fitted = joint.fit_curves(remaining, estimate.theta, delta)

        def predict(level: float) -> tuple[dict[str, Floats], dict[str, Floats]]:
            gradient = np.array([0.0, 0.0, 0.0, 1.0, np.log(level) - c_mean])
            shift, shift_se = joint.estimate_shift(curves, estimate, budget_flops == level)
            error = (fitted.theta - estimate.theta) @ gradient - shift
            variance = np.einsum("i,mij,j->m", gradient, fitted.covariance, gradient)
            se = np.hypot(np.sqrt(np.maximum(variance, 0.0)), shift_se)
            return {axis: error, other: -error}, {axis: se, other: se}

        return predict

    return hold_out(budget_flops, hide)
