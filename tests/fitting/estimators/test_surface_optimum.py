"""The optimum at a budget: against a search over sizes, for any cost of a token."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.fitting import SURFACES
from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.estimators.surface_optimum import growth_exponents, optimum
from isoflop.fitting.estimators.token_cost import SIX_ND_COST, TokenCost
from isoflop.frames import Floats

LAW = SURFACES["chinchilla"]
LN_FLOPS = np.log([1e18, 1e19, 1e20])
KNOTS = np.log(np.geomspace(3e7, 3e9, 101))
WAVE = 0.3 * np.sin(2.0 * KNOTS)
COSTS = {
    "6ND": SIX_ND_COST,
    "constant": TokenCost(np.zeros(1), np.array([0.4]), LN_FLOPS, np.zeros(3)),
    "embeddings": TokenCost(KNOTS, np.log1p(-2e7 / np.exp(KNOTS)), LN_FLOPS, np.zeros(3)),
    "attention": TokenCost(KNOTS, np.log1p(2e7 / np.exp(KNOTS)), LN_FLOPS, np.zeros(3)),
    "waves": TokenCost(KNOTS, WAVE, LN_FLOPS, np.zeros(3)),
    "budgets": TokenCost(KNOTS, WAVE, LN_FLOPS, np.array([-0.2, 0.0, 0.3])),
}
BUDGETS = (1e15, 1e17, 1e18, 3e18, 1e19, 1e20, 1e21, 1e24)


def points() -> Observations:
    params, tokens = np.geomspace(3e7, 3e9, 9), np.geomspace(1e9, 1e11, 9)
    return Observations.from_counts(params, tokens, LAW.loss(params, tokens))


def theta() -> Floats:
    means = points()
    a, b = np.log(LAW.A) - LAW.alpha * means.x_mean, np.log(LAW.B) - LAW.beta * means.y_mean
    return np.array([np.log(LAW.E), a, b, LAW.alpha, LAW.beta])


@pytest.mark.parametrize("flops", BUDGETS)
@pytest.mark.parametrize("name", COSTS)
def test_no_size_is_better(name: str, flops: float) -> None:
    cost = COSTS[name]
    size, data, ln_loss = optimum(points(), theta(), flops, cost)[0]
    sizes = np.linspace(size - 12.0, size + 12.0, 240_001)
    losses = LAW.loss(np.exp(sizes), np.exp(cost.ln_tokens(sizes, np.log(flops))))
    best = int(np.argmin(losses))
    assert ln_loss <= np.log(losses[best]) + 1e-9
    assert size == pytest.approx(sizes[best], abs=2e-4)
    assert data == pytest.approx(float(cost.ln_tokens(size, np.log(flops))), abs=1e-12)


@pytest.mark.parametrize("flops", [1e15, 3e18, 1e20, 1e24])
@pytest.mark.parametrize("name", ["6ND", "constant", "embeddings", "attention", "budgets"])
def test_gradients_are_those_of_the_optimum(name: str, flops: float) -> None:
    cost, middle = COSTS[name], theta()
    _, gradients = optimum(points(), middle, flops, cost)
    steps = 1e-5 * np.eye(5)
    ends = [optimum(points(), middle + sign * steps, flops, cost)[0] for sign in (1.0, -1.0)]
    slopes = (ends[0] - ends[1]).T / 2e-5
    assert gradients == pytest.approx(slopes, abs=2e-4 * np.abs(slopes).max())


def test_an_optimum_at_an_edge_keeps_an_interval() -> None:
    """Where the cost jumps, N* stays at the edge for small changes of theta."""
    cost = COSTS["embeddings"]
    flops = np.geomspace(1e16, 1e18, 400)
    values, gradients = optimum(points(), theta(), flops, cost)
    at_edge = values[:, 0] == KNOTS[0]
    assert at_edge.any()
    assert np.all(np.abs(gradients[at_edge, 0, 3]) > 0.1)
    assert np.all(np.isfinite(gradients))


def test_shapes_are_broadcast() -> None:
    many = np.stack([theta(), theta()])
    for cost in COSTS.values():
        values, gradients = optimum(points(), many[:, None], np.array(BUDGETS), cost)
        assert values.shape == (2, len(BUDGETS), 3)
        assert gradients.shape == (2, len(BUDGETS), 3, 5)
        for k, flops in enumerate(BUDGETS):
            assert values[1, k] == pytest.approx(optimum(points(), theta(), flops, cost)[0])


@pytest.mark.parametrize("name", COSTS)
def test_exponents_are_slopes_over_the_budgets(name: str) -> None:
    cost = COSTS[name]
    (a, b), gradients = growth_exponents(points(), theta(), cost)
    values = optimum(points(), theta(), np.exp(LN_FLOPS), cost)[0]
    slopes = np.polyfit(LN_FLOPS, values[:, :2], 1)[0]
    assert [a, b] == pytest.approx(list(slopes), abs=1e-9)
    if cost.is_constant:
        assert [a, b] == pytest.approx([LAW.a, LAW.b], abs=1e-12)
    steps = 1e-5 * np.eye(5)
    ends = [growth_exponents(points(), theta() + s * steps, cost)[0] for s in (1.0, -1.0)]
    slopes = (ends[0] - ends[1]).T / 2e-5
    assert gradients == pytest.approx(slopes, abs=2e-3 * np.abs(slopes).max())
