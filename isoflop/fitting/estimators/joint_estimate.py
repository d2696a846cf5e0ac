"""Joint fit of IsoFLOP profiles: one asymmetric shape for all budgets, minima on one power law.

Within a budget, A/N^alpha + B/D^beta with D ~ C/N is, about its minimum, the shape
    phi(u) = q / (alpha + beta) (e^(-alpha u)/alpha + e^(beta u)/beta - 1/alpha - 1/beta),
with u = ln N - ln N* and q the curvature at the minimum, so that loss = L*_c + phi(u). A parabola
leaves out the asymmetry, which biases N* if the sizes are not centred on it. Here alpha and beta
are common to all budgets, ln N* = k + a ln C, and q ~ C^(-alpha a) as A/N*^alpha has it. L*_c is
free in each budget. So nothing is assumed of the fall of the loss with compute, nor that C = 6ND.
A shift of all losses of a budget (a recipe tuned unevenly over budgets) does no harm.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from isoflop.fitting.estimators.surface_estimate import HUBER_DELTA_SDS, m_covariance, robust_sd
from isoflop.frames import Floats

SHAPE_PARAMETERS = ("ln_q", "left", "right", "k", "exponent")
LOWER_BOUNDS = np.array([-25.0, 0.02, 0.02, -80.0, -4.0])
UPPER_BOUNDS = np.array([20.0, 5.0, 5.0, 80.0, 5.0])
_MAX_JOINT_ITERATIONS = 120
_MIN_JOINT_RELATIVE_DROP = 1e-13  # promised share of the objective below which a step is the last
_MAX_JOINT_DAMPING = 1e9
_START_SHAPES = ((0.2, 0.2), (0.4, 0.4), (0.8, 0.8), (0.7, 0.35), (0.35, 0.7), (1.2, 0.4))
_START_JOINT_EXPONENTS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, eq=False)
class Curves:
    """Configurations of B budgets.

    Attributes:
        x: ln of the axis about its mean, (K,).
        c: ln C of each one's budget about its mean, (K,).
        group: number of its budget, (K,).
        loss: (K,) or (M, K).
        seeds: (K,).
    """

    x: Floats
    c: Floats
    group: np.ndarray
    loss: Floats
    seeds: Floats

    @cached_property
    def budget_count(self) -> int:
        """Number of budgets, B."""
        return int(self.group.max()) + 1

    @cached_property
    def members(self) -> Floats:
        """1 for the budget of each configuration, else 0, (K, B)."""
        return np.eye(self.budget_count)[self.group]

    @cached_property
    def root(self) -> Floats:
        """Root of the weight of each residual: of the seeds, over the loss, (K,) or (M, K)."""
        return np.sqrt(self.seeds) / self.loss

    @property
    def parameter_count(self) -> int:
        """Number of fitted parameters: a least loss a budget, and 5."""
        return self.budget_count + len(SHAPE_PARAMETERS)

    def select(self, keep: np.ndarray) -> Curves:
        """Return the configurations of a mask, on the same means."""
        group = np.unique(self.group[keep], return_inverse=True)[1]
        return Curves(self.x[keep], self.c[keep], group, self.loss[..., keep], self.seeds[keep])

    def select_sets(self, sets: np.ndarray) -> Curves:
        """Return some of the sets of losses; itself if there is only one."""
        return self if self.loss.ndim == 1 else dataclasses.replace(self, loss=self.loss[sets])


@dataclass(frozen=True, eq=False)
class JointEstimate:
    """M estimates.

    Attributes:
        theta: ln q at c = 0, alpha, beta, k, exponent, (M, 5).
        floor: L*_c, (M, B).
        covariance: of theta, (M, 5, 5).
        variance: of one run's relative residual, (M,).
        evenness_p: p-value of uneven noise; the null is even noise, (M,).
        delta: Huber's, (M,).
        objective: the weighted sum of squared relative residuals, (M,).
        residuals: relative, times the root of the seeds, (M, K).
    """

    theta: Floats
    floor: Floats
    covariance: Floats
    variance: Floats
    evenness_p: Floats
    delta: Floats
    objective: Floats
    residuals: Floats


class _Arms(NamedTuple):
    """The shape and its parts, (M, K) each."""

    phi: Floats
    u: Floats
    falling: Floats
    rising: Floats
    height: Floats


def _evaluate_arms(theta: Floats, x: Floats, c: Floats) -> _Arms:
    ln_q, alpha, beta, k, a = theta.T[:, :, None]
    u = x - k - a * c
    falling, rising = np.exp(-alpha * u), np.exp(beta * u)
    height = np.exp(ln_q - alpha * a * c) / (alpha + beta)
    phi = height * (falling / alpha + rising / beta - 1.0 / alpha - 1.0 / beta)
    return _Arms(phi, u, falling, rising, height)


def evaluate_rise(theta: Floats, x: Floats, c: Floats) -> Floats:
    """Return phi, (M, K)."""
    return _evaluate_arms(theta, x, c).phi


def evaluate_shape(theta: Floats, x: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Return phi, (M, K), and its gradient by theta, (M, K, 5)."""
    _, alpha, beta, _, a = theta.T[:, :, None]
    phi, u, falling, rising, height = _evaluate_arms(theta, x, c)
    total = alpha + beta
    slope = height * (rising - falling)
    by_alpha = height * ((1.0 - falling) / alpha**2 - u * falling / alpha)
    by_beta = height * ((1.0 - rising) / beta**2 + u * rising / beta)
    gradient = np.empty((*phi.shape, len(SHAPE_PARAMETERS)))
    gradient[..., 0] = phi
    gradient[..., 1] = by_alpha - phi / total - a * c * phi
    gradient[..., 2] = by_beta - phi / total
    gradient[..., 3] = -slope
    gradient[..., 4] = -c * slope - alpha * c * phi
    return phi, gradient


