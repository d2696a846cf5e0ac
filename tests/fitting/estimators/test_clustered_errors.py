"""Noise shared by neighbouring sizes, or by one size at all budgets: found, allowed for, and rarely
found where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.tables import replace_losses

import isoflop
from isoflop.fitting import (
    SURFACES,
    IsoflopFit,
    compare,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    load_fit,
    read_table,
    simulate_isoflop,
    write_fit,
)
from isoflop.fitting.estimators.clustered_errors import ClusteredCovariance
from isoflop.frames import column, mask, rows

SODA = SURFACES["soda"]
CLEAN = simulate_isoflop(SODA, (3e18, 9e18, 1.8e19, 3e19, 9e19, 1.8e20, 3e20), 9, noise=0.0).drop(
    columns="simulated"
)
FITS: dict[str, Callable] = {
    "joint": fit_joint,
    "parametric": lambda runs: fit_parametric(runs, bootstrap=0),
}
REPLICATES = 40
Noise = Callable[[np.random.Generator], np.ndarray]
BOTH = ["parametric", pytest.param("joint", marks=pytest.mark.long)]
"""Methods for tests of dozens of fits."""


def independent(rng: np.random.Generator) -> np.ndarray:
    """Return independent noise."""
    return 0.003 * rng.normal(size=(7, 9))


def tilted(rng: np.random.Generator) -> np.ndarray:
    """Return a random slope in ln N for each budget, beside half the noise."""
    off = np.log(column(CLEAN, "params") / SODA.optimum(column(CLEAN, "budget"))[0]).reshape(7, 9)
    return 0.0015 * rng.normal(size=(7, 9)) + 0.002 * rng.normal(size=(7, 1)) * off


def correlated(rng: np.random.Generator) -> np.ndarray:
    """Return noise of neighbours correlated by 0.8."""
    noise = rng.normal(size=(7, 9))
    for k in range(1, 9):
        noise[:, k] = 0.8 * noise[:, k - 1] + 0.6 * noise[:, k]
    return 0.003 * noise


def contaminated(rng: np.random.Generator) -> np.ndarray:
    """Return independent noise, with a tenth of the runs 4% too high."""
    return independent(rng) + 0.04 * (rng.random((7, 9)) < 0.1)


def study(noise: Noise, seed: int) -> pd.DataFrame:
    """Return SODA's runs with noise."""
    return CLEAN.assign(loss=CLEAN["loss"] * np.exp(noise(np.random.default_rng(seed)).ravel()))


def has_finding(fit) -> bool:
    """Return whether a fit has the finding `shared_noise`."""
    return "shared_noise" in {finding["code"] for finding in fit.diagnostics}


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("noise", [pytest.param(tilted, marks=pytest.mark.long), correlated])
def test_shared_noise_is_found_and_a_is_in_its_interval(method, noise):
    ends, findings = [], []
    for seed in range(REPLICATES):
        fit = FITS[method](study(noise, seed))
        ends.append(fit.exponents.loc["a"].tolist())
        findings.append(has_finding(fit))
    value, low, high = np.array(ends).T
    assert np.mean(findings) >= 0.7
    assert np.mean((low <= SODA.a) & (high >= SODA.a)) >= 0.87
    assert abs(np.mean(value) - SODA.a) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
def test_independent_noise_is_rarely_called_shared(method):
    fits = [FITS[method](study(independent, seed)) for seed in range(REPLICATES)]
    assert np.mean([has_finding(fit) for fit in fits]) <= 0.05
    assert np.mean([fit.law_estimate.clustered_covariance is not None for fit in fits]) <= 0.15


@pytest.mark.long
def test_studies_of_one_truth_rarely_differ_under_shared_noise():
    verdicts = []
    for seed in range(20):
        pair = {str(k): fit_joint(study(correlated, 1000 + 2 * seed + k)) for k in (0, 1)}
        verdicts.append(bool(compare(pair).pairs[0].differing))
    assert np.mean(verdicts) <= 0.1


@pytest.mark.long
def test_outliers_are_rarely_called_shared_noise():
    fits = [fit_joint(study(contaminated, seed)) for seed in range(REPLICATES)]
    assert np.mean([has_finding(fit) for fit in fits]) <= 0.12


@pytest.mark.parametrize("method", FITS)
def test_clustered_covariance_is_saved(tmp_path: Path, method: str):
    fit = FITS[method](study(correlated, 3))
    assert fit.law_estimate.clustered_covariance.dof == 6
    file = write_fit(tmp_path, [fit])
    assert "shared" in json.loads(file.read_text())["fits"][0]["law"]
    pd.testing.assert_frame_equal(load_fit(file)[method].intervals(), fit.intervals(), rtol=0)


def test_runs_without_common_budgets_have_no_budget_residuals():
    runs = CLEAN.assign(loss=study(correlated, 3)["loss"]).drop(columns="budget")
    flops = column(CLEAN, "budget") * np.exp(
        np.random.default_rng(1).uniform(-0.4, 0.4, len(CLEAN))
    )
    fit = fit_parametric(
        runs.assign(train_flops=flops, tokens=flops / 6.0 / column(CLEAN, "params")), bootstrap=0
    )
    assert fit.budget_residuals is None


