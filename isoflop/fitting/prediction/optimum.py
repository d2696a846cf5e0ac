"""The optimum of a parametric law at a budget: with C = 6ND, or over models that can be made and what they cost.

At a budget C a model of N parameters sees D = C / f(N) tokens, with f its training FLOPs per token: 6N, or what the
architecture comes to (head and attention included). Best is the N at which A/N^alpha + B/D^beta is least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isoflop.fitting.estimators.intervals import Interval
from isoflop.fitting.prediction.recipe_models import Family
from isoflop.fitting.results.base import NEAR_OPTIMAL_SHARES
from isoflop.fitting.results.parametric_fit import SurfaceCore, optimum
from isoflop.shapes import ModelShape

Floats = np.ndarray
FACTORS = (0.25, 0.5, 2.0)
"""Sizes, as multiples of N*, whose cost at equal loss is told."""
_REACH = 300.0  # sizes looked at, above and below the closed form's optimum
_LOCAL = 4.0  # sizes, above and below, that show how the cost of a token grows


@dataclass(frozen=True)
class Near:
    """Sizes that cost at most a share of the least loss.

    Attributes:
        share: of the least loss.
        low, high: parameters; None where it goes on beyond what was looked at.
    """

    share: float
    low: float | None
    high: float | None


class EqualLoss(NamedTuple):
    """Another size, trained until it has the loss of the optimum.

    Attributes:
        factor: its N over N*, as asked for.
        params, tokens, flops: of the run; tokens and FLOPs are NaN where no number of tokens is enough.
        ratio: its FLOPs over the budget.
        width: of the model; None for C = 6ND.
    """

    factor: float
    params: float
    tokens: float
    flops: float
    ratio: float
    width: int | None


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where the loss is least at a budget.

    Attributes:
        params, tokens, loss: there.
        near: sizes within 0.1 % and 1 % of the least loss.
        equal_loss: what smaller and larger models would cost.
        growth: d ln f / d ln N there, and its derivative by ln N: 1 and 0 for C = 6ND.
        shape: the model; None for C = 6ND.
    """

    params: float
    tokens: float
    loss: float
    near: tuple[Near, ...]
    equal_loss: tuple[EqualLoss, ...]
    growth: tuple[float, float] = (1.0, 0.0)
    shape: ModelShape | None = None

    def intervals(self, core: SurfaceCore, flops: float, confidence: float) -> dict[str, Interval]:
        """Of ln N*, ln D* and ln loss, if the law is true: t intervals by the delta method.

        The optimum is where ln alpha + ln(A/N^alpha) = ln beta + ln(B/D^beta) + ln s with s = d ln f / d ln N; its
        derivatives by theta follow from that, and those of the loss are at fixed N and D.
        """
        u, v = np.log(self.params), np.log(self.tokens)
        alpha, beta = core.theta[3:]
        slope, bend = self.growth
        by_theta = np.array(
            [
                0.0,
                1.0,
                -1.0,
                1.0 / alpha - (u - core.points.x_mean),
                v - core.points.y_mean - 1.0 / beta,
            ]
        )
        gradient = by_theta / (alpha + beta * slope + bend / slope)
        return {
            "params": core.t(float(u), gradient, confidence),
            "tokens": core.t(float(v), -slope * gradient, confidence),
            "loss": core.loss_interval(self.params, self.tokens, confidence),
        }


def closed_form(core: SurfaceCore, flops: float) -> Optimum:
    """With C = 6ND."""
    size, data, ln_loss = (float(v) for v in optimum(core.points, core.theta, flops)[0])
    loss = float(np.exp(ln_loss))
    near = []
    for share in NEAR_OPTIMAL_SHARES:
        ends = [_end(core, flops, size, sign, loss * (1.0 + share)) for sign in (-1.0, 1.0)]
        near.append(Near(share, *ends))
    equal = []
    for factor in FACTORS:
        params = factor * float(np.exp(size))
        tokens = core.tokens_for(params, loss)
        equal.append(
            EqualLoss(
                factor, params, tokens, 6.0 * params * tokens, 6.0 * params * tokens / flops, None
            )
        )
    return Optimum(float(np.exp(size)), float(np.exp(data)), loss, tuple(near), tuple(equal))