def fit_curves(curves: Curves, first: Floats, delta: float | None) -> JointEstimate:
    """Fit M problems at once by least squares of relative residuals, or by Huber's loss.

    Args:
        curves: losses (K,) for all starts, or (M, K).
        first: first theta, (M, 5).
        delta: Huber's, in relative residuals; infinite is least squares, None adaptive.
    """
    limit = np.full(len(first), np.inf if delta is None else delta)
    with np.errstate(over="ignore", invalid="ignore"):  # a step that overflows is not taken
        theta, weight = _descend(curves, np.clip(first, LOWER_BOUNDS, UPPER_BOUNDS), limit)
        if delta is None:
            for _ in range(2):
                shape = evaluate_shape(theta, curves.x, curves.c)
                residuals = _linearise(curves, shape, weight).residuals
                sd = robust_sd(residuals, curves.parameter_count)
                limit = np.where(sd > 1e-12, HUBER_DELTA_SDS * sd, np.inf)
                theta, weight = _descend(curves, theta, limit)
    final = _linearise(curves, evaluate_shape(theta, curves.x, curves.c), weight)
    off = curves.x - theta[:, [3]] - theta[:, [4]] * curves.c
    covariates = np.stack([np.broadcast_to(curves.c, off.shape), off, off**2], axis=-1)
    floor_leverage = curves.seeds / np.bincount(curves.group, curves.seeds)[curves.group]
    covariance, variance, evenness_p = m_covariance(
        final.columns, final.residuals, limit, curves.parameter_count, covariates, floor_leverage
    )
    return JointEstimate(
        theta,
        final.floor,
        covariance,
        variance,
        evenness_p,
        limit,
        final.objective,
        final.residuals,
    )


def compute_columns(curves: Curves, theta: Floats) -> tuple[Floats, Floats]:
    """Return the columns of theta in the relative residuals, (K, 5), projected off those of L*_c,
    and those of L*_c, (K, B); both times the root of the seeds.
    """
    shape = evaluate_shape(theta[None], curves.x, curves.c)
    final = _linearise(curves, shape, np.ones((1, len(curves.x))))
    return final.columns[0], curves.members * curves.root[:, None]


def starts(curves: Curves) -> Floats:
    """Return 24 crude starts, (24, 5): a few shapes and exponents, the minimum of the median budget
    at its best run.
    """
    group, budgets = curves.group, range(curves.budget_count)
    mean = curves.loss / np.bincount(group, curves.loss)[group] * np.bincount(group)[group]
    best = [curves.x[group == g][np.argmin(mean[group == g])] for g in budgets]
    depth = np.median([np.ptp(curves.loss[group == g]) for g in budgets])
    width = max(float(np.median([np.ptp(curves.x[group == g]) for g in budgets])), 1e-3)
    curvature = np.log(max(8.0 * depth / width**2, 1e-8))
    middle = float(np.median(best))
    return np.array(
        [[curvature, *pair, middle, a] for pair in _START_SHAPES for a in _START_JOINT_EXPONENTS]
    )


class _Linearisation(NamedTuple):
    """A weighted least-squares problem at theta, with L*_c eliminated."""

    objective: Floats  # (M,)
    gradient: Floats  # (M, 5)
    curvature: Floats  # (M, 5, 5)
    residuals: Floats  # (M, K), times the root of the seeds
    columns: Floats  # (M, K, 5), times the root of the seeds
    floor: Floats  # (M, B)

    def select(self, problems: np.ndarray) -> _Linearisation:
        """Return some of the problems."""
        return _Linearisation(*(values[problems] for values in self))

    def accept(self, better: np.ndarray, trial: _Linearisation) -> _Linearisation:
        """Return the problems, those of `better` replaced by the trial."""
        accepted: list[Floats] = []
        for old, new in zip(self, trial, strict=True):
            accepted.append(np.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old))
        return _Linearisation(*accepted)


