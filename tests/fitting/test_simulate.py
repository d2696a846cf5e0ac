"""The simulator: its optimum, published surfaces, and its grid."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.fitting import SURFACES, simulate_isoflop


@pytest.mark.parametrize("name", SURFACES)
def test_optimum_is_the_minimum_along_a_budget(name):
    surface = SURFACES[name]
    params, tokens = surface.optimum(1e21)
    assert params * tokens * 6.0 == pytest.approx(1e21)
    sizes = params * np.geomspace(0.5, 2.0, 4001)
    losses = surface.loss(sizes, 1e21 / (6.0 * sizes))
    assert sizes[np.argmin(losses)] == pytest.approx(params, rel=1e-3)
    ten = surface.optimum(1e22)
    assert np.log10(ten[0] / params) == pytest.approx(surface.a)
    assert np.log10(ten[1] / tokens) == pytest.approx(surface.b)


def test_published_surfaces():
    assert SURFACES["chinchilla"].a == pytest.approx(0.513900, abs=1e-6)
    params, tokens = SURFACES["chinchilla"].optimum(5.88e23)
    assert tokens / params == pytest.approx(17.9, abs=0.05)


def test_grid_columns_and_noise():
    runs = simulate_isoflop(
        budgets=(1e18, 1e20), points=5, spread=4.0, offset=2.0, drift=3.0, noise=0.01, seeds=400
    )
    assert len(runs) == 2 * 5 * 400
    np.testing.assert_allclose(6.0 * runs["params"] * runs["tokens"], runs["train_flops"])
    middle = runs.groupby("budget")["params"].median().to_numpy()
    centre = SURFACES["chinchilla"].optimum(np.array([1e18, 1e20]))[0]
    np.testing.assert_allclose(middle / centre, [2.0, 6.0])
    true = SURFACES["chinchilla"].loss(runs["params"].to_numpy(), runs["tokens"].to_numpy())
    assert np.std(np.log(runs["loss"] / true)) == pytest.approx(0.01, rel=0.05)
    assert set(runs["simulated"]) == {True}
    assert runs["run_id"].is_unique
