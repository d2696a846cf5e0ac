"""Shallow profiles: the curvature's law, the vertices that it places, weights, coverage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.shallow_studies import TRUE_A, shallow_study

from isoflop.fitting import fit_isoflop, fit_joint, load_fit, simulate_isoflop, write_fit
from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.intervals import Line
from isoflop.fitting.estimators.shallow_profiles import (
    MIN_CURVATURE_SES,
    coefficient_covariance,
    curvature_error,
    fit_curvature_law,
    share_curvature,
    weigh_optima,
)
from isoflop.fitting.methods.isoflop import collect_profiles, residual_sd
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.tables.fit_table import read_table
from isoflop.fitting.terms import Axis
from isoflop.frames import Floats, column, mask

NOISE = 0.008
AXES: tuple[Axis, ...] = ("params", "tokens")


Placed = tuple[list[para.Profile], list[para.Parabola], float]


def placed(seed: int, noise: float = NOISE) -> Placed:
    """Return profiles, their own parabolas, and the noise."""
    profiles = collect_profiles(read_table(shallow_study(seed, noise)), "params")
    parabolas = [para.fit_parabola(profile) for profile in profiles]
    own = [parabola for parabola in parabolas if parabola is not None]
    assert len(own) == len(profiles)
    return profiles, own, residual_sd(profiles, list(own))


@pytest.mark.slow
def test_the_error_of_a_curvature_is_its_scatter() -> None:
    curvatures, errors = [], []
    for seed in range(200):
        profiles, parabolas, _ = placed(seed)
        pairs = list(zip(profiles, parabolas, strict=True))
        curvatures.append([parabola.curvature for parabola in parabolas])
        errors.append([curvature_error(*pair, NOISE) for pair in pairs])
    assert np.std(curvatures, axis=0) == pytest.approx(np.mean(errors, axis=0), rel=0.15)


@pytest.mark.slow
def test_the_law_finds_the_curvature_and_its_error() -> None:
    profiles, parabolas, _ = placed(0, 1e-9)
    clean = [parabola.curvature for parabola in parabolas]
    pulls = []
    for seed in range(100):
        profiles, parabolas, _ = placed(seed, 0.004)
        law = fit_curvature_law(list(zip(profiles, parabolas, strict=True)), 0.004)
        assert law is not None
        for profile, truth in zip(profiles, clean, strict=True):
            x = float(np.log(profile.flops))
            pulls.append(float(np.log(law.curvature(x) / truth)) / law.ln_error(x))
    assert abs(np.mean(pulls)) < 0.3
    assert np.std(pulls) == pytest.approx(1.0, abs=0.2)


def test_deep_profiles_keep_their_own_parabolas() -> None:
    profiles, own, sd = placed(0, 0.001)
    deep = [p for p in zip(profiles, own, strict=True) if p[0].budget > 1e18]
    kept, law = share_curvature([p for p, _ in deep], [q for _, q in deep], sd)
    assert law is None
    assert all(a is b for a, (_, b) in zip(kept, deep, strict=True))


def test_shallow_profiles_take_the_laws_curvature_and_the_best_fit_with_it() -> None:
    profiles, own, sd = placed(0)
    shared, law = share_curvature(profiles, list(own), sd)
    assert law is not None
    for profile, parabola, alone in zip(profiles, shared, own, strict=True):
        assert parabola is not None
        height = alone.curvature / curvature_error(profile, alone, sd)
        assert parabola.is_shared == (height < MIN_CURVATURE_SES)
        if not parabola.is_shared:
            continue
        assert parabola.curvature == pytest.approx(float(law.curvature(np.log(profile.flops))))
        u = (profile.x - parabola.centre) / parabola.scale
        bend = parabola.coefficients[2] * u**2
        best = np.linalg.lstsq(np.stack([np.ones_like(u), u], axis=1), profile.loss - bend)[0]
        errors = np.sqrt(np.diag(coefficient_covariance(profile, alone, sd)))[:2]
        assert np.all(np.abs(parabola.coefficients[:2] - best) < 0.1 * errors)


def test_weights_are_those_of_equal_budgets_under_large_scatter() -> None:
    """The scatter of optima beyond their own errors is common to all budgets."""
    profiles, own, sd = placed(0)
    shared, law = share_curvature(profiles, list(own), sd)
    assert law is not None
    pairs = [(p, q) for p, q in zip(profiles, shared, strict=True) if q is not None]
    x = np.log([p.flops for p, _ in pairs])
    uneven = weigh_optima(pairs, law, sd, x).weights
    assert np.argmin(uneven) == len(x) - 1  # the flattest says least
    assert uneven.mean() == pytest.approx(1.0)
    even = weigh_optima(pairs, law, sd / 100.0, x).weights
    assert even == pytest.approx(np.ones(len(x)), abs=0.01)


def test_a_weighted_line_is_that_of_repeated_points() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.1, 0.4, 1.2, 1.9])
    line = Line.through(x, y, np.array([1.0, 3.0, 2.0, 2.0]))
    repeated = Line.through(np.repeat(x, [1, 3, 2, 2]), np.repeat(y, [1, 3, 2, 2]))
    assert (line.slope, line.intercept) == pytest.approx((repeated.slope, repeated.intercept))
    assert line.dof == 2
    scale = repeated.variance * 6.0 / 2.0  # of 8 points with 6 dof, as 4 points with 2
    assert line.slope_se == pytest.approx(np.sqrt(scale / repeated.sxx))


@pytest.mark.parametrize("seed", range(4))
def test_a_study_with_shallow_profiles_is_answered(seed: int) -> None:
    """Resamples lost the minimum of one budget or another: the interval was unbounded."""
    runs = shallow_study(seed)
    fit = fit_isoflop(runs, bootstrap=400)
    low, high = fit.exponents.loc["a", ["low", "high"]].tolist()
    assert low < TRUE_A < high
    joint = fit_joint(runs).exponents.loc["a"].tolist()
    assert high - low < 2.0 * (joint[2] - joint[1])
    table = fit.intervals()
    assert np.isfinite(table[["value", "low", "high"]].to_numpy()).all()
    assert np.isfinite(fit.predict(1e22).to_numpy()).all()
    assert np.isfinite(fit.intervals(kind="percentile").loc["a"].to_numpy()).all()
    shallow = fit.profiles["status"].to_numpy(dtype=object) == "shallow"
    assert shallow.any()
    optima = fit.profiles.loc[shallow, ["params_opt", "low", "high"]].to_numpy()
    assert np.isfinite(optima).all()
    assert "shallow" in {finding["code"] for finding in fit.diagnostics}


def test_the_shallow_are_left_out_on_request() -> None:
    fit = fit_isoflop(shallow_study(2, 0.004), use=("interior",), bootstrap=0)
    status = fit.profiles["status"].to_numpy(dtype=object)
    assert (status == "shallow").any()
    assert not mask(fit.profiles, "used")[status == "shallow"].any()
    assert not fit.weighted
    assert "profile_excluded" in {finding["code"] for finding in fit.diagnostics}


def test_all_means_each_parabola_alone() -> None:
    fit = fit_isoflop(shallow_study(0), use="all", bootstrap=0)
    optima, flops = (np.log(column(fit.profiles, name)) for name in ("params_opt", "flops"))
    assert fit.lines["params"].slope == pytest.approx(np.polyfit(flops, optima, 1)[0])


def test_a_study_without_shallow_profiles_is_unweighted() -> None:
    fit = fit_isoflop(simulate_isoflop(points=9, noise=0.002), bootstrap=0)
    assert not fit.weighted
    optima, flops = (np.log(column(fit.profiles, name)) for name in ("params_opt", "flops"))
    assert fit.lines["params"].slope == pytest.approx(np.polyfit(flops, optima, 1)[0])


@pytest.mark.parametrize("axis", AXES)
def test_a_saved_fit_is_weighted_too(axis: Axis, tmp_path: Path) -> None:
    fit = fit_isoflop(shallow_study(0), axis=axis, bootstrap=200)
    saved = load_fit(write_fit(tmp_path, [fit]))[0]
    pd.testing.assert_frame_equal(saved.intervals(), fit.intervals(), rtol=0)
    pd.testing.assert_frame_equal(saved.predict([1e18, 1e23]), fit.predict([1e18, 1e23]), rtol=0)


def test_both_axes_agree() -> None:
    """With C = 6ND a parabola in ln D is that in ln N, mirrored."""
    runs = shallow_study(1)
    tables = [fit_isoflop(runs, axis=axis, bootstrap=0).intervals() for axis in AXES]
    first, second = (t.loc[["a", "b", "ratio"], ["value", "low", "high"]] for t in tables)
    assert first.to_numpy() == pytest.approx(second.to_numpy(), rel=1e-6)


def intervals_of(noise: float, seeds: range) -> Floats:
    """Return a of studies: value, low, high, (seeds, 3)."""
    fits: list[IsoflopFit] = [fit_isoflop(shallow_study(s, noise), bootstrap=0) for s in seeds]
    return np.array([fit.exponents.loc["a"].tolist() for fit in fits])


@pytest.mark.slow
def test_most_intervals_of_shallow_studies_hold_the_truth() -> None:
    _, low, high = intervals_of(NOISE, range(200)).T
    assert np.mean((low < TRUE_A) & (high > TRUE_A)) > 0.91
    assert np.median(high - low) / 2.0 < 0.055


@pytest.mark.long
@pytest.mark.parametrize("noise", [0.003, 0.008])
def test_coverage_of_shallow_studies(noise: float) -> None:
    """Goals: 93 to 97% of 2,000 intervals of 95%, at most 1.3 times as wide as those of joint."""
    value, low, high = intervals_of(noise, range(2000)).T
    assert 0.93 < np.mean((low < TRUE_A) & (high > TRUE_A)) < 0.97
    assert abs(np.mean(value) - TRUE_A) < 0.003
    joint = [fit_joint(shallow_study(s, noise)).exponents.loc["a"].tolist() for s in range(100)]
    width = float(np.median([row[2] - row[1] for row in joint]))
    assert np.median(high - low) < 1.3 * width
