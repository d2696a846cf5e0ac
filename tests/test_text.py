"""Numbers and units as text."""

from __future__ import annotations

import math

import pytest

from isoflop.text import count_text, duration_text, flops_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (812, "812"),
        (999.6, "1.00K"),
        (4840, "4.84K"),
        (147_200, "147K"),
        (37_594_000, "37.6M"),
        (999_600_000, "1.00B"),
        (2.11e9, "2.11B"),
        (25.3e12, "25.3T"),
        (1e30, "1e+30"),
        (math.nan, "-"),
        (math.inf, "unbounded"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (300, "5 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (40_680, "11.3 h"),
        (172_800, "2.0 days"),
        (492_480, "5.7 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (5.149e21, 3, "5.15e21"),
        (3e20, 3, "3e20"),
        (1.8e19, 4, "1.8e19"),
        (6.1024e21, 4, "6.102e21"),
        (950.0, 4, "950"),
    ],
)
def test_flops(value: float, digits: int, text: str) -> None:
    assert flops_text(value, digits) == text
