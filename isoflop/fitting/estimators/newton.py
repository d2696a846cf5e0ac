"""L = E + A / N^alpha + B / D^beta by damped Newton: many starts and many resamples as one batch.

The five unknowns are theta = (ln E, ln A', ln B', alpha, beta), where A' and B' are the terms at the mean of ln N and
ln D: centred so, the system is well conditioned and crude starts reach the optimum. Residuals are of ln loss (Huber) or
of the loss (least squares).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

Floats = np.ndarray
Scale = Literal["log", "loss"]
NAMES = ("E", "A", "B", "alpha", "beta")
LEAST_E = 10.0  # ln E may fall so far below the mean ln loss; there E is nothing
_ARE_LOGS = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
EXPONENTS = (1e-3, 8.0)
_START_EXPONENTS = (0.15, 0.4, 0.65, 0.9)
_START_E = (0.3, 0.635, 0.97)
_TERMS = 50.0  # ln A' and ln B' lie within so much of the mean ln loss
_CELLS = 32_768  # of an array in one chunk: it stays in a core's cache
_THREADS = 2
_ITERATIONS = 300
_GENTLE = 4  # first steps with the re-weighted curvature, which is never indefinite
_DAMPING = (1e-12, 1e-3, 1e10)  # least, first, and that at which a problem is given up
ROUNDING = 1e-15  # an objective of relative residuals near 1e-8: no noise
_SMALL = (
    1e-15  # a step that promises to lower the objective by less than this share of it is the last
)


@dataclass(frozen=True, eq=False)
class Points:
    """What is fitted: ln N and ln D about their means, and the loss, each (K,).

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
    def of(cls, params: Floats, tokens: Floats, loss: Floats, scale: Scale = "log") -> Points:
        x, y = np.log(params), np.log(tokens)
        return cls(
            x - x.mean(),
            y - y.mean(),
            np.asarray(loss, dtype=np.float64),
            x.mean(),
            y.mean(),
            scale,
        )

    def __len__(self) -> int:
        return len(self.loss)

    def with_loss(self, loss: Floats) -> Points:
        """The same places with other losses, (K,), or (M, K): one row a problem."""
        return Points(self.x, self.y, loss, self.x_mean, self.y_mean, self.scale)

    def bounds(self) -> tuple[Floats, Floats]:
        """Least and greatest theta, (5,) or a row a problem."""
        middle = np.log(self.loss).mean(axis=-1)[..., None]
        low = np.array([-LEAST_E, -_TERMS, -_TERMS, 0.0, 0.0]) + middle * _ARE_LOGS
        high = np.array([0.0, _TERMS, _TERMS, 0.0, 0.0]) + middle * _ARE_LOGS
        return low + EXPONENTS[0] * (1.0 - _ARE_LOGS), high + EXPONENTS[1] * (1.0 - _ARE_LOGS)

    def natural(self, theta: Floats) -> Floats:
        """theta (..., 5) as E, A, B, alpha, beta for uncentred N and D."""
        e, a, b, alpha, beta = np.moveaxis(np.asarray(theta), -1, 0)
        with np.errstate(over="ignore"):
            return np.stack(
                [
                    np.exp(e),
                    np.exp(a + alpha * self.x_mean),
                    np.exp(b + beta * self.y_mean),
                    alpha,
                    beta,
                ],
                axis=-1,
            )

    def terms(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """The three terms at the points for theta (..., 5): E (..., 1), A/N^alpha and B/D^beta (..., K)."""
        e, a, b, alpha, beta = (v[..., None] for v in np.moveaxis(np.asarray(theta), -1, 0))
        return np.exp(e), np.exp(a - alpha * self.x), np.exp(b - beta * self.y)

    def fitted(self, theta: Floats) -> Floats:
        """Loss at the points, (..., K)."""
        e, p, q = self.terms(theta)
        return e + p + q

    def jacobian(self, theta: Floats) -> Floats:
        """d(ln loss or loss)/d(theta) at the points, (..., K, 5)."""
        e, p, q = self.terms(theta)
        columns = np.stack([np.broadcast_to(e, p.shape), p, q, -self.x * p, -self.y * q], axis=-1)
        return columns / (e + p + q)[..., None] if self.scale == "log" else columns


@dataclass(frozen=True, eq=False)
class Solutions:
    """Where a batch of M problems ended.

    Attributes:
        theta: (M, 5).
        objective: sum of w * huber(residual), (M,).
        slope: largest cosine between the residuals and a column of the Jacobian that is not at a bound, (M,): 0 at a
            minimum, whatever the units; and 0 where the residuals are rounding.
    """

    theta: Floats
    objective: Floats
    slope: Floats

    @property
    def best(self) -> int:
        """The problem with the least objective."""
        return int(np.argmin(self.objective))


def solve(
    points: Points, start: Floats, delta: Floats | float, weight: Floats | None = None
) -> Solutions:
    """Minimises sum_k w_k huber_delta(r_k), r the residual of ln loss or loss, for M problems at once.

    Args:
        points: K places and losses; the losses may be (M, K).
        start: theta to begin at, (M, 5).
        delta: where Huber's loss turns linear, in units of the residual; infinite is least squares. Shape (), (K,),
            (M, 1) or (M, K).
        weight: (M, K), or (K,) for all; default 1.
    """
    start = np.atleast_2d(np.asarray(start, dtype=np.float64))
    count, rows = len(start), rows_of(len(points.x))
    deltas = np.atleast_2d(np.asarray(delta, dtype=np.float64))
    weights = np.ones(len(points.x)) if weight is None else np.asarray(weight, dtype=np.float64)
    loss = points.loss

    def part(at: int) -> tuple[Floats, ...]:
        here = slice(at, at + rows)
        w = weights if weights.ndim == 1 else weights[here]
        z = loss if loss.ndim == 1 else loss[here]
        d = deltas if len(deltas) == 1 else deltas[here]
        return _newton(_Curve(points, z, w, d), start[here])

    parts = in_chunks(part, range(0, count, rows))
    return Solutions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def rows_of(places: int) -> int:
    """How many problems over so many places are one chunk."""
    return max(1, _CELLS // places)


def in_chunks(work: Callable[[int], tuple[Floats, ...]], chunks: range) -> list[tuple[Floats, ...]]:
    """Chunks on two threads (numpy lets go of the interpreter in its loops), in order: the same digits as on one."""
    if len(chunks) == 1:
        return [work(chunks[0])]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, chunks))


