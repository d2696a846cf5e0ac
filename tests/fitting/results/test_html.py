"""HTML of fits for Jupyter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.figure_checks import FITS, RUNS, cells

from isoflop.fitting import fit_isoflop


@pytest.mark.parametrize("name", FITS)
def test_a_fit_shows_headline_estimates_and_every_finding(name: str):
    fit = FITS[name]
    html = fit._repr_html_()
    assert fit.headline().partition(":")[0] in html
    a = fit.exponents.loc["a"].to_dict()
    (row,) = [row for row in cells(html) if row[:1] == ["a, of N* ~ C^a"]]
    assert row[1:] == [f"{a['value']:.5g}", f"{a['low']:.4g} to {a['high']:.4g}"]
    for finding in fit.diagnostics:
        assert html.count(f"<code>{finding['code']}</code>") == 1
    assert len(html) < 4000


def test_the_profiles_are_folded_and_unused_ones_are_marked():
    flipped = RUNS["loss"].where(RUNS["budget"] != 1e19, 6.0 - RUNS["loss"])
    html = fit_isoflop(RUNS.assign(loss=flipped), bootstrap=200)._repr_html_()
    assert "<summary>7 budgets</summary>" in html
    assert "concave, not used" in html
    assert "nan" not in html.lower().replace("nance", "")


def test_text_from_outside_is_escaped():
    runs = RUNS.rename(columns={"loss": "<loss>"})
    html = fit_isoflop(runs, loss="<loss>", bootstrap=200)._repr_html_()
    assert "<loss>" not in html
    assert "&lt;loss&gt;" in html


def test_unbounded_intervals_are_named():
    fit = fit_isoflop(RUNS, bootstrap=200)
    lost = fit.draws | {
        name: np.full(200, np.nan) for name in ("a", "b", "ln_k_params", "ln_k_tokens")
    }
    html = replace(fit, draws=lost)._repr_html_()
    assert [row[2] for row in cells(html) if len(row) == 3][1:] == ["unbounded"] * 3
