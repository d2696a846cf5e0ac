"""The law without each run: refitted, or by one Newton step in large studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtrit

from isoflop.fitting import fit_parametric, simulate_isoflop
from isoflop.fitting.estimators import influence

RUNS = simulate_isoflop(points=9)


@pytest.mark.parametrize("delta", ["adaptive", 1e-3, float("inf")])
def test_without_a_run_is_the_fit_of_the_others(delta: float):
    fit = fit_parametric(RUNS, bootstrap=0, huber_delta=delta)
    fixed = float(fit.estimate.delta[0])
    for k in (0, 31, 62):
        row = fit.influence.iloc[k]
        others = RUNS.loc[(RUNS["loss"] - row["loss"]).abs() > 1e-12, :]
        assert len(others) == len(RUNS) - 1
        without = fit_parametric(others, bootstrap=0, huber_delta=fixed)
        assert row["a"] == pytest.approx(without.exponents.loc["a", "value"], abs=1e-7)


@pytest.mark.parametrize("delta", ["adaptive", float("inf")])
def test_one_step_is_near_the_fit_of_the_others(delta: float, monkeypatch: pytest.MonkeyPatch):
    exact = fit_parametric(RUNS, bootstrap=0, huber_delta=delta).influence["a_shift"].to_numpy()
    monkeypatch.setattr(influence, "MAX_EXACT_CONFIGURATIONS", 0)
    near = fit_parametric(RUNS, bootstrap=0, huber_delta=delta).influence["a_shift"].to_numpy()
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_shifts_are_in_standard_errors_that_allow_for_shared_noise() -> None:
    runs, rng = simulate_isoflop(noise=0.0), np.random.default_rng(3)
    noise = rng.normal(size=(7, 9))
    for k in range(1, 9):
        noise[:, k] = 0.8 * noise[:, k - 1] + 0.6 * noise[:, k]
    fit = fit_parametric(
        runs.assign(loss=runs["loss"] * np.exp(0.003 * noise.ravel())), bootstrap=0
    )
    shared, table, a = fit.law_estimate.clustered_covariance, fit.influence, fit.exponents.loc["a"]
    assert shared is not None
    clustered_error = (a["high"] - a["value"]) / stdtrit(shared.dof, 0.975)
    moves = (table["a"] - a["value"]).to_numpy()
    assert table["a_shift"].to_numpy() * clustered_error == pytest.approx(moves, abs=1e-12)
