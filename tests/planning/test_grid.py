"""Points of a grid: SODA's counts, extra points, seeds, replicates, and checks of a recipe."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.config import load_sweep
from isoflop.errors import ConfigError
from isoflop.planning.grid import Grid, build_grid
from isoflop.planning.plan import count_dropped, plan
from isoflop.planning.sweep_recipe import SweepRecipe
from isoflop.recipes import SODA, Candidate, Dropped, Limits

GRID = list(csv.DictReader((Path(__file__).parent / "soda_grid.csv").read_text().splitlines()))


def soda(**overrides: Any) -> Grid:
    return build_grid(SweepRecipe(load_sweep("soda", overrides)))


def positions(grid: Grid) -> list[tuple[float, int]]:
    return [(point.budget, point.width) for point in grid.points]


def test_soda_keeps_59_of_80_candidates() -> None:
    grid = soda(extra=[])
    assert len(grid.points) + len(grid.dropped) == 80
    assert len(grid.points) == 59
    assert count_dropped(grid.dropped) == {"batch": 11, "steps": 10}


def test_soda_has_64_runs_with_its_extra_points() -> None:
    grid = soda()
    assert len(grid.points) == 64
    assert list(Counter(point.budget for point in grid.points).values()) == [7, 12, 14, 7, 8, 8, 8]
    assert count_dropped(grid.dropped) == {"batch": 11, "steps": 10}


def test_soda_is_the_reconstructed_grid() -> None:
    planned = [
        (float(row["budget"]), int(row["width"]))
        for row in GRID
        if row["kind"] in ("kept", "extra")
    ]
    too_long = [(float(row["budget"]), int(row["width"])) for row in GRID if row["kind"] == "steps"]
    grid = soda()
    assert positions(grid) == sorted(planned)
    assert [(item.budget, item.width) for item in grid.dropped if item.reason == "steps"] == sorted(
        too_long
    )


def test_extra_points_are_exempt_from_the_limits_and_restore_dropped_candidates() -> None:
    grid = soda(extra=[{"budget": 3e18, "width": 128}, {"budget": 3e18, "width": 2048}])
    assert {(3e18, 128), (3e18, 2048)} <= set(positions(grid))
    assert not {(3e18, 128), (3e18, 2048)} & {(item.budget, item.width) for item in grid.dropped}
    assert len(grid.points) + len(grid.dropped) == 80


def test_extra_points_may_have_another_budget() -> None:
    assert (1e21, 2304) in positions(soda(extra=[{"budget": 1e21, "width": 2304}]))


def test_every_point_has_the_seeds_and_some_have_more() -> None:
    grid = soda(seeds=[0, 5], replicates=[{"budget": 3e18, "width": 768, "seeds": [1, 2]}])
    seeds = {(point.budget, point.width): point.seeds for point in grid.points}
    assert seeds.pop((3e18, 768)) == (0, 5, 1, 2)
    assert set(seeds.values()) == {(0, 5)}


def test_replicates_of_an_extra_point() -> None:
    grid = soda(replicates=[{"budget": 3e20, "width": 2304, "seeds": [1]}])
    assert grid.points[-1].seeds == (0, 1)


ROUNDED_BUDGET = 2.9999999999999997e18
"""A budget that differs from 3e18 only by rounding."""


@pytest.mark.parametrize(
    ("grid_budget", "point_budget"), [(ROUNDED_BUDGET, 3e18), (3e18, ROUNDED_BUDGET)]
)
def test_points_take_the_grids_budget_if_they_differ_by_rounding(
    grid_budget: float, point_budget: float
) -> None:
    extra = [point(point_budget, 128), point(point_budget, 100)]
    replicates = [point(point_budget, 768, 1), point(point_budget, 100, 2)]
    grid = soda(budgets=[grid_budget, 9e18], extra=extra, replicates=replicates)
    assert {budget for budget, _ in positions(grid)} == {grid_budget, 9e18}
    seeds = {(point.budget, point.width): point.seeds for point in grid.points}
    assert (seeds[grid_budget, 128], seeds[grid_budget, 768], seeds[grid_budget, 100]) == (
        (0,),
        (0, 1),
        (0, 2),
    )
    assert (grid_budget, 128) not in {(item.budget, item.width) for item in grid.dropped}


def test_points_beyond_the_grid_take_the_first_such_budget() -> None:
    grid = soda(
        budgets=[9e18],
        extra=[point(3e18, 640), point(ROUNDED_BUDGET, 768)],
        replicates=[point(ROUNDED_BUDGET, 640, 1)],
    )
    assert [(p.budget, p.width, p.seeds) for p in grid.points[:2]] == [
        (3e18, 640, (0, 1)),
        (3e18, 768, (0,)),
    ]


def point(budget: float, width: int, *seeds: int) -> dict[str, Any]:
    return {"budget": budget, "width": width, **({"seeds": list(seeds)} if seeds else {})}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"extra": [point(3e18, 768)]},
            "extra[0]: 3e18 at width 768 is in the plan already; leave it out",
        ),
        (
            {"extra": [point(ROUNDED_BUDGET, 768)]},
            "extra[0]: 3e18 at width 768 is in the plan already; leave it out",
        ),
        (
            {"extra": [point(3e20, 2304)] * 2},
            "extra[1]: 3e20 at width 2304 is in the plan already; leave it out",
        ),
        (
            {"extra": [point(1e12, 2304)]},
            "extra[0]: 1e12 at width 2304 can't be run: 0 steps miss the budget by 100%",
        ),
        (
            {"replicates": [point(3e18, 700, 1)]},
            "replicates[0]: 3e18 at width 700 is not in the plan; "
            "the nearest width at this budget is 640",
        ),
        (
            {"replicates": [point(3.1e18, 768, 1)]},
            "replicates[0]: 3.1e18 at width 768 is not in the plan; did you mean budget 3e18?",
        ),
        (
            {"replicates": [point(ROUNDED_BUDGET, 700, 1)]},
            "replicates[0]: 3e18 at width 700 is not in the plan; "
            "the nearest width at this budget is 640",
        ),
        (
            {"budgets": [3e18, ROUNDED_BUDGET]},
            "budgets: 3e+18 and 2.9999999999999995e+18 differ only by rounding and would both be "
            "3e18; leave one out",
        ),
        (
            {"replicates": [point(3e18, 768, 0)]},
            "replicates[0].seeds: 3e18 at width 768 has seed 0 already; leave it out",
        ),
        (
            {"replicates": [point(3e18, 768, 1), point(3e18, 768, 1)]},
            "replicates[1].seeds: 3e18 at width 768 has seed 1 already; leave it out",
        ),
    ],
)
def test_a_repeated_or_unknown_point_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        soda(**overrides)
    assert str(problem.value) == message


@settings(max_examples=50, deadline=None)
@given(
    st.floats(1e-6, 1e40),
    st.integers(1, 1_000_000),
    st.integers(1, 2**24),
    st.sampled_from(["soda", "pocket"]),
    st.sampled_from([2.0**-20, 1.0, 2.0**20]),
)
def test_any_point_is_planned_or_refused(
    budget: float, width: int, seq_len: int, recipe: str, scale: float
) -> None:
    overrides = {
        "budgets": [budget],
        "widths": [width],
        "seq_len": seq_len,
        "recipe": recipe,
        "extra": [],
        "min_batch": 1,
        "max_steps": None,
        "train.batch_scale": scale,
    }
    try:
        planned = plan("soda", overrides)
    except ConfigError:
        return
    for run in planned.runs:
        assert abs(run.train_flops - budget) <= 0.0101 * budget
        assert run.lr > 0
        assert 0 <= run.beta2 < 1
    assert repr(planned)
    assert planned.to_frame().shape == (1, 28)


# A lab's own recipe


class Lab:
    """SODA's recipe with other parts."""

    def __init__(self, **parts: Any) -> None:
        defaults = {"name": "odd", "version": 1, "shape": SODA.shape, "solve": SODA.solve}
        self.name, self.version, self.shape, self.solve = {**defaults, **parts}.values()


