"""All IsoFLOP profiles fitted as one (see `profiles`): an Approach 2 without the parabola's bias."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators import joint_estimate as joint
from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.holdout import Predict, RollOut, roll_out
from isoflop.fitting.estimators.intervals import check_confidence
from isoflop.fitting.estimators.noise import noise_of
from isoflop.fitting.methods.isoflop import MIN_BUDGETS, profiles_of
from isoflop.fitting.results.diagnostics_parametric import diagnose_joint
from isoflop.fitting.results.joint_fit import JointFit, Law
from isoflop.fitting.tables.runs_table import ReadOptions, RunsTable, read_table
from isoflop.fitting.terms import Axis
from isoflop.text import flops_text

Floats = np.ndarray
LEFT_OVER = 3  # configurations beyond the parameters
LEVEL = 1e-9  # of the loss: what differs by less is rounding


def fit_joint(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    axis: Axis = "params",
    huber: bool = True,
    confidence: float = 0.95,
    **columns: Unpack[ReadOptions],
) -> JointFit:
    """Fits N*(C) = k_N C^a through profiles of one asymmetric shape, each budget with a least loss of its own.

    Every budget with two sizes or more takes part, also one whose minimum lies beyond its sizes: what it lacks the
    others know. D*(C) is read off the runs as `fit_isoflop` does it. Intervals are t intervals.

    Args:
        runs: a table (see `read_table`, which takes `params, tokens, loss, flops, budget, n, loss_unit`).
        axis: what the profiles are in.
        huber: whether residuals beyond 1.345 robust standard deviations count linearly; else least squares.
        confidence: of the intervals.

    Raises:
        FitError: input that can't be used; fewer than 3 budgets, or too few runs for the parameters: one of each
            budget, and 5; no budget whose minimum lies among its sizes; a profile that dips below zero.
    """
    if axis not in ("params", "tokens"):
        raise FitError(f"unknown axis {axis!r}: params or tokens")
    check_confidence(confidence)
    table = read_table(runs, **columns)
    profiles = [p for p in profiles_of(table, axis) if p.sizes >= 2]
    curves, x_mean, c_mean = curves_of(profiles)
    _refuse_too_few(table, profiles, curves)
    _refuse_level(table, profiles)
    delta = None if huber else np.inf
    estimate = best_of(curves, delta)
    dof = len(curves.x) - curves.parameters
    fit = JointFit(
        axis=axis,
        runs=table,
        curves=curves,
        estimate=estimate,
        laws=_laws(profiles, estimate, axis, x_mean, c_mean),
        raw=profiles,
        x_mean=x_mean,
        c_mean=c_mean,
        noise=noise_of(table, float(np.sum(estimate.residuals[0] ** 2)), dof),
        rollout=roll_out_joint(curves, estimate, delta, c_mean, axis),
        huber=huber,
        confidence=confidence,
    )
    if all(status == "edge" for status in fit.profiles["status"]):
        raise FitError(
            f"{table.source}: no profile has its minimum among its sizes: nothing shows where the best size is"
        )
    if below := [
        p.budget for p, floor in zip(profiles, estimate.floor[0], strict=True) if floor <= 0.0
    ]:
        raise FitError(
            f"{table.source}: the profile of {flops_text(below[0])} FLOPs dips below zero: these losses are no profile"
        )
    return dataclasses.replace(fit, diagnostics=diagnose_joint(fit))


def curves_of(profiles: list[para.Profile]) -> tuple[joint.Curves, float, float]:
    """Profiles as one sample, the mean of ln(axis), and the mean of ln C over budgets."""
    x = np.concatenate([p.x for p in profiles]) if profiles else np.empty(0)
    sizes = [len(p.x) for p in profiles]
    c = np.log([p.flops for p in profiles])
    group = np.repeat(np.arange(len(profiles)), sizes)
    x_mean, c_mean = (float(values.mean()) if len(values) else 0.0 for values in (x, c))
    loss, seeds = (
        np.concatenate([getattr(p, name) for p in profiles] or [[]]) for name in ("loss", "weight")
    )
    return joint.Curves(x - x_mean, (c - c_mean)[group], group, loss, seeds), x_mean, c_mean


def best_of(curves: joint.Curves, delta: float | None) -> joint.JointEstimate:
    """The estimate of one set of losses: the best of all starts by least squares, and from there."""
    first = joint.fit_curves(curves, joint.starts(curves), np.inf)
    return joint.fit_curves(curves, first.theta[[int(np.argmin(first.objective))]], delta)


def _refuse_too_few(table: RunsTable, profiles: list[para.Profile], curves: joint.Curves) -> None:
    if len(profiles) < MIN_BUDGETS:
        raise FitError(
            f"{table.source}: {len(profiles)} budgets have two sizes or more, {MIN_BUDGETS} are needed for a power law"
        )
    needed = curves.parameters + LEFT_OVER
    if len(curves.x) < needed:
        raise FitError(
            f"{table.source}: {len(curves.x)} configurations in {len(profiles)} budgets; the joint fit needs "
            f"{needed} or more"
        )
    if not any(p.sizes >= 3 for p in profiles):
        raise FitError(
            f"{table.source}: no budget has three sizes: nothing shows how the loss bends"
        )


def _refuse_level(table: RunsTable, profiles: list[para.Profile]) -> None:
    """Losses that differ within a budget by no more than rounding have no minimum."""
    if all(np.ptp(p.loss) <= LEVEL * p.loss.max() for p in profiles):
        raise FitError(
            f"{table.source}: within each budget all losses are equal: nothing shows where the best size is"
        )


def _laws(
    profiles: list[para.Profile],
    estimate: joint.JointEstimate,
    axis: Axis,
    x_mean: float,
    c_mean: float,
) -> dict[str, Law]:
    """ln N* and ln D* on ln C, with their gradients by theta.

    The other axis is read at each budget's optimum and a line laid through; how it moves with the optimum is its slope
    there (near -1, since D ~ C/N).
    """
    theta, unit = estimate.theta[0], np.eye(len(joint.SHAPE))
    c = np.log([p.flops for p in profiles]) - c_mean
    own = Law(float(theta[3]) + x_mean, float(theta[4]), unit[3], unit[4], c_mean)
    at = theta[3] + x_mean + theta[4] * c
    values, slopes = np.transpose(
        [para.other_at(p, x)[:2] for p, x in zip(profiles, at, strict=True)]
    )
    weight = c / float(c @ c)
    move = slopes[:, None] * (unit[3] + c[:, None] * unit[4])
    other = Law(
        float(values.mean()), float(weight @ values), move.mean(axis=0), weight @ move, c_mean
    )
    return {axis: own, "tokens" if axis == "params" else "params": other}


def roll_out_joint(
    curves: joint.Curves,
    estimate: joint.JointEstimate,
    delta: float | None,
    c_mean: float,
    axis: Axis,
) -> RollOut | None:
    """Roll-outs of the optimum on the axis, for M sets of losses; at a hidden budget it is measured by the estimate's
    own optimum and the shift that the runs there ask for.
    """
    other = "tokens" if axis == "params" else "params"
    level_of = np.exp(curves.c + c_mean)

    def hide(keep: np.ndarray) -> Predict | None:
        part = curves.part(keep)
        if len(part.x) < part.parameters + 2:
            return None
        found = joint.fit_curves(part, estimate.theta, delta)

        def predict(level: float) -> tuple[dict[str, Floats], dict[str, Floats]]:
            at = np.array([0.0, 0.0, 0.0, 1.0, np.log(level) - c_mean])
            shift, shift_se = joint.shift_of(curves, estimate, level_of == level)
            error = (found.theta - estimate.theta) @ at - shift
            se = np.hypot(
                np.sqrt(np.maximum(np.einsum("i,mij,j->m", at, found.spread, at), 0.0)), shift_se
            )
            return {axis: error, other: -error}, {axis: se, other: se}

        return predict

    return roll_out(level_of, hide)
