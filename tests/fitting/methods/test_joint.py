"""All profiles at once: known truth, bias of parabolas, partial profiles, drifts, refusals."""
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tables import replace_losses

from isoflop.errors import FitError
from isoflop.fitting import (
    SURFACES,
    fit_isoflop,
    fit_joint,
    read_table,
    simulate_isoflop,
)
from isoflop.fitting.estimators import joint_estimate as joint
from isoflop.fitting.results.diagnostics_parametric import diagnose_joint

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="reference data not beside the repository"
)
SODA = SURFACES["soda"]
GRIDS: dict[str, dict[str, float]] = {
    "centred": {},
    "too large": {"offset": 3.0},
    "drifting": {"drift": 3.0},
    "too small": {"offset": 0.4},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("soda", "params"),
        ("chinchilla", "tokens"),
        pytest.param("soda", "tokens", marks=pytest.mark.slow),
        pytest.param("chinchilla", "params", marks=pytest.mark.slow),
    ],
)
def test_recovers_the_truth_without_noise(name: str, axis: Any, grid: dict[str, Any]) -> None:
    surface = SURFACES[name]
    fit = fit_joint(simulate_isoflop(surface, noise=0.0, **grid), axis=axis)
    assert fit.exponents["value"].tolist() == pytest.approx([surface.a, surface.b], abs=1e-6)
    arms = (surface.alpha, surface.beta) if axis == "params" else (surface.beta, surface.alpha)
    assert fit.intervals().loc[["left", "right"], "value"].tolist() == pytest.approx(arms, abs=1e-5)
    assert fit.predict(1e24)["value"].tolist() == pytest.approx(
        [float(v) for v in surface.optimum(1e24)], rel=1e-4
    )
    assert fit.profiles["loss_opt"].tolist() == pytest.approx(
        surface.loss(*surface.optimum(fit.profiles["budget"].to_numpy())).tolist(), rel=1e-7
    )


def test_no_bias_where_parabolas_are_biased() -> None:
    """SODA's surface on a drifting grid: the parabola's bias of a is -.009 without any noise."""
    runs = simulate_isoflop(SODA, noise=0.0, drift=3.0)
    parabolas, together = fit_isoflop(runs, use="all"), fit_joint(runs)
    assert abs(parabolas.exponents.loc["a", "value"] - SODA.a) > 0.008
    assert abs(together.exponents.loc["a", "value"] - SODA.a) < 1e-6


def test_a_shift_of_a_whole_budget_does_no_harm() -> None:
    """A recipe tuned unevenly over budgets shifts every loss of a budget by one factor."""
    runs = simulate_isoflop(SODA, noise=0.0)
    shifts = dict(
        zip(sorted(set(runs["budget"])), [0.0, 0.03, -0.02, 0.05, 0.0, -0.04, 0.02], strict=True)
    )
    runs["loss"] += runs["budget"].map(shifts)
    assert fit_joint(runs).exponents.loc["a", "value"] == pytest.approx(SODA.a, abs=1e-6)


def test_tokens_follow_the_runs_not_6nd() -> None:
    """D* is read from the runs: with embeddings counted, C is not 6ND and a + b is not 1."""
    runs = simulate_isoflop(SODA, noise=0.0)
    runs["tokens"] *= (runs["params"] / 1e9) ** -0.1
    fit = fit_joint(runs)
    a, b = fit.exponents["value"]
    assert a == pytest.approx(SODA.a, abs=1e-6)
    assert b == pytest.approx(SODA.b - 0.1 * SODA.a, abs=1e-4)
    se = (fit.exponents["high"] - fit.exponents["low"]).to_numpy()
    assert np.all(se < 1e-4)


def test_an_interval_of_b_is_that_of_a_under_6nd() -> None:
    table = fit_joint(simulate_isoflop(SODA, noise=0.003)).exponents
    assert table.loc["a", "value"] + table.loc["b", "value"] == pytest.approx(1.0, abs=1e-9)
    widths = table["high"] - table["low"]
    assert widths["a"] == pytest.approx(widths["b"], rel=1e-6)


def test_a_profile_without_its_minimum_still_helps() -> None:
    """At the top budget only sizes below the optimum were run: parabolas leave the budget out, the
    joint fit locates its optimum.
    """
    runs = simulate_isoflop(SODA, noise=0.0005, points=9)
    top = runs["budget"] == runs["budget"].max()
    partial = runs[~top | (runs["params"] < SODA.optimum(runs["budget"].max())[0])]
    fit = fit_joint(partial)
    assert fit.profiles["status"].tolist()[-1] in ("edge", "one_sided")
    assert fit.exponents.loc["a", "value"] == pytest.approx(SODA.a, abs=0.01)
    assert len(fit.profiles) == 7
    assert np.count_nonzero(fit_isoflop(partial).profiles["used"]) == 6


@needs_data
def test_known_truth_table() -> None:
    fit = fit_joint(DATA / "isoflop64_known_truth.csv", params="N", tokens="D", flops="C")
    value, low, high = fit.exponents.loc["a"]
    assert low < 0.513905 < high
    assert value == pytest.approx(0.513905, abs=0.006)


def test_near_optimal_sizes_have_the_stated_cost() -> None:
    fit = fit_joint(simulate_isoflop(SODA, noise=0.0))
    for row in fit.profiles.to_dict("records"):
        for share in (0.1, 1.0):
            ends = np.array([row[f"near_{share:g}_low"], row[f"near_{share:g}_high"]])
            assert fit.curve(row["budget"], ends).tolist() == pytest.approx(
                [row["loss_opt"] * (1 + share / 100)] * 2, rel=1e-9
            )
            assert ends[0] < row["params_opt"] < ends[1]


