"""Shipped recipes: SODA's rules against the rows of its grid, and POCKET's."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest

from isoflop.recipes import POCKET, SODA, Candidate, Dropped, DropReason, Limits

GRID_FILE = Path(__file__).parents[1] / "planning" / "soda_grid.csv"
GRID = list(csv.DictReader(GRID_FILE.read_text().splitlines()))
"""SODA's grid, reconstructed from its rule: all points that pass the batch test, and the seven
hand-set ones."""
UNITS = {"M": 1e6, "B": 1e9}


def soda(
    width: int, budget: float, limits: Limits | None = None, **scales: float
) -> Candidate | Dropped:
    return SODA.solve(budget, SODA.shape(width, 144_644, 4096), limits or Limits(), **scales)


def solved(solution: Candidate | Dropped) -> Candidate:
    assert isinstance(solution, Candidate)
    return solution


@pytest.mark.parametrize("row", GRID, ids=lambda row: f"{row['budget']}-{row['width']}")
def test_soda_row(row: dict[str, str]) -> None:
    run = solved(soda(int(row["width"]), float(row["budget"])))
    shape = run.shape
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (
        int(row["layers"]),
        int(row["heads"]),
        int(row["heads"]),
        128,
    )
    assert shape.mlp_width == 4 * shape.width
    assert (run.batch_size, run.steps) == (int(row["batch"]), int(row["steps"]))
    assert run.lr == pytest.approx(float(row["lr"]), abs=0.5001e-5)
    assert run.beta2 == pytest.approx(float(row["beta2"]), abs=0.5001e-4)
    items = shape.parameter_items()
    norms = items["qk_norms"] + items["final_norm"]  # SODA's formula leaves them out
    for value, text in (
        (shape.params_total - norms, row["params_total"]),
        (shape.params_non_embedding - norms, row["params_non_embedding"]),
        (run.tokens, row["tokens"]),
    ):
        digits = len(text[:-1].partition(".")[2])
        assert value / UNITS[text[-1]] == pytest.approx(float(text[:-1]), abs=0.501 * 10**-digits)


def test_soda_9e18_at_width_768() -> None:
    run = solved(soda(768, 9e18))
    assert (run.shape.layers, run.shape.heads, run.shape.mlp_width) == (8, 6, 3072)
    assert (run.batch_size, run.steps) == (32, 48_244)
    assert run.lr == pytest.approx(0.33 * math.sqrt(32) / 768)
    assert run.beta2 == pytest.approx(0.98 ** (32 / 128))
    assert run.shape.params_total == pytest.approx(297.7e6, rel=2e-4)


def test_soda_3e18_at_width_768() -> None:
    run = solved(soda(768, 3e18))
    assert run.batch_size == 8
    assert run.tokens == pytest.approx(2.11e9, rel=2e-3)


@pytest.mark.parametrize(
    ("width", "budget", "limits", "reason", "detail"),
    [
        (1152, 3e18, Limits(min_batch=8), DropReason.BATCH, "batch 4 under min_batch 8"),
        (
            128,
            3e18,
            Limits(8, 400_000),
            DropReason.STEPS,
            "721,519 steps not under max_steps 400,000",
        ),
        (1024, 1e13, Limits(), DropReason.BUDGET, "1 steps miss the budget by"),
        (1024, 1.0, Limits(), DropReason.BUDGET, "0 steps miss the budget by 100%"),
    ],
)
def test_dropped(
    width: int, budget: float, limits: Limits, reason: DropReason, detail: str
) -> None:
    drop = soda(width, budget, limits)
    assert isinstance(drop, Dropped)
    assert (drop.budget, drop.width, drop.reason) == (budget, width, reason)
    assert drop.detail.startswith(detail)


def test_steps_equal_to_the_limit_are_too_many() -> None:
    assert isinstance(soda(768, 9e18, Limits(max_steps=48_244)), Dropped)
    assert isinstance(soda(768, 9e18, Limits(max_steps=48_245)), Candidate)


def test_scales_multiply_the_results_of_the_rules() -> None:
    plain = solved(soda(768, 9e18))
    faster = solved(soda(768, 9e18, lr_scale=2.0))
    assert faster == dataclasses.replace(plain, lr=2 * plain.lr)
    larger = solved(soda(768, 9e18, batch_scale=4.0))
    assert larger.batch_size == 128
    assert larger.steps == pytest.approx(plain.steps / 4, abs=1)
    assert larger.lr == pytest.approx(2 * plain.lr)
    assert larger.beta2 == pytest.approx(plain.beta2**4)
    assert isinstance(soda(768, 1e17, batch_scale=2.0**-10), Dropped)


@pytest.mark.parametrize("width", [8, 16, 24, 32, 48, 64, 96, 128])
@pytest.mark.parametrize("budget", [3e11, 1e12, 1e13])
def test_pocket_suits_small_models(width: int, budget: float) -> None:
    run = solved(POCKET.solve(budget, POCKET.shape(width, 774, 256)))
    assert (run.shape.layers, run.shape.heads, run.shape.head_dim) == (2, width // 8, 8)
    assert run.lr <= POCKET.lr.cap
    assert 0 < run.beta2 < 1


@pytest.mark.parametrize("recipe", [SODA, POCKET], ids=lambda recipe: recipe.name)
def test_every_rule_has_its_source(recipe: object) -> None:
    assert isinstance(recipe, type(SODA))
    sources = [recipe.batch.source, recipe.lr.source, recipe.beta2.source, *recipe.sources.values()]
    assert set(recipe.sources) == {"depth", "heads", "mlp_ratio"}
    assert all(sources)
    assert not any("\n" in source for source in sources)
