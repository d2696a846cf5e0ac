"""The frontier and the lines through it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import SURFACES, fit_envelope, simulate_isoflop

SODA = SURFACES["soda"]


def test_the_frontier_is_what_nothing_beats() -> None:
    runs = simulate_isoflop(SODA, noise=0.01)
    frontier = fit_envelope(runs).frontier
    for row in frontier.to_dict("records"):
        assert row["loss"] == runs.loc[runs["budget"] <= row["budget"], "loss"].min()


def test_a_budget_that_got_worse_is_not_on_it() -> None:
    runs = simulate_isoflop(SODA, noise=0.0)
    runs.loc[runs["budget"] == 1e20, "loss"] += 1.0
    assert 1e20 not in fit_envelope(runs).frontier["budget"].tolist()


def test_fine_grids_find_the_exponents() -> None:
    fit = fit_envelope(simulate_isoflop(SODA, points=101, noise=0.0))
    assert fit.exponents["value"].tolist() == pytest.approx([SODA.a, SODA.b], abs=0.01)
    assert fit.predict(1e22)["value"].tolist() == pytest.approx(
        [float(v) for v in SODA.optimum(1e22)], rel=0.1
    )
    assert "nearest_run" in [d["code"] for d in fit.diagnostics]


NARROW = pd.DataFrame(
    {
        "params": [1e8, 2e8, 3e8],
        "tokens": [1e9, 1e9, 1e9],
        "flops": [1e18, 1.01e18, 1.02e18],
        "budget": [1e18, 1.01e18, 1.02e18],
        "loss": [3.0, 2.9, 2.8],
    }
)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (simulate_isoflop(SODA, budgets=[1e18, 1e19], noise=0.0), "2 runs lie on the frontier"),
        (NARROW, "less than 10% in compute"),
    ],
)
def test_refusals_have_a_reason(runs: pd.DataFrame, message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_envelope(runs)


def test_a_table_without_budgets_has_a_frontier_too() -> None:
    rng = np.random.default_rng(0)
    params, flops = np.exp(rng.uniform(16, 22, 200)), np.exp(rng.uniform(41, 48, 200))
    runs = pd.DataFrame({"params": params, "tokens": flops / 6 / params, "flops": flops})
    runs["loss"] = SODA.loss(runs["params"].to_numpy(), runs["tokens"].to_numpy())
    assert fit_envelope(runs).exponents.loc["a", "value"] == pytest.approx(SODA.a, abs=0.25)
