"""Which places are considered: the recipe's own, within the sweep's limits."""

from __future__ import annotations

from typing import Any

import pytest
from support.followup_studies import every_second

from isoflop.config import load_sweep
from isoflop.errors import ConfigError
from isoflop.followup.candidates import Place, budgets_of, places_of, widths_of
from isoflop.planning.plan import plan
from isoflop.recipes import SODA, Recipe


def keys(places: list[Place]) -> set[tuple[float, int]]:
    return {place.key for place in places}


def test_the_plan_itself_is_among_them_with_the_same_configurations() -> None:
    laid_out = plan("soda")
    found = {place.key: place for place in places_of(laid_out.sweep)}
    for run in laid_out.runs:
        assert found[run.budget, run.width].candidate == run.candidate


def test_limits_hold() -> None:
    laid_out = plan("soda")
    places = places_of(laid_out.sweep)
    assert all(
        place.candidate.batch_size >= 8 and place.candidate.steps < 400_000 for place in places
    )
    assert not keys(places) & {(item.budget, item.width) for item in laid_out.dropped}
    free = places_of(
        load_sweep("soda", {"min_batch": 1, "max_steps": None, "data.max_epochs": 100})
    )
    assert {(item.budget, item.width) for item in laid_out.dropped} <= keys(free)


@pytest.mark.parametrize(("name", "unit"), [("soda", 128), ("pocket-64", 4)])
def test_widths_are_multiples_of_what_the_sweep_has(name: str, unit: int) -> None:
    sweep = load_sweep(name)
    widths = widths_of(sweep)
    assert all(width % unit == 0 for width in widths)
    own = {run.width for run in plan(name).runs}
    assert own <= set(widths)
    assert max(widths) == 2 * max(own)
    assert len(widths) <= 64 + len(own)


def test_budgets() -> None:
    sweep = every_second(3e19)
    between, above = (5.2e18, 1.3e19, 2.3e19), (5.3e19, 9.5e19, 1.7e20, 3e20)
    assert budgets_of(sweep) == tuple(sorted((3e18, 9e18, 1.8e19, 3e19, *between, *above)))


def test_data_are_not_repeated_beyond_what_the_sweep_allows() -> None:
    sweep = load_sweep("soda", {"data.max_epochs": 0.5})
    most = {
        source: share for source, share in sweep.data.mixture.items() if source in sweep.data.tokens
    }
    for place in places_of(sweep):
        assert all(
            place.tokens * share / sweep.data.tokens[source] <= 0.5
            for source, share in most.items()
        )
    assert keys(places_of(sweep)) < keys(places_of(load_sweep("soda")))


@pytest.mark.parametrize("error", [ConfigError, KeyError])
def test_a_recipe_without_a_shape_for_some_widths(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    shape = Recipe.shape

    def only_even(self: Recipe, width: int, vocab_size: int, seq_len: int):
        if width % 256:
            raise error("no such width")
        return shape(self, width, vocab_size, seq_len)

    monkeypatch.setattr(Recipe, "shape", only_even)
    widths = {place.width for place in places_of(load_sweep("soda", {"recipe": SODA.name}))}
    assert widths
    assert all(width % 256 == 0 for width in widths)


def test_a_recipe_that_fails_beyond_its_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that a lab looks its batches up in, say."""
    solve, sweep = Recipe.solve, load_sweep("soda")

    def up_to(self: Recipe, budget: float, *rest: Any, **scales: float):
        return solve(self, {budget: budget for budget in sweep.budgets}[budget], *rest, **scales)

    monkeypatch.setattr(Recipe, "solve", up_to)
    assert {place.budget for place in places_of(sweep)} == set(sweep.budgets)