@pytest.fixture(scope="module")
def fit_parabolas() -> Callable[..., IsoflopFit]:
    """Return a function that fits symmetric profiles with noise: parabolas have no model error."""
    params, tokens = SODA.optimum(column(CLEAN, "budget"))
    bowls = SODA.loss(params, tokens) + 0.065 * np.log(column(CLEAN, "params") / params) ** 2
    table = read_table(CLEAN)

    def fit(noise: Noise, seed: int, bootstrap: int) -> IsoflopFit:
        scatter = np.exp(noise(np.random.default_rng(seed)).ravel())
        runs = replace_losses(table, CLEAN.assign(loss=bowls * scatter))
        return fit_isoflop(runs, bootstrap=bootstrap)

    return fit


def test_optima_of_parabolas_stay_in_their_intervals_where_noise_is_shared(fit_parabolas):
    findings, covered, skewed = [], [], []
    for seed in range(REPLICATES):
        fit = fit_parabolas(correlated, seed, bootstrap=200)
        used = rows(fit.profiles, mask(fit.profiles, "used"))
        truth = SODA.optimum(column(used, "flops"))[0]
        covered.append(np.mean((column(used, "low") <= truth) & (truth <= column(used, "high"))))
        findings.append(has_finding(fit))
        skewed.append("skewed" in {d["code"] for d in fit.diagnostics})
    assert np.mean(findings) >= 0.4
    assert np.mean(covered) >= 0.82  # intervals without the finding stay too narrow
    assert np.mean(skewed) <= 0.1


def test_independent_noise_of_parabolas_is_rarely_called_shared(fit_parabolas):
    fits = [fit_parabolas(independent, seed, bootstrap=0) for seed in range(REPLICATES)]
    assert np.mean([has_finding(fit) for fit in fits]) <= 0.05


# SODA's sizes, most of them at several budgets
SIZES = isoflop.plan("soda").to_frame()[["budget", "params_total"]]
GRID = pd.DataFrame(
    {"budget": SIZES["budget"], "flops": SIZES["budget"], "params": SIZES["params_total"]}
)
GRID["tokens"] = column(GRID, "budget") / 6.0 / column(GRID, "params")
GRID["loss"] = SODA.loss(column(GRID, "params"), column(GRID, "tokens"))


def simulate_sizes(seed: int, sd: float) -> pd.DataFrame:
    """Return runs with noise of .001, and a deviation of each size that all its budgets share."""
    rng = np.random.default_rng(seed)
    deviations = {size: sd * rng.normal() for size in GRID["params"].unique()}
    shared = np.array([deviations[size] for size in GRID["params"]])
    return GRID.assign(loss=GRID["loss"] * np.exp(shared + 0.001 * rng.normal(size=len(GRID))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "axis"),
    [
        ("parametric", ""),
        pytest.param("joint", "params", marks=pytest.mark.long),
        pytest.param("joint", "tokens", marks=pytest.mark.long),
    ],
)
def test_a_deviation_of_a_size_at_all_budgets_is_found_and_a_is_in_its_interval(method, axis):
    fit_runs = FITS[method] if not axis else lambda runs: fit_joint(runs, axis=axis)
    covered, findings = [], []
    for seed in range(REPLICATES):
        fit = fit_runs(simulate_sizes(seed, 0.003))
        row = fit.exponents.loc["a"]
        covered.append(row["low"] <= SODA.a <= row["high"])
        findings.append(any("at all their budgets" in d["message"] for d in fit.diagnostics))
    assert np.mean(findings) >= 0.9
    assert np.mean(covered) >= 0.9


@pytest.mark.slow
def test_a_joint_fit_finds_shared_noise_in_most_of_ten_studies():
    """The long tests measure its rates, as those of `parametric` above."""
    shared = [fit_joint(study(correlated, seed)) for seed in range(10)]
    free = [fit_joint(study(independent, seed)) for seed in range(10)]
    sizes = [fit_joint(simulate_sizes(seed, 0.003), axis="params") for seed in range(10)]
    assert sum(map(has_finding, shared)) >= 6
    assert sum(map(has_finding, free)) <= 1
    messages = [[finding["message"] for finding in fit.diagnostics] for fit in sizes]
    assert sum(any("at all their budgets" in text for text in texts) for texts in messages) >= 8
    covered = [fit.exponents.loc["a", "low"] <= SODA.a for fit in [*shared, *sizes]]
    covered += [SODA.a <= fit.exponents.loc["a", "high"] for fit in [*shared, *sizes]]
    assert np.mean(covered) >= 0.9


@pytest.mark.long
@pytest.mark.parametrize("method", FITS)
def test_sizes_without_a_deviation_are_rarely_called_shared_noise(method):
    fits = [FITS[method](simulate_sizes(1000 + seed, 0.0)) for seed in range(REPLICATES)]
    assert np.mean([has_finding(fit) for fit in fits]) <= 0.05
    assert np.mean([fit.size_residuals.clustered_covariance is not None for fit in fits]) <= 0.12


def test_both_kinds_of_shared_noise_add_up():
    budgets, sizes = ClusteredCovariance(np.eye(5), 6), ClusteredCovariance(2.0 * np.eye(5), 15)
    both = budgets.combine(sizes)
    assert both.dof == 6
    assert both.half_width(np.ones(5), 0.95) > max(
        budgets.half_width(np.ones(5), 0.95), sizes.half_width(np.ones(5), 0.95)
    )
