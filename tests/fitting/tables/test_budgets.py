"""Budgets separated by FLOPs: correct or refused, for every scatter and distance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, fit_joint, fit_parametric, read_table, simulate_isoflop
from isoflop.fitting.tables.budgets import cluster, find_double_budget, group_budgets

STUDIES = 40


def scattered(
    budgets: np.ndarray, points: int, jitter: float, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Return FLOPs, sizes and true budgets.

    The scatter is uniform or normal; the sizes are the same at all budgets or grow with the budget.
    """
    shape = (len(budgets), points)
    error = (
        rng.uniform(-jitter, jitter, shape)
        if rng.random() < 0.5
        else rng.normal(0.0, jitter, shape)
    )
    moving = budgets[:, None] ** (0.5 * (rng.random() < 0.5))
    sizes = moving * np.geomspace(1.0, 8.0, points)
    order = rng.permutation(len(budgets) * points)
    truth = np.repeat(np.arange(len(budgets)), points)
    return ((budgets[:, None] * np.exp(error)).ravel()[order], sizes.ravel()[order], truth[order])


def outcomes(budgets: np.ndarray, jitter: float, points: int) -> dict[str, int]:
    """Return the number of studies grouped right, refused, doubted and grouped wrong."""
    rng = np.random.default_rng(points)
    count = {"right": 0, "refused": 0, "doubted": 0, "wrong": 0}
    for _ in range(STUDIES):
        flops, sizes, truth = scattered(budgets, points, jitter, rng)
        groups = group_budgets(flops, sizes)
        if groups is None:
            count["refused"] += 1
        elif (groups.labels == truth).all():
            count["right"] += 1
        else:
            count["wrong" if find_double_budget(groups, flops) is None else "doubted"] += 1
    return count


@pytest.mark.parametrize(
    ("factor", "jitter"),
    [*product((1.2, 1.5, 2.0, 3.0, 10.0), (0.0, 0.001, 0.01)), *product((2.0, 3.0, 10.0), (0.05,))],
)
@pytest.mark.parametrize("points", [5, 9])
def test_distant_budgets_are_separated(factor: float, jitter: float, points: int):
    assert outcomes(1e18 * factor ** np.arange(6), jitter, points)["right"] >= 0.97 * STUDIES


@pytest.mark.parametrize("points", [7, 12])
def test_overlapping_budgets_are_refused(points: int):
    count = outcomes(1e18 * 1.2 ** np.arange(6), 0.05, points)
    assert count["refused"] > 0
    assert count["wrong"] + count["doubted"] <= 0.05 * STUDIES


@pytest.mark.parametrize(
    ("jitter", "right"), [(0.0, 1.0), (0.001, 1.0), (0.005, 1.0), (0.01, 0.95), (0.02, 0.3)]
)
def test_close_budgets_among_distant_ones_are_separated_or_doubted(jitter: float, right: float):
    count = outcomes(np.array([3e18, 9e18, 1.8e19, 2e19, 9e19, 3e20]), jitter, 9)
    assert count["right"] >= right * STUDIES
    assert count["wrong"] == 0


@pytest.mark.parametrize("jitter", [0.01, 0.05])
def test_scattered_budgets_are_not_split(jitter: float):
    assert outcomes(np.array([1e18, 3e18, 1e19]), jitter, 9)["right"] >= 0.97 * STUDIES


def test_seeds_and_a_distant_run_do_not_change_the_groups():
    flops = np.concatenate(
        [
            np.repeat(1e18 * 3.0 ** np.arange(3), 10)
            * np.tile(np.repeat(np.linspace(1, 1.01, 5), 2), 3),
            [1e21],
        ]
    )
    sizes = np.append(np.tile(np.repeat(np.arange(1, 6), 2), 3), 9.0)
    groups = group_budgets(flops, sizes)
    assert groups is not None
    assert np.bincount(groups.labels).tolist() == [10, 10, 10, 1]


