"""Surfaces at a Huber delta far below the noise; resamples in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from isoflop.fitting import fit_parametric, simulate_isoflop
from isoflop.fitting.estimators.surface_estimate import jacobian
from isoflop.fitting.methods import parametric

RUNS = simulate_isoflop(points=9)


def test_a_tiny_delta_gives_least_absolute_deviations():
    """No step in theta lowers the sum of absolute residuals, to first order: a linear program is
    the judge.
    """
    fit = fit_parametric(RUNS, bootstrap=0, huber_delta=1e-8)
    assert fit.estimate.agreeing == 1.0
    assert "not_converged" not in {d["code"] for d in fit.diagnostics}
    slopes, residuals = jacobian(fit.sample, fit.theta), fit.sample.residuals(fit.theta)
    count, parameters = slopes.shape
    cost = np.concatenate([np.zeros(parameters), np.ones(count)])
    rows = np.block([[-slopes, -np.eye(count)], [slopes, -np.eye(count)]])
    limits = [(-1e-4, 1e-4)] * parameters + [(0.0, None)] * count
    best = linprog(cost, A_ub=rows, b_ub=np.concatenate([-residuals, residuals]), bounds=limits)
    assert best.success
    assert np.abs(residuals).sum() == pytest.approx(best.fun, rel=1e-5)
    assert np.count_nonzero(np.abs(residuals) < 1e-7) == parameters


def test_resamples_of_a_tiny_delta_vary():
    fit = fit_parametric(RUNS, bootstrap=100, huber_delta=1e-8)
    usual = fit_parametric(RUNS, bootstrap=100)
    spread, usual_spread = fit.draws[:, 3].std(), usual.draws[:, 3].std()
    assert usual_spread < spread < 3.0 * usual_spread


@pytest.mark.parametrize("resampling", ["case", "wild"])
def test_resamples_do_not_depend_on_how_many_are_held_at_once(
    resampling, monkeypatch: pytest.MonkeyPatch
):
    whole = fit_parametric(RUNS, bootstrap=1500, resampling=resampling).draws
    monkeypatch.setattr(parametric, "_BLOCK_CELLS", 1)
    assert np.array_equal(whole, fit_parametric(RUNS, bootstrap=1500, resampling=resampling).draws)
