"""Noise that neighbouring sizes share: rarely seen where there is none, named and allowed for where there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import isoflop
from isoflop.fitting import (
    SURFACES,
    compare,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    load_fit,
    simulate_isoflop,
    write_fit,
)
from isoflop.fitting.estimators.clustered_errors import Shared
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
BOTH = ["parametric", pytest.param("joint", marks=pytest.mark.slow)]
"""For what takes dozens of fits."""


def independent(rng: np.random.Generator) -> np.ndarray:
    return 0.003 * rng.normal(size=(7, 9))


def tilted(rng: np.random.Generator) -> np.ndarray:
    """A slope in ln N of its own in each budget, beside half the noise."""
    off = np.log(column(CLEAN, "params") / SODA.optimum(column(CLEAN, "budget"))[0]).reshape(7, 9)
    return 0.0015 * rng.normal(size=(7, 9)) + 0.002 * rng.normal(size=(7, 1)) * off


def correlated(rng: np.random.Generator) -> np.ndarray:
    """Neighbours correlated by 0.8."""
    noise = rng.normal(size=(7, 9))
    for k in range(1, 9):
        noise[:, k] = 0.8 * noise[:, k - 1] + 0.6 * noise[:, k]
    return 0.003 * noise


def spoilt(rng: np.random.Generator) -> np.ndarray:
    """Independent, but a tenth of the runs 4 % too high."""
    return independent(rng) + 0.04 * (rng.random((7, 9)) < 0.1)


def study(noise: Noise, seed: int) -> pd.DataFrame:
    return CLEAN.assign(loss=CLEAN["loss"] * np.exp(noise(np.random.default_rng(seed)).ravel()))


def named(fit) -> bool:
    return "shared_noise" in {found["code"] for found in fit.diagnostics}


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("noise", [pytest.param(tilted, marks=pytest.mark.slow), correlated])
def test_shared_noise_is_named_and_a_still_in_its_interval(method, noise):
    ends, found = [], []
    for seed in range(REPLICATES):
        fit = FITS[method](study(noise, seed))
        ends.append(fit.exponents.loc["a"].tolist())
        found.append(named(fit))
    value, low, high = np.array(ends).T
    assert np.mean(found) >= 0.7
    assert np.mean((low <= SODA.a) & (high >= SODA.a)) >= 0.87
    assert abs(np.mean(value) - SODA.a) < 0.01


@pytest.mark.parametrize("method", BOTH)
def test_independent_noise_is_rarely_called_shared(method):
    fits = [FITS[method](study(independent, seed)) for seed in range(REPLICATES)]
    assert np.mean([named(fit) for fit in fits]) <= 0.05
    assert np.mean([fit.core.shared is not None for fit in fits]) <= 0.15


@pytest.mark.slow
def test_studies_of_one_truth_are_rarely_told_apart_by_shared_noise():
    verdicts = []
    for seed in range(20):
        pair = {str(k): fit_joint(study(correlated, 1000 + 2 * seed + k)) for k in (0, 1)}
        verdicts.append(bool(compare(pair).pairs[0].differing))
    assert np.mean(verdicts) <= 0.1


@pytest.mark.slow
def test_outliers_are_no_shared_noise():
    assert np.mean([named(fit_joint(study(spoilt, seed))) for seed in range(REPLICATES)]) <= 0.12


@pytest.mark.parametrize("method", FITS)
def test_what_is_shared_is_saved(tmp_path: Path, method: str):
    fit = FITS[method](study(correlated, 3))
    assert fit.core.shared.dof == 6
    file = write_fit(tmp_path, [fit])
    assert "shared" in json.loads(file.read_text())["fits"][0]["law"]
    pd.testing.assert_frame_equal(load_fit(file)[method].intervals(), fit.intervals(), rtol=0)


def test_runs_in_no_budgets_have_no_neighbours():
    runs = CLEAN.assign(loss=study(correlated, 3)["loss"]).drop(columns="budget")
    flops = column(CLEAN, "budget") * np.exp(
        np.random.default_rng(1).uniform(-0.4, 0.4, len(CLEAN))
    )
    fit = fit_parametric(
        runs.assign(train_flops=flops, tokens=flops / 6.0 / column(CLEAN, "params")), bootstrap=0
    )
    assert fit.neighbours is None


def of_parabolas(noise: Noise, seed: int):
    """Of profiles that are symmetric: parabolas have no error of their own."""
    flops = column(CLEAN, "budget")
    params, tokens = SODA.optimum(flops)
    bowl = SODA.loss(params, tokens) + 0.065 * np.log(column(CLEAN, "params") / params) ** 2
    return fit_isoflop(
        study(noise, seed).assign(loss=lambda s: s["loss"] / CLEAN["loss"] * bowl), bootstrap=200
    )


def test_optima_of_parabolas_stay_in_their_intervals_where_noise_is_shared():
    found, held, skewed = [], [], []
    for seed in range(REPLICATES):
        fit = of_parabolas(correlated, seed)
        used = rows(fit.profiles, mask(fit.profiles, "used"))
        truth = SODA.optimum(column(used, "flops"))[0]
        held.append(np.mean((column(used, "low") <= truth) & (truth <= column(used, "high"))))
        found.append(named(fit))
        skewed.append("skewed" in {d["code"] for d in fit.diagnostics})
    assert np.mean(found) >= 0.4
    assert np.mean(held) >= 0.82  # those that nothing was found in stay too narrow
    assert np.mean(skewed) <= 0.1


def test_independent_noise_of_parabolas_is_rarely_called_shared():
    assert np.mean([named(of_parabolas(independent, seed)) for seed in range(REPLICATES)]) <= 0.05


# SODA's own sizes, most of them at several budgets
SIZES = isoflop.plan("soda").to_frame()[["budget", "params_total"]]
GRID = pd.DataFrame(
    {"budget": SIZES["budget"], "flops": SIZES["budget"], "params": SIZES["params_total"]}
)
GRID["tokens"] = column(GRID, "budget") / 6.0 / column(GRID, "params")
GRID["loss"] = SODA.loss(column(GRID, "params"), column(GRID, "tokens"))


def of_sizes(seed: int, sd: float) -> pd.DataFrame:
    """Noise of .001, and what each size keeps at all its budgets."""
    rng = np.random.default_rng(seed)
    own = {size: sd * rng.normal() for size in GRID["params"].unique()}
    kept = np.array([own[size] for size in GRID["params"]])
    return GRID.assign(loss=GRID["loss"] * np.exp(kept + 0.001 * rng.normal(size=len(GRID))))


@pytest.mark.parametrize(
    ("method", "axis"),
    [
        ("parametric", ""),
        pytest.param("joint", "params", marks=pytest.mark.slow),
        pytest.param("joint", "tokens", marks=pytest.mark.slow),
    ],
)
def test_what_a_size_keeps_at_all_budgets_is_named_and_a_still_in_its_interval(method, axis):
    fit_one = FITS[method] if not axis else lambda runs: fit_joint(runs, axis=axis)
    held, found = [], []
    for seed in range(REPLICATES):
        fit = fit_one(of_sizes(seed, 0.003))
        row = fit.exponents.loc["a"]
        held.append(row["low"] <= SODA.a <= row["high"])
        found.append(any("A size keeps" in d["message"] for d in fit.diagnostics))
    assert np.mean(found) >= 0.9
    assert np.mean(held) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", FITS)
def test_sizes_that_keep_nothing_are_rarely_named(method):
    fits = [FITS[method](of_sizes(1000 + seed, 0.0)) for seed in range(REPLICATES)]
    assert np.mean([named(fit) for fit in fits]) <= 0.05
    assert np.mean([fit.recurring.shared is not None for fit in fits]) <= 0.12


def test_both_kinds_of_shared_noise_add_up():
    one, other = Shared(np.eye(5), 6), Shared(2.0 * np.eye(5), 15)
    both = one.joined(other)
    assert both.dof == 6
    assert both.half(np.ones(5), 0.95) > max(
        one.half(np.ones(5), 0.95), other.half(np.ones(5), 0.95)
    )
