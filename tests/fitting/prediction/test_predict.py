"""Predictions at a budget: optima over a recipe's models, intervals, and the sweep file of one
run.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.fits import Fits

from isoflop.config import Sweep, load_sweep
from isoflop.errors import ConfigError, FitError
from isoflop.fitting import (
    FitFile,
    fit_envelope,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    load_fit,
    predict,
    simulate_isoflop,
    write_fit,
)
from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.prediction.optimum import Optimum, optimum_over_sizes
from isoflop.fitting.prediction.recipe_models import RecipeModels
from isoflop.frames import cell, column
from isoflop.laws import SURFACES
from isoflop.planning.plan import plan
from isoflop.recipes import Recipe

RUNS = simulate_isoflop(SURFACES["soda"], (3e18, 9e18, 1.8e19, 3e19, 9e19, 1.8e20, 3e20), points=9)
FITS = Fits(
    isoflop=lambda: fit_isoflop(RUNS, bootstrap=200),
    joint=lambda: fit_joint(RUNS),
    parametric=lambda: fit_parametric(RUNS, bootstrap=200),
    envelope=lambda: fit_envelope(RUNS),
)
SUITE = 1.32e22


def values(table: pd.DataFrame) -> dict[str, float]:
    """Return the values of a prediction by quantity."""
    return dict(zip(table.index, column(table, "value"), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> FitFile:
    return load_fit(
        write_fit(tmp_path_factory.mktemp("fit"), list(FITS.values()), sweep=load_sweep("soda"))
    )


# Published figures


def test_sodas_published_law_at_the_budget_of_its_largest_model() -> None:
    """9.8B parameters, 225B tokens and a loss of 3.250 with C = 6ND; nearly the same over SODA's
    own models.
    """
    prediction = predict("soda", SUITE)
    (method,) = prediction.methods
    assert method.over_sizes is not None
    closed, real = values(method.over_sizes), values(method.table)
    assert closed["params"] == pytest.approx(9.8e9, rel=5e-3)
    assert closed["tokens"] == pytest.approx(225e9, rel=2e-3)
    assert closed["loss"] == pytest.approx(3.250, abs=5e-4)
    assert real["params"] == pytest.approx(closed["params"], rel=0.05)
    assert prediction.configuration is not None
    (run,) = prediction.configuration.runs
    assert run.width % 128 == 0
    assert run.tokens == pytest.approx(SUITE / run.shape.train_flops_per_token, rel=0.01)
    assert prediction.notes == ("soda: published without an uncertainty, so it has no intervals",)


def test_over_real_models_small_optima_move_away_from_6nd() -> None:
    """The head takes 20% of the FLOPs at SODA's smallest optimum; 6ND counts it twice (embedding
    and head).
    """
    (method,) = predict("soda", 3e18).methods
    assert method.over_sizes is not None
    assert method.shape is not None
    real, closed = values(method.table), values(method.over_sizes)
    assert closed["params"] == pytest.approx(0.368e9, rel=5e-3)
    assert real["tokens"] == pytest.approx(3e18 / method.shape.train_flops_per_token)
    assert real["tokens"] * real["params"] * 6 > 1.1 * 3e18
    assert real["loss"] < closed["loss"]


# The optimum


@pytest.mark.parametrize(
    ("law", "recipe", "budget", "step"),
    [
        ("soda", "soda", 9e19, 128),
        ("soda", "soda", 1e23, 128),
        ("chinchilla", "pocket-64", 4e18, 4),
    ],
)
def test_the_best_model_is_the_best_of_all_models_of_the_recipe(
    law: str, recipe: str, budget: float, step: int
) -> None:
    (method,) = predict(law, budget, recipe=recipe).methods
    models = RecipeModels(load_sweep(recipe), "total")
    assert models.step == step
    shapes = [models.sweep_recipe.shape(k * step) for k in range(1, 9000 // step)]
    losses = [
        float(SURFACES[law].loss(s.params_total, budget / s.train_flops_per_token)) for s in shapes
    ]
    best = int(np.argmin(losses))
    assert 500 < shapes[best].width < 8000
    assert method.shape == shapes[best]
    assert cell(method.table, "loss", "value") == pytest.approx(losses[best], rel=1e-9)


@pytest.mark.parametrize("budget", [1e17, 3e20, 1e24])
def test_near_optimal_sizes_cost_their_share(budget: float) -> None:
    best = optimum_over_sizes(FITS["parametric"].law_estimate, budget)
    for near in best.near_optimal:
        for end in (near.low, near.high):
            assert end is not None
            loss = float(FITS["parametric"].loss_at(end, budget / (6.0 * end)))
            assert loss == pytest.approx(best.loss * (1.0 + near.share), rel=1e-9)
    (first, second) = best.near_optimal
    assert second.low is not None
    assert first.low is not None
    assert second.low < first.low < best.params


def test_near_optimal_models_are_inside_and_the_next_are_not(saved: FitFile) -> None:
    best = next(m for m in predict(saved, 1e21).methods if m.optimum is not None).optimum
    assert best is not None
    models = RecipeModels(load_sweep("soda"), "total")
    for near in best.near_optimal:
        assert near.low is not None
        assert near.high is not None
        shapes = models.shapes(near.low, near.high)
        losses = [
            float(FITS["parametric"].loss_at(s.params_total, 1e21 / s.train_flops_per_token))
            for s in shapes
        ]
        inside = np.array(losses) <= best.loss * (1.0 + near.share)
        assert inside[1:-1].all()
        assert not inside[-1]


@pytest.mark.parametrize("recipe", [None, "soda"])
def test_other_sizes_reach_the_same_loss(recipe: str | None) -> None:
    law = fit_parametric(simulate_isoflop(), bootstrap=0)
    best = predict(law, 1e21, recipe=recipe).methods[0].optimum
    assert best is not None
    assert [other.factor for other in best.equal_loss] == [0.25, 0.5, 2.0]
    for other in best.equal_loss:
        assert other.params == pytest.approx(other.factor * best.params, rel=0.1)
        assert float(law.loss_at(other.params, other.tokens)) == pytest.approx(best.loss, rel=1e-9)
        assert other.ratio == pytest.approx(other.flops / 1e21)
        assert other.ratio > 1.0
        if recipe is None:
            assert other.flops == pytest.approx(6.0 * other.params * other.tokens)
        else:
            assert other.flops > 5.0 * other.params * other.tokens


def test_a_model_too_small_never_reaches_the_loss() -> None:
    best = optimum_over_sizes(FITS["parametric"].law_estimate, 1e26)
    assert math.isnan(best.equal_loss[0].tokens)


# Intervals


def test_with_6nd_the_intervals_are_those_of_the_closed_form() -> None:
    best, flops = optimum_over_sizes(FITS["parametric"].law_estimate, 1e22), 1e22
    intervals, closed = (
        best.intervals(FITS["parametric"].law_estimate, flops, 0.9),
        FITS["parametric"].law_at(flops, 0.9),
    )
    for name in ("params", "tokens", "loss"):
        np.testing.assert_allclose(intervals[name], closed[name], rtol=1e-7)


@pytest.mark.parametrize(("slope", "bend"), [(1.0, 0.0), (1.15, 0.0), (0.9, 0.04)])
def test_the_derivative_of_the_optimum_is_that_of_a_search(slope: float, bend: float) -> None:
    """Compare with a search for the least loss, for a cost of a token f(N) with
    ln f = c + slope u + bend u^2 / 2.
    """
    core, middle, flops = FITS["parametric"].law_estimate, math.log(3e9), 1e22

    def least(theta: np.ndarray) -> np.ndarray:
        u = middle + np.linspace(-3.0, 3.0, 200_001)
        cost = math.log(6.0) + middle + slope * (u - middle) + 0.5 * bend * (u - middle) ** 2
        moved = Observations(
            u - core.points.x_mean, math.log(flops) - cost - core.points.y_mean, u, 0.0, 0.0
        )
        losses = moved.fitted(theta)
        index = int(np.argmin(losses))
        lower, middle_loss, upper = (float(v) for v in losses[index - 1 : index + 2])
        step = u[1] - u[0]
        u_best = u[index] + 0.5 * step * (lower - upper) / (lower - 2.0 * middle_loss + upper)
        return np.array([u_best, math.log(flops) - np.interp(u_best, u, cost)])

    at = least(core.theta)
    best = Optimum(
        math.exp(at[0]), math.exp(at[1]), 1.0, (), (), (slope + bend * (at[0] - middle), bend)
    )
    for k in range(1, 5):
        nudge = np.zeros(5)
        nudge[k] = 1e-4
        moved = (least(core.theta + nudge) - least(core.theta - nudge)) / 2e-4
        alone = replace(core, theta_covariance=np.outer(nudge, nudge) / 1e-8, dof=10**9)
        got = best.intervals(alone, flops, 0.6826894921370859)  # one standard error
        for interval, derivative in zip((got["params"], got["tokens"]), moved, strict=True):
            assert interval.high - interval.value == pytest.approx(
                abs(derivative), rel=2e-3, abs=1e-4
            )


def test_the_two_kinds_of_interval(saved: FitFile) -> None:
    for method in predict(saved, 1e22).methods:
        table = method.table
        inner, outer = (
            column(table, high) - column(table, "value") for high in ("statistical_high", "high")
        )
        assert np.all(outer == inner if method.law.rollout is None else outer > inner)
        assert (method.law.rollout is None) == (method.name == "envelope")
    narrow, wide = (predict(saved, 1e22, confidence=level).to_frame() for level in (0.5, 0.95))
    assert np.all(column(narrow, "statistical_high") < column(wide, "statistical_high"))


def test_other_laws_predict_as_they_do_alone(saved: FitFile) -> None:
    prediction = predict(saved, 1e22)
    for fit, method in zip(FITS.values(), prediction.methods, strict=True):
        alone = fit.predict(1e22)
        pd.testing.assert_frame_equal(
            alone, method.table if method.over_sizes is None else method.over_sizes, rtol=0
        )
        assert method.shape is not None
    assert "to" in prediction.gap


# One run


@pytest.mark.parametrize("method", ["isoflop", "joint", "parametric", "envelope"])
def test_the_run_is_planned_from_its_yaml(saved: FitFile, method: str, tmp_path: Path) -> None:
    prediction = predict(saved, 1e21, method=method)
    assert prediction.chosen.law.method == method
    (tmp_path / "best.yaml").write_text(prediction.yaml())
    laid_out = plan(tmp_path / "best.yaml")
    (run,) = laid_out.runs
    assert prediction.configuration is not None
    assert laid_out.runs == prediction.configuration.runs
    assert run.shape == prediction.chosen.shape
    assert run.train_flops == pytest.approx(1e21, rel=0.01)
    assert laid_out.sweep.data == load_sweep("soda").data
    assert laid_out.sweep.train == load_sweep("soda").train
    size = cell(prediction.chosen.table, "params", "value")
    assert abs(math.log(run.params_total / size)) < 0.08  # half a step in width


def test_the_most_certain_law_is_trained_unless_another_is_requested(saved: FitFile) -> None:
    prediction = predict(saved, 1e22)
    widths = {
        m.name: m.size().high / m.size().low
        for m in prediction.methods
        if m.law.rollout is not None
    }
    assert prediction.chosen.name == min(widths, key=lambda name: widths[name])
    with pytest.raises(
        FitError, match="there is no law by 'ridge'; there is isoflop, joint, parametric, envelope"
    ):
        predict(saved, 1e22, method="ridge")


def test_n_is_counted_as_in_the_fit() -> None:
    runs = RUNS.assign(params_non_embedding=RUNS["params"])
    law = fit_parametric(runs, n="non_embedding", bootstrap=0)
    (method,) = predict(law, 1e21, recipe="soda").methods
    assert method.shape is not None
    assert cell(method.table, "params", "value") == pytest.approx(method.shape.params_non_embedding)


def test_an_own_recipe_takes_the_window_of_the_runs(saved: FitFile) -> None:
    prediction = predict(saved, 1e21, recipe="isoflop.recipes:SODA")
    assert prediction.configuration is not None
    assert prediction.configuration.sweep.recipe == "isoflop.recipes:SODA"
    assert prediction.configuration.runs[0].shape == predict(saved, 1e21).chosen.shape
    with pytest.raises(
        ConfigError, match="defines no window and no vocabulary; give a sweep file that uses it"
    ):
        predict(FITS["parametric"], 1e21, recipe="isoflop.recipes:SODA")


def test_a_sweep_is_a_recipe_too(saved: FitFile) -> None:
    half: Sweep = replace(load_sweep("soda"), seq_len=2048)
    prediction = predict(saved, 1e21, recipe=half)
    assert prediction.configuration is not None
    assert prediction.configuration.runs[0].seq_len == 2048


def test_the_next_best_where_whole_steps_miss_the_budget() -> None:
    """At 1e15 FLOPs SODA's batch of one takes few steps, and only some widths come within 1%."""
    law = fit_parametric(simulate_isoflop(budgets=(1e13, 1e14, 1e15, 1e16), points=7), bootstrap=0)
    with pytest.raises(FitError, match="whole steps miss the budget; predict for a larger one"):
        predict(law, 1e12, recipe="soda")
    prediction = predict(law, 3e15, recipe="soda")
    assert prediction.configuration is not None
    assert prediction.configuration.runs[0].train_flops == pytest.approx(3e15, rel=0.01)


