"""What N and C count: the exponents that each choice gives, from the same runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.fitting import SURFACES, fit_isoflop, fit_study, simulate_isoflop
from isoflop.fitting.intervals import Line
from isoflop.fitting.together import Options

QUICK = Options(bootstrap=0)


def counted(vocabulary: float = 1.2e7) -> pd.DataFrame:
    """Runs of a true law in all parameters, of which embedding and head hold a share that falls with size."""
    runs = simulate_isoflop(SURFACES["chinchilla"], points=9, noise=0.0)
    total = runs.pop("params")
    head = vocabulary * (total / total.min()) ** 0.4 / 4.0
    counts = {"params_total": total, "params_one_embedding": total - head, "params_non_embedding": total - 2 * head}
    return runs.assign(**counts)


def test_the_gap_between_counts_is_told() -> None:
    runs = counted()
    table = fit_study(runs, ["isoflop", "joint", "parametric"], QUICK).sensitivity
    a = table.set_index(["method", "n", "c"])["a"]
    for n in ("total", "one_embedding", "non_embedding"):
        alone = fit_isoflop(runs, n=n, bootstrap=0).exponents.loc["a", "value"]
        assert a["isoflop", n, "train_flops"] == pytest.approx(alone, rel=1e-12)
    for method in ("isoflop", "joint"):
        body, one, both = (a[method, n, "train_flops"] for n in ("non_embedding", "one_embedding", "total"))
        assert body > one + 0.01 > both + 0.02
    assert set(table.loc[table["method"] == "parametric", "c"]) == {"6ND"}
    assert a["parametric", "total", "6ND"] == pytest.approx(SURFACES["chinchilla"].a, rel=1e-4)
    assert np.all(table["a_low"] <= table["a"])
    assert np.all(table["a"] <= table["a_high"])


def test_c_of_6nd_is_the_slope_over_6nd_of_the_optima() -> None:
    runs = counted()
    table = fit_study(runs, ["isoflop"], QUICK).sensitivity.set_index(["n", "c"])
    profiles = fit_isoflop(runs, n="non_embedding", bootstrap=0).profiles
    size, data = (np.log(profiles[name].to_numpy()) for name in ("params_opt", "tokens_opt"))
    line = Line.through(size + data, size)
    assert table.loc[("non_embedding", "6ND"), "a"] == pytest.approx(line.slope, abs=2e-3)
    both = table.loc[("non_embedding", "6ND")]
    assert both["a"] + both["b"] == pytest.approx(1.0)
    assert both["a_low"] + both["b_high"] == pytest.approx(1.0)


def test_runs_that_leave_no_choice_have_one_row_a_method() -> None:
    runs = simulate_isoflop(points=7)
    table = fit_study(runs, ["isoflop", "joint", "parametric", "envelope"], QUICK).sensitivity
    assert table["method"].tolist() == ["isoflop", "joint", "parametric"]
    assert set(table["n"]) == {"total"}


def test_outliers_are_left_out_whatever_n_counts() -> None:
    runs = counted()
    runs.loc[4, "loss"] *= 1.05
    asked = Options(bootstrap=0, drop_outliers=6.0)
    table = fit_study(runs, ["parametric"], asked).sensitivity
    clean = fit_study(runs.drop(index=4), ["parametric"], QUICK).sensitivity
    np.testing.assert_allclose(table[["a", "b"]], clean[["a", "b"]], rtol=1e-6)


def test_another_column_of_parameters_is_the_total_only_where_it_is_named() -> None:
    runs = counted().assign(body=lambda t: t["params_non_embedding"])
    table = fit_study(runs, ["joint"], Options(bootstrap=0, columns={"params": "body"})).sensitivity
    a = table.set_index(["n", "c"])["a"]
    assert a["total", "train_flops"] == pytest.approx(a["non_embedding", "train_flops"], rel=1e-9)
