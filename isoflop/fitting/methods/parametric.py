"""The parametric law L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, Approach 3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, Unpack, get_args

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators import newton as solver
from isoflop.fitting.estimators.holdout import Predict, RollOut, roll_out
from isoflop.fitting.estimators.intervals import check_confidence, check_resamples
from isoflop.fitting.estimators.noise import noise_of
from isoflop.fitting.estimators.outliers import outliers, without
from isoflop.fitting.estimators.parabola import MOST_LEVERAGE, distinct
from isoflop.fitting.estimators.surface_estimate import (
    Estimate,
    Sample,
    estimate_many,
    estimate_one,
    jacobian,
    minimise,
    robust_sd,
)
from isoflop.fitting.results.diagnostics_parametric import diagnose_surface
from isoflop.fitting.results.parametric_fit import ParametricFit, optimum
from isoflop.fitting.tables.budgets import OWN
from isoflop.fitting.tables.runs_table import ReadOptions, RunsTable, read_table
from isoflop.frames import column

Floats = np.ndarray
Resampling = Literal["case", "wild"]
Delta = float | Literal["adaptive", "chinchilla"]
PRESETS: dict[str, float | None] = {"adaptive": None, "chinchilla": 1e-3}
MIN_CONFIGURATIONS = 7
MIN_DISTINCT = 3
BANDS = 8
_BLOCK = 2**22  # weights or losses that are held at once


def fit_parametric(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    huber_delta: Delta = "adaptive",
    residual: solver.Scale = "log",
    bootstrap: int = 4000,
    resampling: Resampling = "case",
    confidence: float = 0.95,
    seed: int = 0,
    drop_outliers: float | None = None,
    **columns: Unpack[ReadOptions],
) -> ParametricFit:
    """Fits L(N, D) = E + A / N^alpha + B / D^beta to the means of configurations, each weighted by its seeds.

    The sum of Huber's loss of the residuals is minimised by damped Newton with analytic derivatives from 48 starts.
    The intervals of the result are t intervals by default: standard errors of the M-estimate (Huber 1981, with his
    correction for few points), n - 5 degrees of freedom; `conf_int(kind="percentile")` has those of the resamples.

    Args:
        runs: a table (see `read_table`, which takes `params, tokens, loss, flops, budget, n, loss_unit`).
        huber_delta: where Huber's loss turns linear. `adaptive`: 1.345 robust standard deviations of the residuals;
            `chinchilla`: 1e-3, as published, which loses 15 % of the data's worth if noise is Gaussian; infinite: least
            squares.
        residual: of the `log` loss, or of the `loss` in nats.
        n: which parameter count the law is about; a `RunsTable` knows its own.
        bootstrap: number of resamples; 0 for none.
        resampling: `case` draws configurations with replacement; `wild` keeps the configurations and flips the signs of
            their residuals at random (scaled by 1/sqrt(1 - leverage)).
        confidence: of the intervals.
        seed: of the resampling; the same seed gives the same digits, whatever the order of the rows.
        drop_outliers: leaves out, once, the configurations more than so many robust standard deviations off the law
            that all of them give, and names them in `runs.dropped`; None keeps all.

    Raises:
        FitError: input that can't be used; fewer than 7 configurations, 3 sizes or 3 token counts.
    """
    asked = check_options(huber_delta, residual, bootstrap, resampling, confidence, drop_outliers)
    table = read_table(runs, **columns, need_budgets=False)
    sample = sample_of(table, residual)
    _refuse_too_few(table, sample)
    estimate = estimate_one(sample, asked)
    if drop_outliers is not None and np.any(far := outliers(sample, estimate, drop_outliers)):
        if len(sample) - far.sum() < MIN_CONFIGURATIONS:
            raise FitError(
                f"{table.source}: {far.sum()} of {len(sample)} configurations lie more than {drop_outliers:g} robust "
                f"standard deviations off the law, and {MIN_CONFIGURATIONS} must be left: raise drop_outliers"
            )
        table = without(table, sample, estimate, far, drop_outliers)
        sample = sample_of(table, residual)
        _refuse_too_few(table, sample)
        estimate = estimate_one(sample, asked)
    fit = ParametricFit(
        runs=table,
        sample=sample,
        estimate=estimate,
        draws=_draws(sample, estimate, resampling, bootstrap, np.random.default_rng(seed)),
        noise=noise_of(table, *_squares(sample, estimate.theta[0])),
        rollout=roll_out_surface(sample, estimate, asked),
        huber_delta=huber_delta,
        resampling=resampling,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        drop_outliers=drop_outliers,
    )
    return dataclasses.replace(fit, diagnostics=diagnose_surface(fit))


def sample_of(table: RunsTable, residual: solver.Scale = "log") -> Sample:
    """The configurations of a table, in an order that doesn't depend on that of its rows."""
    frame = table.configurations
    order = np.lexsort([column(frame, name) for name in ("loss", "tokens", "params", "budget")])
    names = ("params", "tokens", "loss", "seeds", "flops", "budget")
    params, tokens, loss, seeds, flops, budget = (column(frame, name)[order] for name in names)
    if table.columns.get("budget") == OWN:
        budget = _bands(flops)
    numbers = frame["config"].to_numpy(dtype=np.int64)[order]
    return Sample(solver.Points.of(params, tokens, loss, residual), seeds, flops, budget, numbers)


