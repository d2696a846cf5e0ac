"""Profiles that are no parabolas: named, sized, and inside the intervals; parabolas are left alone."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import isoflop
from isoflop.fitting import (
    SURFACES,
    compare,
    fit_isoflop,
    fit_parametric,
    predict,
    simulate_isoflop,
)
from isoflop.fitting.estimators.parabola import fit_parabola
from isoflop.fitting.estimators.skew import shift_of, skewness
from isoflop.fitting.methods.isoflop import profiles_of, skew_of
from isoflop.fitting.tables.runs_table import read_table
from isoflop.frames import column

SODA = SURFACES["soda"]
BUDGETS = (3e18, 9e18, 1.8e19, 3e19, 9e19, 1.8e20, 3e20)


def study(spread: float, **options: float) -> pd.DataFrame:
    """SODA's budgets on its surface, without noise."""
    runs = simulate_isoflop(SODA, BUDGETS, 9, spread=spread, noise=0.0, **options)  # pyright: ignore[reportArgumentType]
    return runs.drop(columns="simulated")


def parabolas(spread: float) -> pd.DataFrame:
    """The same optima with profiles that are parabolas."""
    runs = study(spread)
    params, tokens = SODA.optimum(column(runs, "budget"))
    return runs.assign(
        loss=SODA.loss(params, tokens) + 0.065 * np.log(column(runs, "params") / params) ** 2
    )