def test_coverage_in_one_batch() -> None:
    runs = simulate_isoflop(SODA, np.geomspace(1e18, 1e20, 5), 6, noise=0.0, drift=3.0)
    x, c = np.log(runs["params"].to_numpy()), np.log(runs["budget"].to_numpy())
    group = np.unique(c, return_inverse=True)[1]
    clean = joint.Curves(x - x.mean(), c - c.mean(), group, runs["loss"].to_numpy(), np.ones(30))
    crude = joint.fit_curves(clean, joint.starts(clean), np.inf)
    first = crude.theta[[int(np.argmin(crude.objective))]]
    losses = clean.loss * np.exp(0.003 * np.random.default_rng(2).normal(size=(400, 30)))
    many = joint.Curves(clean.x, clean.c, group, losses, clean.seeds)
    estimate = joint.fit_curves(many, np.repeat(first, 400, axis=0), None)
    off = np.abs(estimate.theta[:, 4] - SODA.a) / np.sqrt(estimate.covariance[:, 4, 4])
    assert 0.91 < np.mean(off <= 2.086) < 0.985
    assert abs(float(np.mean(estimate.theta[:, 4])) - SODA.a) < 0.003


def test_hold_out_error_is_that_of_the_hidden_budgets() -> None:
    good, bent = simulate_isoflop(SODA, noise=0.001), simulate_isoflop(SODA, noise=0.001)
    far = bent["budget"] > 2e20
    bent.loc[far, "loss"] = SODA.loss(1.5 * bent.loc[far, "params"], bent.loc[far, "tokens"])
    errors = [fit_joint(t).rollout for t in (good, bent)]
    assert all(e is not None for e in errors)
    first, second = (e.table()["params"].abs().max() for e in errors if e is not None)
    assert second > 3 * first
    wide, narrow = (fit_joint(t).predict(1e23).loc["params"] for t in (bent, good))
    assert np.log(wide["high"] / wide["low"]) > np.log(narrow["high"] / narrow["low"])
    inside = fit_joint(bent).predict(1e20).loc["params"]
    assert inside["low"] == inside["statistical_low"]


SMALL = simulate_isoflop(SODA, budgets=[1e18, 1e19, 1e20], points=5, noise=0.001)
REFUSALS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "two budgets": (SMALL[SMALL["budget"] < 5e19], {}, "2 budgets have two sizes or more"),
    "too few runs": (SMALL.groupby("budget").head(3), {}, "9 configurations in 3 budgets"),
    "no minimum": (SMALL.assign(loss=5.0 - 0.1 * np.log(SMALL["params"])), {}, "among its sizes"),
    "axis": (SMALL, {"axis": "flops"}, "params or tokens"),
    "confidence": (SMALL, {"confidence": 1.5}, "between 0 and 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_have_a_reason(case: str) -> None:
    runs, options, message = REFUSALS[case]
    with pytest.raises(FitError, match=message):
        fit_joint(runs, **options)


def test_there_are_no_resamples() -> None:
    with pytest.raises(FitError, match="t intervals only"):
        fit_joint(SMALL).conf_int(kind="percentile")


def test_losses_without_a_minimum_are_refused():
    runs = simulate_isoflop(noise=0.0)
    for loss in (3.0, runs["budget"].rank(method="dense"), 3.0 + 1e-12 * runs.index):
        with pytest.raises(
            FitError, match="within each budget all losses are equal, so the best size"
        ):
            fit_joint(runs.assign(loss=loss))


@pytest.mark.parametrize(
    ("index", "value", "name", "law"),
    [
        (4, 5.0, "a", True),
        (3, 80.0, "k", True),
        (0, -25.0, "ln curvature", False),
        (1, 5.0, "arms", False),
    ],
)
def test_each_parameter_at_its_bound_is_named(index, value, name, law):
    fit = fit_joint(simulate_isoflop(points=7, noise=0.003))
    assert fit.at_bounds == []
    theta = fit.estimate.theta.copy()
    theta[0, index] = value
    fit = dataclasses.replace(fit, estimate=dataclasses.replace(fit.estimate, theta=theta))
    fit = dataclasses.replace(fit, diagnostics=diagnose_joint(fit))
    assert name in " ".join(
        finding["message"] for finding in fit.diagnostics if finding["code"] == "at_bound"
    )
    assert fit.headline().startswith(f"No law of compute: {name} is at a bound") == law


def test_outliers_where_the_noise_grows_may_be_none():
    runs = simulate_isoflop(points=9, noise=0.0)
    scatter = 0.001 * (runs["budget"] / runs["budget"].min()) ** 0.5
    runs["loss"] *= np.exp(scatter * np.random.default_rng(0).normal(size=len(runs)))
    messages = {d["code"]: d["message"] for d in fit_joint(runs).diagnostics}
    assert {"outliers", "uneven_noise"} <= set(messages)
    assert (
        messages["outliers"].count(
            "The noise is not equal for all runs; where it is high, these may not be outliers"
        )
        == 1
    )


def test_outliers_are_named_and_good_runs_rarely():
    runs = simulate_isoflop(points=9, noise=0.003)
    runs.loc[[10, 40], "loss"] *= 1.05
    messages = {d["code"]: d["message"] for d in fit_joint(runs).diagnostics}
    assert messages["outliers"].startswith(
        "2 runs lie more than 4 robust standard deviations off the profiles: sim-00"
    )
    assert all(name in messages["outliers"] for name in ("sim-0010", "sim-0040"))
    table, alarms = read_table(simulate_isoflop(points=9, noise=0.0)), []
    for seed in range(20):
        good = simulate_isoflop(points=9, noise=0.003, seed=seed)
        findings = fit_joint(replace_losses(table, good)).diagnostics
        alarms.append("outliers" in {finding["code"] for finding in findings})
    assert np.mean(alarms) <= 0.1
