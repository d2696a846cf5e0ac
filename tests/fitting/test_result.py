"""What a result says: tables, predictions, text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import isoflop.fitting
from isoflop.errors import FitError
from isoflop.fitting import SURFACES, fit_isoflop, simulate_isoflop

FIT = fit_isoflop(simulate_isoflop(SURFACES["chinchilla"], seeds=2), bootstrap=500)


def test_the_wider_interval_is_stated_and_both_are_kept():
    table = FIT.intervals()
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
    one = FIT.predict(1e22)
    assert list(one.index) == ["params", "tokens"]
    assert one.loc["tokens"].tolist() == many.loc[(1e22, "tokens")].tolist()


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


def test_headline_does_not_claim_what_the_interval_leaves_open():
    runs = simulate_isoflop(SURFACES["chinchilla"], (1e18, 1e19, 1e20), 7, noise=0.01, seed=2)
    fit = fit_isoflop(runs, bootstrap=200)
    low, high = fit.conf_int().loc["ratio"]
    assert low < 1.0 < high
    assert "equal pace is not ruled out" in fit.headline() or "same pace" in fit.headline()


@pytest.mark.parametrize(("column", "words"), [("params", "Optimal model size does"), ("tokens", "Optimal data does")])
def test_headline_of_a_law_that_shrinks(column, words):
    runs = simulate_isoflop(noise=0.0)
    fit = fit_isoflop(runs.assign(**{column: runs[column] / runs["budget"]}), bootstrap=200)
    assert fit.headline().startswith(words)


@pytest.mark.parametrize(
    ("surface", "words"),
    [
        ("chinchilla", "Optimal model size grows 1.1x faster"),
        ("soda", "Optimal data grows"),
    ],
)
def test_headline_names_the_faster(surface, words):
    fit = fit_isoflop(simulate_isoflop(SURFACES[surface], noise=0.0, spread=3.0), bootstrap=100)
    assert words in fit.headline()


def test_public_names_load_without_torch():
    assert all(getattr(isoflop.fitting, name) for name in isoflop.fitting.__all__)
    code = (
        "import sys, isoflop.fitting as f; assert not {'pandas', 'numpy', 'scipy'} & set(sys.modules);"
        "f.fit_isoflop; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        _ = isoflop.fitting.nothing


@pytest.mark.parametrize("confidence", [0, -1, 1, 1.5, 95, np.nan])
def test_a_confidence_is_a_share(confidence: float) -> None:
    for ask in (FIT.conf_int, FIT.intervals, lambda level: FIT.predict(1e20, level)):
        with pytest.raises(FitError, match=f"^confidence is a share between 0 and 1, not {confidence:g}$"):
            ask(confidence)
