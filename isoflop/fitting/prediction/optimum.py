"""The optimum of a parametric law at a budget: with C = 6ND, or over a recipe's models and their
FLOPs.

At a budget C a model of N parameters trains on D = C / f(N) tokens, with f its training FLOPs per
token: 6N, or those of the architecture (head and attention included). The optimum is the N at which
A/N^alpha + B/D^beta is least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isoflop.fitting.estimators.intervals import Interval
from isoflop.fitting.estimators.surface_estimate import optimum
from isoflop.fitting.prediction.recipe_models import RecipeModels
from isoflop.fitting.results.profile_fit import NEAR_OPTIMAL_SHARES
from isoflop.fitting.results.surface_law import SurfaceLawEstimate
from isoflop.frames import Floats
from isoflop.shapes import ModelShape

EQUAL_LOSS_FACTORS = (0.25, 0.5, 2.0)
"""Sizes, as multiples of N*, for which the cost at equal loss is computed."""
_SEARCH_FACTOR = 300.0  # sizes searched, up to this factor from the closed form's optimum
_LOCAL_FACTOR = 4.0  # sizes, up to this factor from N*, that give the growth of a token's cost


@dataclass(frozen=True)
class NearOptimalRange:
    """Range of sizes whose loss exceeds the least loss by at most a share of it.

    Attributes:
        share: share of the least loss.
        low, high: parameters; None where the range continues beyond the sizes searched.
    """

    share: float
    low: float | None
    high: float | None


class EqualLoss(NamedTuple):
    """Another size, trained until it reaches the loss of the optimum.

    Attributes:
        factor: requested N over N*.
        params, tokens, flops: size of the run; tokens and FLOPs are NaN where no number of tokens
            is enough.
        ratio: its FLOPs over the budget.
        width: width of the model; None for C = 6ND.
    """

    factor: float
    params: float
    tokens: float
    flops: float
    ratio: float
    width: int | None


@dataclass(frozen=True, eq=False)
class Optimum:
    """The point of least loss at a budget.

    Attributes:
        params, tokens, loss: N*, D* and the least loss (nats per token).
        near_optimal: sizes within 0.1% and 1% of the least loss.
        equal_loss: cost of smaller and larger models at the same loss.
        cost_growth: d ln f / d ln N at the optimum, and its derivative by ln N: 1 and 0 for
            C = 6ND.
        shape: the model; None for C = 6ND.
    """

    params: float
    tokens: float
    loss: float
    near_optimal: tuple[NearOptimalRange, ...]
    equal_loss: tuple[EqualLoss, ...]
    cost_growth: tuple[float, float] = (1.0, 0.0)
    shape: ModelShape | None = None

    def intervals(
        self, law: SurfaceLawEstimate, flops: float, confidence: float
    ) -> dict[str, Interval]:
        """Return intervals of ln N*, ln D* and ln loss if the law is true: t intervals by the delta
        method.

        At the optimum ln alpha + ln(A/N^alpha) = ln beta + ln(B/D^beta) + ln s with
        s = d ln f / d ln N. The derivatives of N* and D* by theta follow from this equation; those
        of the loss are at fixed N and D.
        """
        u, v = np.log(self.params), np.log(self.tokens)
        alpha, beta = law.theta[3:]
        slope, bend = self.cost_growth
        by_alpha = 1.0 / alpha - (u - law.points.x_mean)
        by_beta = v - law.points.y_mean - 1.0 / beta
        by_theta = np.array([0.0, 1.0, -1.0, by_alpha, by_beta])
        gradient = by_theta / (alpha + beta * slope + bend / slope)
        return {
            "params": law.t_interval(float(u), gradient, confidence),
            "tokens": law.t_interval(float(v), -slope * gradient, confidence),
            "loss": law.loss_interval(self.params, self.tokens, confidence),
        }


def closed_form_optimum(law: SurfaceLawEstimate, flops: float) -> Optimum:
    """Return the optimum of a law at a budget with C = 6ND."""
    size, data, ln_loss = (float(v) for v in optimum(law.points, law.theta, flops)[0])
    loss = float(np.exp(ln_loss))
    near_optimal = []
    for share in NEAR_OPTIMAL_SHARES:
        ends = [_range_end(law, flops, size, sign, loss * (1.0 + share)) for sign in (-1.0, 1.0)]
        near_optimal.append(NearOptimalRange(share, *ends))
    equal_loss = []
    for factor in EQUAL_LOSS_FACTORS:
        params = factor * float(np.exp(size))
        tokens = law.tokens_for(params, loss)
        cost = 6.0 * params * tokens
        equal_loss.append(EqualLoss(factor, params, tokens, cost, cost / flops, None))
    params, tokens = float(np.exp(size)), float(np.exp(data))
    return Optimum(params, tokens, loss, tuple(near_optimal), tuple(equal_loss))


def optimum_over_models(law: SurfaceLawEstimate, flops: float, models: RecipeModels) -> Optimum:
    """Return the optimum of a law at a budget over a recipe's models and their FLOPs.

    Raises:
        FitError: the recipe has no model near the optimum.
    """
    middle = float(np.exp(optimum(law.points, law.theta, flops)[0][0]))

    def losses(shapes: list[ModelShape]) -> Floats:
        costs = np.array([float(shape.train_flops_per_token) for shape in shapes])
        sizes = np.array([float(models.size(shape)) for shape in shapes])
        return law.loss_at(sizes, flops / costs)

    coarse = models.shapes(middle / _SEARCH_FACTOR, middle * _SEARCH_FACTOR)
    index = int(np.argmin(losses(coarse)))
    first, last = coarse[max(index - 1, 0)], coarse[min(index + 1, len(coarse) - 1)]
    fine = models.between(first.width, last.width)
    best = fine[int(np.argmin(losses(fine)))]
    least = float(losses([best])[0])
    size = float(models.size(best))
    return Optimum(
        params=size,
        tokens=flops / best.train_flops_per_token,
        loss=least,
        near_optimal=tuple(
            _near_optimal(share, least, coarse, losses(coarse), models)
            for share in NEAR_OPTIMAL_SHARES
        ),
        equal_loss=tuple(
            _equal_loss(law, factor, best, least, flops, models) for factor in EQUAL_LOSS_FACTORS
        ),
        cost_growth=_cost_growth(coarse, size, models),
        shape=best,
    )


def _range_end(
    law: SurfaceLawEstimate, flops: float, size: float, sign: float, limit: float
) -> float | None:
    """Return the N on one side of ln N* = `size` at which the loss at C = 6ND reaches a limit; None
    if it stays below.
    """

    def loss(distance: float) -> float:
        # Beyond the range of floats N or D is infinite, and so is the loss.
        with np.errstate(over="ignore", divide="ignore"):
            params = np.exp(size + sign * distance)
            return float(law.loss_at(params, flops / (6.0 * params)))

    inner, outer = 0.0, 0.1
    while loss(outer) < limit:
        inner, outer = outer, 2.0 * outer
        if outer > 100.0:
            return None
    end = _bisect(lambda distance: loss(distance) < limit, inner, outer)
    return float(np.exp(size + sign * end))


def _bisect(below: Callable[[float], bool], inner: float, outer: float) -> float:
    """Return the boundary between `inner`, where `below` is true, and `outer`, where it is not."""
    for _ in range(60):
        middle = 0.5 * (inner + outer)
        inner, outer = (middle, outer) if below(middle) else (inner, middle)
    return outer


def _near_optimal(
    share: float, least: float, shapes: list[ModelShape], losses: Floats, models: RecipeModels
) -> NearOptimalRange:
    inside = np.flatnonzero(losses <= least * (1.0 + share))
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, len(shapes) - 1)
    low = float(models.size(shapes[first])) if first > 0 or shapes[0].width == models.step else None
    high = float(models.size(shapes[last])) if last < len(shapes) - 1 else None
    return NearOptimalRange(share, low, high)


def _equal_loss(
    law: SurfaceLawEstimate,
    factor: float,
    best: ModelShape,
    loss: float,
    flops: float,
    models: RecipeModels,
) -> EqualLoss:
    shape = models.nearest(factor * models.size(best))
    params = float(models.size(shape))
    tokens = law.tokens_for(params, loss)
    cost = tokens * shape.train_flops_per_token
    return EqualLoss(factor, params, tokens, cost, cost / flops, shape.width)


def _cost_growth(
    shapes: list[ModelShape], size: float, models: RecipeModels
) -> tuple[float, float]:
    """Return d ln f / d ln N at a size and its derivative, from a quadratic through the models of
    about that size.
    """
    x = np.log([models.size(shape) for shape in shapes]) - np.log(size)
    y = np.log([float(shape.train_flops_per_token) for shape in shapes])
    local = np.abs(x) <= np.log(_LOCAL_FACTOR)
    if np.count_nonzero(local) < 4:
        return 1.0, 0.0
    curved, slope, _ = np.polyfit(x[local], y[local], 2)
    return float(slope), float(2.0 * curved)
