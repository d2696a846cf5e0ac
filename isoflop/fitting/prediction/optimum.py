"""The optimum of a parametric law at a budget: at the cost of a token in its runs, or over a
recipe's models and their FLOPs.

At a budget C a model of N parameters trains on D = C / f(N) tokens, with f its training FLOPs per
token: 6N, a curve through those of the runs, or those of the architecture (head and attention
included). The optimum is the N at which A/N^alpha + B/D^beta is least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from isoflop.fitting.estimators.intervals import Interval
from isoflop.fitting.estimators.surface_optimum import optimum, optimum_gradients
from isoflop.fitting.prediction.recipe_models import RecipeModels
from isoflop.fitting.results.profile_fit import NEAR_OPTIMAL_SHARES
from isoflop.fitting.results.surface_law import SurfaceLawEstimate
from isoflop.fitting.terms import Quantity
from isoflop.frames import Floats
from isoflop.shapes import ModelShape

EQUAL_LOSS_FACTORS = (0.25, 0.5, 2.0)
"""Sizes, as multiples of N*, for which the cost at equal loss is computed."""
_SEARCH_FACTOR = 300.0  # sizes searched, up to this factor from the optimum over all sizes
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
        width: width of the model; None without a recipe.
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
        shape: the model; None without a recipe.
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
        method (`optimum_gradients`).
        """
        size, data = float(np.log(self.params)), float(np.log(self.tokens))
        values, gradients = optimum_gradients(law.points, law.theta, size, data, *self.cost_growth)
        return {
            name: law.t_interval(float(value), gradient, confidence)
            for name, value, gradient in zip(get_args(Quantity), values, gradients, strict=True)
        }


def optimum_over_sizes(law: SurfaceLawEstimate, flops: float) -> Optimum:
    """Return the optimum of a law at a budget over all sizes, at the runs' cost of a token."""
    values = optimum(law.points, law.theta, flops, law.cost)[0]
    size, data, ln_loss = (float(v) for v in values)
    loss = float(np.exp(ln_loss))
    near_optimal = []
    for share in NEAR_OPTIMAL_SHARES:
        ends = [_range_end(law, flops, size, sign, loss * (1.0 + share)) for sign in (-1.0, 1.0)]
        near_optimal.append(NearOptimalRange(share, *ends))
    equal_loss = []
    for factor in EQUAL_LOSS_FACTORS:
        params = factor * float(np.exp(size))
        tokens = law.tokens_for(params, loss)
        cost = law.flops_for(params, tokens)
        equal_loss.append(EqualLoss(factor, params, tokens, cost, cost / flops, None))
    params, tokens = float(np.exp(size)), float(np.exp(data))
    growth = float(law.cost.slope(size)), float(law.cost.bend(size))
    return Optimum(params, tokens, loss, tuple(near_optimal), tuple(equal_loss), growth)


def optimum_over_models(law: SurfaceLawEstimate, flops: float, models: RecipeModels) -> Optimum:
    """Return the optimum of a law at a budget over a recipe's models and their FLOPs.

    Raises:
        FitError: the recipe has no model near the optimum.
    """
    middle = float(np.exp(optimum(law.points, law.theta, flops, law.cost)[0][0]))

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
    """Return the N on one side of ln N* = `size` at which the loss at a budget reaches a limit;
    None if it stays below.
    """

    def loss(distance: float) -> float:
        # Beyond the range of floats N or D is infinite, and so is the loss.
        with np.errstate(over="ignore", divide="ignore"):
            other = size + sign * distance
            data = law.cost.ln_tokens(other, np.log(flops))
            return float(law.loss_at(np.exp(other), np.exp(data)))

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
