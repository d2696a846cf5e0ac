"""Tests of differences between laws: found where the truths differ, made only for independent
laws.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.fits import Fits

from isoflop.errors import FitError
from isoflop.fitting import SURFACES, compare, fit_joint, fit_parametric, load_fit, simulate_isoflop
from isoflop.fitting.comparison import gap_text
from isoflop.fitting.estimators.intervals import Interval
from isoflop.fitting.tables.provenance import Provenance
from isoflop.frames import cell

FITS = Fits(
    one=lambda: fit_parametric(simulate_isoflop(seed=0), bootstrap=0),
    again=lambda: fit_parametric(simulate_isoflop(seed=1), bootstrap=0),
    other=lambda: fit_parametric(simulate_isoflop(SURFACES["soda"], seed=2), bootstrap=0),
)


def test_two_studies_of_one_law_do_not_differ() -> None:
    (pair,) = compare({"one": FITS["one"], "again": FITS["again"]}).pairs
    assert (pair.first, pair.second, pair.verdict) == ("one", "again", "no significant difference")
    assert {d.quantity for d in pair.differences} == {"a", "b", "params", "tokens", "loss"}
    assert all(0.05 < d.p <= d.p_model for d in pair.differences)


def test_two_laws_differ() -> None:
    (pair,) = compare({"one": FITS["one"], "other": FITS["other"]}).pairs
    assert {"a", "b"} <= set(pair.differing)
    assert pair.verdict.startswith("differ in a, b")
    by_name = {d.quantity: d for d in pair.differences}
    assert by_name["a"].value == pytest.approx(
        SURFACES["soda"].a - SURFACES["chinchilla"].a, abs=0.03
    )


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_an_exact_law_at_the_end_of_an_interval_just_differs(
    confidence: float, tmp_path: Path
) -> None:
    end = cell(FITS["one"].conf_int(confidence), "a", "high")
    laws = {"N": {"value": 1.0, "exponent": end}, "D": {"value": 1.0, "exponent": 1.0 - end}}
    (tmp_path / "fit.json").write_text(
        json.dumps({"schema": 1, "fits": [{"method": "isoflop", "coefficients": laws}]})
    )
    (pair,) = compare(
        {"one": FITS["one"], "exact": load_fit(tmp_path)[0]}, confidence=confidence
    ).pairs
    assert pair.differences[0].p == pytest.approx(1.0 - confidence)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    fits = [
        fit_parametric(simulate_isoflop(points=7, seed=seed), bootstrap=0) for seed in range(40)
    ]
    p = [
        compare({"x": x, "y": y}).pairs[0].differences[0].p
        for x, y in zip(fits[::2], fits[1::2], strict=True)
    ]
    assert (
        np.count_nonzero(np.array(p) < 0.05) <= 4
    )  # 1 of 20 is expected; 5 or more have a chance of 0.3 %


def test_the_same_runs_are_not_tested() -> None:
    runs = simulate_isoflop()
    comparison = compare({"surface": fit_parametric(runs, bootstrap=0), "joint": fit_joint(runs)})
    (pair,) = comparison.pairs
    assert pair.verdict == "not tested: the same runs, so not independent"
    assert all(np.isnan(d.p) for d in pair.differences)
    assert pair.differences[0].value == pytest.approx(np.diff(comparison.table["a"])[0])


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (Provenance("x", "1"), Provenance("y", "1"), True),
        (Provenance("x", "1"), Provenance("x", "2"), True),
        (Provenance("x", "1"), Provenance("y", "2"), False),
        (Provenance("the table", "1"), Provenance("the table", "2"), False),
        (Provenance("x", "1", frozenset("ab")), Provenance("x", "2", frozenset("cd")), False),
        (Provenance("x", "1", frozenset("ab")), Provenance("y", "2", frozenset("bc")), True),
        (Provenance("soda", ""), Provenance("soda", ""), False),
    ],
)
def test_runs_in_common(first: Provenance, second: Provenance, shared: bool) -> None:
    assert first.shares_runs(second) is shared


def test_names_of_runs_count_only_where_they_hold_an_identity() -> None:
    runs = simulate_isoflop(points=7)
    names = [f"1e18-w64-s0-{k:08x}" for k in range(len(runs))]
    assert FITS["one"].provenance.run_ids == frozenset()
    assert fit_joint(runs.assign(run_id=names)).provenance.run_ids == frozenset(names)


def test_a_published_law_is_taken_as_exact() -> None:
    (chinchilla,), (soda,) = load_fit("chinchilla"), load_fit("soda")
    same, other, none = (
        compare({"x": x, "y": y}, flops=1e21).pairs[0]
        for x, y in ((FITS["one"], chinchilla), (FITS["one"], soda), (soda, chinchilla))
    )
    assert same.verdict == "no significant difference"
    assert {"a", "b"} <= set(other.differing)
    assert none.verdict == "not tested: no intervals"


def test_another_count_of_n_is_not_compared() -> None:
    runs = simulate_isoflop(seed=1)
    body = fit_parametric(
        runs.assign(params_non_embedding=0.5 * runs["params"]), n="non_embedding", bootstrap=0
    )
    (pair,) = compare({"total": FITS["one"], "body": body}).pairs
    assert [d.quantity for d in pair.differences] == ["tokens", "loss"]


def test_the_budget_is_beyond_the_largest_common_budget() -> None:
    small = fit_parametric(simulate_isoflop(budgets=(1e17, 1e18, 1e19, 1e20)), bootstrap=0)
    assert compare({"small": small, "one": FITS["one"]}).flops == pytest.approx(1e21)
    table = compare(
        {"small": small, "one": FITS["one"]}, flops=1e23, confidence=0.5
    ).table.set_index("law")
    expected = FITS["one"].predict(1e23, 0.5).loc["params"]
    assert (
        table.loc["one", ["params", "params_low", "params_high"]].tolist()
        == expected[["value", "low", "high"]].tolist()
    )


@pytest.mark.parametrize(
    ("laws", "message"),
    [
        ({}, "there is no law to compare"),
        ({"soda": load_fit("soda")[0]}, "name one to compare at, e.g. --flops 1e22"),
    ],
)
def test_refusals(laws: dict, message: str) -> None:
    with pytest.raises(FitError, match=message):
        compare(laws)


def test_json_has_no_nan() -> None:
    document = compare({"one": FITS["one"], "soda": load_fit("soda")[0]}).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False))["pairs"][0]["independent"] is True
    assert document["laws"][1]["params_low"] is None


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"x": Interval(1e9, 5e8, 2e9)}, ""),
        (
            {"x": Interval(1e9, 5e8, 2e9), "y": Interval(3e9, 1e9, 4e9)},
            "At 1e22 FLOPs N* is 1.00B (x) to 3.00B (y), 3.00x apart; "
            "the intervals of the two overlap.",
        ),
        (
            {
                "y": Interval(3e9, 2.5e9, 4e9),
                "x": Interval(1e9, 5e8, 2e9),
                "z": Interval(2e9, 1e8, 4e9),
            },
            "At 1e22 FLOPs N* is 1.00B (x) to 3.00B (y), 3.00x apart; "
            "the intervals of the two do not overlap.",
        ),
        (
            {"x": Interval(1e9, np.nan, np.nan), "y": Interval(3e9, 1e9, 4e9)},
            "At 1e22 FLOPs N* is 1.00B (x) to 3.00B (y), 3.00x apart.",
        ),
    ],
)
def test_the_text_of_the_gap(sizes: dict[str, Interval], text: str) -> None:
    assert gap_text(sizes, 1e22) == text
