"""IsoFLOP profiles fitted jointly: one asymmetric shape for all budgets, their minima on one power law.

Within a budget, A/N^alpha + B/D^beta with D ~ C/N is, about its minimum, the shape
    phi(u) = q / (alpha + beta) (e^(-alpha u)/alpha + e^(beta u)/beta - 1/alpha - 1/beta),   u = ln N - ln N*,
with q the curvature at the minimum, so that loss = L*_c + phi(u). A parabola leaves out the asymmetry, which biases N*
where the sizes are not centred on it. Here alpha and beta are common to all budgets, ln N* = k + a ln C, and
q ~ C^(-alpha a) as A/N*^alpha has it. L*_c is free in each budget: nothing is assumed of how the loss falls with
compute, nor that C = 6ND, and what shifts all losses of a budget (a recipe tuned unevenly over budgets) does no harm.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isoflop.fitting.estimators.surface_estimate import EFFICIENT, m_covariance, robust_sd

Floats = np.ndarray
SHAPE = ("ln_q", "left", "right", "k", "exponent")
LOW = np.array([-25.0, 0.02, 0.02, -80.0, -4.0])
HIGH = np.array([20.0, 5.0, 5.0, 80.0, 5.0])
_ITERATIONS = 120
_SMALL = 1e-13
_GIVEN_UP = 1e9  # damping


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

    @property
    def budgets(self) -> int:
        return int(self.group.max()) + 1

    @property
    def parameters(self) -> int:
        return self.budgets + len(SHAPE)

    def part(self, keep: np.ndarray) -> Curves:
        """Some of the configurations, on the same means."""
        group = np.unique(self.group[keep], return_inverse=True)[1]
        return Curves(self.x[keep], self.c[keep], group, self.loss[..., keep], self.seeds[keep])

    def sets(self, which: np.ndarray) -> Curves:
        """Some of the sets of losses, where there are several."""
        return self if self.loss.ndim == 1 else dataclasses.replace(self, loss=self.loss[which])


@dataclass(frozen=True, eq=False)
class JointEstimate:
    """M estimates.

    Attributes:
        theta: ln q at c = 0, alpha, beta, k, exponent, (M, 5).
        floor: L*_c, (M, B).
        spread: covariance of theta, (M, 5, 5).
        variance: of one run's relative residual, (M,).
        even: probability of noise as uneven, if it were even, (M,).
        delta: Huber's, (M,).
        objective: the weighted sum of squared relative residuals, (M,).
        residuals: relative, times the root of the seeds, (M, K).
    """

    theta: Floats
    floor: Floats
    spread: Floats
    variance: Floats
    even: Floats
    delta: Floats
    objective: Floats
    residuals: Floats


def shape(theta: Floats, x: Floats, c: Floats) -> tuple[Floats, Floats]:
    """phi, (M, K), and its gradient by theta, (M, K, 5)."""
    ln_q, alpha, beta, k, a = theta.T[:, :, None]
    u = x - k - a * c
    left, right, total = np.exp(-alpha * u), np.exp(beta * u), alpha + beta
    height = np.exp(ln_q - alpha * a * c) / total
    phi = height * (left / alpha + right / beta - 1.0 / alpha - 1.0 / beta)
    slope = height * (right - left)
    gradient = np.empty((*phi.shape, len(SHAPE)))
    gradient[..., 0] = phi
    gradient[..., 1] = (
        height * ((1.0 - left) / alpha**2 - u * left / alpha) - phi / total - a * c * phi
    )
    gradient[..., 2] = height * ((1.0 - right) / beta**2 + u * right / beta) - phi / total
    gradient[..., 3] = -slope
    gradient[..., 4] = -c * slope - alpha * c * phi
    return phi, gradient


def fit_curves(curves: Curves, first: Floats, delta: float | None) -> JointEstimate:
    """Least squares of relative residuals, or Huber's (`delta` None: adaptive), for M problems at once.

    Args:
        curves: losses (K,) for all starts, or (M, K).
        first: theta to begin at, (M, 5).
        delta: in relative residuals.
    """
    limit = np.full(len(first), np.inf if delta is None else delta)
    with np.errstate(over="ignore", invalid="ignore"):  # where a step goes so far, it is not taken
        theta, weight = _descend(curves, np.clip(first, LOW, HIGH), limit)
        if delta is None:
            for _ in range(2):
                spread = robust_sd(
                    _least_squares(curves, theta, weight).residuals, curves.parameters
                )
                limit = np.where(spread > 1e-12, EFFICIENT * spread, np.inf)
                theta, weight = _descend(curves, theta, limit)
    here = _least_squares(curves, theta, weight)
    off = curves.x - theta[:, [3]] - theta[:, [4]] * curves.c
    places = np.stack([np.broadcast_to(curves.c, off.shape), off, off**2], axis=-1)
    of_floor = curves.seeds / np.bincount(curves.group, curves.seeds)[curves.group]
    spread, variance, even = m_covariance(
        here.columns, here.residuals, limit, curves.parameters, places, of_floor
    )
    return JointEstimate(
        theta, here.floor, spread, variance, even, limit, here.objective, here.residuals
    )


def columns_of(curves: Curves, theta: Floats) -> tuple[Floats, Floats]:
    """Columns of theta in the relative residuals, (K, 5), freed of those of L*_c, (K, B); times the root of seeds."""
    here = _least_squares(curves, theta[None], np.ones((1, len(curves.x))))
    floors = np.eye(curves.budgets)[curves.group] * (np.sqrt(curves.seeds) / curves.loss)[:, None]
    return here.columns[0], floors


def starts(curves: Curves) -> Floats:
    """24 crude starts: the minimum of the median budget at its best run, a few shapes and exponents."""
    mean = (
        curves.loss
        / np.bincount(curves.group, curves.loss)[curves.group]
        * np.bincount(curves.group)[curves.group]
    )
    best = [
        curves.x[curves.group == g][np.argmin(mean[curves.group == g])]
        for g in range(curves.budgets)
    ]
    depth = np.median([np.ptp(curves.loss[curves.group == g]) for g in range(curves.budgets)])
    spread = max(
        float(np.median([np.ptp(curves.x[curves.group == g]) for g in range(curves.budgets)])), 1e-3
    )
    curvature = np.log(max(8.0 * depth / spread**2, 1e-8))
    middle = float(np.median(best))
    shapes = [(0.2, 0.2), (0.4, 0.4), (0.8, 0.8), (0.7, 0.35), (0.35, 0.7), (1.2, 0.4)]
    return np.array(
        [[curvature, *pair, middle, a] for pair in shapes for a in (0.2, 0.4, 0.6, 0.8)]
    )


class _Step(NamedTuple):
    """A weighted least-squares problem at theta, with L*_c eliminated."""

    objective: Floats  # (M,)
    gradient: Floats  # (M, 5)
    curvature: Floats  # (M, 5, 5)
    residuals: Floats  # (M, K), times the root of the seeds
    columns: Floats  # (M, K, 5), times the root of the seeds
    floor: Floats  # (M, B)

    def some(self, which: np.ndarray) -> _Step:
        """Some of the problems."""
        return _Step(*(part[which] for part in self))

    def replaced(self, better: np.ndarray, other: _Step) -> _Step:
        """Those of another where it is better."""
        parts: list[Floats] = []
        for mine, theirs in zip(self, other, strict=True):
            parts.append(np.where(better.reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine))
        return _Step(*parts)


def _least_squares(curves: Curves, theta: Floats, weight: Floats) -> _Step:
    """`weight` (M, K) is Huber's, at most 1."""
    phi, jacobian = shape(theta, curves.x, curves.c)
    member = np.eye(curves.budgets)[curves.group]
    root = np.sqrt(curves.seeds) / curves.loss
    full = weight * root**2
    mass = full @ member
    floor = ((full * (curves.loss - phi)) @ member) / mass
    residuals = (curves.loss - phi - floor[:, curves.group]) * root
    mean = member.T @ (full[:, :, None] * jacobian) / mass[:, :, None]
    columns = (jacobian - mean[:, curves.group]) * np.broadcast_to(root, phi.shape)[..., None]
    pulled = columns * weight[:, :, None]
    gradient = (residuals[:, None, :] @ pulled)[:, 0, :]
    objective = np.sum(weight * residuals**2, axis=-1)
    return _Step(
        objective, gradient, np.swapaxes(columns, -1, -2) @ pulled, residuals, columns, floor
    )


