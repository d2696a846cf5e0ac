"""L = E + A / N^alpha + B / D^beta by damped Newton: many starts and many resamples as one batch.

The five unknowns are theta = (ln E, ln A', ln B', alpha, beta), where A' and B' are the terms at
the mean of ln N and ln D. So centred, the system is well conditioned and crude starts reach the
optimum. Residuals are of ln loss (Huber) or of the loss (least squares).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.frames import Floats

Scale = Literal["log", "loss"]
PARAMETER_NAMES = ("E", "A", "B", "alpha", "beta")
EXPONENT_BOUNDS = (1e-3, 8.0)
MAX_LN_LOSS_OVER_E = 10.0
"""Bound of ln E below the mean ln loss; E is nothing there."""
ROUNDING_OBJECTIVE = 1e-15
"""Objective of relative residuals near 1e-8: no noise."""
_IS_LOG = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
_MAX_LN_TERM_OVER_LOSS = 50.0  # bound of ln A' and ln B' about the mean ln loss
_START_EXPONENTS = (0.15, 0.4, 0.65, 0.9)
_START_E_SHARES = (0.3, 0.635, 0.97)
_CHUNK_CELLS = 32_768  # of an array in one chunk: it stays in a core's cache
_THREADS = 2
_MAX_ITERATIONS = 300
_CYCLE_ITERATIONS = 8  # in which the damping of residuals at rounding level repeats itself
_REWEIGHTED_ITERATIONS = 4  # the first: their curvature is never indefinite
_MIN_DAMPING, _FIRST_DAMPING, _MAX_DAMPING = 1e-12, 1e-3, 1e10
_MIN_RELATIVE_DROP = 1e-15  # promised share of the objective below which a step is the last


@dataclass(frozen=True, eq=False)
class Observations:
    """Sizes and losses that are fitted: ln N and ln D about their means, and the loss, each (K,).

    Attributes:
        scale: residuals of `log` loss or of the `loss` itself.
    """

    x: Floats
    y: Floats
    loss: Floats
    x_mean: float
    y_mean: float
    scale: Scale = "log"

    @classmethod
    def from_counts(
        cls, params: Floats, tokens: Floats, loss: Floats, scale: Scale = "log"
    ) -> Observations:
        """Return the observations of K parameter counts, token counts and losses."""
        x, y = np.log(params), np.log(tokens)
        x_mean, y_mean = x.mean(), y.mean()
        return cls(
            x - x_mean, y - y_mean, np.asarray(loss, dtype=np.float64), x_mean, y_mean, scale
        )

    def __len__(self) -> int:
        return len(self.loss)

    def with_loss(self, loss: Floats) -> Observations:
        """Return the same sizes with other losses, (K,), or (M, K): one row a problem."""
        return Observations(self.x, self.y, loss, self.x_mean, self.y_mean, self.scale)

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the least and the greatest theta, (5,) or a row a problem."""
        middle = np.log(self.loss).mean(axis=-1)[..., None]
        term = _MAX_LN_TERM_OVER_LOSS
        low = np.array([-MAX_LN_LOSS_OVER_E, -term, -term, 0.0, 0.0]) + middle * _IS_LOG
        high = np.array([0.0, term, term, 0.0, 0.0]) + middle * _IS_LOG
        least, greatest = EXPONENT_BOUNDS
        return low + least * (1.0 - _IS_LOG), high + greatest * (1.0 - _IS_LOG)

    def natural(self, theta: Floats) -> Floats:
        """Return theta (..., 5) as E, A, B, alpha, beta for uncentred N and D."""
        e, a, b, alpha, beta = np.moveaxis(np.asarray(theta), -1, 0)
        with np.errstate(over="ignore"):
            floor = np.exp(e)
            a_far, b_far = np.exp(a + alpha * self.x_mean), np.exp(b + beta * self.y_mean)
        return np.stack([floor, a_far, b_far, alpha, beta], axis=-1)

    def terms(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the terms for theta (..., 5): E (..., 1), A/N^alpha and B/D^beta (..., K)."""
        e, a, b, alpha, beta = (np.asarray(theta)[..., k, None] for k in range(5))
        return np.exp(e), np.exp(a - alpha * self.x), np.exp(b - beta * self.y)

    def fitted(self, theta: Floats) -> Floats:
        """Return the fitted losses, (..., K)."""
        e, p, q = self.terms(theta)
        return e + p + q

    def jacobian(self, theta: Floats) -> Floats:
        """Return d(ln loss or loss)/d(theta), (..., K, 5)."""
        e, p, q = self.terms(theta)
        columns = np.stack([np.broadcast_to(e, p.shape), p, q, -self.x * p, -self.y * q], axis=-1)
        return columns / (e + p + q)[..., None] if self.scale == "log" else columns


@dataclass(frozen=True, eq=False)
class Solutions:
    """Solutions of a batch of M problems.

    Attributes:
        theta: (M, 5).
        objective: sum of w * huber(residual), (M,).
        gradient_cosine: largest cosine between the residuals and a column of the Jacobian that is
            not at a bound, (M,): 0 at a minimum, whatever the units; and 0 if the residuals are
            rounding.
    """

    theta: Floats
    objective: Floats
    gradient_cosine: Floats

    @property
    def best(self) -> int:
        """Index of the problem with the least objective."""
        return int(np.argmin(self.objective))


def solve(
    points: Observations, start: Floats, delta: Floats | float, weight: Floats | None = None
) -> Solutions:
    """Minimise sum_k w_k huber_delta(r_k), r the residual of ln loss or loss, for M problems.

    Args:
        points: K sizes and losses; the losses may be (M, K).
        start: first theta, (M, 5).
        delta: residual beyond which Huber's loss is linear; infinite is least squares. Shape (),
            (K,), (M, 1) or (M, K).
        weight: (M, K), or (K,) for all; default 1.
    """
    start = np.atleast_2d(np.asarray(start, dtype=np.float64))
    count, rows = len(start), chunk_size(len(points.x))
    deltas = np.atleast_2d(np.asarray(delta, dtype=np.float64))
    weights = np.ones(len(points.x)) if weight is None else np.asarray(weight, dtype=np.float64)
    loss = points.loss

    def solve_chunk(first: int) -> tuple[Floats, ...]:
        chunk = slice(first, first + rows)
        w = weights if weights.ndim == 1 else weights[chunk]
        z = loss if loss.ndim == 1 else loss[chunk]
        d = deltas if len(deltas) == 1 else deltas[chunk]
        return _newton(_Objective(points, z, w, d), start[chunk])

    solved = run_in_chunks(solve_chunk, range(0, count, rows))
    return Solutions(*(np.concatenate(column) for column in zip(*solved, strict=True)))


def chunk_size(observations: int) -> int:
    """Return the number of problems, each over so many observations, in one chunk."""
    return max(1, _CHUNK_CELLS // observations)


def run_in_chunks(
    work: Callable[[int], tuple[Floats, ...]], chunks: range
) -> list[tuple[Floats, ...]]:
    """Run chunks on two threads (numpy releases the interpreter in its loops).

    The results are in order, with the same digits as on one thread.
    """
    if len(chunks) == 1:
        return [work(chunks[0])]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, chunks))


class _Objective:
    """Objective, gradient and curvature of a chunk of problems."""

    def __init__(self, points: Observations, loss: Floats, weight: Floats, delta: Floats) -> None:
        self.points, self.weight, self.delta = points, weight, delta
        self.low, self.high = points.with_loss(loss).bounds()
        self.log = points.scale == "log"
        self.target = np.log(loss) if self.log else loss
        x, y, unit = points.x, points.y, np.ones_like(points.x)
        self.x_moments = np.stack([unit, x, x * x], axis=1)
        self.y_moments = np.stack([unit, y, y * y], axis=1)
        self.xy_moments = np.stack([unit, x, y, x * y], axis=1)

    def evaluate(
        self, problems: np.ndarray, theta: Floats, reweighted: bool
    ) -> tuple[Floats, Floats, Floats]:
        """Return f (m,), gradient (m, 5) and Hessian (m, 5, 5) of m problems at theta (m, 5).

        `reweighted` takes the curvature of the re-weighted least-squares problem instead, which is
        never indefinite.
        """
        w = self.weight if self.weight.ndim == 1 else self.weight[problems]
        z = self.target if self.target.ndim == 1 else self.target[problems]
        delta = self.delta if len(self.delta) == 1 else self.delta[problems]
        e, p, q = self.points.terms(theta)
        total = e + p + q
        if self.log:  # d ln(total) / d ln(term): the share of each term
            residual, inverse = z - np.log(total), 1.0 / total
            e, p, q = e * inverse, p * inverse, q * inverse
        else:
            residual = z - total
            e = np.broadcast_to(e, p.shape)
        clipped = np.clip(residual, -delta, delta)
        value = np.sum(w * clipped * (residual - 0.5 * clipped), axis=1)
        u = w * clipped
        if reweighted:
            v = np.where(residual == clipped, w, u / np.where(residual == 0.0, 1.0, residual))
            bend = 0.0
        else:
            v = w * (residual == clipped)
            bend = u
        # The log of a sum bends down by the product of the shares.
        cross = v + bend if self.log else v
        ep, eq, pq = cross * e * p, cross * e * q, cross * p * q
        a = (cross * p - bend) * p
        b = (cross * q - bend) * q
        ee = np.sum((cross * e - bend) * e, axis=1)
        x_moments, y_moments = self.x_moments, self.y_moments
        gradient = self._lift_gradient(
            -np.sum(u * e, axis=1), -(u * p) @ x_moments[:, :2], -(u * q) @ y_moments[:, :2]
        )
        hessian = self._lift_hessian(
            ee,
            ep @ x_moments[:, :2],
            eq @ y_moments[:, :2],
            a @ x_moments,
            b @ y_moments,
            pq @ self.xy_moments,
        )
        return value, gradient, hessian

    @staticmethod
    def _lift_gradient(e: Floats, a: Floats, b: Floats) -> Floats:
        """Return the gradient by theta, (m, 5), from moments over ln terms.

        ln(A/N^alpha) falls by x with alpha.
        """
        gradient = np.empty((len(e), 5))
        gradient[:, 0] = e
        gradient[:, 1], gradient[:, 2] = a[:, 0], b[:, 0]
        gradient[:, 3], gradient[:, 4] = -a[:, 1], -b[:, 1]
        return gradient

    @staticmethod
    def _lift_hessian(
        ee: Floats, ea: Floats, eb: Floats, aa: Floats, bb: Floats, ab: Floats
    ) -> Floats:
        """Return the Hessian by theta, (m, 5, 5), from moments over ln terms."""
        upper = {
            (0, 0): ee,
            (0, 1): ea[:, 0],
            (0, 2): eb[:, 0],
            (0, 3): -ea[:, 1],
            (0, 4): -eb[:, 1],
            (1, 1): aa[:, 0],
            (1, 2): ab[:, 0],
            (1, 3): -aa[:, 1],
            (1, 4): -ab[:, 2],
            (2, 2): bb[:, 0],
            (2, 3): -ab[:, 1],
            (2, 4): -bb[:, 1],
            (3, 3): aa[:, 2],
            (3, 4): ab[:, 3],
            (4, 4): bb[:, 2],
        }
        hessian = np.empty((len(ee), 5, 5))
        for (row, column), values in upper.items():
            hessian[:, row, column] = hessian[:, column, row] = values
        return hessian


def _newton(problem: _Objective, start: Floats) -> tuple[Floats, Floats, Floats]:
    """Run damped Newton; finished problems leave the batch.

    Returns:
        theta, objective and gradient cosine of `Solutions`.
    """
    low, high = (np.broadcast_to(bound, start.shape) for bound in (problem.low, problem.high))
    solution = np.clip(start, low, high)
    objective, cosines = np.full(len(start), np.inf), np.full(len(start), np.inf)
    alive, theta = np.arange(len(start)), solution.copy()
    damping = np.full(len(start), _FIRST_DAMPING)
    value, gradient, hessian = problem.evaluate(alive, theta, True)
    earlier, earlier_iteration, last = None, 0, _MAX_ITERATIONS - 1
    for iteration in range(_MAX_ITERATIONS):
        step, drop, cosine = _step(theta, value, gradient, hessian, damping, low, high)
        done = (drop <= _MIN_RELATIVE_DROP * value) | (damping > _MAX_DAMPING)
        solution[alive], objective[alive], cosines[alive] = theta, value, cosine
        go = ~done
        if iteration == last or not go.any():
            break
        state = (damping, theta, value, gradient, hessian)
        if earlier is not None and all(map(np.array_equal, state, earlier)):
            last = iteration + (last - iteration) % (iteration - earlier_iteration)
            earlier = None
        elif iteration and iteration % _CYCLE_ITERATIONS == 0:
            earlier, earlier_iteration = state, iteration
        if not go.all():
            alive = alive[go]
            theta, value, gradient, hessian, damping, step, low, high = (
                values[go] for values in (theta, value, gradient, hessian, damping, step, low, high)
            )
        trial = np.clip(theta + step, low, high)
        new = problem.evaluate(alive, trial, iteration < _REWEIGHTED_ITERATIONS)
        better = new[0] <= value
        theta = np.where(better[:, None], trial, theta)
        value = np.where(better, new[0], value)
        gradient = np.where(better[:, None], new[1], gradient)
        hessian = np.where(better[:, None, None], new[2], hessian)
        damping = np.where(better, np.maximum(damping / 16.0, _MIN_DAMPING), damping * 8.0)
    return solution, objective, cosines


def _step(
    theta: Floats,
    value: Floats,
    gradient: Floats,
    hessian: Floats,
    damping: Floats,
    low: Floats,
    high: Floats,
) -> tuple[Floats, Floats, Floats]:
    """Return the damped step (m, 5), its promised drop of the objective (m,), and the gradient
    cosine (m,) of `Solutions`.

    A coordinate at a bound stays if its step would cross the bound.
    """
    free = ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))
    pull = gradient * free
    system = hessian * (free[:, :, None] & free[:, None, :])
    diagonal = np.einsum("mii->mi", system)
    size = np.maximum(np.abs(diagonal), 1e-12 * value[:, None] + 1e-300)
    diagonal += np.where(free, damping[:, None] * size, 1.0)
    step = -np.asarray(np.linalg.solve(system, pull[:, :, None]), dtype=np.float64)[:, :, 0]
    norm = np.sqrt(size * np.maximum(value, ROUNDING_OBJECTIVE)[:, None])
    cosine = np.max(np.abs(pull) / norm, axis=1)
    return step, np.abs(np.sum(pull * step, axis=1)), cosine


def starts(points: Observations) -> Floats:
    """Return 48 crude starts, (48, 5): alpha and beta in .15, .4, .65, .9, E in .3, .635, .97 of
    the least loss.

    The terms at the mean are then least squares of the loss, each at least a thousandth of the
    mean loss above E.
    """
    thetas = []
    least, loss = float(points.loss.min()), points.loss
    for alpha, beta, share in itertools.product(
        _START_EXPONENTS, _START_EXPONENTS, _START_E_SHARES
    ):
        e = share * least
        columns = np.stack([np.exp(-alpha * points.x), np.exp(-beta * points.y)], axis=1)
        terms = np.linalg.lstsq(columns, loss - e, rcond=None)[0]
        a, b = np.log(np.maximum(terms, 1e-3 * np.mean(loss - e)))
        thetas.append([np.log(e), a, b, alpha, beta])
    return np.array(thetas)
