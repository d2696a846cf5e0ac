"""Estimates of the surface L = E + A / N^alpha + B / D^beta with their covariance, for many sets of losses at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from isoflop.fitting.estimators import newton as solver
from isoflop.fitting.estimators.newton import Points
from isoflop.fitting.estimators.parabola import MOST_LEVERAGE
from isoflop.fitting.tables.budgets import levels_of

Floats = np.ndarray
PARAMETERS = 5
UNEVEN = 0.2
EFFICIENT = 1.345  # Huber's delta in standard deviations: 95 % as efficient as least squares if noise is Gaussian
TINY = 0.02  # standard deviations: a delta that is approached in steps
_SHRINK = 5.0
_MAD = 1.4826  # standard deviations in a median absolute deviation of a Gaussian


@dataclass(frozen=True, eq=False)
class Sample:
    """The K places that a law is fitted to, with one or M sets of losses.

    Attributes:
        points: places and mean losses, (K,) or (M, K).
        seeds: of each configuration, (K,); they weigh its mean.
        flops: training FLOPs of each.
        budget: label of the budget that each belongs to.
        config: its number in the table.
    """

    points: Points
    seeds: Floats
    flops: Floats
    budget: Floats
    config: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def dof(self) -> int:
        """Configurations less the parameters."""
        return len(self) - PARAMETERS

    @property
    def level(self) -> Floats:
        """FLOPs of the budget that each belongs to, (K,)."""
        return levels_of(self.budget, self.flops, self.seeds)

    def deltas(self, delta: Floats | float) -> Floats:
        """Huber's delta of each mean, (M, K): a mean of m seeds scatters 1/sqrt(m) as much."""
        return np.atleast_1d(delta)[:, None] / np.sqrt(self.seeds)

    def residuals(self, theta: Floats) -> Floats:
        """Residuals times the root of the seeds, (..., K): on the scale of one run's noise."""
        fitted, loss = self.points.fitted(theta), self.points.loss
        gap = np.log(loss / fitted) if self.points.scale == "log" else loss - fitted
        return gap * np.sqrt(self.seeds)

    def part(self, keep: np.ndarray) -> Sample:
        """Some of the places, centred anew."""
        points = self.points
        x, y = points.x[keep], points.y[keep]
        moved = Points(
            x - x.mean(), y - y.mean(), points.loss[..., keep], points.x_mean + x.mean(), points.y_mean + y.mean(),
            points.scale,
        )  # fmt: skip
        return Sample(
            moved, self.seeds[keep], self.flops[keep], self.budget[keep], self.config[keep]
        )

    def moved(self, theta: Floats, other: Points) -> Floats:
        """theta about the means of these points as theta about those of others: the same surface."""
        shifted = np.array(theta)
        shifted[..., 1] += theta[..., 3] * (self.points.x_mean - other.x_mean)
        shifted[..., 2] += theta[..., 4] * (self.points.y_mean - other.y_mean)
        return shifted


@dataclass(frozen=True, eq=False)
class Estimate:
    """M estimates.

    Attributes:
        theta: (M, 5), see `solver`.
        spread: its covariance, (M, 5, 5).
        variance: of one run about the law, as the M-estimate sees it, (M,).
        even: probability of noise as uneven over compute and size, if it were even, (M,).
        delta: Huber's, (M,).
        objective, slope: see `solver.Solutions`, (M,).
        agreeing: share of the starts that reached the objective.
    """

    theta: Floats
    spread: Floats
    variance: Floats
    even: Floats
    delta: Floats
    objective: Floats
    slope: Floats
    agreeing: float = 1.0


