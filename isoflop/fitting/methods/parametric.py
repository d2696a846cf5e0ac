"""The parametric law L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, Approach 3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, Unpack, get_args

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators import newton as solver
from isoflop.fitting.estimators.holdout import HoldOut, Predict, hold_out
from isoflop.fitting.estimators.intervals import check_confidence, check_resamples
from isoflop.fitting.estimators.noise import estimate_noise
from isoflop.fitting.estimators.outliers import find_outliers, remove_configurations
from isoflop.fitting.estimators.parabola import MAX_LEVERAGE, count_distinct
from isoflop.fitting.estimators.surface_estimate import (
    Estimate,
    Sample,
    estimate_many,
    estimate_one,
    jacobian,
    minimise,
    robust_sd,
)
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.fitting.estimators.token_cost import TokenCost
from isoflop.fitting.results.diagnostics_parametric import diagnose_surface
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.tables.fit_table import ReadOptions, RunsTable, read_table
from isoflop.frames import Floats, column

Resampling = Literal["case", "wild"]
HuberDelta = float | Literal["adaptive", "chinchilla"]
HUBER_PRESETS: dict[str, float | None] = {"adaptive": None, "chinchilla": 1e-3}
MIN_CONFIGURATIONS = 7
MIN_DISTINCT = 3
HOLDOUT_BANDS = 8
_BLOCK_CELLS = 2**22  # weights or losses in memory at once


def fit_parametric(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    huber_delta: HuberDelta = "adaptive",
    residual: solver.Scale = "log",
    bootstrap: int = 4000,
    resampling: Resampling = "case",
    confidence: float = 0.95,
    seed: int = 0,
    drop_outliers: float | None = None,
    **columns: Unpack[ReadOptions],
) -> ParametricFit:
    """Fit L(N, D) = E + A / N^alpha + B / D^beta to the means of configurations, each weighted by
    its seeds.

    The sum of Huber's loss of the residuals is minimised by damped Newton steps with analytic
    derivatives from 48 starts. The intervals of the result are t intervals by default: standard
    errors of the M-estimate (Huber 1981, with his correction for few points), n - 5 degrees of
    freedom. `conf_int(kind="percentile")` gives percentile intervals of the resamples.

    Args:
        runs: a table of runs, its file, a sweep's directory, or a `RunsTable`; see `read_table`.
        huber_delta: residual at which Huber's loss turns linear. `adaptive`: 1.345 robust standard
            deviations of the residuals; `chinchilla`: 1e-3, as published, which loses 15% of
            the information if noise is Gaussian; infinite: least squares.
        residual: residual of the `log` loss, or of the `loss` in nats.
        bootstrap: number of resamples; 0 for none.
        resampling: `case` draws configurations with replacement; `wild` keeps the configurations
            and flips the signs of their residuals at random (scaled by 1/sqrt(1 - leverage)).
        confidence: level of the intervals, a share.
        seed: seed of the resampling; the same seed gives the same digits, whatever the order of the
            rows.
        drop_outliers: leave out, once, the configurations farther from the law of all
            configurations than this number of robust standard deviations, and name them in
            `runs.dropped`; None keeps all.
        **columns: columns and units of the table: `params, tokens, loss, flops, budget, n,
            loss_unit` of `ReadOptions`.

    Raises:
        FitError: input that can't be used; fewer than 7 configurations, 3 sizes or 3 token counts;
            fewer than 7 configurations without the outliers.
    """
    delta = check_surface_options(
        huber_delta, residual, bootstrap, resampling, confidence, drop_outliers
    )
    table = read_table(runs, **columns, need_budgets=False)
    sample = collect_sample(table, residual)
    _refuse_too_few(table, sample)
    estimate = estimate_one(sample, delta)
    if drop_outliers is not None and np.any(far := find_outliers(sample, estimate, drop_outliers)):
        if len(sample) - far.sum() < MIN_CONFIGURATIONS:
            raise FitError(
                f"{table.source}: {far.sum()} of {len(sample)} configurations lie more than "
                f"{drop_outliers:g} robust standard deviations off the law, and "
                f"{MIN_CONFIGURATIONS} must remain: raise drop_outliers"
            )
        table = remove_configurations(table, sample, estimate, far, drop_outliers)
        sample = collect_sample(table, residual)
        _refuse_too_few(table, sample)
        estimate = estimate_one(sample, delta)
    fit = ParametricFit(
        runs=table,
        sample=sample,
        estimate=estimate,
        draws=_draws(sample, estimate, resampling, bootstrap, np.random.default_rng(seed)),
        noise=estimate_noise(table, *_residual_sum(sample, estimate.theta[0])),
        rollout=hold_out_surface(sample, estimate, delta),
        huber_delta=huber_delta,
        resampling=resampling,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        drop_outliers=drop_outliers,
    )
    return dataclasses.replace(fit, diagnostics=diagnose_surface(fit))


def collect_sample(table: RunsTable, residual: solver.Scale = "log") -> Sample:
    """Return the configurations of a table, in an order independent of the order of its rows."""
    frame = table.configurations
    order = np.lexsort([column(frame, name) for name in ("loss", "tokens", "params", "budget")])
    names = ("params", "tokens", "loss", "seeds", "flops", "budget")
    params, tokens, loss, seeds, flops, budget = (column(frame, name)[order] for name in names)
    if table.budgets_are_flops:
        budget = _holdout_bands(flops)
    numbers = frame["config"].to_numpy(dtype=np.int64)[order]
    return Sample(
        solver.Observations.from_counts(params, tokens, loss, residual),
        seeds,
        flops,
        budget,
        numbers,
    )


def _holdout_bands(flops: Floats) -> Floats:
    """Return the band of each run, by the greatest FLOPs in it: 8 bands with equal numbers of runs.

    They take the place of budgets in hold-out tests of runs without budgets.
    """
    edges = np.unique(np.quantile(flops, np.linspace(0.0, 1.0, HOLDOUT_BANDS + 1)[1:]))
    return edges[np.minimum(np.searchsorted(edges, flops), len(edges) - 1)]


def check_surface_options(
    huber_delta: HuberDelta,
    residual: str,
    bootstrap: int,
    resampling: str,
    confidence: float,
    drop_outliers: float | None,
) -> float | None:
    """Check the options of a surface and return Huber's delta; None stands for adaptive.

    Raises:
        FitError: an unknown or invalid option.
    """
    if drop_outliers is not None and not drop_outliers > 0.0:
        raise FitError(
            "drop_outliers is a number of robust standard deviations above 0, not "
            f"{drop_outliers:g}"
        )
    for value, choices in ((residual, get_args(solver.Scale)), (resampling, get_args(Resampling))):
        if value not in choices:
            raise FitError(f"unknown {value!r}: {' or '.join(choices)}")
    check_resamples(bootstrap)
    check_confidence(confidence)
    if isinstance(huber_delta, str):
        if huber_delta not in HUBER_PRESETS:
            presets = " or ".join(HUBER_PRESETS)
            raise FitError(f"unknown Huber delta {huber_delta!r}: a number above 0, {presets}")
        return HUBER_PRESETS[huber_delta]
    if not huber_delta > 0.0:
        raise FitError(f"Huber's delta is a number above 0, not {huber_delta:g}")
    return float(huber_delta)


def _refuse_too_few(table: RunsTable, sample: Sample) -> None:
    points = sample.points
    if len(sample) < MIN_CONFIGURATIONS:
        raise FitError(
            f"{table.source}: {len(sample)} configurations can't determine a law of 5 parameters "
            f"with an interval: {MIN_CONFIGURATIONS} or more are needed"
        )
    for values, name in ((points.x, "model sizes"), (points.y, "token counts")):
        if (count := count_distinct(values)) < MIN_DISTINCT:
            raise FitError(
                f"{table.source}: {count} different {name}; the law needs {MIN_DISTINCT} or more"
            )
    if np.ptp(points.loss) <= 1e-9 * points.loss.max():
        raise FitError(
            f"{table.source}: all losses are {points.loss[0]:g}: there is nothing to fit"
        )


def _residual_sum(sample: Sample, theta: Floats) -> tuple[float, int]:
    """Return the sum of squared relative residuals, weighted by seeds, and its degrees of
    freedom.
    """
    residuals = sample.residuals(theta)
    if sample.points.scale == "loss":
        residuals = residuals / sample.points.fitted(theta)
    return float(residuals @ residuals), sample.dof


def _draws(
    sample: Sample, estimate: Estimate, resampling: Resampling, count: int, rng: np.random.Generator
) -> Floats:
    """Return resamples of theta, (R, 5), each searched from the estimate with the estimate's delta.

    They are computed in blocks, so that memory does not grow with their number. The random numbers
    come from one stream in order, so the size of a block changes no digit.
    """
    blocks = [np.empty((0, 5))]
    draw = _draw_cases if resampling == "case" else _draw_signs
    sd = float(robust_sd(sample.residuals(estimate.theta[0])))
    rows = solver.chunk_size(len(sample))
    rows *= max(1, _BLOCK_CELLS // (rows * len(sample)))
    for first in range(0, count, rows):
        start = np.repeat(estimate.theta, min(rows, count - first), axis=0)
        resample, weight = draw(sample, estimate.theta[0], len(start), rng)
        blocks.append(minimise(resample, start, float(estimate.delta[0]), sd, weight).theta)
    return np.concatenate(blocks)


def _draw_cases(
    sample: Sample, theta: Floats, count: int, rng: np.random.Generator
) -> tuple[Sample, Floats]:
    """Return the sample, and the number of draws of each configuration times its seeds, (R, K)."""
    size = len(sample)
    return sample, rng.multinomial(size, np.full(size, 1.0 / size), size=count) * sample.seeds


def _draw_signs(
    sample: Sample, theta: Floats, count: int, rng: np.random.Generator
) -> tuple[Sample, Floats]:
    """Return the sample with losses (R, K) whose residuals have random signs, and its seeds."""
    points, columns = sample.points, jacobian(sample, theta)
    leverage = np.minimum(np.einsum("ij,ij->i", *(2 * [np.linalg.qr(columns)[0]])), MAX_LEVERAGE)
    signs = rng.choice([-1.0, 1.0], (count, len(sample)))
    noise = sample.residuals(theta) / np.sqrt((1.0 - leverage) * sample.seeds) * signs
    fitted = points.fitted(theta)
    losses = (
        fitted * np.exp(noise)
        if points.scale == "log"
        else np.maximum(fitted + noise, 1e-3 * fitted)
    )
    return dataclasses.replace(sample, points=points.with_loss(losses)), sample.seeds


def hold_out_surface(sample: Sample, estimate: Estimate, delta: float | None) -> HoldOut | None:
    """Return hold-out tests of the surface, for M sets of losses.

    The loss of a hidden budget is the mean of its runs. Its ln N* is the estimate's, moved by the
    shift that minimises the residuals of the budget's runs.
    """
    budget_flops = sample.budget_flops

    def hide(keep: np.ndarray) -> Predict | None:
        remaining = sample.select(keep)
        points = remaining.points
        if (
            len(remaining) < MIN_CONFIGURATIONS
            or min(count_distinct(points.x), count_distinct(points.y)) < MIN_DISTINCT
        ):
            return None
        fit = estimate_many(remaining, sample.recentre(estimate.theta, points), delta)

        def predict(level: float) -> tuple[dict[str, Floats], dict[str, Floats]]:
            hidden = sample.select(budget_flops == level)
            fitted = hidden.points.fitted(remaining.recentre(fit.theta, hidden.points))
            loss = np.average(np.log(fitted / hidden.points.loss), axis=-1, weights=hidden.seeds)
            values, gradients = optimum(points, fit.theta, level, sample.cost)
            variances = np.einsum("mqi,mij,mqj->mq", gradients, fit.covariance, gradients)
            ses = np.sqrt(np.maximum(variances, 0.0))
            loss_se = np.hypot(ses[:, 2], np.sqrt(fit.variance / hidden.seeds.sum()))
            if count_distinct(hidden.points.x) < 2:  # one size does not locate the optimum
                return {"loss": loss}, {"loss": loss_se}
            theta = sample.recentre(estimate.theta, hidden.points)
            shift, shift_se = _optimum_shift(hidden, theta, fit.variance, sample.cost)
            best = optimum(sample.points, estimate.theta, level, sample.cost)[0]
            slope = sample.cost.slope(best[:, 0])  # D* falls so as N* rises at constant compute
            size = values[:, 0] - best[:, 0] - shift
            data = values[:, 1] - best[:, 1] + slope * shift
            return (
                {"params": size, "tokens": data, "loss": loss},
                {
                    "params": np.hypot(ses[:, 0], shift_se),
                    "tokens": np.hypot(ses[:, 1], slope * shift_se),
                    "loss": loss_se,
                },
            )

        return predict

    return hold_out(budget_flops, hide)


def _optimum_shift(
    budget: Sample, theta: Floats, variance: Floats, cost: TokenCost
) -> tuple[Floats, Floats]:
    """Return the ln N* of one budget's runs less the surface's, (M,), and its standard error.

    It is one Gauss-Newton step: the residuals about their mean, regressed on the slope of ln loss
    along constant compute.
    """
    floor, size_term, data_term = budget.points.terms(theta)
    fitted = floor + size_term + data_term
    data_slope = cost.slope(budget.points.x + budget.points.x_mean)
    slope = (theta[:, [4]] * data_term * data_slope - theta[:, [3]] * size_term) / fitted
    weight = budget.seeds / budget.seeds.sum()
    slope = slope - np.sum(weight * slope, axis=-1, keepdims=True)
    residual = np.log(budget.points.loss / fitted)
    square = np.maximum(np.sum(budget.seeds * slope**2, axis=-1), 1e-300)
    with np.errstate(over="ignore"):  # a flat profile allows any shift
        shift = -np.sum(budget.seeds * slope * residual, axis=-1) / square
        return shift, np.sqrt(variance / square)
