"""Several methods on one table: refusals with their reason, outliers dropped for all methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, fit_parametric, fit_study, simulate_isoflop
from isoflop.fitting.methods.fit_all import METHODS, FitOptions, fit_laws, loss_columns

RUNS = simulate_isoflop(points=7)
QUICK = FitOptions(bootstrap=0)
SCATTERED = simulate_isoflop(budgets=np.geomspace(1e18, 1e20, 130).tolist(), points=3).drop(
    columns="budget"
)
SCATTERED[["tokens", "train_flops"]] *= np.random.default_rng(0).uniform(
    0.97, 1.03, (len(SCATTERED), 1)
)
"""No budgets: the FLOPs lie evenly over two decades."""


def test_methods_are_fitted_as_alone_in_the_requested_order() -> None:
    fitted = fit_laws(
        RUNS,
        ["parametric", "isoflop", "parametric"],
        FitOptions(bootstrap=200, seed=5, confidence=0.9),
    )
    assert [fit.method for fit in fitted.fits] == ["parametric", "isoflop"]
    alone = [
        fit(RUNS, bootstrap=200, seed=5, confidence=0.9) for fit in (fit_parametric, fit_isoflop)
    ]
    for fit, other in zip(fitted.fits, alone, strict=True):
        pd.testing.assert_frame_equal(fit.intervals(), other.intervals(), rtol=0)
    assert fitted.refused == {}


def test_a_method_that_is_refused_leaves_the_others() -> None:
    fitted = fit_laws(SCATTERED, METHODS, QUICK)
    assert [fit.method for fit in fitted.fits] == ["parametric", "envelope"]
    assert set(fitted.refused) == {"isoflop", "joint"}
    assert (
        "don't fall into budgets; name a column of budgets with budget=" in fitted.refused["joint"]
    )


@pytest.mark.parametrize(
    ("runs", "methods", "message"),
    [
        (
            RUNS.iloc[:5],
            METHODS,
            "no method can be fitted. isoflop: 0 of 1 budgets can be used, 3 are needed",
        ),
        (SCATTERED, ["isoflop", "joint"], "the table: the FLOPs don't fall into budgets"),
        (
            RUNS,
            ["isoflop", "ridge"],
            "unknown method 'ridge': isoflop, joint, parametric, envelope",
        ),
        (RUNS, [], "no method is named"),
        (RUNS.drop(columns="loss"), METHODS, "no column 'loss'"),
    ],
)
def test_if_every_method_is_refused_the_reasons_are_listed(
    runs: pd.DataFrame, methods: list[str], message: str
) -> None:
    with pytest.raises(FitError) as refused:
        fit_laws(runs, methods, QUICK)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"axis": "flops"}, "unknown axis 'flops'"),
        ({"use": ["good"]}, "unknown status 'good'"),
        ({"huber_delta": "wide"}, "unknown Huber delta 'wide'"),
        ({"huber_delta": -1.0}, "Huber's delta is a number above 0, not -1"),
        ({"bootstrap": 5}, "5 resamples are too few"),
        ({"confidence": 1.0}, "confidence is a share between 0 and 1"),
        (
            {"drop_outliers": 0.0},
            "drop_outliers is a number of robust standard deviations above 0, not 0",
        ),
    ],
)
def test_an_invalid_option_is_not_a_refusal_of_a_method(
    option: dict[str, Any], message: str
) -> None:
    with pytest.raises(FitError, match=message):
        fit_laws(RUNS, METHODS, FitOptions(**option))


def test_least_squares() -> None:
    parametric, joint = fit_laws(
        RUNS, ["parametric", "joint"], FitOptions(huber_delta=float("inf"), bootstrap=0)
    ).fits
    assert parametric.to_dict()["huber_delta"] is None
    assert joint.to_dict()["huber_delta"] is None  # infinite


# Outliers


def study_with_outliers(*indices: int) -> pd.DataFrame:
    """Return a study with some losses 5% too high."""
    runs = simulate_isoflop(points=9)
    runs.loc[list(indices), "loss"] *= 1.05
    return runs


@pytest.mark.parametrize("indices", [(4,), (0, 30, 62)])
def test_runs_far_off_the_law_are_dropped_for_every_method_and_named(
    indices: tuple[int, ...],
) -> None:
    runs = study_with_outliers(*indices)
    fitted = fit_laws(runs, METHODS, FitOptions(bootstrap=0, drop_outliers=6.0))
    clean = fit_laws(runs.drop(index=list(indices)), METHODS, QUICK)
    for fit, other in zip(fitted.fits, clean.fits, strict=True):
        assert sorted(d.what for d in fit.runs.dropped) == [f"sim-{index:04d}" for index in indices]
        assert all(
            d.why.endswith(" robust standard deviations off the law (limit 6)")
            for d in fit.runs.dropped
        )
        assert fit.runs.hash == other.runs.hash
        np.testing.assert_allclose(fit.exponents, other.exponents, rtol=1e-6)
    assert "rows_dropped" in [d["code"] for d in fitted.fits[0].diagnostics]


def test_all_seeds_of_an_outlier_go() -> None:
    runs = simulate_isoflop(points=7, seeds=2)
    runs.loc[runs.index[:2], "loss"] *= 1.05
    fit = fit_parametric(runs, bootstrap=0, drop_outliers=6.0)
    assert [d.what for d in fit.runs.dropped] == ["sim-0000, sim-0001"]


def test_nothing_is_dropped_where_nothing_is_far_off() -> None:
    default, limited = (
        fit_parametric(RUNS, bootstrap=0),
        fit_parametric(RUNS, bootstrap=0, drop_outliers=6.0),
    )
    assert limited.runs.dropped == ()
    pd.testing.assert_series_equal(default.params, limited.params)


# Losses


def test_every_loss_of_a_table() -> None:
    runs = RUNS.assign(loss_text=0.8 * RUNS["loss"], loss_semantic=np.nan, loss_flat=1.0)
    assert loss_columns(runs, "all") == ["loss", "loss_text", "loss_flat"]
    assert loss_columns(runs, "loss_text, loss") == ["loss_text", "loss"]
    study = fit_study(runs, ["isoflop", "parametric"], QUICK, "all")
    assert [fit.loss_column for fit in study.fits] == ["loss", "loss", "loss_text", "loss_text"]
    assert study.comparison.table["law"].tolist() == [
        f"{method} {loss}" for method in ("isoflop", "parametric") for loss in ("loss", "loss_text")
    ]
    (entry,) = study.refused
    assert (entry["loss"], entry["method"]) == ("loss_flat", "isoflop, parametric")
    assert study.reasons() == [
        f"isoflop, parametric of loss_flat can't be fitted: {entry['reason']}"
    ]
    with pytest.raises(FitError, match="there is nothing to fit"):
        fit_study(runs, ["parametric"], QUICK, "loss_flat")


def test_a_table_without_losses() -> None:
    with pytest.raises(FitError, match="the table: has no column of losses; name them with --loss"):
        loss_columns(RUNS.drop(columns="loss"), "all")