def noisy(runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    return runs.assign(
        loss=runs["loss"] * np.exp(0.003 * np.random.default_rng(seed).normal(size=len(runs)))
    )


def pairs_of(runs: pd.DataFrame) -> list:
    return [
        (p, q)
        for p in profiles_of(read_table(runs), "params")
        if (q := fit_parabola(p)) is not None
    ]


@pytest.mark.parametrize(
    ("spread", "bias"), [(6.0, 0.096), (4.0, 0.058), (3.0, 0.036), (1.8, 0.010)]
)
def test_the_shift_is_the_true_bias_of_the_vertex(spread, bias):
    pairs = pairs_of(study(spread))
    found, _ = skewness(pairs)
    assert found is not None
    assert found[0] == pytest.approx(SODA.beta - SODA.alpha, rel=0.05)
    for profile, parabola in pairs:
        off = float(parabola.vertices(parabola.coefficients)) - float(
            np.log(SODA.optimum(profile.flops)[0])
        )
        assert off == pytest.approx(bias, abs=0.002)
        assert shift_of(profile, parabola, found[0]) == pytest.approx(off, abs=0.005)


@pytest.mark.parametrize("offset", [0.5, 2.0])
def test_the_shift_follows_a_grid_off_the_middle(offset):
    pairs = pairs_of(study(4.0, offset=offset))
    skew, _ = skew_of(pairs, "params", np.log([p.flops for p, _ in pairs]))
    assert skew is not None
    (profile, parabola), *_ = pairs
    off = float(parabola.vertices(parabola.coefficients)) - float(
        np.log(SODA.optimum(profile.flops)[0])
    )
    assert skew.shifts["params"].at(profile.flops) == pytest.approx(off, abs=0.03)
    assert skew.shifts["tokens"].at(profile.flops) == pytest.approx(
        -skew.shifts["params"].at(profile.flops), rel=1e-6
    )


@pytest.mark.parametrize("axis", ["params", "tokens"])
def test_a_skew_is_named_with_its_size_and_sign(axis):
    found = {
        d["code"]: d["message"]
        for d in fit_isoflop(noisy(study(6.0), 1), axis=axis, bootstrap=0).diagnostics
    }
    assert "% too high at 3e20 FLOPs" in found["skewed"]
    assert f"steeper {'below' if axis == 'params' else 'above'} the optimum" in found["skewed"]


def test_parabolas_are_rarely_called_skewed():
    clean, alarms = parabolas(6.0), []
    for seed in range(200):
        skew, _ = skewness(pairs_of(noisy(clean, seed)))
        assert skew is not None
        alarms.append(abs(skew[0] / skew[1]))
    assert np.mean(np.array(alarms) > 2.02) == pytest.approx(
        0.05, abs=0.04
    )  # t, 41 degrees of freedom


@pytest.mark.parametrize(
    ("clean", "before"), [(study(6.0), 0.2), (study(4.0), 0.7)], ids=["6 times", "4 times"]
)
def test_intervals_hold_the_optimum_of_skewed_profiles(clean, before):
    law, statistical, own = [], [], []
    for seed in range(30):
        fit = fit_isoflop(noisy(clean, seed), bootstrap=200)
        for flops in (3e19, 3e20):
            row, truth = fit.predict(flops).loc["params"].to_dict(), float(SODA.optimum(flops)[0])
            law.append(row["low"] <= truth <= row["high"])
            statistical.append(row["statistical_low"] <= truth <= row["statistical_high"])
        truths = SODA.optimum(column(fit.profiles, "flops"))[0]
        own.append(
            np.mean(
                (column(fit.profiles, "low") <= truths) & (truths <= column(fit.profiles, "high"))
            )
        )
    assert np.mean(law) >= 0.88
    assert np.mean(own) >= 0.9
    assert np.mean(statistical) < before  # the bias is there: the exponents and the law itself stay


def test_parabolas_keep_their_intervals():
    wider = []
    for seed in range(30):
        row = (
            fit_isoflop(noisy(parabolas(6.0), seed), bootstrap=200)
            .predict(3e20)
            .loc["params"]
            .to_dict()
        )
        wider.append(
            np.log(row["high"] / row["low"])
            / np.log(row["statistical_high"] / row["statistical_low"])
        )
    assert np.median(wider) < 1.3


def test_exact_parabolas_tell_no_skew():
    assert fit_isoflop(parabolas(3.0), bootstrap=0).skew is None


def test_a_skewed_law_is_not_chosen_for_its_narrow_interval():
    for seed in range(8):
        runs = noisy(study(6.0), seed)
        laws = [fit_isoflop(runs, bootstrap=200), fit_parametric(runs, bootstrap=0)]
        for flops in (1e20, 1e22):
            assert predict(laws, flops).chosen.law.method == "parametric"
            assert predict(laws, flops, method="isoflop").chosen.law.method == "isoflop"


# SODA's sizes: not centred on its law's optima, and ever less so
SIZES = isoflop.plan("soda").to_frame()[["budget", "params_total"]]
GRID = SIZES.set_axis(["budget", "params"], axis=1).assign(
    flops=SIZES["budget"], tokens=lambda grid: grid["budget"] / 6.0 / grid["params"]
)
GRID["loss"] = SODA.loss(column(GRID, "params"), column(GRID, "tokens"))


def test_intervals_of_the_exponents_hold_them_where_the_grid_drifts():
    core, law, named = [], [], set()
    truth = {"a": SODA.a, "b": 1.0 - SODA.a, "ratio": 1.0 / SODA.a - 1.0}
    for seed in range(40):
        fit = fit_isoflop(noisy(GRID, seed), bootstrap=200)
        for rows, table in ((core, fit.core.intervals(0.95)), (law, fit.intervals())):
            held = [
                table.loc[name, "low"] <= value <= table.loc[name, "high"]
                for name, value in truth.items()
            ]
            rows.append(held)
        pd.testing.assert_frame_equal(fit.intervals(kind="t"), fit.core.intervals(0.95, "t"))
        named |= {d["message"] for d in fit.diagnostics if d["code"] == "skewed"}
    assert np.all(np.mean(law, axis=0) >= 0.92)
    assert np.mean(core, axis=0)[0] < 0.9
    told = [re.search(r"FLOPs, and a about \S+ too (low|high)\.", words) for words in named]
    assert np.mean([words is not None and words[1] == "low" for words in told]) >= 0.9


def test_laws_at_any_budget_reach_as_far_as_their_predictions():
    fit = fit_isoflop(noisy(GRID, 1), bootstrap=200)
    assert fit.skew is not None
    inner = fit.skew.widen(fit.law_at(1.0, 0.95)["params"], "params", 1.0, 0.95)
    assert np.log(
        fit.intervals().loc["k_params", ["value", "low", "high"]].astype(float)
    ).tolist() == pytest.approx(list(inner))


def test_one_law_on_two_grids_is_rarely_told_apart():
    drifting = [fit_isoflop(noisy(GRID, seed), bootstrap=200) for seed in range(40)]
    centred = [fit_isoflop(noisy(study(6.0), 100 + seed), bootstrap=200) for seed in range(40)]
    pairs = [compare({"x": x, "y": y}).pairs[0] for x, y in zip(drifting, centred, strict=True)]
    assert np.mean([bool({"a", "b"} & set(pair.differing)) for pair in pairs]) <= 0.1
