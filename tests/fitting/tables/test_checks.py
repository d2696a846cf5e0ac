"""Wrong units, losses and rows are reported with column, factor and rows.

Correct tables give no finding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, read_table, simulate_isoflop

STUDY = simulate_isoflop(seeds=2).drop(columns="simulated")
COMMITTED = Path(__file__).parents[3] / "analysis" / "pocket-64"


def read_findings(runs: pd.DataFrame | Path, **options: Any) -> dict[str, str]:
    """Return the findings of a table: code -> message."""
    return {finding["code"]: finding["message"] for finding in read_table(runs, **options).findings}


@pytest.mark.parametrize(
    ("column", "factor", "message"),
    [
        ("params", 1e6, "C is about 1e6 times 6ND: column 'params' in millions"),
        ("params", 1e9, "C is about 1e9 times 6ND: column 'params' in billions"),
        ("tokens", 1e9, "C is about 1e9 times 6ND: column 'tokens' in billions"),
        ("budget", 1e12, "C is about 1e-12 times 6ND: column 'budget' in TFLOPs"),
        ("budget", 1e18, "C is about 1e-18 times 6ND: column 'budget' in EFLOPs"),
        ("budget", 8.64e19, "column 'budget' in PF-days"),
    ],
)
def test_a_column_in_another_unit_is_reported(column: str, factor: float, message: str):
    runs = STUDY.drop(columns="train_flops").assign(**{column: lambda t: t[column] / factor})
    assert message in read_findings(runs)["units"]
    scaled: dict[str, Any] = {column: f"{column}*{factor:g}"}
    corrected = read_table(runs, **scaled)
    columns = ["params", "tokens", "loss", "flops", "budget"]
    np.testing.assert_allclose(
        corrected.frame[columns], read_table(STUDY.drop(columns="train_flops")).frame[columns]
    )
    assert not corrected.findings
    assert corrected.columns[column] == f"{column}*{factor:g}"


def test_two_columns_in_other_units_are_reported():
    runs = STUDY.drop(columns="train_flops").assign(
        params=STUDY["params"] / 1e6, tokens=STUDY["tokens"] / 1e9
    )
    message = "column 'params' in millions and column 'tokens' in billions"
    assert message in read_findings(runs)["units"]


def test_units_are_checked_without_a_column_of_flops():
    runs = STUDY.drop(columns=["train_flops", "budget"]).assign(params=STUDY["params"] / 1e6)
    runs["tokens"] /= 1e9
    assert (
        "column 'params' in millions and column 'tokens' in billions"
        in read_findings(runs, flops="6ND")["units"]
    )
    assert read_table(STUDY.drop(columns="train_flops"), flops="6nd").columns["flops"] == "6ND"


@pytest.mark.parametrize("n", ["total", "one_embedding", "non_embedding"])
def test_small_real_models_are_not_doubted(n: str):
    assert read_findings(COMMITTED / "runs.parquet", n=n).keys() <= {"flops_inconsistent"}


@pytest.mark.parametrize(
    ("column", "factor", "message"),
    [
        ("params", 1e6, "column 'params' has mixed units: in row"),
        ("params", 1e-3, "column 'params' has mixed units: in row"),
        ("tokens", 1e9, "column 'tokens' has mixed units: in row"),
    ],
)
@pytest.mark.parametrize("bad", [[3], list(range(30, 60))])
def test_mixed_units_are_refused(column: str, factor: float, message: str, bad: list[int]):
    runs = STUDY.drop(columns="run_id")
    runs.loc[bad, column] /= factor
    with pytest.raises(FitError) as refusal:
        read_table(runs)
    assert message in str(refusal.value)
    assert f"{'s' if len(bad) > 1 else ''} {bad[0] + 1}" in str(refusal.value)


def test_inconsistent_numbers_of_a_run_are_reported():
    runs = STUDY.copy()
    runs.loc[5, "tokens"] /= 30.0
    message = "In run sim-0005, C / 6ND differs from that of most rows by a factor of more than 18."
    assert message in read_findings(runs)["flops_inconsistent"]


def test_implausible_losses_are_reported():
    perplexities = STUDY.assign(loss=np.exp(STUDY["loss"] + 1.0))
    assert "Is it a perplexity?" in read_findings(perplexities)["loss_high"]
    runs = STUDY.copy()
    runs.loc[[4, 9], "loss"] = 11.0
    message = "The loss of runs sim-0004, sim-0009 is more than 2 times the median of its budget"
    assert message in read_findings(runs)["diverged"]
    fit = fit_isoflop(runs, bootstrap=0, use="all")
    assert "diverged" in [finding["code"] for finding in fit.diagnostics]


def test_runs_listed_twice_are_reported():
    copy = STUDY.iloc[[3]].assign(loss=3.33)
    message = "with different values, for run sim-0003."
    assert message in read_findings(pd.concat([STUDY, copy]))["duplicates"]
    unnamed = pd.concat([STUDY, copy], ignore_index=True).drop(columns="run_id")
    message = "Different losses for one configuration and seed: rows 4, 127."
    assert message in read_findings(unnamed)["duplicates"]


@pytest.mark.parametrize(
    ("name", "reason"), [("loss", "loss is missing"), ("tokens", "tokens is missing")]
)
def test_broken_rows_are_left_out_with_row_and_column(name: str, reason: str):
    runs = STUDY.drop(columns="run_id")
    runs.loc[[6, 8], name] = np.nan
    runs.loc[10, name] = np.inf
    runs.loc[11, name] = -1.0
    runs.loc[12, name] = 0.0
    table = read_table(runs)
    assert len(table) == len(STUDY) - 5
    assert table.dropped == (
        ("rows 7, 9", reason),
        ("row 11", f"{name} is infinite"),
        ("rows 12, 13", f"{name} is zero or negative"),
    )


@pytest.mark.parametrize("kind", ["int64", "int32", "uint32", "Int64"])
def test_integer_products_do_not_overflow(kind: str):
    big = {"int64": (4_000_000_000_000, 9_000_000_000), "Int64": (4_000_000_000_000, 9_000_000_000)}
    params, tokens = big.get(kind, (2_000_000_000, 1_900_000_000))
    runs = pd.DataFrame(
        {
            "params": [params, params // 2],
            "tokens": [tokens, tokens * 2 if kind == "int64" else tokens],
        }
    )
    runs = runs.astype(kind).assign(loss=3.0)
    table = read_table(runs, flops="6ND")
    exact = sorted(6 * int(n) * int(d) for n, d in zip(runs["params"], runs["tokens"], strict=True))
    np.testing.assert_allclose(
        np.sort(table.array("flops")), np.array(exact, dtype=np.float64), rtol=1e-15
    )


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (STUDY[STUDY["budget"] < 5e18], "2 of 2 budgets can be used, 3 are needed"),
        (STUDY.groupby("budget").head(2), "too_few (1 distinct size, "),
        (STUDY.assign(loss=3.0), "0 of 7 budgets can be used"),
    ],
    ids=["two budgets", "one size", "constant loss"],
)
def test_unusable_studies_are_refused_with_a_reason(runs: pd.DataFrame, message: str):
    with pytest.raises(FitError) as refusal:
        fit_isoflop(runs)
    assert message in str(refusal.value)
