"""Which points a grid has: SODA's counts, extra points, seeds and replicates."""

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
from isoflop.planning.checked_recipe import Rules
from isoflop.planning.grid import Grid, lay_out
from isoflop.planning.plan import drop_counts, plan
from isoflop.recipes import SODA, Candidate, Dropped, Limits

GRID = list(csv.DictReader((Path(__file__).parent / "soda_grid.csv").read_text().splitlines()))


def soda(**overrides: Any) -> Grid:
    return lay_out(Rules(load_sweep("soda", overrides)))


def places(grid: Grid) -> list[tuple[float, int]]:
    return [(point.budget, point.width) for point in grid.points]


def test_soda_has_80_candidates_of_which_59_stay() -> None:
    grid = soda(extra=[])
    assert len(grid.points) + len(grid.dropped) == 80
    assert len(grid.points) == 59
    assert drop_counts(grid.dropped) == {"batch": 11, "steps": 10}


def test_soda_has_64_runs_with_its_extra_points() -> None:
    grid = soda()
    assert len(grid.points) == 64
    assert list(Counter(point.budget for point in grid.points).values()) == [7, 12, 14, 7, 8, 8, 8]
    assert drop_counts(grid.dropped) == {"batch": 11, "steps": 10}


def test_soda_is_the_reconstructed_grid() -> None:
    kept = [
        (float(row["budget"]), int(row["width"]))
        for row in GRID
        if row["kind"] in ("kept", "extra")
    ]
    too_long = [(float(row["budget"]), int(row["width"])) for row in GRID if row["kind"] == "steps"]
    grid = soda()
    assert places(grid) == sorted(kept)
    assert [(item.budget, item.width) for item in grid.dropped if item.reason == "steps"] == sorted(
        too_long
    )


def test_extra_points_are_exempt_from_the_limits_and_bring_back_what_was_dropped() -> None:
    grid = soda(extra=[{"budget": 3e18, "width": 128}, {"budget": 3e18, "width": 2048}])
    assert {(3e18, 128), (3e18, 2048)} <= set(places(grid))
    assert not {(3e18, 128), (3e18, 2048)} & {(item.budget, item.width) for item in grid.dropped}
    assert len(grid.points) + len(grid.dropped) == 80


def test_extra_points_may_have_a_budget_of_their_own() -> None:
    assert (1e21, 2304) in places(soda(extra=[{"budget": 1e21, "width": 2304}]))


def test_every_point_has_the_seeds_and_some_have_more() -> None:
    grid = soda(seeds=[0, 5], replicates=[{"budget": 3e18, "width": 768, "seeds": [1, 2]}])
    seeds = {(point.budget, point.width): point.seeds for point in grid.points}
    assert seeds.pop((3e18, 768)) == (0, 5, 1, 2)
    assert set(seeds.values()) == {(0, 5)}


def test_replicates_of_an_extra_point() -> None:
    grid = soda(replicates=[{"budget": 3e20, "width": 2304, "seeds": [1]}])
    assert grid.points[-1].seeds == (0, 1)


NEAR = 2.9999999999999997e18
"""A budget that is 3e18 but for rounding."""


@pytest.mark.parametrize(("of_grid", "of_point"), [(NEAR, 3e18), (3e18, NEAR)])
def test_points_take_the_budget_of_the_grid_where_they_differ_by_rounding(
    of_grid: float, of_point: float
) -> None:
    extra, replicates = (
        [point(of_point, 128), point(of_point, 100)],
        [point(of_point, 768, 1), point(of_point, 100, 2)],
    )
    grid = soda(budgets=[of_grid, 9e18], extra=extra, replicates=replicates)
    assert {budget for budget, _ in places(grid)} == {of_grid, 9e18}
    seeds = {(point.budget, point.width): point.seeds for point in grid.points}
    assert (seeds[of_grid, 128], seeds[of_grid, 768], seeds[of_grid, 100]) == ((0,), (0, 1), (0, 2))
    assert (of_grid, 128) not in {(item.budget, item.width) for item in grid.dropped}


def test_points_beyond_the_grid_take_the_first_ones_budget() -> None:
    grid = soda(
        budgets=[9e18], extra=[point(3e18, 640), point(NEAR, 768)], replicates=[point(NEAR, 640, 1)]
    )
    assert [(p.budget, p.width, p.seeds) for p in grid.points[:2]] == [
        (3e18, 640, (0, 1)),
        (3e18, 768, (0,)),
    ]