def estimate_one(sample: Sample, delta: float | None) -> Estimate:
    """The estimate of one set of losses from 48 starts; `delta` None is the adaptive one."""
    first = solver.starts(sample.points)
    sd = 0.0
    if delta is None:
        found = minimise(sample, first, np.inf)
        delta = float(_adapt(sample, found.theta[[found.best]])[0])
    else:
        crude = minimise(sample, first[[len(first) // 2]], np.inf)
        sd = float(robust_sd(sample.residuals(crude.theta[0])))
    found = minimise(sample, first, delta, sd)
    agreeing = float(
        np.mean(found.objective <= found.objective.min() * (1.0 + 1e-9) + solver.ROUNDING)
    )
    best = solver.Solutions(
        *(part[[found.best]] for part in (found.theta, found.objective, found.slope))
    )
    return _estimate(sample, best, np.array([delta]), agreeing)


def estimate_many(sample: Sample, first: Floats, delta: float | None) -> Estimate:
    """Estimates of M sets of losses, each from one start, (M, 5), that is near."""
    if delta is None:
        found = minimise(sample, first, np.inf)
        chosen = _adapt(sample, found.theta)
        found = minimise(sample, found.theta, chosen)
    else:
        chosen = np.full(len(first), delta)
        found = minimise(sample, first, delta, float(np.median(robust_sd(sample.residuals(first)))))
    return _estimate(sample, found, chosen, 1.0)


def minimise(
    sample: Sample,
    first: Floats,
    delta: Floats | float,
    sd: float = 0.0,
    weight: Floats | None = None,
) -> solver.Solutions:
    """`solver.solve` from `first`, (M, 5), at Huber's delta of one run, () or (M,); weights default to the seeds.

    A delta far below the noise `sd` leaves curvature in so few residuals that Newton finds nothing from afar: it is
    reached through smaller and smaller ones, each from the optimum of the last.
    """
    weight = sample.seeds if weight is None else weight
    if np.ndim(delta) == 0 and 0.0 < float(delta) < TINY * sd:
        steps = int(np.ceil(np.log(sd / float(delta)) / np.log(_SHRINK)))
        for passing in np.geomspace(sd, float(delta), steps + 1)[:-1]:
            first = solver.solve(sample.points, first, sample.deltas(passing), weight).theta
    return solver.solve(sample.points, first, sample.deltas(delta), weight)


def _adapt(sample: Sample, theta: Floats) -> Floats:
    """Huber's delta for each set, (M,): 1.345 robust standard deviations about the least-squares fit, then again."""
    delta = np.full(len(theta), np.inf)
    for _ in range(2):
        spread = robust_sd(sample.residuals(theta))
        nothing = spread <= 1e-12 * np.mean(sample.points.loss)
        delta = np.where(nothing, np.inf, EFFICIENT * spread)
        theta = minimise(sample, theta, delta).theta
    return delta


def robust_sd(residuals: Floats, parameters: int = PARAMETERS) -> Floats:
    """Standard deviation of one run about the law, (...,), from the median absolute residual, (..., K)."""
    count = residuals.shape[-1]
    return _MAD * np.median(np.abs(residuals), axis=-1) * np.sqrt(count / (count - parameters))


def jacobian(sample: Sample, theta: Floats) -> Floats:
    """d(ln loss or loss)/d(theta) times the root of the seeds, (..., K, 5)."""
    return sample.points.jacobian(theta) * np.sqrt(sample.seeds)[:, None]


def _estimate(sample: Sample, found: solver.Solutions, delta: Floats, agreeing: float) -> Estimate:
    columns, residuals = jacobian(sample, found.theta), sample.residuals(found.theta)
    spread, variance, even = m_covariance(
        columns, residuals, delta, PARAMETERS, _places(sample, found.theta)
    )
    return Estimate(
        found.theta, spread, variance, even, delta, found.objective, found.slope, agreeing
    )


def _places(sample: Sample, theta: Floats) -> Floats:
    """What the noise may depend on, (M, K, 3): ln C, how far a size is from the best at its compute, and its square."""
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
    places: Floats,
    eliminated: Floats | float = 0.0,
) -> tuple[Floats, Floats, Floats]:
    """Covariance of M M-estimates.

    Where the size of the residuals does not depend on where they are: Huber 1981, eq. 7.6.9, with his correction for
    few points. Where it does, at the generous level of a fifth: a sandwich with residuals divided by 1 - leverage (HC3,
    MacKinnon and White 1985). The sandwich alone is too wide for few points, and the other too narrow for uneven noise;
    chosen so, 95 % intervals cover 93 to 96 % if noise is even, 91 to 99 % if it varies threefold (analysis/coverage).
    A parameter that the data do not move (E at its bound) has no variance here; the diagnostics name it.

    Args:
        columns: the Jacobian times the root of the weights, (M, K, P).
        residuals: times the root of the weights, (M, K).
        delta: Huber's, (M,).
        parameters: how many were fitted to the K residuals.
        places: what the noise may depend on, (M, K, 3).
        eliminated: leverage of the parameters that have no column, (K,).

    Returns:
        The covariance, (M, P, P); the variance of one run, (M,); the probability of residuals as uneven, (M,).
    """
    count, limit = residuals.shape[-1], delta[:, None]
    within = np.abs(residuals) <= limit
    inside = np.maximum(within.mean(axis=-1), 1e-9)
    clipped = np.clip(residuals, -limit, limit)
    correction = 1.0 + parameters / count * (1.0 - inside) / inside
    variance = np.sum(clipped**2, axis=-1) / (count - parameters) / inside**2 * correction**2
    across = np.swapaxes(columns, -1, -2)
    bread = np.linalg.pinv(across @ columns, hermitian=True)
    spread = variance[:, None, None] * bread
    leverage = np.minimum(np.sum(columns @ bread * columns, axis=-1) + eliminated, MOST_LEVERAGE)
    even = _evenness(np.abs(residuals) / np.sqrt(1.0 - leverage), places)
    uneven = even < UNEVEN
    if uneven.any():
        some, crust = columns[uneven], across[uneven]
        bread = np.linalg.pinv((crust * within[uneven][:, None, :]) @ some, hermitian=True)
        meat = (crust * ((clipped / (1.0 - leverage))[uneven] ** 2)[:, None, :]) @ some
        spread[uneven] = bread @ meat @ bread
    return spread, variance, even


def _evenness(sizes: Floats, places: Floats) -> Floats:
    """Probability of residuals whose sizes (M, K) depend on their places (M, K, 3) as much as these (Glejser 1969)."""
    count, given = sizes.shape[-1], places.shape[-1]
    if count <= given + 2:
        return np.ones(len(sizes))
    centred = sizes - sizes.mean(axis=-1, keepdims=True)
    q, _ = np.linalg.qr(places - places.mean(axis=-2, keepdims=True))
    explained = np.sum((np.swapaxes(q, -1, -2) @ centred[..., None]) ** 2, axis=(-1, -2))
    left = np.sum(centred**2, axis=-1) - explained
    return fdtrc(
        given, count - 1 - given, explained / given / np.maximum(left, 1e-300) * (count - 1 - given)
    )


def optimum(points: Points, theta: Floats, flops: Floats | float) -> tuple[Floats, Floats]:
    """ln N*, ln D* and ln L* at C = 6ND FLOPs for theta (..., 5), (..., 3), and their gradients by theta, (..., 3, 5).

    N* = G (C/6)^a with G = (alpha A / (beta B))^(1/(alpha+beta)), Hoffmann et al. 2022, eq. 4. The gradient of L*
    is that of L at fixed N and D, since L is stationary there.
    """
    e, a, b, alpha, beta, sixth = np.broadcast_arrays(
        *np.moveaxis(np.asarray(theta), -1, 0), np.log(flops) - np.log(6.0)
    )
    total = alpha + beta
    a_far, b_far = a + alpha * points.x_mean, b + beta * points.y_mean
    size = (np.log(alpha) + a_far - np.log(beta) - b_far + beta * sixth) / total
    data = sixth - size
    p, q = np.exp(a_far - alpha * size), np.exp(b_far - beta * data)
    floor = np.exp(e)
    loss = floor + p + q
    zero, one = np.zeros_like(total), np.ones_like(total)
    of_size = np.stack(
        [
            zero,
            one,
            -one,
            1.0 / alpha + points.x_mean - size,
            sixth - size - 1.0 / beta - points.y_mean,
        ],
        axis=-1,
    )
    of_size = of_size / total[..., None]
    of_loss = np.stack(
        [floor, p, q, -(size - points.x_mean) * p, -(data - points.y_mean) * q], axis=-1
    )
    values = np.stack([size, data, np.log(loss)], axis=-1)
    return values, np.stack([of_size, -of_size, of_loss / loss[..., None]], axis=-2)