def _linearise(curves: Curves, shape: tuple[Floats, Floats], weight: Floats) -> _Linearisation:
    """Linearise M problems at theta, whose shape `evaluate_shape` returns; `weight` (M, K) is
    Huber's, at most 1.
    """
    phi, jacobian = shape
    member, root = curves.members, curves.root
    full = weight * root**2
    mass = full @ member
    floor = ((full * (curves.loss - phi)) @ member) / mass
    residuals = (curves.loss - phi - floor[:, curves.group]) * root
    mean = member.T @ (full[:, :, None] * jacobian) / mass[:, :, None]
    columns = (jacobian - mean[:, curves.group]) * np.broadcast_to(root, phi.shape)[..., None]
    weighted = columns * weight[:, :, None]
    gradient = (residuals[:, None, :] @ weighted)[:, 0, :]
    objective = np.sum(weight * residuals**2, axis=-1)
    curvature = np.swapaxes(columns, -1, -2) @ weighted
    return _Linearisation(objective, gradient, curvature, residuals, columns, floor)


def _descend(curves: Curves, theta: Floats, limit: Floats) -> tuple[Floats, Floats]:
    """Take Levenberg-Marquardt steps, with the weights of Huber's loss updated after each.

    Finished problems leave the batch.

    Returns:
        theta, (M, 5), and the weights, (M, K).
    """
    robust, identity = bool(np.isfinite(limit).any()), np.eye(len(SHAPE_PARAMETERS))
    solution: Floats = theta.copy()
    weights: Floats = np.ones((len(theta), len(curves.x)))
    alive: np.ndarray = np.arange(len(theta))
    weight: Floats = weights.copy()
    damping: Floats = np.full(len(theta), 1e-3)
    phi, jacobian = evaluate_shape(theta, curves.x, curves.c)
    current: _Linearisation = _linearise(curves, (phi, jacobian), weight)
    for _ in range(_MAX_JOINT_ITERATIONS):
        if robust:
            sizes = np.maximum(np.abs(current.residuals), 1e-300)
            weight = np.minimum(1.0, limit[alive, None] / sizes)
            current = _linearise(curves, (phi, jacobian), weight)
        step, drop = _step(current, theta, damping, identity)
        go = (drop > _MIN_JOINT_RELATIVE_DROP * current.objective) & (damping < _MAX_JOINT_DAMPING)
        solution[alive], weights[alive] = theta, weight
        if not go.any():
            break
        if not go.all():
            alive, theta, weight, damping, step, phi, jacobian = (
                values[go] for values in (alive, theta, weight, damping, step, phi, jacobian)
            )
            current, curves = current.select(go), curves.select_sets(go)
        trial = np.clip(theta + step, LOWER_BOUNDS, UPPER_BOUNDS)
        shape = evaluate_shape(trial, curves.x, curves.c)
        candidate = _linearise(curves, shape, weight)
        better = candidate.objective <= current.objective
        theta = np.where(better[:, None], trial, theta)
        phi = np.where(better[:, None], shape[0], phi)
        jacobian = np.where(better[:, None, None], shape[1], jacobian)
        current = current.accept(better, candidate)
        damping = np.where(better, np.maximum(damping / 10.0, 1e-12), damping * 8.0)
    return solution, weights


def _step(
    current: _Linearisation, theta: Floats, damping: Floats, identity: Floats
) -> tuple[Floats, Floats]:
    """Return the damped step, (M, 5), and its promised drop of the objective, (M,).

    A coordinate at a bound stays if its step would cross the bound.
    """
    at_low = (theta <= LOWER_BOUNDS) & (current.gradient < 0)
    at_high = (theta >= UPPER_BOUNDS) & (current.gradient > 0)
    stuck = at_low | at_high
    pull = np.where(stuck, 0.0, current.gradient)
    diagonal = np.maximum(
        np.einsum("mii->mi", current.curvature), 1e-12 * current.objective[:, None] + 1e-300
    )
    system = current.curvature + (damping[:, None] * diagonal)[:, :, None] * identity
    held = stuck[:, :, None] | stuck[:, None, :]
    system = np.where(held, identity * diagonal[:, :, None], system)
    step = np.linalg.solve(system, pull[:, :, None])[:, :, 0]
    return step, np.sum(pull * step, axis=-1)


def estimate_shift(
    curves: Curves, estimate: JointEstimate, mask: np.ndarray
) -> tuple[Floats, Floats]:
    """Return the shift of ln(axis) of the optimum of some configurations above the estimate's,
    (M,), and its standard error.

    One Gauss-Newton step on their residuals from their mean.
    """
    _, jacobian = evaluate_shape(estimate.theta, curves.x[mask], curves.c[mask])
    root = np.sqrt(curves.seeds[mask]) / curves.loss[..., mask]
    column = jacobian[:, :, 3]
    weight = root**2 / np.sum(root**2, axis=-1, keepdims=True)
    column = (column - np.sum(weight * column, axis=-1, keepdims=True)) * root
    square = np.maximum(np.sum(column**2, axis=-1), 1e-300)
    shift = np.sum(column * estimate.residuals[:, mask], axis=-1) / square
    return shift, np.sqrt(estimate.variance / square)