class _Curve:
    """Objective, gradient and curvature of a chunk of problems."""

    def __init__(self, points: Points, loss: Floats, weight: Floats, delta: Floats) -> None:
        self.points, self.weight, self.delta = points, weight, delta
        self.low, self.high = points.with_loss(loss).bounds()
        self.log = points.scale == "log"
        self.target = np.log(loss) if self.log else loss
        x, y, one = points.x, points.y, np.ones_like(points.x)
        self.of_a = np.stack([one, x, x * x], axis=1)
        self.of_b = np.stack([one, y, y * y], axis=1)
        self.of_ab = np.stack([one, x, y, x * y], axis=1)

    def at(self, which: np.ndarray, theta: Floats, gentle: bool) -> tuple[Floats, Floats, Floats]:
        """f (m,), gradient (m, 5) and Hessian (m, 5, 5) of problems `which` at theta (m, 5).

        `gentle` takes the curvature of the re-weighted least squares problem instead, which is never indefinite.
        """
        w = self.weight if self.weight.ndim == 1 else self.weight[which]
        z = self.target if self.target.ndim == 1 else self.target[which]
        delta = self.delta if len(self.delta) == 1 else self.delta[which]
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
        if gentle:
            v = np.where(residual == clipped, w, u / np.where(residual == 0.0, 1.0, residual))
            own = 0.0
        else:
            v = w * (residual == clipped)
            own = u
        both = (
            v + own if self.log else v
        )  # the log of a sum bends down by the product of the shares
        ep, eq, pq = both * e * p, both * e * q, both * p * q
        a = (both * p - own) * p
        b = (both * q - own) * q
        ee = np.sum((both * e - own) * e, axis=1)
        gradient = self._lift_gradient(
            -np.sum(u * e, axis=1), -(u * p) @ self.of_a[:, :2], -(u * q) @ self.of_b[:, :2]
        )
        moments = (
            ep @ self.of_a[:, :2],
            eq @ self.of_b[:, :2],
            a @ self.of_a,
            b @ self.of_b,
            pq @ self.of_ab,
        )
        return value, gradient, self._lift_hessian(ee, *moments)

    @staticmethod
    def _lift_gradient(e: Floats, a: Floats, b: Floats) -> Floats:
        """From moments over ln terms to (e, a, b, alpha, beta): ln(A/N^alpha) falls by x with alpha."""
        return np.stack([e, a[:, 0], b[:, 0], -a[:, 1], -b[:, 1]], axis=1)

    @staticmethod
    def _lift_hessian(
        ee: Floats, ea: Floats, eb: Floats, aa: Floats, bb: Floats, ab: Floats
    ) -> Floats:
        rows = [
            [ee, ea[:, 0], eb[:, 0], -ea[:, 1], -eb[:, 1]],
            [ea[:, 0], aa[:, 0], ab[:, 0], -aa[:, 1], -ab[:, 2]],
            [eb[:, 0], ab[:, 0], bb[:, 0], -ab[:, 1], -bb[:, 1]],
            [-ea[:, 1], -aa[:, 1], -ab[:, 1], aa[:, 2], ab[:, 3]],
            [-eb[:, 1], -ab[:, 2], -bb[:, 1], ab[:, 3], bb[:, 2]],
        ]
        return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _newton(curve: _Curve, start: Floats) -> tuple[Floats, Floats, Floats]:
    """Damped Newton; problems that are done leave the batch. Returns theta, objective, slope."""
    low, high = (np.broadcast_to(end, start.shape) for end in (curve.low, curve.high))
    out = np.clip(start, low, high)
    objective, slope = np.full(len(start), np.inf), np.full(len(start), np.inf)
    alive, theta = np.arange(len(start)), out.copy()
    damping = np.full(len(start), _DAMPING[1])
    value, gradient, hessian = curve.at(alive, theta, True)
    for turn in range(_ITERATIONS):
        step, drop, cosine = _step(theta, value, gradient, hessian, damping, low, high)
        done = (drop <= _SMALL * value) | (damping > _DAMPING[2])
        out[alive], objective[alive], slope[alive] = theta, value, cosine
        go = ~done
        if not go.any():
            break
        alive, theta, value, gradient, hessian, damping, step, low, high = (
            part[go] for part in (alive, theta, value, gradient, hessian, damping, step, low, high)
        )
        trial = np.clip(theta + step, low, high)
        new = curve.at(alive, trial, turn < _GENTLE)
        better = new[0] <= value
        theta = np.where(better[:, None], trial, theta)
        value = np.where(better, new[0], value)
        gradient = np.where(better[:, None], new[1], gradient)
        hessian = np.where(better[:, None, None], new[2], hessian)
        damping = np.where(better, np.maximum(damping / 16.0, _DAMPING[0]), damping * 8.0)
    return out, objective, slope