def _bands(flops: Floats) -> Floats:
    """Runs in no budgets, in 8 bands of equally many, each labelled by its greatest FLOPs: for the roll-out only."""
    edges = np.unique(np.quantile(flops, np.linspace(0.0, 1.0, BANDS + 1)[1:]))
    return edges[np.minimum(np.searchsorted(edges, flops), len(edges) - 1)]


def check_options(
    huber_delta: Delta,
    residual: str,
    bootstrap: int,
    resampling: str,
    confidence: float,
    drop_outliers: float | None,
) -> float | None:
    """Huber's delta as a number; None is adaptive. Refuses options that no surface can be fitted with."""
    if drop_outliers is not None and not drop_outliers > 0.0:
        raise FitError(
            f"drop_outliers is a number of robust standard deviations above 0, not {drop_outliers:g}"
        )
    for value, known in ((residual, get_args(solver.Scale)), (resampling, get_args(Resampling))):
        if value not in known:
            raise FitError(f"unknown {value!r}: {' or '.join(known)}")
    check_resamples(bootstrap)
    check_confidence(confidence)
    if isinstance(huber_delta, str):
        if huber_delta not in PRESETS:
            raise FitError(
                f"unknown Huber delta {huber_delta!r}: a number above 0, {' or '.join(PRESETS)}"
            )
        return PRESETS[huber_delta]
    if not huber_delta > 0.0:
        raise FitError(f"Huber's delta is a number above 0, not {huber_delta:g}")
    return float(huber_delta)


def _refuse_too_few(table: RunsTable, sample: Sample) -> None:
    points = sample.points
    if len(sample) < MIN_CONFIGURATIONS:
        raise FitError(
            f"{table.source}: {len(sample)} configurations can't fix a law of 5 parameters with an interval: "
            f"{MIN_CONFIGURATIONS} or more are needed"
        )
    for values, what in ((points.x, "model sizes"), (points.y, "token counts")):
        if distinct(values) < MIN_DISTINCT:
            raise FitError(
                f"{table.source}: {distinct(values)} different {what}; the law needs {MIN_DISTINCT} or more"
            )
    if np.ptp(points.loss) <= 1e-9 * points.loss.max():
        raise FitError(
            f"{table.source}: all losses are {points.loss[0]:g}: there is nothing to fit"
        )


def _squares(sample: Sample, theta: Floats) -> tuple[float, int]:
    """Sum of squared relative residuals, weighted by seeds, and its degrees of freedom."""
    residuals = sample.residuals(theta)
    if sample.points.scale == "loss":
        residuals = residuals / sample.points.fitted(theta)
    return float(residuals @ residuals), sample.dof