def over_shapes(core: SurfaceCore, flops: float, family: Family) -> Optimum:
    """Over the models of a family and their FLOPs."""
    middle = float(np.exp(optimum(core.points, core.theta, flops)[0][0]))

    def losses(shapes: list[ModelShape]) -> Floats:
        costs = np.array([float(shape.train_flops_per_token) for shape in shapes])
        return core.loss_at(
            np.array([float(family.size(shape)) for shape in shapes]), flops / costs
        )

    coarse = family.shapes(middle / _REACH, middle * _REACH)
    place = int(np.argmin(losses(coarse)))
    around = coarse[max(place - 1, 0)].width, coarse[min(place + 1, len(coarse) - 1)].width
    fine = family.between(*around)
    best = fine[int(np.argmin(losses(fine)))]
    least = float(losses([best])[0])
    tokens = flops / best.train_flops_per_token
    near = tuple(_near(share, least, coarse, losses(coarse), family) for share in NEAR_OPTIMAL_SHARES)
    equal = tuple(_equal(core, factor, best, least, flops, family) for factor in FACTORS)
    size = float(family.size(best))
    return Optimum(size, tokens, least, near, equal, _growth(coarse, size, family), best)


def _end(core: SurfaceCore, flops: float, size: float, sign: float, limit: float) -> float | None:
    """The N on one side of ln N* = `size` at which the loss at C = 6ND is a limit; None if it stays below."""

    def loss(off: float) -> float:
        with np.errstate(
            over="ignore", divide="ignore"
        ):  # so far out that N or D is no number, the loss is infinite
            params = np.exp(size + sign * off)
            return float(core.loss_at(params, flops / (6.0 * params)))

    inner, outer = 0.0, 0.1
    while loss(outer) < limit:
        inner, outer = outer, 2.0 * outer
        if outer > 100.0:
            return None
    return float(np.exp(size + sign * _bisect(lambda off: loss(off) < limit, inner, outer)))


def _bisect(below: Callable[[float], bool], inner: float, outer: float) -> float:
    for _ in range(60):
        middle = 0.5 * (inner + outer)
        inner, outer = (middle, outer) if below(middle) else (inner, middle)
    return outer


def _near(
    share: float, least: float, shapes: list[ModelShape], losses: Floats, family: Family
) -> Near:
    inside = np.flatnonzero(losses <= least * (1.0 + share))
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, len(shapes) - 1)
    low = float(family.size(shapes[first])) if first > 0 or shapes[0].width == family.step else None
    return Near(share, low, float(family.size(shapes[last])) if last < len(shapes) - 1 else None)


def _equal(
    core: SurfaceCore, factor: float, best: ModelShape, loss: float, flops: float, family: Family
) -> EqualLoss:
    shape = family.nearest(factor * family.size(best))
    params = float(family.size(shape))
    tokens = core.tokens_for(params, loss)
    spent = tokens * shape.train_flops_per_token
    return EqualLoss(factor, params, tokens, spent, spent / flops, shape.width)


def _growth(shapes: list[ModelShape], size: float, family: Family) -> tuple[float, float]:
    """d ln f / d ln N at a size and its derivative, from a quadratic through the models about it."""
    x = np.log([family.size(shape) for shape in shapes]) - np.log(size)
    y = np.log([float(shape.train_flops_per_token) for shape in shapes])
    here = np.abs(x) <= np.log(_LOCAL)
    if np.count_nonzero(here) < 4:
        return 1.0, 0.0
    curved, slope, _ = np.polyfit(x[here], y[here], 2)
    return float(slope), float(2.0 * curved)