def with_solution(**fields: Any) -> dict[str, Any]:
    """Return a recipe's rule whose solutions have some fields replaced."""

    def solve(budget: float, shape: Any, limits: Any, **scales: float) -> Candidate:
        solution = SODA.solve(budget, shape, Limits(), **scales)
        assert isinstance(solution, Candidate)
        return dataclasses.replace(solution, **fields)

    return {"solve": solve}


def failing(problem: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise problem

    return fail


POINT = "3e18 at width 128"
BAD_RECIPES = [
    (
        {"solve": failing(ZeroDivisionError("by zero"))},
        f"solve of {POINT}: ZeroDivisionError (by zero)",
    ),
    ({"solve": failing(ValueError("two\nlines"))}, f"solve of {POINT}: ValueError (two lines)"),
    ({"shape": failing(KeyError(128))}, "shape of width 128: KeyError (128)"),
    ({"shape": lambda *_: (128, 2)}, "shape of width 128: expected a ModelShape, got (128, 2)"),
    (
        {"solve": lambda *_, **__: None},
        f"solve of {POINT}: expected a Candidate or Dropped, got nothing",
    ),
    (
        {"solve": lambda *_: None},
        f"solve of {POINT}: TypeError (<lambda>() got an unexpected keyword",
    ),
    ({"solve": 3}, f"solve of {POINT}: TypeError ('int' object is not callable)"),
    (with_solution(shape=None), f"solve of {POINT}: shape: expected a ModelShape, got nothing"),
    (
        with_solution(batch_size=0),
        f"solve of {POINT}: batch_size: expected a whole number (int) above 0 and up to 1e40, "
        "got 0",
    ),
    (
        with_solution(batch_size=10**400),
        f"solve of {POINT}: batch_size: expected a whole number (int) above 0",
    ),
    (
        with_solution(batch_size=True),
        f"solve of {POINT}: batch_size: expected a whole number (int) above 0",
    ),
    (with_solution(steps=-1), f"solve of {POINT}: steps: expected a whole number (int) above 0"),
    (with_solution(steps=3.0), f"solve of {POINT}: steps: expected a whole number (int) above 0"),
    (
        with_solution(steps=np.int64(3)),
        f"solve of {POINT}: steps: expected a whole number (int) above 0",
    ),
    (
        with_solution(lr=-1.0),
        f"solve of {POINT}: lr: expected a finite number (float) above 0, got -1.0",
    ),
    (
        with_solution(lr=float("nan")),
        f"solve of {POINT}: lr: expected a finite number (float) above 0, got nan",
    ),
    (
        with_solution(lr=float("inf")),
        f"solve of {POINT}: lr: expected a finite number (float) above 0, got inf",
    ),
    (
        with_solution(lr="0.1"),
        f"solve of {POINT}: lr: expected a finite number (float) above 0, got '0.1'",
    ),
    (
        with_solution(beta2=1.0),
        f"solve of {POINT}: beta2: expected a number (float) from 0 to under 1, got 1.0",
    ),
    (
        with_solution(beta2=None),
        f"solve of {POINT}: beta2: expected a number (float) from 0 to under 1, got nothing",
    ),
    ({"version": None}, "version: expected a whole number or text, got nothing"),
    ({"version": 1.5}, "version: expected a whole number or text, got 1.5"),
    ({"name": 3}, "name: expected text, got 3"),
]


@pytest.mark.parametrize(
    ("parts", "message"), BAD_RECIPES, ids=[message[:50] for _, message in BAD_RECIPES]
)
def test_a_recipe_that_fails_is_named_with_the_point(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        build_grid(SweepRecipe(load_sweep("soda", {"recipe": "lab:odd"}), Lab(**parts)))
    assert str(problem.value).startswith(f"recipe: lab:odd: {message}")
    assert "\n" not in str(problem.value)


def test_a_recipes_own_error_is_unchanged() -> None:
    with pytest.raises(ConfigError, match=r"^no rule for width 128$"):
        build_grid(
            SweepRecipe(
                load_sweep("soda"), Lab(shape=failing(ConfigError("no rule for width 128")))
            )
        )


def test_a_recipe_that_fails_in_a_check_is_named_too() -> None:
    def solve(
        budget: float, shape: Any, limits: Any, *, lr_scale: float, batch_scale: float
    ) -> Candidate | Dropped:
        return SODA.solve(
            budget, shape, limits, lr_scale=lr_scale / (batch_scale != 2), batch_scale=batch_scale
        )

    with pytest.raises(
        ConfigError, match=r"^recipe: soda: solve of 3e18 at width 384: ZeroDivisionError"
    ):
        build_grid(SweepRecipe(load_sweep("soda", {"recipe_check": True}), Lab(solve=solve)))


# Checks of the recipe


def test_a_recipe_is_checked_at_three_sizes_of_two_budgets() -> None:
    grid = soda(recipe_check=True)
    checks = [point for point in grid.points if point.check]
    assert [point for point in grid.points if not point.check] == list(soda().points)
    assert Counter(point.check for point in checks) == dict.fromkeys(
        ("lr x 0.5", "lr x 2", "batch x 0.5", "batch x 2"), 6
    )
    assert {(point.budget, point.width) for point in checks} == {
        *((3e18, width) for width in (384, 640, 896)),
        *((3e19, width) for width in (640, 1152, 1664)),
    }
    base = {
        (point.budget, point.width): point.candidate for point in grid.points if not point.check
    }
    for point in checks:
        checked, unchanged = point.candidate, base[point.budget, point.width]
        setting, factor = point.check.split(" x ")
        if setting == "lr":
            assert (checked.batch_size, checked.steps) == (unchanged.batch_size, unchanged.steps)
            assert checked.lr == pytest.approx(float(factor) * unchanged.lr)
        else:
            assert checked.batch_size == float(factor) * unchanged.batch_size
            assert checked.lr == pytest.approx(float(factor) ** 0.5 * unchanged.lr)
        assert checked.train_flops == pytest.approx(unchanged.train_flops, rel=1e-3)
        assert point.seeds == (0,)


def test_checks_multiply_the_sweeps_scales() -> None:
    grid = soda(recipe_check=True, budgets=[3e18], extra=[], **{"train.lr_scale": 3.0})
    (unchanged,) = (p for p in grid.points if p.width == 640 and not p.check)
    (half,) = (p for p in grid.points if p.width == 640 and p.check == "lr x 0.5")
    assert half.candidate.lr == pytest.approx(0.5 * unchanged.candidate.lr)
    assert {point.budget for point in grid.points if point.check} == {3e18}


def test_a_batch_of_one_is_not_halved() -> None:
    grid = build_grid(SweepRecipe(load_sweep("pocket", {"recipe_check": True})))
    checks = Counter(point.check for point in grid.points if point.check)
    smallest = [
        p for p in grid.points if p.check.startswith("batch") and p.candidate.batch_size < 1
    ]
    assert not smallest
    assert checks["batch x 0.5"] < checks["batch x 2"] == checks["lr x 2"] == 6


def test_budgets_with_few_sizes_are_not_checked() -> None:
    assert not [
        point
        for point in soda(recipe_check=True, budgets=[3e18], widths=[512, 768], extra=[]).points
        if point.check
    ]