def _draws(
    sample: Sample, estimate: Estimate, resampling: Resampling, count: int, rng: np.random.Generator
) -> Floats:
    """Resamples of theta, (R, 5), each from the estimate on and with its delta.

    A block of them at a time, so that memory does not grow with their number. Each is drawn from the stream in turn:
    the size of a block changes no digit.
    """
    blocks = [np.empty((0, 5))]
    draw = _cases if resampling == "case" else _signs
    sd = float(robust_sd(sample.residuals(estimate.theta[0])))
    rows = solver.rows_of(len(sample))
    rows *= max(1, _BLOCK // (rows * len(sample)))
    for at in range(0, count, rows):
        start = np.repeat(estimate.theta, min(rows, count - at), axis=0)
        drawn, weight = draw(sample, estimate.theta[0], len(start), rng)
        blocks.append(minimise(drawn, start, float(estimate.delta[0]), sd, weight).theta)
    return np.concatenate(blocks)


def _cases(
    sample: Sample, theta: Floats, count: int, rng: np.random.Generator
) -> tuple[Sample, Floats]:
    """The sample, and how often each configuration is drawn times its seeds, (R, K)."""
    size = len(sample)
    return sample, rng.multinomial(size, np.full(size, 1.0 / size), size=count) * sample.seeds


def _signs(
    sample: Sample, theta: Floats, count: int, rng: np.random.Generator
) -> tuple[Sample, Floats]:
    """The sample with losses (R, K) whose residuals have random signs, and its seeds."""
    points, columns = sample.points, jacobian(sample, theta)
    leverage = np.minimum(np.einsum("ij,ij->i", *(2 * [np.linalg.qr(columns)[0]])), MOST_LEVERAGE)
    signs = rng.choice([-1.0, 1.0], (count, len(sample)))
    noise = sample.residuals(theta) / np.sqrt((1.0 - leverage) * sample.seeds) * signs
    fitted = points.fitted(theta)
    losses = (
        fitted * np.exp(noise)
        if points.scale == "log"
        else np.maximum(fitted + noise, 1e-3 * fitted)
    )
    return dataclasses.replace(sample, points=points.with_loss(losses)), sample.seeds


def roll_out_surface(sample: Sample, estimate: Estimate, delta: float | None) -> RollOut | None:
    """Roll-outs of the surface, for M sets of losses.

    At a hidden budget the loss is measured by its runs' mean, and ln N* by the estimate's own plus the shift of the
    profile that its runs there ask for.
    """
    level_of = sample.level

    def hide(keep: np.ndarray) -> Predict | None:
        part = sample.part(keep)
        if (
            len(part) < MIN_CONFIGURATIONS
            or min(distinct(part.points.x), distinct(part.points.y)) < MIN_DISTINCT
        ):
            return None
        found = estimate_many(part, sample.moved(estimate.theta, part.points), delta)

        def predict(level: float) -> tuple[dict[str, Floats], dict[str, Floats]]:
            there = sample.part(level_of == level)
            fitted = there.points.fitted(part.moved(found.theta, there.points))
            loss = np.average(np.log(fitted / there.points.loss), axis=-1, weights=there.seeds)
            values, gradients = optimum(part.points, found.theta, level)
            ses = np.sqrt(
                np.maximum(np.einsum("mqi,mij,mqj->mq", gradients, found.spread, gradients), 0.0)
            )
            loss_se = np.hypot(ses[:, 2], np.sqrt(found.variance / there.seeds.sum()))
            if distinct(there.points.x) < 2:  # one size says nothing of where the optimum is
                return {"loss": loss}, {"loss": loss_se}
            shift, shift_se = _shift(
                there, sample.moved(estimate.theta, there.points), found.variance
            )
            size = values[:, 0] - optimum(sample.points, estimate.theta, level)[0][:, 0] - shift
            size_se = np.hypot(ses[:, 0], shift_se)
            return (
                {"params": size, "tokens": -size, "loss": loss},
                {"params": size_se, "tokens": size_se, "loss": loss_se},
            )

        return predict

    return roll_out(level_of, hide)


def _shift(there: Sample, theta: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """How far ln N* of one budget's runs lies above the surface's, (M,), and its standard error.

    One Gauss-Newton step: the residuals about their mean, on the slope of ln loss along constant compute.
    """
    floor, of_size, of_data = there.points.terms(theta)
    fitted = floor + of_size + of_data
    slope = (theta[:, [4]] * of_data - theta[:, [3]] * of_size) / fitted
    weight = there.seeds / there.seeds.sum()
    slope = slope - np.sum(weight * slope, axis=-1, keepdims=True)
    residual = np.log(there.points.loss / fitted)
    square = np.maximum(np.sum(there.seeds * slope**2, axis=-1), 1e-300)
    with np.errstate(over="ignore"):  # a flat profile asks for any shift
        return -np.sum(there.seeds * slope * residual, axis=-1) / square, np.sqrt(variance / square)