def point(budget: float, width: int, *seeds: int) -> dict[str, Any]:
    return {"budget": budget, "width": width, **({"seeds": list(seeds)} if seeds else {})}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            {"extra": [point(3e18, 768)]},
            "extra[0]: 3e18 at width 768 is in the plan already; leave it out",
        ),
        (
            {"extra": [point(NEAR, 768)]},
            "extra[0]: 3e18 at width 768 is in the plan already; leave it out",
        ),
        (
            {"extra": [point(3e20, 2304)] * 2},
            "extra[1]: 3e20 at width 2304 is in the plan already; leave it out",
        ),
        (
            {"extra": [point(1e12, 2304)]},
            "extra[0]: 1e12 at width 2304 can't be run: 0 steps miss the budget by 100.0%",
        ),
        (
            {"replicates": [point(3e18, 700, 1)]},
            "replicates[0]: 3e18 at width 700 is not in the plan; the nearest width at this budget is 640",
        ),
        (
            {"replicates": [point(3.1e18, 768, 1)]},
            "replicates[0]: 3.1e18 at width 768 is not in the plan; did you mean budget 3e18?",
        ),
        (
            {"replicates": [point(NEAR, 700, 1)]},
            "replicates[0]: 3e18 at width 700 is not in the plan; the nearest width at this budget is 640",
        ),
        (
            {"budgets": [3e18, NEAR]},
            "budgets: 3e+18 and 2.9999999999999995e+18 differ by rounding only and would both be 3e18; leave one out",
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
def test_the_same_point_twice_or_a_point_that_is_not_there(
    overrides: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        soda(**overrides)
    assert str(problem.value) == says


@settings(max_examples=50, deadline=None)
@given(
    st.floats(1e-6, 1e40), st.integers(1, 1_000_000), st.integers(1, 2**24), st.sampled_from(["soda", "pocket"]),
    st.sampled_from([2.0**-20, 1.0, 2.0**20]),
)  # fmt: skip
def test_any_point_is_planned_or_refused(
    budget: float, width: int, seq_len: int, recipe: str, scale: float
) -> None:
    overrides = {
        "budgets": [budget], "widths": [width], "seq_len": seq_len, "recipe": recipe, "extra": [], "min_batch": 1,
        "max_steps": None, "train.batch_scale": scale,
    }  # fmt: skip
    try:
        laid_out = plan("soda", overrides)
    except ConfigError:
        return
    for run in laid_out.runs:
        assert abs(run.train_flops - budget) <= 0.0101 * budget
        assert run.lr > 0
        assert 0 <= run.beta2 < 1
    assert repr(laid_out)
    assert laid_out.to_frame().shape == (1, 28)


# A lab's own recipe


class Lab:
    """SODA's recipe but for some of its parts."""

    def __init__(self, **parts: Any) -> None:
        own = {"name": "odd", "version": 1, "shape": SODA.shape, "solve": SODA.solve, **parts}
        self.name, self.version, self.shape, self.solve = own.values()


def giving(**fields: Any) -> dict[str, Any]:
    """A recipe's rule whose answers have some fields of their own."""

    def solve(budget: float, shape: Any, limits: Any, **scales: float) -> Candidate:
        solution = SODA.solve(budget, shape, Limits(), **scales)
        assert isinstance(solution, Candidate)
        return dataclasses.replace(solution, **fields)

    return {"solve": solve}


def failing(problem: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise problem

    return fail


PLACE = "3e18 at width 128"
BAD_RECIPES = [
    (
        {"solve": failing(ZeroDivisionError("by zero"))},
        f"solve of {PLACE}: ZeroDivisionError (by zero)",
    ),
    ({"solve": failing(ValueError("two\nlines"))}, f"solve of {PLACE}: ValueError (two lines)"),
    ({"shape": failing(KeyError(128))}, "shape of width 128: KeyError (128)"),
    ({"shape": lambda *_: (128, 2)}, "shape of width 128: expected a ModelShape, got (128, 2)"),
    (
        {"solve": lambda *_, **__: None},
        f"solve of {PLACE}: expected a Candidate or Dropped, got nothing",
    ),
    (
        {"solve": lambda *_: None},
        f"solve of {PLACE}: TypeError (<lambda>() got an unexpected keyword",
    ),
    ({"solve": 3}, f"solve of {PLACE}: TypeError ('int' object is not callable)"),
    (giving(shape=None), f"solve of {PLACE}: shape: expected a ModelShape, got nothing"),
    (
        giving(batch_size=0),
        f"solve of {PLACE}: batch_size: expected a whole number (int) above 0 and up to 1e+40, got 0",
    ),
    (
        giving(batch_size=10**400),
        f"solve of {PLACE}: batch_size: expected a whole number (int) above 0",
    ),
    (
        giving(batch_size=True),
        f"solve of {PLACE}: batch_size: expected a whole number (int) above 0",
    ),
    (giving(steps=-1), f"solve of {PLACE}: steps: expected a whole number (int) above 0"),
    (giving(steps=3.0), f"solve of {PLACE}: steps: expected a whole number (int) above 0"),
    (giving(steps=np.int64(3)), f"solve of {PLACE}: steps: expected a whole number (int) above 0"),
    (giving(lr=-1.0), f"solve of {PLACE}: lr: expected a finite number (float) above 0, got -1.0"),
    (
        giving(lr=float("nan")),
        f"solve of {PLACE}: lr: expected a finite number (float) above 0, got nan",
    ),
    (
        giving(lr=float("inf")),
        f"solve of {PLACE}: lr: expected a finite number (float) above 0, got inf",
    ),
    (
        giving(lr="0.1"),
        f"solve of {PLACE}: lr: expected a finite number (float) above 0, got '0.1'",
    ),
    (
        giving(beta2=1.0),
        f"solve of {PLACE}: beta2: expected a number (float) from 0 to under 1, got 1.0",
    ),
    (
        giving(beta2=None),
        f"solve of {PLACE}: beta2: expected a number (float) from 0 to under 1, got nothing",
    ),
    ({"version": None}, "version: expected a whole number or text, got nothing"),
    ({"version": 1.5}, "version: expected a whole number or text, got 1.5"),
    ({"name": 3}, "name: expected text, got 3"),
]


@pytest.mark.parametrize(("parts", "says"), BAD_RECIPES, ids=[says[:50] for _, says in BAD_RECIPES])
def test_a_recipe_that_fails_is_named_with_the_place(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        lay_out(Rules(load_sweep("soda", {"recipe": "lab:odd"}), Lab(**parts)))
    assert str(problem.value).startswith(f"recipe: lab:odd: {says}")
    assert "\n" not in str(problem.value)


def test_what_a_recipe_itself_refuses_is_said_as_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^no rule for width 128$"):
        lay_out(Rules(load_sweep("soda"), Lab(shape=failing(ConfigError("no rule for width 128")))))


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
        lay_out(Rules(load_sweep("soda", {"recipe_check": True}), Lab(solve=solve)))


# Checks of the recipe


def test_a_recipe_is_checked_at_three_sizes_of_two_budgets() -> None:
    grid = soda(recipe_check=True)
    checks = [point for point in grid.points if point.check]
    assert [point for point in grid.points if not point.check] == list(soda().points)
    assert Counter(point.check for point in checks) == dict.fromkeys(
        ("lr x 0.5", "lr x 2", "batch x 0.5", "batch x 2"), 6
    )
    assert {(point.budget, point.width) for point in checks} == {
        (3e18, 384), (3e18, 640), (3e18, 896), (3e19, 640), (3e19, 1152), (3e19, 1664)
    }  # fmt: skip
    base = {
        (point.budget, point.width): point.candidate for point in grid.points if not point.check
    }
    for point in checks:
        mine, own = point.candidate, base[point.budget, point.width]
        setting, factor = point.check.split(" x ")
        if setting == "lr":
            assert (mine.batch_size, mine.steps) == (own.batch_size, own.steps)
            assert mine.lr == pytest.approx(float(factor) * own.lr)
        else:
            assert mine.batch_size == float(factor) * own.batch_size
            assert mine.lr == pytest.approx(float(factor) ** 0.5 * own.lr)
        assert mine.train_flops == pytest.approx(own.train_flops, rel=1e-3)
        assert point.seeds == (0,)


def test_checks_keep_to_what_the_sweep_scales() -> None:
    grid = soda(recipe_check=True, budgets=[3e18], extra=[], **{"train.lr_scale": 3.0})
    (own,) = (p for p in grid.points if p.width == 640 and not p.check)
    (half,) = (p for p in grid.points if p.width == 640 and p.check == "lr x 0.5")
    assert half.candidate.lr == pytest.approx(0.5 * own.candidate.lr)
    assert {point.budget for point in grid.points if point.check} == {3e18}


def test_a_batch_of_one_is_not_halved() -> None:
    grid = lay_out(Rules(load_sweep("pocket", {"recipe_check": True})))
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
