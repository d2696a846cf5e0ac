"""Estimates of the surface L = E + A / N^alpha + B / D^beta and their covariance, for many sets of
losses at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import fdtrc

from isoflop.fitting.estimators import newton
from isoflop.fitting.estimators.intervals import SDS_PER_MAD
from isoflop.fitting.estimators.newton import Observations, Solutions
from isoflop.fitting.estimators.parabola import MAX_LEVERAGE
from isoflop.fitting.estimators.token_cost import TokenCost
from isoflop.fitting.tables.budgets import resolve_budget_flops
from isoflop.frames import Floats

PARAMETER_COUNT = 5
UNEVEN_NOISE_ALPHA = 0.2
"""p of uneven noise below which the covariance is a sandwich."""
HUBER_DELTA_SDS = 1.345
"""Adaptive delta: 95% as efficient as least squares if noise is Gaussian."""
STEPPED_DELTA_SDS = 0.02
"""Below this share of the noise, a delta is approached in steps."""
_DELTA_STEP_FACTOR = 5.0


@dataclass(frozen=True, eq=False)
class Sample:
    """K configurations that a law is fitted to, with one or M sets of losses.

    Attributes:
        points: sizes and mean losses, (K,) or (M, K).
        seeds: of each configuration, (K,); they weigh its mean.
        flops: training FLOPs of each.
        budget: label of each one's budget.
        config: its number in the table.
    """

    points: Observations
    seeds: Floats
    flops: Floats
    budget: Floats
    config: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def dof(self) -> int:
        """Configurations less the parameters."""
        return len(self) - PARAMETER_COUNT

    @property
    def budget_flops(self) -> Floats:
        """FLOPs of each one's budget, (K,)."""
        return resolve_budget_flops(self.budget, self.flops, self.seeds)

    @cached_property
    def cost(self) -> TokenCost:
        """Cost of a token, by the FLOPs of the configurations."""
        points = self.points
        x, y = points.x + points.x_mean, points.y + points.y_mean
        return TokenCost.from_runs(x, y, self.flops, self.budget)

    def deltas(self, delta: Floats | float) -> Floats:
        """Return Huber's delta of each mean, (M, K).

        A mean of m seeds scatters 1/sqrt(m) as much.
        """
        return np.atleast_1d(delta)[:, None] / np.sqrt(self.seeds)

    def residuals(self, theta: Floats) -> Floats:
        """Return residuals times the root of the seeds, (..., K), on the scale of a run's noise."""
        fitted, loss = self.points.fitted(theta), self.points.loss
        gap = np.log(loss / fitted) if self.points.scale == "log" else loss - fitted
        return gap * np.sqrt(self.seeds)

    def select(self, keep: np.ndarray) -> Sample:
        """Return the configurations of a mask, centred at their own means."""
        points = self.points
        x, y = points.x[keep], points.y[keep]
        centred = Observations(
            x - x.mean(),
            y - y.mean(),
            points.loss[..., keep],
            points.x_mean + x.mean(),
            points.y_mean + y.mean(),
            points.scale,
        )
        return Sample(
            centred, self.seeds[keep], self.flops[keep], self.budget[keep], self.config[keep]
        )

    def recentre(self, theta: Floats, other: Observations) -> Floats:
        """Return theta about the means of these points as theta about those of others.

        It is the same surface.
        """
        shifted = np.array(theta)
        shifted[..., 1] += theta[..., 3] * (self.points.x_mean - other.x_mean)
        shifted[..., 2] += theta[..., 4] * (self.points.y_mean - other.y_mean)
        return shifted


@dataclass(frozen=True, eq=False)
class Estimate:
    """M estimates.

    Attributes:
        theta: (M, 5), see `newton`.
        covariance: of theta, (M, 5, 5).
        variance: of one run about the law, by the M-estimate, (M,).
        evenness_p: p-value of noise uneven over compute and size; the null is even noise, (M,).
        delta: Huber's, (M,).
        objective, gradient_cosine: see `newton.Solutions`, (M,).
        agreeing: share of the starts that reached the objective.
    """

    theta: Floats
    covariance: Floats
    variance: Floats
    evenness_p: Floats
    delta: Floats
    objective: Floats
    gradient_cosine: Floats
    agreeing: float = 1.0