def _descend(curves: Curves, theta: Floats, limit: Floats) -> tuple[Floats, Floats]:
    """Levenberg and Marquardt's steps, the weights of Huber's loss taken anew after each; returns theta and weights.

    Problems that are done leave the batch.
    """
    robust, identity = bool(np.isfinite(limit).any()), np.eye(len(SHAPE))
    out: Floats = theta.copy()
    weights: Floats = np.ones((len(theta), len(curves.x)))
    alive: np.ndarray = np.arange(len(theta))
    weight: Floats = weights.copy()
    damping: Floats = np.full(len(theta), 1e-3)
    mine: Curves = curves
    here: _Step = _least_squares(mine, theta, weight)
    for _ in range(_ITERATIONS):
        if robust:
            weight = np.minimum(
                1.0, limit[alive, None] / np.maximum(np.abs(here.residuals), 1e-300)
            )
            here = _least_squares(mine, theta, weight)
        stuck = ((theta <= LOW) & (here.gradient < 0)) | ((theta >= HIGH) & (here.gradient > 0))
        pull = np.where(stuck, 0.0, here.gradient)
        diagonal = np.maximum(
            np.einsum("mii->mi", here.curvature), 1e-12 * here.objective[:, None] + 1e-300
        )
        system = here.curvature + (damping[:, None] * diagonal)[:, :, None] * identity
        system = np.where(
            stuck[:, :, None] | stuck[:, None, :], identity * diagonal[:, :, None], system
        )
        step = np.linalg.solve(system, pull[:, :, None])[:, :, 0]
        go = (np.sum(pull * step, axis=-1) > _SMALL * here.objective) & (damping < _GIVEN_UP)
        out[alive], weights[alive] = theta, weight
        if not go.any():
            break
        if not go.all():
            alive, theta, weight, damping, step = (
                alive[go],
                theta[go],
                weight[go],
                damping[go],
                step[go],
            )
            here, mine = here.some(go), curves.sets(alive)
        trial = np.clip(theta + step, LOW, HIGH)
        there = _least_squares(mine, trial, weight)
        better = there.objective <= here.objective
        theta = np.where(better[:, None], trial, theta)
        here = here.replaced(better, there)
        damping = np.where(better, np.maximum(damping / 10.0, 1e-12), damping * 8.0)
    return out, weights


def shift_of(curves: Curves, estimate: JointEstimate, there: np.ndarray) -> tuple[Floats, Floats]:
    """How far ln(axis) of the optimum of some configurations lies above the estimate's, (M,), and its standard error.

    One Gauss-Newton step on their residuals from their mean.
    """
    _, jacobian = shape(estimate.theta, curves.x[there], curves.c[there])
    root = np.sqrt(curves.seeds[there]) / curves.loss[..., there]
    column = jacobian[:, :, 3]
    weight = root**2 / np.sum(root**2, axis=-1, keepdims=True)
    column = (column - np.sum(weight * column, axis=-1, keepdims=True)) * root
    square = np.maximum(np.sum(column**2, axis=-1), 1e-300)
    return np.sum(column * estimate.residuals[:, there], axis=-1) / square, np.sqrt(
        estimate.variance / square
    )
