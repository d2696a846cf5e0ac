"""The surface: published numbers, known truth, every start, resamples, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.token_costs import EMBEDDING_BUDGETS, with_embeddings

from isoflop.errors import FitError
from isoflop.fitting import SURFACES, Surface, fit_parametric, simulate_isoflop
from isoflop.fitting.estimators.newton import Observations, solve, starts
from isoflop.fitting.estimators.surface_estimate import Sample, estimate_many
from isoflop.fitting.estimators.token_cost import TokenCost
from isoflop.fitting.methods.parametric import collect_sample
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.tables.fit_table import read_table
from isoflop.frames import column, rows

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="reference data not beside the repository"
)
TRUTH = SURFACES["chinchilla"]


def chinchilla(rows: int = 240) -> pd.DataFrame:
    raw = pd.read_csv(DATA / "chinchilla_epoch.csv").sort_values("loss").iloc[:rows]
    flops, params = raw["Training FLOP"], raw["Model Size"]
    return pd.DataFrame(
        {"params": params, "tokens": flops / 6.0 / params, "flops": flops, "loss": raw["loss"]}
    )


@pytest.fixture(scope="module")
def published() -> Any:
    return fit_parametric(chinchilla(), huber_delta="chinchilla", bootstrap=2000, seed=0)


@needs_data
def test_chinchilla_reaches_the_optimum_from_every_start(published: Any) -> None:
    assert published.objective <= 0.0010182740179
    assert published.params["alpha"] == pytest.approx(0.34731050, abs=1e-7)
    assert published.params["beta"] == pytest.approx(0.36717243, abs=1e-7)
    assert published.params["E"] == pytest.approx(1.8172181, abs=1e-6)
    assert published.params["A"] == pytest.approx(477.82587, rel=1e-6)
    assert published.params["B"] == pytest.approx(2143.4174, rel=1e-6)
    assert published.exponents.loc["a", "value"] == pytest.approx(0.513900, abs=1e-6)
    assert published.estimate.agreeing == 1.0
    assert published.estimate.gradient_cosine[0] < 1e-7


@needs_data
def test_chinchilla_intervals_of_case_resamples(published: Any) -> None:
    ends = published.conf_int(0.95, kind="percentile")
    assert ends.loc["alpha"].tolist() == pytest.approx([0.3168, 0.3733], rel=0.05)
    assert ends.loc["beta"].tolist() == pytest.approx([0.3313, 0.4154], rel=0.05)
    assert ends.loc["E"].tolist() == pytest.approx([1.769, 1.871], rel=0.05)
    width = ends.loc["a", "high"] - ends.loc["a", "low"]
    assert width == pytest.approx(0.5561 - 0.4805, rel=0.1)


@needs_data
def test_chinchilla_noise_is_uneven_and_the_t_interval_allows_for_it(published: Any) -> None:
    codes = [d["code"] for d in published.diagnostics]
    assert {"uneven_noise", "small_delta"} <= set(codes)
    low, high = published.exponents.loc["a", ["low", "high"]]
    assert (
        0.9 < (high - low) / 2.0 / (1.97 * 0.0200) < 1.5
    )  # the published standard error; at this delta t is rough
    adaptive = fit_parametric(chinchilla(), bootstrap=1000)
    t, drawn = adaptive.conf_int().loc["a"], adaptive.conf_int(kind="percentile").loc["a"]
    assert t.tolist() == pytest.approx(drawn.tolist(), abs=0.005)


@needs_data
def test_chinchilla_tokens_per_parameter(published: Any) -> None:
    at = published.predict(5.88e23)["value"]
    assert at["tokens"] / at["params"] == pytest.approx(17.9, abs=0.05)


@needs_data
@pytest.mark.parametrize(
    ("rows", "objective", "alpha", "beta"),
    [(245, 0.0018260105, 0.34931, 0.45305), (240, 0.0010182740, 0.34731, 0.36717)],
)
def test_five_outliers_decide(rows: int, objective: float, alpha: float, beta: float) -> None:
    fit = fit_parametric(chinchilla(rows), huber_delta=1e-3, bootstrap=0)
    assert fit.objective == pytest.approx(objective, abs=1e-10)
    assert (fit.params["alpha"], fit.params["beta"]) == pytest.approx((alpha, beta), abs=1e-5)


@needs_data
def test_known_truth_table() -> None:
    fit = fit_parametric(
        DATA / "isoflop64_known_truth.csv", params="N", tokens="D", flops="C", bootstrap=0
    )
    assert fit.exponents.loc["a", "value"] == pytest.approx(0.513905, abs=2 * 0.0039)
    low, high = fit.exponents.loc["a", ["low", "high"]]
    assert low < 0.513905 < high


GRIDS: dict[str, dict[str, float]] = {
    "centred": {},
    "off": {"offset": 3.0},
    "drifting": {"drift": 3.0},
}


@pytest.mark.parametrize(
    ("surface", "grid", "delta"),
    [
        pytest.param(
            SURFACES[surface],
            GRIDS[grid],
            delta,
            id=f"{surface}-{grid}-{delta}",
            # Without noise an adaptive delta is infinite, and any other bounds no residual.
            marks=() if delta == "adaptive" or grid == "off" else pytest.mark.slow,
        )
        for surface in SURFACES
        for grid in GRIDS
        for delta in ("adaptive", "chinchilla", np.inf)
    ],
)
@pytest.mark.parametrize("residual", ["log", "loss"])
def test_recovers_the_truth_without_noise(
    surface: Surface, grid: dict, delta: Any, residual: Any
) -> None:
    fit = fit_parametric(
        simulate_isoflop(surface, noise=0.0, **grid),
        residual=residual,
        huber_delta=delta,
        bootstrap=0,
    )
    assert fit.params.tolist() == pytest.approx(
        [surface.E, surface.A, surface.B, surface.alpha, surface.beta], rel=1e-5
    )
    assert fit.predict(1e24)["value"].tolist() == pytest.approx(
        [*(float(v) for v in surface.optimum(1e24)), float(surface.loss(*surface.optimum(1e24)))],
        rel=1e-5,
    )
    assert not {"not_converged", "at_bound"} & {d["code"] for d in fit.diagnostics}


def test_resamples_are_at_their_optimum() -> None:
    """Warm starts from the estimate end where 48 crude starts of the same resample end."""
    sample = collect_sample(read_table(simulate_isoflop(noise=0.01), need_budgets=False))
    weight = np.random.default_rng(1).multinomial(63, np.full(63, 1 / 63), size=20).astype(float)
    best = solve(sample.points, starts(sample.points), 5e-3)
    warm = solve(sample.points, np.repeat(best.theta[[best.best]], 20, axis=0), 5e-3, weight)
    for k in range(20):
        crude = solve(sample.points, starts(sample.points), 5e-3, weight[k])
        assert warm.objective[k] <= crude.objective.min() * (1 + 1e-9)


@pytest.mark.parametrize("points", [63, 5000])
def test_digits_do_not_depend_on_the_rest_of_the_batch(points: int) -> None:
    table = simulate_isoflop(points=points // 7, noise=0.005)
    params, tokens, loss = (table[name].to_numpy() for name in ("params", "tokens", "loss"))
    p = Observations.from_counts(params, tokens, loss)
    crude = starts(p)
    together = solve(p, crude, 3e-3)
    for k in (0, 17, 47):
        alone = solve(p, crude[[k]], 3e-3)
        assert alone.theta[0].tolist() == pytest.approx(together.theta[k].tolist(), rel=1e-12)


def test_the_same_seed_gives_the_same_digits_whatever_the_order() -> None:
    runs = simulate_isoflop(noise=0.005, seeds=2)
    first = fit_parametric(runs, bootstrap=200, seed=4)
    second = fit_parametric(
        pd.DataFrame(runs.sample(frac=1.0, random_state=3)), bootstrap=200, seed=4
    )
    assert first.to_json() == second.to_json()
    assert np.array_equal(first.draws, second.draws)
    other = fit_parametric(runs, bootstrap=200, seed=5)
    assert not np.array_equal(first.draws, other.draws)


def test_seeds_are_one_configuration_and_show_lack_of_fit() -> None:
    runs = simulate_isoflop(noise=0.002, seeds=3)
    fit = fit_parametric(runs, bootstrap=0)
    assert fit.sample.dof == 63 - 5
    assert fit.noise.replicate_dof == 126
    assert fit.noise.lack_of_fit > 0.01
    runs["loss"] *= 1.0 + 0.01 * np.sin(np.log(runs["params"]) * 5.0)
    bent = fit_parametric(runs, bootstrap=0)
    assert bent.noise.lack_of_fit < 1e-6
    assert "lack_of_fit" in [d["code"] for d in bent.diagnostics]


def test_repeating_every_run_as_a_seed_of_the_same_loss_changes_no_interval_much() -> None:
    """Copies of a run are one configuration and must not count as twice the data."""
    runs = simulate_isoflop(noise=0.003)
    twice = pd.concat([runs, runs.assign(seed=1, run_id=runs["run_id"] + "b")])
    single, double = (fit_parametric(t, bootstrap=0).exponents.loc["a"] for t in (runs, twice))
    assert double["value"] == pytest.approx(single["value"], abs=1e-9)
    assert (double["high"] - double["low"]) == pytest.approx(
        single["high"] - single["low"], rel=1e-6
    )


def test_influence_is_the_effect_of_leaving_a_run_out() -> None:
    runs = simulate_isoflop(noise=0.003, points=5)
    fit = fit_parametric(runs, huber_delta=0.004, bootstrap=0)
    for k in (0, 12, 34):
        config = fit.runs.frame.loc[k, "config"]
        remaining = pd.DataFrame(
            fit.runs.frame.drop(index=k)[["params", "tokens", "loss", "flops", "budget"]]
        )
        refit = fit_parametric(remaining, huber_delta=0.004, bootstrap=0)
        assert fit.influence.loc[config, "a"] == pytest.approx(
            refit.exponents.loc["a", "value"], abs=1e-6
        )


def test_a_wrong_run_is_named() -> None:
    runs = simulate_isoflop(noise=0.002)
    runs.loc[30, "loss"] *= 1.2
    fit = fit_parametric(runs, bootstrap=0)
    (message,) = [d["message"] for d in fit.diagnostics if d["code"] == "outliers"]
    assert "sim-0030" in message
    robust, squares = (
        fit_parametric(runs, huber_delta=d, bootstrap=0) for d in ("adaptive", np.inf)
    )
    truth = TRUTH.a
    assert abs(robust.exponents.loc["a", "value"] - truth) < abs(
        squares.exponents.loc["a", "value"] - truth
    )


def test_integers_do_not_overflow() -> None:
    runs = simulate_isoflop(noise=0.002, budgets=[1e20, 1e21, 1e22, 1e23])
    whole = runs.assign(
        params=runs["params"].astype("int64"), tokens=runs["tokens"].astype("int64")
    )
    a, b = (fit_parametric(t, bootstrap=0).exponents.loc["a", "value"] for t in (runs, whole))
    assert a == pytest.approx(b, abs=1e-6)


SMALL = simulate_isoflop(budgets=[1e18, 1e19, 1e20], points=5, noise=0.002)
REFUSALS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too few": (SMALL.iloc[:6], {}, "6 configurations"),
    "one size": (SMALL.assign(params=1e8), {}, "1 different model sizes"),
    "two sizes": (
        SMALL.assign(params=np.where(SMALL.index % 2, 1e8, 2e8)),
        {},
        "2 different model sizes",
    ),
    "one token count": (SMALL.assign(tokens=1e9), {}, "1 different token counts"),
    "constant loss": (SMALL.assign(loss=3.0), {}, "all losses are 3"),
    "delta of zero": (SMALL, {"huber_delta": 0.0}, "above 0"),
    "delta in words": (SMALL, {"huber_delta": "small"}, "adaptive or chinchilla"),
    "few resamples": (SMALL, {"bootstrap": 5}, "too few for an interval"),
    "confidence": (SMALL, {"confidence": 95.0}, "between 0 and 1"),
    "residual": (SMALL, {"residual": "bits"}, "log or loss"),
    "all are outliers": (SMALL, {"drop_outliers": 1e-3}, "7 must remain: raise drop_outliers"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_have_a_reason(case: str) -> None:
    runs, options, message = REFUSALS[case]
    arguments: dict[str, Any] = {"bootstrap": 0, **options}
    with pytest.raises(FitError, match=message):
        fit_parametric(runs, **arguments)


@pytest.mark.parametrize(
    ("grid", "start"),
    [
        ({}, None),
        ({"drift": 10.0}, "3e20, 1e21 FLOPs: the law's optimum lies beyond the sizes run"),
        ({"offset": 40.0}, "At no budget"),
        ({"offset": 1 / 40}, "At no budget"),
    ],
)
def test_an_optimum_beyond_the_sizes_is_named(grid: dict[str, Any], start: str | None) -> None:
    fit = fit_parametric(simulate_isoflop(points=5, noise=1e-4, **grid), bootstrap=0)
    messages = [d["message"] for d in fit.diagnostics if d["code"] == "edge"]
    assert not messages if start is None else messages[0].startswith(start)


def test_a_hidden_budget_of_one_size_has_an_error_of_the_loss_alone() -> None:
    runs = simulate_isoflop(noise=1e-3)
    below, sizes = column(runs, "budget") < 1e21, column(runs, "params")
    fit = fit_parametric(rows(runs, below | (sizes == np.median(sizes[~below]))), bootstrap=0)
    assert fit.rollout is not None
    assert [miss.errors.keys() for miss in fit.rollout.misses if miss.hidden == 1] == [{"loss"}]
    assert fit.rollout.table()["params"].notna().tolist() == [False, True, False]
    assert fit.plot_rollout("params").get_title(loc="left") == "Hidden budgets, predicted: N*"


def test_a_loss_without_a_floor_is_named() -> None:
    surface = Surface(E=1e-9, A=50.0, B=80.0, alpha=0.2, beta=0.2)
    fit = fit_parametric(simulate_isoflop(surface, noise=0.001), bootstrap=0)
    assert "e_near_zero" in [d["code"] for d in fit.diagnostics]


def test_coverage_of_even_and_uneven_noise() -> None:
    """In one batch; analysis/coverage has the whole study."""
    runs = simulate_isoflop(SURFACES["soda"], noise=0.0)
    params, tokens, loss, budget = (
        runs[name].to_numpy() for name in ("params", "tokens", "loss", "budget")
    )
    points, rng = Observations.from_counts(params, tokens, loss), np.random.default_rng(8)
    size = np.log(params / SURFACES["soda"].optimum(budget)[0])
    truth = SURFACES["soda"]
    start = np.array(
        [
            np.log(truth.E),
            np.log(truth.A) - truth.alpha * points.x_mean,
            np.log(truth.B) - truth.beta * points.y_mean,
            truth.alpha,
            truth.beta,
        ]
    )
    for spread in (np.zeros(63), np.abs(size)):
        noise = 0.003 * rng.normal(size=(400, 63)) * np.exp(spread * np.log(3.0) / np.log(6.0))
        sample = Sample(
            points.with_loss(loss * np.exp(noise)), np.ones(63), budget, budget, np.arange(63)
        )
        estimate = estimate_many(sample, np.repeat(start[None], 400, axis=0), None)
        alpha, beta = estimate.theta[:, 3], estimate.theta[:, 4]
        slope = np.stack([-beta, alpha], axis=1) / ((alpha + beta) ** 2)[:, None]
        se = np.sqrt(np.einsum("mi,mij,mj->m", slope, estimate.covariance[:, 3:, 3:], slope))
        covered = np.mean(np.abs(beta / (alpha + beta) - truth.a) <= 2.0017 * se)
        assert 0.91 < covered < 0.985


# What a token costs


@pytest.mark.parametrize(
    ("flops", "size", "data", "loss"),
    [
        (1e18, 6.104e7, 4.061e9, 3.25844),
        (1e19, 2.691e8, 6.690e9, 2.80739),
        (1e20, 9.387e8, 1.8141e10, 2.47609),
        (1e21, 3.1587e9, 5.3100e10, 2.25078),
    ],
)
def test_tokens_are_priced_by_the_tables_flops(
    flops: float, size: float, data: float, loss: float
) -> None:
    """The truth by search over sizes; C = 6ND gives 8.70e7, 1.915e9 and 3.3355 at 1e18."""
    table = fit_parametric(with_embeddings(), bootstrap=0).predict(flops)
    for name, truth, tolerance in (
        ("params", size, 0.01),
        ("tokens", data, 0.01),
        ("loss", loss, 0.001),
    ):
        assert table.loc[name, "value"] == pytest.approx(truth, rel=tolerance)


def test_exponents_are_those_of_the_tables_flops() -> None:
    table = fit_parametric(with_embeddings(), bootstrap=400).intervals()
    truth = {"a": 0.58806, "b": 0.33650, "ratio": 0.33650 / 0.58806}
    for name, value in truth.items():
        assert table.loc[name, "low"] < value < table.loc[name, "high"]
    drawn = fit_parametric(with_embeddings(), bootstrap=400).intervals(kind="percentile")
    assert drawn.loc["a"].tolist() == pytest.approx(table.loc["a"].tolist(), abs=0.004)


def test_no_optimum_is_worse_than_a_run_of_less_compute() -> None:
    fit = fit_parametric(with_embeddings(noise=0.0), bootstrap=0)
    runs = with_embeddings(noise=0.0)
    losses, flops = column(runs, "loss"), column(runs, "flops")
    for budget in (*EMBEDDING_BUDGETS, 2e18, 1e21):
        predicted = float(fit.predict(budget).loc["loss", "value"])
        assert predicted <= losses[flops <= budget].min() * (1.0 + 1e-6)


def test_a_finding_says_what_a_token_costs() -> None:
    codes = {d["code"]: d["message"] for d in fit_parametric(with_embeddings()).diagnostics}
    assert "0.55 to 0.99" in codes["flops_not_6nd"]
    assert "C = flops" in codes["flops_not_6nd"]
    six_nd = fit_parametric(with_embeddings(), flops="6ND", bootstrap=0)
    assert "flops_not_6nd" not in {d["code"] for d in six_nd.diagnostics}
    assert six_nd.exponents.loc["a", "value"] == pytest.approx(closed_form_a(six_nd), rel=1e-12)


def closed_form_a(fit: ParametricFit) -> float:
    alpha, beta = float(fit.theta[3]), float(fit.theta[4])
    return beta / (alpha + beta)


@pytest.mark.parametrize("scale", [1.0, 1.05])
def test_a_constant_ratio_keeps_the_closed_form(scale: float) -> None:
    runs = simulate_isoflop(TRUTH, noise=0.002)
    fit = fit_parametric(
        runs.assign(train_flops=6.0 * scale * runs["params"] * runs["tokens"]),
        flops="train_flops",
        bootstrap=0,
    )
    assert fit.exponents.loc["a", "value"] == pytest.approx(closed_form_a(fit), rel=1e-12)
    assert [d["code"] for d in fit.diagnostics].count("flops_not_6nd") == (scale > 1.03)
    params, tokens, _ = column(fit.predict(1e20), "value")
    assert 6.0 * scale * params * tokens == pytest.approx(1e20, rel=1e-9)


def test_an_optimum_that_stays_at_the_least_size_has_no_ratio() -> None:
    """Below the sizes run a token costs the same; above, it costs ever more."""
    knots = np.linspace(17.0, 24.0, 101)
    cost = TokenCost(knots, 40.0 * (knots - 17.0), np.log(EMBEDDING_BUDGETS), np.zeros(5))
    law = fit_parametric(with_embeddings(), bootstrap=100).law_estimate
    for kind in ("t", "percentile"):
        table = dataclasses.replace(law, cost=cost).intervals(0.95, kind)
        assert table.loc["a", "value"] == 0.0
        assert table.loc["ratio", "value"] == np.inf
        assert table.loc["a", "low"] <= 0.0 <= table.loc["a", "high"]
