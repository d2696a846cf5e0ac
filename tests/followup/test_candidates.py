"""Candidate points: those of the recipe within the sweep's limits."""

from __future__ import annotations

from typing import Any

import pytest
from support.followup_studies import every_second

from isoflop.config import load_sweep
from isoflop.errors import ConfigError
from isoflop.followup.candidates import (
    CandidatePoint,
    candidate_budgets,
    candidate_widths,
    list_candidate_points,
)
from isoflop.planning.plan import plan
from isoflop.recipes import SODA, Recipe


def keys(points: list[CandidatePoint]) -> set[tuple[float, int]]:
    return {point.key for point in points}


def test_the_plan_is_among_them_with_the_same_configurations() -> None:
    laid_out = plan("soda")
    points = {point.key: point for point in list_candidate_points(laid_out.sweep)}
    for run in laid_out.runs:
        assert points[run.budget, run.width].candidate == run.candidate


def test_limits_hold() -> None:
    laid_out = plan("soda")
    points = list_candidate_points(laid_out.sweep)
    assert all(
        point.candidate.batch_size >= 8 and point.candidate.steps < 400_000 for point in points
    )
    assert not keys(points) & {(item.budget, item.width) for item in laid_out.dropped}
    free = list_candidate_points(
        load_sweep("soda", {"min_batch": 1, "max_steps": None, "data.max_epochs": 100})
    )
    assert {(item.budget, item.width) for item in laid_out.dropped} <= keys(free)


@pytest.mark.parametrize(("name", "unit"), [("soda", 128), ("pocket-64", 4)])
def test_widths_are_multiples_of_the_sweeps_divisor(name: str, unit: int) -> None:
    sweep = load_sweep(name)
    widths = candidate_widths(sweep)
    assert all(width % unit == 0 for width in widths)
    planned = {run.width for run in plan(name).runs}
    assert planned <= set(widths)
    assert max(widths) == 2 * max(planned)
    assert len(widths) <= 64 + len(planned)


def test_budgets() -> None:
    sweep = every_second(3e19)
    between, above = (5.2e18, 1.3e19, 2.3e19), (5.3e19, 9.5e19, 1.7e20, 3e20)
    assert candidate_budgets(sweep) == tuple(sorted((3e18, 9e18, 1.8e19, 3e19, *between, *above)))


def test_data_are_not_repeated_beyond_max_epochs() -> None:
    sweep = load_sweep("soda", {"data.max_epochs": 0.5})
    tokens = sweep.data.tokens
    shares = {source: share for source, share in sweep.data.mixture.items() if source in tokens}
    for point in list_candidate_points(sweep):
        assert all(point.tokens * share / tokens[source] <= 0.5 for source, share in shares.items())
    assert keys(list_candidate_points(sweep)) < keys(list_candidate_points(load_sweep("soda")))


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
    points = list_candidate_points(load_sweep("soda", {"recipe": SODA.name}))
    widths = {point.width for point in points}
    assert widths
    assert all(width % 256 == 0 for width in widths)


def test_a_recipe_that_fails_beyond_its_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A custom recipe may take its batch sizes from a table of its sweep's budgets."""
    solve, sweep = Recipe.solve, load_sweep("soda")

    def up_to(self: Recipe, budget: float, *rest: Any, **scales: float):
        return solve(self, {budget: budget for budget in sweep.budgets}[budget], *rest, **scales)

    monkeypatch.setattr(Recipe, "solve", up_to)
    assert {point.budget for point in list_candidate_points(sweep)} == set(sweep.budgets)
