"""Each rule of a recipe, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from isoflop.recipes import BatchRule, Beta2Rule, LearningRateRule
from isoflop.shapes import ModelShape

SHAPE = ModelShape(64, 2, 1, 1, 64, 256, 1000, 128)
FLOPS_PER_STEP = SHAPE.train_flops_per_token * 128  # batch of one sequence


@pytest.mark.parametrize(
    ("rounding", "exact_batch", "batch"),
    [
        ("up", 0.3, 1),
        ("up", 4.0, 4),
        ("up", 4.1, 8),
        ("up", 8.0, 8),
        ("nearest", 0.3, 1),
        ("nearest", 5.6, 4),
        ("nearest", 5.7, 8),
        ("whole", 0.3, 1),
        ("whole", 5.6, 6),
        ("whole", 21.4, 21),
    ],
)
def test_batch_nears_the_target_steps(rounding: str, exact_batch: float, batch: int) -> None:
    rule = BatchRule(target_steps=1000, rounding=rounding, source="")  # type: ignore[arg-type]
    assert rule(exact_batch * 1000 * FLOPS_PER_STEP, SHAPE) == batch


def test_learning_rate_counts_the_batch_in_its_unit() -> None:
    rule = LearningRateRule(2.0, 0.5, -1.0, "sequences", cap=1.0, halve_batch=False, source="")
    assert rule(SHAPE, 16) == pytest.approx(2.0 * 4 / 64)
    by_tokens = dataclasses.replace(rule, unit="tokens")
    assert by_tokens(SHAPE, 16) == pytest.approx(2.0 * math.sqrt(16 * 128) / 64)


def test_a_learning_rate_above_the_cap_halves_the_batch_but_never_to_nothing() -> None:
    rule = LearningRateRule(1.0, 0.5, 0.0, "sequences", cap=2.0, halve_batch=True, source="")
    assert rule.limit_batch(SHAPE, 16) == 4
    assert dataclasses.replace(rule, cap=0.5).limit_batch(SHAPE, 16) == 1
    assert dataclasses.replace(rule, halve_batch=False).limit_batch(SHAPE, 16) == 16


def test_beta2_remembers_the_same_number_of_tokens() -> None:
    rule = Beta2Rule(base=0.98, reference=128, unit="sequences", source="")
    assert rule(SHAPE, 128) == pytest.approx(0.98)
    assert rule(SHAPE, 32) ** 4 == pytest.approx(0.98)
    by_tokens = dataclasses.replace(rule, reference=128 * 128, unit="tokens")
    assert by_tokens(SHAPE, 128) == pytest.approx(0.98)