# Refusals


def test_a_recipe_may_refuse_some_widths(monkeypatch: pytest.MonkeyPatch, saved: FitFile) -> None:
    shape, whole = Recipe.shape, predict(saved, 1e21).methods[0].shape

    def every_512th(self: Recipe, width: int, vocab_size: int, seq_len: int):
        return {width: shape(self, width, vocab_size, seq_len)}[width // 512 * 512]

    monkeypatch.setattr(Recipe, "shape", every_512th)
    nearest = predict(saved, 1e21).methods[0].shape
    assert nearest is not None
    assert whole is not None
    assert nearest.width % 512 == 0
    assert abs(nearest.width - whole.width) <= 512
    monkeypatch.setattr(Recipe, "solve", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"^recipe: soda: solve of 1e21 at width \d+: expected"):
        predict(saved, 1e21)


def test_a_recipe_that_can_not_be_imported_is_an_error(saved: FitFile) -> None:
    absent: Sweep = replace(load_sweep("soda"), recipe="absent_recipes:deep")
    with pytest.raises(
        ConfigError, match=r"^recipe 'absent_recipes:deep' can't be imported \(No module named"
    ):
        predict(saved, 1e21, recipe=absent)


def test_without_a_recipe_there_is_no_run() -> None:
    prediction = predict(list(FITS.values()), 1e21)
    assert prediction.configuration is None
    assert any("no recipe is known" in note for note in prediction.notes)
    with pytest.raises(FitError, match="a training configuration needs a recipe"):
        prediction.yaml()
    document = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
    assert (document["configuration"], document["yaml"]) == (None, None)


@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_no_budget(flops: float) -> None:
    with pytest.raises(FitError, match="a budget is a number of FLOPs above 0"):
        predict(FITS["parametric"], flops)


@pytest.mark.parametrize("confidence", [1.0, -0.5, 95.0])
def test_no_confidence(confidence: float) -> None:
    with pytest.raises(FitError, match="confidence is a share between 0 and 1"):
        predict(FITS["parametric"], 1e21, confidence=confidence)


def test_json_has_both_intervals_of_each_quantity(saved: FitFile) -> None:
    document = json.loads(json.dumps(predict(saved, 1e21).to_dict(), allow_nan=False))
    assert [law["method"] for law in document["laws"]] == [
        "isoflop",
        "joint",
        "parametric",
        "envelope",
    ]
    surface = document["laws"][2]
    for quantity in ("params", "tokens", "loss"):
        (low, high), (least, most) = (
            surface[quantity]["statistical"],
            surface[quantity]["with_model_error"],
        )
        assert least <= low <= surface[quantity]["value"] <= high <= most
    assert surface["over"] == "shapes"
    assert surface["over_sizes"]["params"]["value"] != surface["params"]["value"]
    assert document["configuration"]["train_flops"] == pytest.approx(1e21, rel=0.01)
