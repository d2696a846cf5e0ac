"""Cost of a token: known curves, noise, real architectures, budgets, edges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from isoflop.fitting.estimators.token_cost import SIX_ND_COST, TokenCost
from isoflop.frames import Floats
from isoflop.planning.plan import plan

BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)
EMBEDDINGS = 2e7


def grid() -> tuple[Floats, Floats]:
    """Return ln N of a study with embeddings and its budgets, (45,) each."""
    budgets = np.repeat(BUDGETS, 9)
    body = np.tile(np.geomspace(0.3, 3.3, 9), len(BUDGETS)) * np.sqrt(budgets / 150.0)
    return np.log(body + EMBEDDINGS), budgets


def embedded(ln_params: Floats, _: Floats | float = 0.0) -> Floats:
    """Return ln[C / (6ND)] where C = 6 (N - embeddings) D."""
    return np.log1p(-EMBEDDINGS / np.exp(ln_params))


def cost_of(ratio: Callable[[Floats, Floats], Floats], noise: float = 0.0) -> TokenCost:
    x, budgets = grid()
    ln_ratio = ratio(x, np.log(budgets)) + noise * np.random.default_rng(1).standard_normal(len(x))
    return TokenCost.from_runs(x, np.log(budgets / 6.0) - x - ln_ratio, budgets, budgets)


@pytest.mark.parametrize("off", [0.0, 0.003])
def test_rounded_tokens_are_still_six_nd(off: float) -> None:
    cost = cost_of(lambda x, _: off * np.sin(40.0 * x))
    assert cost.is_six_nd
    assert cost.ln_cost(20.0, 40.0) == 0.0
    assert cost.slope(20.0) == 1.0


def test_a_constant_ratio_is_a_constant() -> None:
    cost = cost_of(lambda x, _: np.full_like(x, np.log(1.3)))
    assert cost.is_constant
    assert not cost.is_six_nd
    assert cost.ln_cost(np.array([3.0, 50.0]), 40.0) == pytest.approx(np.log(1.3))
    assert cost.size_range == (0.0, np.inf)


def test_embeddings_give_their_curve_and_slope() -> None:
    cost, (x, _) = cost_of(embedded), grid()
    inside = np.linspace(x.min() + 1e-6, x.max() - 1e-6, 500)
    true_slope = np.exp(inside) / (np.exp(inside) - EMBEDDINGS)
    assert cost.ln_cost(inside, 43.0) == pytest.approx(embedded(inside), abs=1e-5)
    assert cost.slope(inside) == pytest.approx(true_slope, abs=2e-3)
    assert not np.any(cost.shift)
    assert cost.scatter < 1e-6


def test_the_ratio_is_held_beyond_the_sizes_run() -> None:
    cost, (x, _) = cost_of(embedded), grid()
    for edge, beyond in ((x.min(), -3.0), (x.max(), 3.0)):
        assert cost.ln_cost(edge + beyond, 43.0) == pytest.approx(embedded(edge), abs=1e-5)
        assert cost.slope(edge + beyond) == 1.0
        assert cost.bend(edge + beyond) == 0.0
    at_edge, inside = cost.slope(x.min()), cost.slope(x.min() + 1e-9)
    assert at_edge == pytest.approx(0.5 * (1.0 + inside))


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.03])
def test_noise_is_smoothed(noise: float) -> None:
    cost, (x, _) = cost_of(embedded, noise), grid()
    error = cost.ln_cost(x, 43.0) - embedded(x)
    assert np.sqrt(np.mean(error**2)) < 0.5 * noise
    assert cost.scatter == pytest.approx(noise, rel=0.3)


@pytest.mark.parametrize("n", ["total", "one_embedding", "non_embedding"])
def test_real_architectures_keep_their_flops(n: str) -> None:
    runs = plan("soda").runs
    params = np.array([getattr(run, f"params_{n}") for run in runs], dtype=np.float64)
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    flops = np.array([run.train_flops for run in runs], dtype=np.float64)
    budgets = np.array([run.budget for run in runs])
    cost = TokenCost.from_runs(np.log(params), np.log(tokens), flops, budgets)
    assert cost.ln_tokens(np.log(params), np.log(flops)) == pytest.approx(np.log(tokens), abs=1e-3)


def test_a_ratio_that_depends_on_the_budget_too() -> None:
    def ratio(x: Floats, c: Floats) -> Floats:
        return embedded(x) + 0.1 * np.sin(c)

    cost, (x, budgets) = cost_of(ratio, 0.001), grid()
    assert np.any(cost.shift)
    assert cost.ln_cost(x, np.log(budgets)) == pytest.approx(ratio(x, np.log(budgets)), abs=5e-3)
    edges = cost.ln_cost(20.0, np.log([1e10, 1e18, 1e20, 1e30]))
    assert edges[0] == edges[1]
    assert edges[2] == edges[3]


@pytest.mark.slow
def test_size_alone_is_rarely_taken_for_the_budget() -> None:
    x, budgets = grid()
    rng, found = np.random.default_rng(2), 0
    for _ in range(30):
        ratio = embedded(x) + 0.01 * rng.standard_normal(len(x))
        tokens = np.log(budgets / 6.0) - x - ratio
        found += bool(np.any(TokenCost.from_runs(x, tokens, budgets, budgets).shift))
    assert found <= 3


def test_one_wrong_run_does_not_bend_the_curve() -> None:
    x, budgets = grid()
    tokens = np.log(budgets / 6.0) - x - embedded(x)
    flops = budgets * np.where(np.arange(len(x)) == 20, 2.0, 1.0)
    cost = TokenCost.from_runs(x, tokens, flops, budgets)
    assert cost.ln_cost(x, 43.0) == pytest.approx(embedded(x), abs=1e-3)


@pytest.mark.parametrize("sizes", [2, 3, 4])
def test_few_sizes_are_interpolated(sizes: int) -> None:
    x = np.repeat(np.log(np.geomspace(3e7, 3e8, sizes)), 4)
    budgets = np.tile([1e18, 2e18, 4e18, 8e18], sizes)
    tokens = np.log(budgets / 6.0) - x - embedded(x)
    cost = TokenCost.from_runs(x, tokens, budgets, budgets)
    assert cost.ln_cost(x, 43.0) == pytest.approx(embedded(x), abs=1e-3)


def test_compute_follows_from_size_and_data() -> None:
    cost, (x, budgets) = cost_of(lambda x, c: embedded(x) + 0.1 * np.sin(c)), grid()
    data = cost.ln_tokens(x, np.log(budgets))
    assert cost.ln_flops_for(x, data) == pytest.approx(np.log(budgets), abs=1e-9)
    assert SIX_ND_COST.ln_flops_for(1.0, 2.0) == pytest.approx(3.0 + np.log(6.0))


def test_many_sizes_are_averaged() -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(18.0, 22.0, 50_000)
    budgets = np.exp(rng.choice(np.linspace(42.0, 46.0, 9), len(x)))
    tokens = np.log(budgets / 6.0) - x - embedded(x)
    cost = TokenCost.from_runs(x, tokens, budgets, budgets)
    inside = np.linspace(18.05, 21.95, 100)
    assert cost.ln_cost(inside, 43.0) == pytest.approx(embedded(inside), abs=2e-3)
