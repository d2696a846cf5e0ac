"""Numbers of a parametric law: intervals, and the inverse of the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_parametric, simulate_isoflop

SMALL = fit_parametric(simulate_isoflop(points=5), bootstrap=0)


@pytest.mark.parametrize("resampling", ["case", "wild"])
def test_resamples_spread_as_the_t_interval(resampling: Any) -> None:
    fit = fit_parametric(
        simulate_isoflop(points=15, noise=0.003), bootstrap=1000, resampling=resampling
    )
    t, drawn = fit.conf_int(), fit.conf_int(kind="percentile")
    for name in ("alpha", "beta", "a"):
        ratio = (drawn.loc[name, "high"] - drawn.loc[name, "low"]) / (
            t.loc[name, "high"] - t.loc[name, "low"]
        )
        assert 0.8 < ratio < 1.25


def test_no_resamples_no_percentiles() -> None:
    with pytest.raises(FitError, match="bootstrap=4000"):
        SMALL.conf_int(kind="percentile")


def test_sizes_and_tokens_that_reach_a_loss() -> None:
    law = SMALL.law_estimate
    loss = float(law.loss_at(1e9, 2e10))
    assert law.tokens_for(1e9, loss) == pytest.approx(2e10, rel=1e-9)
    assert law.params_for(2e10, loss) == pytest.approx(1e9, rel=1e-9)
    floor = float(np.exp(law.theta[0]))
    assert math.isnan(law.tokens_for(1e9, floor))
    assert math.isnan(law.params_for(2e10, floor))
