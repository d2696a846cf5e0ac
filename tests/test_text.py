"""Numbers and units as text."""

from __future__ import annotations

import math

import pytest

from isoflop.text import (
    bytes_text,
    count_text,
    duration_text,
    flops_text,
    gpu_hours_text,
    hours_text,
    money_text,
    percent_text,
)


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
        (2.5e15, "2,500T"),
        (1e30, "1e+30"),
        (math.nan, "-"),
        (math.inf, "unbounded"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999.6, "1K"), (4840, "4.84K"), (2.1e9, "2.1B"), (1e8, "100M"), (0, "0")]
)
def test_counts_without_padding(value: float, text: str) -> None:
    assert count_text(value, padded=False) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (4e-6, "<0.001%"),
        (0.0026, "0.26%"),
        (0.003, "0.3%"),
        (0.95, "95%"),
        (0.999, "99.9%"),
        (1, "100%"),
        (12.3456, "1,235%"),
        (math.nan, "nan%"),
    ],
)
def test_percents(share: float, text: str) -> None:
    assert percent_text(share) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.053, "5.3%"), (0.627, "63%"), (0.997, "100%")]
)
def test_percents_in_two_digits(share: float, text: str) -> None:
    assert percent_text(share, 2) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "+0%"), (1e-9, "+0%"), (0.003, "+0.3%"), (-0.1234, "-12.3%"), (12.3456, "+1,235%")],
)
def test_percents_with_a_sign(share: float, text: str) -> None:
    assert percent_text(share, signed=True) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (0, "0"),
        (1e-5, "<0.001"),
        (0.00123, "0.00123"),
        (0.0371, "0.0371"),
        (0.42, "0.42"),
        (0.9994, "0.999"),
        (0.9996, "1.00"),
        (4.2, "4.20"),
        (42.04, "42.0"),
        (99.97, "100"),
        (1083.7, "1,084"),
        (123_456, "123,456"),
    ],
)
def test_hours(hours: float, text: str) -> None:
    assert hours_text(hours) == text
    assert gpu_hours_text(hours) == f"{text} GPU-hours"


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (1e-6, "<0.01"),
        (0.0101, "0.01"),
        (0.34, "0.34"),
        (12.5, "12.50"),
        (99.996, "100"),
        (9625.6, "9,626"),
    ],
)
def test_money(amount: float, text: str) -> None:
    assert money_text(amount) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (412_000, "412 kB"),
        (999_600, "1.00 MB"),
        (37.6e6, "37.6 MB"),
        (68.04e9, "68.0 GB"),
        (1.487e12, "1.49 TB"),
        (3e15, "3,000 TB"),
    ],
)
def test_bytes(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.2, "<1 s"),
        (0.6, "1 s"),
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
