"""Recipes that deviate by a known amount: measured, and removed from the exponents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import isoflop
from isoflop.errors import FitError
from isoflop.fitting import fit_joint
from isoflop.fitting.recipe_check import CheckMethod, _vertex, check_recipe, select_recipe_runs
from isoflop.laws import SURFACES

SODA = SURFACES["soda"]
BEND = 0.02  # second derivative of ln loss in ln of a setting
Off = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""ln(best learning rate / the recipe's), of parameters and budget."""


def study(
    off_lr: Off, off_batch: Off | None = None, noise: float = 0.0, seed: int = 0, **changes: Any
) -> pd.DataFrame:
    """Return SODA's runs with runs that check the recipe, whose learning rate and batch deviate."""
    runs = isoflop.plan("soda", {"recipe_check": True, **changes}).to_frame()
    params, tokens, budget = (
        runs[name].to_numpy(dtype=float) for name in ("params_total", "tokens", "budget")
    )
    factor = {"lr x 0.5": -np.log(2.0), "lr x 2": np.log(2.0)}
    lr = np.array([factor.get(check, 0.0) for check in runs["check"]])
    batch = np.log(
        [{"batch x 0.5": 0.5, "batch x 2": 2.0}.get(check, 1.0) for check in runs["check"]]
    )
    excess = 0.5 * BEND * (lr - off_lr(params, budget)) ** 2
    excess += 0.5 * BEND * (batch - (off_batch(params, budget) if off_batch else 0.0)) ** 2
    scatter = np.random.default_rng(seed).normal(0.0, noise, len(runs))
    return runs.assign(loss=SODA.loss(params, tokens) * np.exp(excess + scatter), state="done")


def small_off(params: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Return a deviation of the rate that is 0 at 300M parameters and grows away from them."""
    return 0.45 * np.log(params / 3e8)


def test_the_excess_is_the_true_one() -> None:
    check = check_recipe(study(small_off), method="parametric")
    lr = check.points.query("setting == 'lr'")
    assert len(check.points) == 12
    assert sorted(set(lr["budget"])) == [3e18, 3e19]
    true = small_off(lr["params"].to_numpy(), lr["budget"].to_numpy())
    np.testing.assert_allclose(lr["excess"], 0.5 * BEND * true**2, atol=1e-12)
    np.testing.assert_allclose(lr["best"], np.exp(true), rtol=1e-9)
    assert check.points["bounded"].tolist() == [True] * 12
    np.testing.assert_allclose(check.points.query("setting == 'batch'")["excess"], 0.0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["joint", "isoflop", "parametric"])
def test_an_excess_over_size_is_removed_from_the_exponents(method: CheckMethod) -> None:
    """Within the sizes checked: beyond them the excess is taken as constant, and here it grows."""
    right = check_recipe(study(lambda n, c: np.zeros(len(n))), method=method).exponents
    off = check_recipe(study(small_off), method=method).exponents
    biased, mended = (
        abs(off.loc["a", key] - right.loc["a", "recipe"]) for key in ("recipe", "tuned")
    )
    assert biased > 0.01
    assert mended < 0.8 * biased
    np.testing.assert_allclose(right["difference"], 0.0, atol=1e-9)
    assert off.loc["b", "difference"] == pytest.approx(
        off.loc["b", "tuned"] - off.loc["b", "recipe"]
    )


def test_a_constant_excess_changes_no_exponent() -> None:
    check = check_recipe(study(lambda n, c: np.full(len(n), 0.5)))
    assert check.points.query("setting == 'lr'")["excess"].to_numpy() == pytest.approx(
        0.5 * BEND * 0.25
    )
    np.testing.assert_allclose(check.exponents["difference"], 0.0, atol=1e-6)


def test_excess_over_budgets_is_interpolated_in_compute() -> None:
    """The tuned losses are those of the law if the true excess has the interpolated form: constant
    over sizes, linear in ln C.
    """

    def by_budget(params: np.ndarray, budget: np.ndarray) -> np.ndarray:
        return np.sqrt(np.clip(np.log10(budget / 3e18), 0.0, 1.0)) * 0.6

    runs = study(by_budget)
    tuned = check_recipe(runs, method="parametric").tuned.runs.frame.sort_values(
        ["params", "tokens"]
    )["loss"]
    followers = select_recipe_runs(runs).sort_values(["params_total", "tokens"])
    true = SODA.loss(
        followers["params_total"].to_numpy(dtype=float), followers["tokens"].to_numpy(dtype=float)
    )
    np.testing.assert_allclose(tuned, true, rtol=1e-9)


def test_learning_rate_and_batch_add_up() -> None:
    check = check_recipe(study(small_off, lambda n, c: np.full(len(n), -0.4)), method="parametric")
    batch = check.points.query("setting == 'batch'")
    assert batch["excess"].to_numpy() == pytest.approx(0.5 * BEND * 0.16, rel=1e-3)
    assert batch["best"].to_numpy() == pytest.approx(np.exp(-0.4), rel=1e-3)


@pytest.mark.slow
def test_a_best_beyond_the_factors_is_a_lower_bound() -> None:
    check = check_recipe(study(lambda n, c: np.full(len(n), 2.0)), method="parametric")
    lr = check.points.query("setting == 'lr'")
    assert lr["bounded"].tolist() == [False] * 6
    assert lr["best"].to_numpy() == pytest.approx(2.0)
    assert np.all(lr["excess"] < 0.5 * BEND * 4.0)
    assert "At 6 of 12 points the best lies beyond the factors run." in check.summary()


def test_a_well_tuned_recipe_is_not_changed() -> None:
    """With noise and settings without effect, the exponents change by less than the interval."""
    runs = study(lambda n, c: np.zeros(len(n)), noise=0.003, seed=1)
    check = check_recipe(runs, method="parametric")
    assert np.count_nonzero(check.points["clear"]) <= 3
    assert abs(check.exponents.loc["a", "difference"]) < check.exponents.loc["a", "half"]
    assert "points the recipe costs more than noise explains" in check.summary()


def test_noise_of_an_excess() -> None:
    """The mean excess of a well-tuned recipe is the excess attributed to noise."""
    x, rng, noise = (
        np.log([0.4, 1.0, 2.0]),
        np.random.default_rng(0),
        np.array([0.001, 0.0007, 0.001]),
    )
    points = [
        _vertex(x, 1.0 + 0.5 * BEND * x**2 + rng.normal(0.0, noise), noise) for _ in range(4000)
    ]
    assert all(point["bounded"] for point in points)
    by_noise, excess = (
        np.mean([float(str(point[key])) for point in points]) for key in ("noise", "excess")
    )
    assert excess == pytest.approx(by_noise, rel=0.1)


def test_checks_are_no_points_of_a_profile() -> None:
    runs = study(small_off)
    assert len(select_recipe_runs(runs)) == 64
    check = check_recipe(runs)
    pd.testing.assert_frame_equal(
        check.recipe.exponents, fit_joint(select_recipe_runs(runs)).exponents
    )
    assert select_recipe_runs(select_recipe_runs(runs)).equals(select_recipe_runs(runs))
    assert len(select_recipe_runs(runs.drop(columns="check"))) == len(runs)


def test_runs_that_cannot_be_checked_are_refused() -> None:
    runs = study(small_off)
    with pytest.raises(
        FitError, match="no column 'check': a recipe is checked with recipe_check in the sweep"
    ):
        check_recipe(runs.drop(columns="check"))
    runs.loc[runs["check"].str.endswith("0.5"), "state"] = "failed"
    with pytest.raises(FitError, match="no size has a done run at half, one and double"):
        check_recipe(runs)
