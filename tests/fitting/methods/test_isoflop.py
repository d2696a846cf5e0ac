"""Profiles and laws: published numbers, known truth, coverage, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import SURFACES, IsoflopFit, Surface, fit_isoflop, simulate_isoflop
from isoflop.frames import column, mask, rows

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="reference data not beside the repository"
)
SYMMETRIC = Surface(E=1.8172, A=477.84, B=2143.86, alpha=0.357, beta=0.357)


@needs_data
def test_llama3_as_published():
    fit = fit_isoflop(DATA / "llama3_isoflop.csv", axis="tokens", use="all")
    assert fit.exponents.loc["b", "value"] == pytest.approx(0.536779, abs=5e-7)
    assert fit.coefficients.loc["D", "value"] == pytest.approx(0.299355, abs=5e-7)
    tokens = fit.predict(3.8e25).loc["tokens", "value"]
    assert tokens == pytest.approx(16.1e12, rel=1e-3)
    assert 3.8e25 / 6.0 / tokens == pytest.approx(393e9, rel=1e-3)
    assert fit.predict(3.8e25).loc["params", "value"] == pytest.approx(393e9, rel=1e-3)
    assert len(fit.runs) == 133


@needs_data
def test_llama3_with_the_default_rules_leaves_out_a_profile():
    fit = fit_isoflop(DATA / "llama3_isoflop.csv", axis="tokens")
    left_out = fit.profiles[~fit.profiles["used"]]
    assert left_out["budget"].tolist() == [3e21]
    assert left_out["status"].tolist() == ["one_sided"]


@needs_data
def test_known_truth_table():
    fit = fit_isoflop(DATA / "isoflop64_known_truth.csv", params="N", tokens="D", flops="C")
    assert fit.exponents.loc["a", "value"] == pytest.approx(0.5142816193, abs=5e-11)
    value, low, high = fit.exponents.loc["a"].tolist()
    assert low < 0.513905 < value < high
    assert sum(fit.exponents["value"].tolist()) == pytest.approx(
        1.0, abs=1e-12
    )  # C = 6ND in this table


@pytest.mark.parametrize("axis", ["params", "tokens"])
def test_recovers_the_truth_without_noise(axis):
    fit = fit_isoflop(simulate_isoflop(SYMMETRIC, points=9, noise=0.0), axis=axis)
    params, tokens = SYMMETRIC.optimum(1e24)
    assert fit.exponents["value"].tolist() == pytest.approx([0.5, 0.5], abs=1e-9)
    predicted = fit.predict(1e24)["value"]
    assert predicted.tolist() == pytest.approx([float(params), float(tokens)], rel=1e-6)
    assert set(fit.profiles["status"]) == {"interior"}


def test_exponents_need_not_add_up_to_one():
    """With a cost per token that is not 6N, D* is read from the runs, not from C / 6N."""
    runs = simulate_isoflop(SYMMETRIC, points=9, noise=0.0)
    runs["tokens"] = runs["budget"] / (6.0 * runs["params"] ** 0.9)
    fit = fit_isoflop(runs)
    a, b = fit.exponents["value"]
    assert a == pytest.approx(0.5, abs=1e-9)
    assert b == pytest.approx(1.0 - 0.9 * 0.5, abs=1e-9)
    assert column(fit.profiles, "interpolation_error").max() < 1e-9


def test_seeds_are_one_point_of_a_profile():
    runs = simulate_isoflop(noise=0.003, seeds=3)
    fit = fit_isoflop(runs)
    assert fit.profiles["n_points"].tolist() == [9] * 7
    assert fit.profiles["n_runs"].tolist() == [27] * 7
    assert fit.noise.replicate_dof == 7 * 9 * 2
    assert fit.noise.replicate_sd == pytest.approx(0.003, rel=0.15)
    means = cast(
        pd.DataFrame, runs.groupby(["budget", "params", "tokens"], as_index=False)[["loss"]].mean()
    )
    assert fit_isoflop(means).exponents.loc["a", "value"] == pytest.approx(
        fit.exponents.loc["a", "value"], abs=1e-12
    )


def test_flops_set_the_line_and_the_budget_is_a_label():
    runs = simulate_isoflop(SYMMETRIC, points=7, noise=0.0).assign(
        budget=lambda d: d["budget"] / 3.0
    )
    fit = fit_isoflop(runs)
    assert fit.profiles["flops"].to_numpy() == pytest.approx(
        3.0 * fit.profiles["budget"].to_numpy()
    )
    assert fit.predict(1e20).loc["params", "value"] == pytest.approx(
        float(SYMMETRIC.optimum(1e20)[0]), rel=1e-6
    )
    assert "budget_off" in {d["code"] for d in fit.diagnostics}


def drop_left_half(runs: pd.DataFrame, budget: float) -> pd.DataFrame:
    is_budget, sizes = column(runs, "budget") == budget, column(runs, "params")
    return rows(runs, ~is_budget | (sizes > 1.05 * np.median(sizes[is_budget])))


def test_bad_profiles_are_left_out_unless_allowed():
    runs = drop_left_half(simulate_isoflop(points=13, noise=0.0), 1e19)
    fit = fit_isoflop(runs)
    row = fit.profiles.set_index("budget").loc[1e19]
    assert (row["status"], row["used"]) == ("edge", False)
    clean = fit_isoflop(simulate_isoflop(points=13, noise=0.0).query("budget != 1e19"))
    assert fit.exponents.loc["a", "value"] == clean.exponents.loc["a", "value"]
    allowed = fit_isoflop(runs, use=("interior", "edge"))
    assert mask(allowed.profiles, "used").all()
    assert {"profile_used"} <= {d["code"] for d in allowed.diagnostics}


def upside_down(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(loss=6.0 - runs["loss"])


TWO = simulate_isoflop(budgets=(1e18, 1e19), points=9)
REFUSED = {
    "two budgets": (
        TWO,
        {},
        "2 of 2 budgets can be used, 3 are needed. 1e18: interior; 1e19: interior",
    ),
    "one budget": (TWO.query("budget < 2e18"), {}, "1 of 1 budgets"),
    "concave": (upside_down(simulate_isoflop(points=9)), {}, "1e18: concave"),
    "one size": (simulate_isoflop(points=1), {}, "1e18: too_few (1 distinct size, 4 needed)"),
    "edge": (
        simulate_isoflop(points=9, offset=40.0),
        {},
        "edge (the minimum is below the smallest model)",
    ),
    "constant": (simulate_isoflop(points=9).assign(loss=3.0), {}, "concave"),
    "concave on request": (upside_down(simulate_isoflop()), {"use": "all"}, "0 of 7 budgets"),
    "axis": (TWO, {"axis": "flops"}, "unknown axis"),
    "status": (TWO, {"use": ("good",)}, "unknown status 'good'"),
    "bootstrap": (TWO, {"bootstrap": 5}, "too few for an interval"),
    "confidence": (TWO, {"confidence": 95}, "between 0 and 1"),
    "below zero": (
        pd.DataFrame(
            {
                "budget": np.repeat([1e17, 1e18, 1e19], 4),
                "params": np.tile([1e5, 1.1e5, 1.2e5, 1e12], 3),
                "tokens": np.repeat([1e17, 1e18, 1e19], 4)
                / 6
                / np.tile([1e5, 1.1e5, 1.2e5, 1e12], 3),
                "loss": np.tile([3.0, 2.0, 1.5, 9.0], 3),
            }
        ),
        {"use": "all"},
        "predicts a negative loss; check the loss column and its unit",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_give_the_reason_for_each_budget(case):
    runs, options, message = REFUSED[case]
    with pytest.raises(FitError) as caught:
        fit_isoflop(runs, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_same_seed_same_digits():
    runs = simulate_isoflop(points=7)
    first, repeat, other = (fit_isoflop(runs, bootstrap=300, seed=s) for s in (1, 1, 2))
    assert first.to_json() == repeat.to_json()
    assert first.to_json() != other.to_json()


def test_without_bootstrap_the_line_gives_the_interval():
    table = fit_isoflop(simulate_isoflop(points=7), bootstrap=0).law_estimate.intervals(0.95)
    assert table["low"].tolist() == table["line_low"].tolist()
    assert np.isnan(table.loc["a", "bootstrap_low"])


def covers(surface: Surface, budgets: int, points: int, replicates: int) -> pd.DataFrame:
    """Return whether each replicate's intervals of a cover the truth: columns bootstrap, line,
    wider.
    """
    grid = np.logspace(18, 21, budgets).tolist()
    coverage = []
    for k in range(replicates):
        runs = simulate_isoflop(surface, grid, points, seed=k)
        row = fit_isoflop(runs, bootstrap=400, seed=k).intervals().loc["a"]
        kinds = {"bootstrap": "bootstrap_", "line": "line_", "wider": ""}
        coverage.append(
            {k: row[f"{p}low"] <= surface.a <= row[f"{p}high"] for k, p in kinds.items()}
        )
    return pd.DataFrame(coverage)


@pytest.mark.long
@pytest.mark.parametrize(("budgets", "points"), [(7, 9), (4, 5)])
def test_coverage_of_nominal_95(budgets, points):
    """Coverage is within three Monte Carlo errors of 95%; the wider of two intervals covers no
    less.
    """
    replicates = 300
    share = covers(SYMMETRIC, budgets, points, replicates).mean()
    error = 3.0 * np.sqrt(0.95 * 0.05 / replicates)
    assert abs(share["bootstrap"] - 0.95) < error
    assert abs(share["line"] - 0.95) < error
    assert share["wider"] > 0.95 - error / 3.0


def test_many_rows():
    runs = simulate_isoflop(points=2000, noise=0.01)
    fit = fit_isoflop(runs, bootstrap=100)
    assert isinstance(fit, IsoflopFit)
    assert mask(fit.profiles, "used").all()


def test_soda_surface_shows_more_data_than_size():
    fit = fit_isoflop(
        simulate_isoflop(
            SURFACES["soda"], (3e18, 1e19, 3e19, 1e20, 3e20), 9, spread=3.0, noise=0.001
        )
    )
    assert fit.ratio.tolist()[0] > 1.3
    assert "Optimal data grows" in fit.headline()