def estimate_one(sample: Sample, delta: float | None) -> Estimate:
    """Return the estimate of one set of losses from 48 starts; `delta` None is adaptive."""
    first = newton.starts(sample.points)
    sd = 0.0
    if delta is None:
        solutions = minimise(sample, first, np.inf)
        delta = float(_adapt_delta(sample, solutions.theta[[solutions.best]])[0])
    else:
        crude = minimise(sample, first[[len(first) // 2]], np.inf)
        sd = float(robust_sd(sample.residuals(crude.theta[0])))
    solutions = minimise(sample, first, delta, sd)
    limit = solutions.objective.min() * (1.0 + 1e-9) + newton.ROUNDING_OBJECTIVE
    agreeing = float(np.mean(solutions.objective <= limit))
    best = [solutions.best]
    solution = Solutions(
        solutions.theta[best], solutions.objective[best], solutions.gradient_cosine[best]
    )
    return _estimate(sample, solution, np.array([delta]), agreeing)


def estimate_many(sample: Sample, first: Floats, delta: float | None) -> Estimate:
    """Return estimates of M sets of losses, each from one near start, (M, 5)."""
    if delta is None:
        solutions = minimise(sample, first, np.inf)
        deltas = _adapt_delta(sample, solutions.theta)
        solutions = minimise(sample, solutions.theta, deltas)
    else:
        deltas = np.full(len(first), delta)
        sd = float(np.median(robust_sd(sample.residuals(first))))
        solutions = minimise(sample, first, delta, sd)
    return _estimate(sample, solutions, deltas, 1.0)


def minimise(
    sample: Sample,
    first: Floats,
    delta: Floats | float,
    sd: float = 0.0,
    weight: Floats | None = None,
) -> Solutions:
    """Run `newton.solve` from `first`, (M, 5), at Huber's delta of one run, () or (M,); weights
    default to the seeds.

    A delta far below the noise `sd` leaves curvature in so few residuals that Newton makes no
    progress from afar. It is reached through a falling series, each from the optimum of the last.
    """
    weight = sample.seeds if weight is None else weight
    if np.ndim(delta) == 0 and 0.0 < float(delta) < STEPPED_DELTA_SDS * sd:
        steps = int(np.ceil(np.log(sd / float(delta)) / np.log(_DELTA_STEP_FACTOR)))
        for larger in np.geomspace(sd, float(delta), steps + 1)[:-1]:
            first = newton.solve(sample.points, first, sample.deltas(larger), weight).theta
    return newton.solve(sample.points, first, sample.deltas(delta), weight)


def _adapt_delta(sample: Sample, theta: Floats) -> Floats:
    """Return Huber's delta for each set, (M,): 1.345 robust standard deviations about the
    least-squares fit, then about the fit with that delta.
    """
    delta = np.full(len(theta), np.inf)
    for _ in range(2):
        sd = robust_sd(sample.residuals(theta))
        noiseless = sd <= 1e-12 * np.mean(sample.points.loss)
        delta = np.where(noiseless, np.inf, HUBER_DELTA_SDS * sd)
        theta = minimise(sample, theta, delta).theta
    return delta


def robust_sd(residuals: Floats, parameters: int = PARAMETER_COUNT) -> Floats:
    """Return the standard deviation of one run about the law, (...,), from the median absolute
    residual, (..., K).
    """
    count = residuals.shape[-1]
    mad = np.median(np.abs(residuals), axis=-1)
    return SDS_PER_MAD * mad * np.sqrt(count / (count - parameters))


def jacobian(sample: Sample, theta: Floats) -> Floats:
    """Return d(ln loss or loss)/d(theta) times the root of the seeds, (..., K, 5)."""
    return sample.points.jacobian(theta) * np.sqrt(sample.seeds)[:, None]


def _estimate(sample: Sample, solutions: Solutions, delta: Floats, agreeing: float) -> Estimate:
    """Return solutions with their covariance."""
    theta = solutions.theta
    columns, residuals = jacobian(sample, theta), sample.residuals(theta)
    covariance, variance, evenness_p = m_covariance(
        columns, residuals, delta, PARAMETER_COUNT, _noise_covariates(sample, theta)
    )
    return Estimate(
        theta,
        covariance,
        variance,
        evenness_p,
        delta,
        solutions.objective,
        solutions.gradient_cosine,
        agreeing,
    )


def _noise_covariates(sample: Sample, theta: Floats) -> Floats:
    """Return covariates of the noise, (M, K, 3): ln C, the distance of a size from the best at its
    compute, and its square.
    """
    points = sample.points
    compute = points.x + points.y
    _, a, b, alpha, beta = (v[:, None] for v in np.moveaxis(theta, -1, 0))
    best = (np.log(alpha) + a - np.log(beta) - b + beta * compute) / (alpha + beta)
    off = points.x - best
    return np.stack([np.broadcast_to(compute, off.shape), off, off**2], axis=-1)


def m_covariance(
    columns: Floats,
    residuals: Floats,
    delta: Floats,
    parameters: int,
    covariates: Floats,
    extra_leverage: Floats | float = 0.0,
) -> tuple[Floats, Floats, Floats]:
    """Return the covariance of M M-estimates.

    If the size of the residuals does not depend on the covariates: Huber 1981, eq. 7.6.9, with his
    correction for few points. If it does, at the generous level of a fifth: a sandwich with
    residuals divided by 1 - leverage (HC3, MacKinnon and White 1985). The sandwich alone is too
    wide for few points, and the other too narrow for uneven noise; chosen so, 95% intervals cover
    93 to 96% if noise is even, 91 to 99% if it varies threefold (analysis/coverage). A parameter
    that the data do not move (E at its bound) has no variance here; the diagnostics name it.

    Args:
        columns: the Jacobian times the root of the weights, (M, K, P).
        residuals: times the root of the weights, (M, K).
        delta: Huber's, (M,).
        parameters: number of parameters fitted to the K residuals.
        covariates: quantities that the noise may depend on, (M, K, 3).
        extra_leverage: leverage of the parameters that have no column, (K,).

    Returns:
        The covariance, (M, P, P); the variance of one run, (M,); the p-value of uneven residuals,
        (M,).
    """
    count, limit = residuals.shape[-1], delta[:, None]
    within = np.abs(residuals) <= limit
    inside = np.maximum(within.mean(axis=-1), 1e-9)
    clipped = np.clip(residuals, -limit, limit)
    correction = 1.0 + parameters / count * (1.0 - inside) / inside
    variance = np.sum(clipped**2, axis=-1) / (count - parameters) / inside**2 * correction**2
    across = np.swapaxes(columns, -1, -2)
    bread = np.linalg.pinv(across @ columns, hermitian=True)
    covariance = variance[:, None, None] * bread
    leverage = np.sum(columns @ bread * columns, axis=-1) + extra_leverage
    leverage = np.minimum(leverage, MAX_LEVERAGE)
    evenness_p = _test_evenness(np.abs(residuals) / np.sqrt(1.0 - leverage), covariates)
    uneven = evenness_p < UNEVEN_NOISE_ALPHA
    if uneven.any():
        uneven_columns, uneven_across = columns[uneven], across[uneven]
        weighted = uneven_across * within[uneven][:, None, :]
        bread = np.linalg.pinv(weighted @ uneven_columns, hermitian=True)
        squares = (clipped / (1.0 - leverage))[uneven] ** 2
        meat = (uneven_across * squares[:, None, :]) @ uneven_columns
        covariance[uneven] = bread @ meat @ bread
    return covariance, variance, evenness_p


def _test_evenness(sizes: Floats, covariates: Floats) -> Floats:
    """Return the p-value, (M,), of sizes of residuals (M, K) that depend on covariates (M, K, 3);
    the null is that they do not (Glejser 1969).
    """
    count, regressors = sizes.shape[-1], covariates.shape[-1]
    dof = count - 1 - regressors
    if dof < 2:
        return np.ones(len(sizes))
    centred = sizes - sizes.mean(axis=-1, keepdims=True)
    q, _ = np.linalg.qr(covariates - covariates.mean(axis=-2, keepdims=True))
    explained = np.sum((np.swapaxes(q, -1, -2) @ centred[..., None]) ** 2, axis=(-1, -2))
    unexplained = np.sum(centred**2, axis=-1) - explained
    return fdtrc(regressors, dof, explained / regressors / np.maximum(unexplained, 1e-300) * dof)
