"""Exponents by each count of N and C, from the same runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.fitting import SURFACES, fit_isoflop, fit_parametric, fit_study, simulate_isoflop
from isoflop.fitting.estimators.intervals import Line
from isoflop.fitting.methods.fit_all import FitOptions
from isoflop.fitting.sensitivity import _six_nd_exponents
from isoflop.frames import cell, column

QUICK = FitOptions(bootstrap=0)


def counted(vocabulary: float = 1.2e7) -> pd.DataFrame:
    """Return runs of a true law in all parameters; embedding and head are a share that falls with
    size.
    """
    runs = simulate_isoflop(SURFACES["chinchilla"], points=9, noise=0.0)
    total = runs.pop("params")
    head = vocabulary * (total / total.min()) ** 0.4 / 4.0
    counts = {
        "params_total": total,
        "params_one_embedding": total - head,
        "params_non_embedding": total - 2 * head,
    }
    return runs.assign(**counts)


def by_choice(table: pd.DataFrame, name: str = "a") -> dict[tuple[str, str, str], float]:
    """Return one column by method, N and C."""
    return dict(
        zip(
            zip(table["method"], table["n"], table["c"], strict=True),
            column(table, name),
            strict=True,
        )
    )


def test_counts_change_the_exponents() -> None:
    runs = counted()
    table = fit_study(runs, ["isoflop", "joint", "parametric"], QUICK).sensitivity
    a = by_choice(table)
    for n in ("total", "one_embedding", "non_embedding"):
        alone = cell(fit_isoflop(runs, n=n, bootstrap=0).exponents, "a", "value")
        assert a["isoflop", n, "train_flops"] == pytest.approx(alone, rel=1e-12)
    for method in ("isoflop", "joint"):
        body, with_head, total = (
            a[method, n, "train_flops"] for n in ("non_embedding", "one_embedding", "total")
        )
        assert body > with_head + 0.01 > total + 0.02
    assert a["parametric", "total", "train_flops"] == pytest.approx(
        SURFACES["chinchilla"].a, rel=1e-4
    )
    law = fit_parametric(runs, n="non_embedding", bootstrap=0)
    alone = cell(law.exponents, "a", "value")
    assert a["parametric", "non_embedding", "train_flops"] == pytest.approx(alone, rel=1e-12)
    assert alone != pytest.approx(a["parametric", "non_embedding", "6ND"], abs=0.005)
    assert np.all(table["a_low"] <= table["a"])
    assert np.all(table["a"] <= table["a_high"])


def test_c_of_6nd_is_the_slope_over_6nd_of_the_optima() -> None:
    runs = counted()
    table = fit_study(runs, ["isoflop"], QUICK).sensitivity
    profiles = fit_isoflop(runs, n="non_embedding", bootstrap=0).profiles
    size, data = (np.log(column(profiles, name)) for name in ("params_opt", "tokens_opt"))
    a, b, low, high = (
        by_choice(table, name)["isoflop", "non_embedding", "6ND"]
        for name in ("a", "b", "a_low", "b_high")
    )
    assert a == pytest.approx(Line.through(size + data, size).slope, abs=2e-3)
    assert (a + b, low + high) == pytest.approx((1.0, 1.0))


def test_runs_that_leave_no_choice_have_one_row_a_method() -> None:
    runs = simulate_isoflop(points=7)
    table = fit_study(runs, ["isoflop", "joint", "parametric", "envelope"], QUICK).sensitivity
    assert table["method"].tolist() == ["isoflop", "joint", "parametric"]
    assert set(table["n"]) == {"total"}


@pytest.mark.slow
def test_outliers_are_left_out_whatever_n_counts() -> None:
    runs = counted()
    runs.loc[4, "loss"] *= 1.05
    options = FitOptions(bootstrap=0, drop_outliers=6.0)
    table = fit_study(runs, ["parametric"], options).sensitivity
    clean = fit_study(runs.drop(index=4), ["parametric"], QUICK).sensitivity
    np.testing.assert_allclose(table[["a", "b"]], clean[["a", "b"]], rtol=1e-6)


def test_another_column_of_parameters_is_the_total_only_where_it_is_named() -> None:
    runs = counted().assign(body=lambda t: t["params_non_embedding"])
    table = fit_study(
        runs, ["joint"], FitOptions(bootstrap=0, columns={"params": "body"})
    ).sensitivity
    a = by_choice(table)
    assert a["joint", "total", "train_flops"] == pytest.approx(
        a["joint", "non_embedding", "train_flops"], rel=1e-9
    )


@pytest.mark.parametrize(
    ("ratio", "half"),
    [(1.5, 0.2), (1.0, 1.9), (-0.5, 0.49)],
)
def test_the_interval_over_6nd_is_as_symmetric_as_that_of_the_ratio(
    ratio: float, half: float
) -> None:
    a, low, high, b, b_low, b_high = _six_nd_exponents(ratio, ratio - half, ratio + half)
    assert a == pytest.approx(1.0 / (1.0 + ratio))
    assert high - a == pytest.approx(a - low) == pytest.approx(half / (1.0 + ratio) ** 2)
    assert (a + b, low + b_high, high + b_low) == pytest.approx((1.0, 1.0, 1.0))