def _step(
    theta: Floats,
    value: Floats,
    gradient: Floats,
    hessian: Floats,
    damping: Floats,
    low: Floats,
    high: Floats,
) -> tuple[Floats, Floats, Floats]:
    """The damped step (m, 5), the drop of the objective that it promises (m,), and the slope (m,) of `Solutions`.

    A coordinate at a bound that would be pushed over it stays.
    """
    free = ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))
    pull = gradient * free
    system = hessian * (free[:, :, None] & free[:, None, :])
    size = np.maximum(np.abs(np.einsum("mii->mi", system)), 1e-12 * value[:, None] + 1e-300)
    np.einsum("mii->mi", system)[:] += np.where(free, damping[:, None] * size, 1.0)
    step = -np.linalg.solve(system, pull[:, :, None])[:, :, 0]
    cosine = np.max(np.abs(pull) / np.sqrt(size * np.maximum(value, ROUNDING)[:, None]), axis=1)
    return step, np.abs(np.sum(pull * step, axis=1)), cosine


def starts(points: Points) -> Floats:
    """48 crude starts, (48, 5): alpha and beta in .15, .4, .65, .9, E in .3, .635, .97 of the least loss.

    The terms at the mean are then least squares of the loss, each at least a thousandth of the mean loss above E.
    """
    found = []
    least, loss = float(points.loss.min()), points.loss
    for alpha, beta, share in itertools.product(_START_EXPONENTS, _START_EXPONENTS, _START_E):
        e = share * least
        columns = np.stack([np.exp(-alpha * points.x), np.exp(-beta * points.y)], axis=1)
        terms = np.linalg.lstsq(columns, loss - e, rcond=None)[0]
        a, b = np.log(np.maximum(terms, 1e-3 * np.mean(loss - e)))
        found.append([np.log(e), a, b, alpha, beta])
    return np.array(found)
