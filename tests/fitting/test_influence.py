"""The law without each run: fitted anew, or by one step where that would take too long."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.fitting import fit_parametric, influence, simulate_isoflop

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
    monkeypatch.setattr(influence, "EXACT", 0)
    near = fit_parametric(RUNS, bootstrap=0, huber_delta=delta).influence["a_shift"].to_numpy()
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()
