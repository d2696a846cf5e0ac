"""Rows left out of a table: unfinished runs, checks of the recipe, bad numbers, copies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import read_table, simulate_isoflop


def test_unfinished_runs_and_copies_are_left_out():
    runs = pd.DataFrame(
        {
            "params": [1e6, 2e6, 3e6],
            "tokens": [3e8, 2e8, 1e8],
            "loss": [3.0, np.nan, 3.1],
            "budget": [1e15] * 3,
            "state": ["done", "diverged", "done"],
            "run_id": ["x", "y", "z"],
        }
    )
    table = read_table(pd.concat([runs, runs.iloc[:1]]))
    assert len(table) == 2
    assert [tuple(item) for item in table.dropped] == [
        ("run y", "state is diverged, not done"),
        ("run x", "repeats another row in every column"),
    ]


def test_checks_of_the_recipe_are_no_points_of_a_profile():
    runs = simulate_isoflop(points=5, noise=0.0)
    runs["check"] = ""
    off = runs.iloc[[3]].assign(check="lr x 0.5", run_id="checked", loss=9.0)
    table = read_table(pd.concat([runs, off]))
    assert len(table) == len(runs)
    assert table.hash == read_table(runs).hash
    assert any("checks the recipe" in reason for _, reason in table.dropped)
    with pytest.raises(FitError, match="all runs check the recipe"):
        read_table(off)


def test_rows_without_all_numbers_are_left_out():
    runs = simulate_isoflop(points=5, noise=0.0)
    bad = runs.copy()
    for row, name, value in ((0, "loss", np.nan), (1, "loss", np.inf), (2, "tokens", -1.0)):
        bad.loc[row, name] = value
    table = read_table(bad)
    assert table.hash == read_table(runs.iloc[3:]).hash
    assert [tuple(item) for item in table.dropped] == [
        (f"run {runs['run_id'][2]}", "tokens is zero or negative"),
        (f"run {runs['run_id'][0]}", "loss is missing"),
        (f"run {runs['run_id'][1]}", "loss is infinite"),
    ]
