"""Table of profiles: intervals of single optima."""

from __future__ import annotations

import numpy as np
import pytest
from support.tables import replace_losses

from isoflop.fitting import Surface, fit_isoflop, read_table, simulate_isoflop

SYMMETRIC = Surface(E=1.8172, A=477.84, B=2143.86, alpha=0.357, beta=0.357)


def test_optimum_intervals_cover():
    table, covered = read_table(simulate_isoflop(SYMMETRIC, points=9, noise=0.0)), []
    for k in range(60):
        runs = replace_losses(table, simulate_isoflop(SYMMETRIC, points=9, seed=k))
        fit = fit_isoflop(runs, bootstrap=400)
        truth = SYMMETRIC.optimum(fit.profiles["budget"].to_numpy())[0]
        covered += ((fit.profiles["low"] <= truth) & (truth <= fit.profiles["high"])).tolist()
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)
