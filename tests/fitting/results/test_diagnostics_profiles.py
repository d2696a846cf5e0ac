"""Each finding on profiles appears if its condition holds."""

from __future__ import annotations

import pandas as pd
import pytest
from support.shallow_studies import shallow_study

from isoflop.fitting import fit_isoflop, simulate_isoflop

BASE = simulate_isoflop(points=9, noise=0.002)


def narrow() -> pd.DataFrame:
    """Return profiles that are flat within the noise, on a grid fine enough to find the middle."""
    return simulate_isoflop(points=60, spread=1.6, noise=0.003)


CASES = {
    "shallow": (
        shallow_study(0),
        {},
        "shallow: the curvature is less than 4 standard errors above zero",
    ),
    "no_minimum": (narrow().iloc[::6], {"use": "all"}, "count as unbounded"),
    "interpolation": (
        BASE.assign(tokens=BASE["tokens"] * (1 + 0.1 * (BASE.index % 2))),
        {},
        "residuals of up to",
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_findings_on_profiles(code):
    runs, options, text = CASES[code]
    messages = {
        d["code"]: d["message"] for d in fit_isoflop(runs, bootstrap=300, **options).diagnostics
    }
    assert text in messages[code]
