"""Results of fits: tables, predictions, text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import isoflop.fitting
from isoflop.errors import FitError
from isoflop.fitting import SURFACES, fit_isoflop, simulate_isoflop
from isoflop.fitting.results.fitted_laws import Laws

FIT = fit_isoflop(simulate_isoflop(SURFACES["chinchilla"], seeds=2), bootstrap=500)


def test_the_result_has_both_intervals_and_the_wider():
    table = FIT.law_estimate.intervals(0.95)
    widths = {k: table[f"{k}high"] - table[f"{k}low"] for k in ("", "bootstrap_", "line_")}
    assert np.allclose(widths[""], np.maximum(widths["bootstrap_"], widths["line_"]))
    assert list(table.index) == ["a", "b", "ratio", "k_params", "k_tokens"]
    assert list(FIT.exponents.columns) == ["value", "low", "high"]
    assert np.all(np.diff(table[["low", "value", "high"]].to_numpy()) > 0)


def test_confidence_widens():
    narrow, wide = FIT.conf_int(0.5), FIT.conf_int(0.99)
    assert np.all(np.diff(wide.to_numpy()) > np.diff(narrow.to_numpy()))
    assert FIT.conf_int().loc["a"].tolist() == FIT.exponents.loc["a", ["low", "high"]].tolist()


def test_ratio_is_b_over_a():
    a, b = FIT.exponents["value"]
    assert FIT.ratio.tolist()[0] == pytest.approx(b / a)


def test_coefficients_give_the_predictions():
    k, exponent = FIT.coefficients.loc["N", ["value", "exponent"]]
    many = FIT.predict([1e20, 1e22])
    assert many.loc[(1e22, "params"), "value"] == pytest.approx(k * 1e22**exponent, rel=1e-9)
    single = FIT.predict(1e22)
    assert list(single.index) == ["params", "tokens"]
    assert single.loc["tokens"].tolist() == many.loc[(1e22, "tokens")].tolist()


def test_prediction_widens_away_from_the_data():
    spans = [FIT.predict(c).loc["params"] for c in (3e19, 1e22, 1e24)]
    widths = [np.log(s["high"] / s["low"]) for s in spans]
    assert widths == sorted(widths)


def test_summary_and_html():
    text = FIT.summary()
    assert FIT.headline().split(":")[0] in text
    assert max(map(len, text.splitlines())) <= 92
    assert text.count("interior") == 7
    assert "[replicate_noise]" in text
    assert "<table" in FIT._repr_html_()


def test_headline_claims_no_more_than_the_interval_of_the_ratio():
    runs = simulate_isoflop(SURFACES["chinchilla"], (1e18, 1e19, 1e20), 7, noise=0.01, seed=2)
    fit = fit_isoflop(runs, bootstrap=200)
    low, high = fit.conf_int().loc["ratio"]
    assert low < 1.0 < high
    assert "equal pace is not ruled out" in fit.headline() or "same pace" in fit.headline()


A, B, RATIO = (0.5, 0.4, 0.6), (0.5, 0.4, 0.6), (1.0, 0.8, 1.25)


@pytest.mark.parametrize(
    ("a", "b", "ratio", "start"),
    [
        (A, B, RATIO, "Optimal model size and data grow at about the same pace"),
        (
            A,
            B,
            (1.0, 0.2, 1.8),
            "It is not determined whether optimal model size or data grows faster",
        ),
        (
            (0.5, -1215.8, 1216.8),
            (0.5, -1215.8, 1216.8),
            (1.0, -4e3, 4e3),
            "The growth of the optimum with compute is not determined",
        ),
        (
            (5.0, -444.0, 454.0),
            (-4.0, -453.0, 445.0),
            (-0.8, -90.0, 90.0),
            "The growth of the optimum with compute is not determined",
        ),
        (
            (0.3, -np.inf, np.inf),
            (0.7, -np.inf, np.inf),
            (2.3, -np.inf, np.inf),
            "The growth of the optimum with compute is not determined",
        ),
        (
            (1.1, 0.9, 1.3),
            (-0.1, -0.3, 0.1),
            (-0.09, -0.3, 0.1),
            "It is not determined whether optimal data grows with compute",
        ),
        (
            (1.4, 1.3, 1.5),
            (-0.4, -0.5, -0.3),
            (-0.3, -0.4, -0.2),
            "Optimal data does not grow with compute",
        ),
        (
            (-0.1, -0.3, 0.1),
            (1.1, 0.9, 1.3),
            (-11.0, -40.0, 18.0),
            "It is not determined whether optimal model size grows with compute",
        ),
        (
            (0.4, 0.2, 0.6),
            (0.6, 0.4, 0.8),
            (1.5, 0.7, 2.3),
            "Optimal data grows 1.5x faster than optimal model size (eq",
        ),
        (
            (0.4, np.nan, np.nan),
            (0.6, np.nan, np.nan),
            (1.5, np.nan, np.nan),
            "Optimal data grows 1.5x faster",
        ),
    ],
)
def test_headline_claims_no_more_than_the_intervals(a, b, ratio, start, monkeypatch):
    table = pd.DataFrame({"a": a, "b": b, "ratio": ratio}, index=["value", "low", "high"]).T
    monkeypatch.setattr(Laws, "intervals", lambda *_: table)
    assert FIT.growth().startswith(start)
    assert bool(FIT.no_law) == start.startswith("The growth")


@pytest.mark.parametrize(
    ("column", "start"), [("params", "Optimal model size does"), ("tokens", "Optimal data does")]
)
def test_headline_of_a_law_that_shrinks(column, start):
    runs = simulate_isoflop(noise=0.0)
    fit = fit_isoflop(runs.assign(**{column: runs[column] / runs["budget"]}), bootstrap=200)
    assert fit.headline().startswith(start)


@pytest.mark.parametrize(
    ("surface", "start"),
    [
        ("chinchilla", "Optimal model size grows 1.1x faster"),
        ("soda", "Optimal data grows"),
    ],
)
def test_headline_names_the_faster(surface, start):
    fit = fit_isoflop(simulate_isoflop(SURFACES[surface], noise=0.0, spread=3.0), bootstrap=100)
    assert start in fit.headline()


def test_public_names_exist():
    assert all(getattr(isoflop.fitting, name) for name in vars(isoflop.fitting)["__all__"])
    with pytest.raises(AttributeError):
        _ = isoflop.fitting.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("confidence", [0, -1, 1, 1.5, 95, np.nan])
def test_a_confidence_is_a_share(confidence: float) -> None:
    for ask in (FIT.conf_int, FIT.intervals, lambda level: FIT.predict(1e20, level)):
        with pytest.raises(
            FitError, match=f"^confidence is a share between 0 and 1, not {confidence:g}$"
        ):
            ask(confidence)