def test_a_budget_with_each_size_twice_is_two():
    rng = np.random.default_rng(0)
    budgets = np.array([1e18, 1e19, 1.1e19, 1e20])
    flops = (budgets[:, None] * np.exp(rng.uniform(-0.04, 0.04, (4, 9)))).ravel()
    assert group_budgets(flops, np.tile(np.geomspace(1e7, 1e8, 9), 4)) is None
    runs = pd.DataFrame(
        {"params": np.tile(np.geomspace(1e7, 1e8, 9), 4), "flops": flops, "loss": 3.0}
    )
    runs["tokens"] = runs["flops"] / (6 * runs["params"])
    with pytest.raises(
        FitError,
        match=r"the FLOPs don't fall into budgets .* name a column of budgets with budget=",
    ):
        read_table(runs)
    table = read_table(runs, need_budgets=False)
    assert (table.array("budget") == table.array("flops")).all()
    assert [f["code"] for f in table.findings] == ["no_budgets"]


def test_uncertain_budgets_are_reported():
    rng = np.random.default_rng(1)
    two_in_one = np.concatenate(
        [np.full(7, b) for b in (1e18, 1e19, 1.0e20, 1.12e20, 1e21)]
    ) * np.exp(rng.uniform(-0.05, 0.05, 35))
    sizes = np.arange(1.0, 36.0) * 1e6
    runs = pd.DataFrame(
        {"params": sizes, "tokens": two_in_one / 6 / sizes, "flops": two_in_one, "loss": 3.0}
    )
    (finding,) = read_table(runs).findings
    assert finding["code"] == "budgets_unclear"
    assert (
        "e20 FLOPs is wider and has more runs than the others: it may be two" in finding["message"]
    )
    near = np.repeat(1e18 * 1.2 ** np.arange(5), 7) * np.tile(
        np.exp(np.linspace(-0.035, 0.035, 7)), 5
    )
    runs = runs.assign(flops=near, tokens=near / 6 / sizes)
    (finding,) = read_table(runs).findings
    expected = "scatter by 7.3% within a budget and differ by 12% between two"
    assert expected in finding["message"]


def test_clustered_budgets_give_the_law_of_planned_ones():
    runs = simulate_isoflop(budgets=(1e18, 1.8e19, 2e19, 1e20, 1e21), noise=0.001)
    scatter = np.exp(np.random.default_rng(0).normal(0.0, 0.01, len(runs)))
    runs = runs.assign(tokens=runs["tokens"] * scatter, train_flops=runs["train_flops"] * scatter)
    law = fit_isoflop(runs.drop(columns="budget"), bootstrap=0)
    assert len(law.profiles) == 5
    assert law.exponents.loc["a", "value"] == pytest.approx(
        fit_isoflop(runs, bootstrap=0).exponents.loc["a", "value"]
    )


def test_clusters_are_separated_by_more_than_the_gap():
    np.testing.assert_array_equal(cluster([1.8e19, 2e19, 1.8e19 * (1 + 1e-9)], 1e-6), [0, 1, 0])


LABELS = {
    "forward FLOPs": (lambda b: b / 3.0, "3.00 to 3.00 times the budget"),
    "EFLOPs": (lambda b: b / 1e18, "1e18 to 1e18 times the budget"),
    "ranks": (
        lambda b: np.unique(b, return_inverse=True)[1] + 1.0,
        "labels are no FLOPs: the runs' FLOPs are 1e18 to 1.43e20",
    ),
    "log10": (np.log10, "labels are no FLOPs"),
}


@pytest.mark.parametrize("fit", [fit_isoflop, fit_joint, fit_parametric])
def test_labels_in_another_unit_change_no_law_and_are_reported(fit):
    runs, options = simulate_isoflop(points=7, seed=1), {} if fit is fit_joint else {"bootstrap": 0}
    right = fit(runs, **options)
    assert "budget_off" not in {finding["code"] for finding in right.diagnostics}
    for relabel, message in LABELS.values():
        other = fit(runs.assign(budget=relabel(runs["budget"].to_numpy())), **options)
        assert other.reach == pytest.approx(right.reach, rel=1e-9)
        pd.testing.assert_frame_equal(
            other.predict([1e20, 1e22]), right.predict([1e20, 1e22]), rtol=1e-6
        )
        messages = {finding["code"]: finding["message"] for finding in other.diagnostics}
        assert message in messages["budget_off"]
        assert "budget_mismatch" not in messages
