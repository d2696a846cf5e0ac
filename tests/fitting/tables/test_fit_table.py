"""Reading of tables: columns, rows, refusals and their messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.errors import FitError
from isoflop.fitting import (
    RunsTable,
    fit_envelope,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    read_table,
    simulate_isoflop,
)
from isoflop.fitting.tables.fit_table import cluster


def make_frame(**changes: object) -> pd.DataFrame:
    """Return three runs of one budget, with some columns changed or added."""
    columns = {
        "params": [1e6, 2e6, 3e6],
        "tokens": [3e8, 2e8, 1e8],
        "loss": [3.0, 2.9, 3.1],
        "budget": [1e15] * 3,
    }
    return pd.DataFrame(columns | changes)


T = TypeVar("T")


def make_frame_without(*names: str) -> pd.DataFrame:
    return make_frame().drop(columns=list(names))


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (
            make_frame(loss=[3.0, np.nan, np.nan]),
            {},
            "column 'loss' needs positive, finite numbers; not so in rows 2, 3",
        ),
        (make_frame(loss=[3.0, np.inf, -1.0]), {}, "rows 2, 3 (inf, -1.0)"),
        (
            make_frame(loss=[np.nan] * 3),
            {},
            "column 'loss' needs positive, finite numbers; not so in rows 1, 2, 3 (nan",
        ),
        (make_frame(params=[0, 0, 2]), {}, "column 'params'"),
        (
            make_frame(params=["1M", "2M", "3M"]),
            {},
            "rows 1, 2, 3 ('1M', '2M', '3M'); write 1.5e6 for 1.5M",
        ),
        (make_frame(params=["1e6", "two", 3]), {}, "row 2 ('two')"),
        (make_frame(params=["1e6", True, 3]), {}, "row 2 (True)"),
        (make_frame(loss=[[3.0], [2.9], [3.1]]), {}, "rows 1, 2, 3 ([3.0], [2.9], [3.1])"),
        (
            make_frame().set_axis(pd.MultiIndex.from_product([["x"], list("abcd")]), axis=1),
            {},
            "2 levels of names",
        ),
        (
            make_frame(**{"val.loss": 1.0, "train/loss": 2.0}).drop(columns="loss"),
            {},
            "could be 'val.loss', 'train/loss'",
        ),
        (make_frame().rename(columns={"params": "num_params"}), {}, "did you mean 'num_params'?"),
        (make_frame().rename(columns={"tokens": "D"}), {}, "did you mean 'D'?"),
        (make_frame(), {"loss": "loss*-2"}, "no column 'loss*-2'; did you mean 'loss'?"),
        (make_frame(), {"loss": "lss*2"}, "no column 'lss'; did you mean 'loss'?"),
        (
            make_frame(),
            {"final": "median"},
            "unknown rule 'median' for the final loss: auto, line, mean, last",
        ),
        (
            make_frame(params=[1e6, 2e6, 3], budget=[1.8e15, 2.4e15, 1.8e15]),
            {},
            "column 'params' has mixed units: in row 3",
        ),
        (
            make_frame(tokens=[3e8, 2e-1, 1e8]),
            {},
            "column 'tokens' has mixed units: in row 2, C / 6ND is about 1e9 times",
        ),
        (make_frame(tokens=[True, False, True]), {}, "holds bool, not numbers"),
        (make_frame(tokens=pd.to_datetime(["2020-01-01"] * 3)), {}, "not numbers"),
        (make_frame(tokens=[1 + 1j, 1, 1]), {}, "not numbers"),
        (make_frame().iloc[:0], {}, "has no rows"),
        (
            pd.DataFrame(),
            {},
            "the table: no column 'params' or 'params_total'; name it with params=. "
            "No column 'tokens'; name it with tokens=. No column 'loss'; name it with loss=. "
            "No column of FLOPs; name it with flops= or budget=, or take flops='6ND'. "
            "It has no columns",
        ),
        (
            pd.DataFrame({"N": [1e6], "Flops": [1e15], "D": [1e8], "Val_Loss": [3.0]}),
            {},
            "the table: no column 'params' or 'params_total'; did you mean 'N'? params='N'. "
            "No column 'tokens'; did you mean 'D'? tokens='D'. "
            "No column 'loss'; did you mean 'Val_Loss'? loss='Val_Loss'. "
            "No column of FLOPs; did you mean 'Flops'? flops='Flops'. "
            "Columns: N, Flops, D, Val_Loss",
        ),
        (
            make_frame().rename(columns={"params": "Params"}),
            {},
            "did you mean 'Params'? params='Params'.",
        ),
        (
            make_frame_without("loss").assign(flops=1e15),
            {},
            "no column 'loss'; name it with loss=.",
        ),
        (
            make_frame().rename(columns={"loss": "L", "params": "P"}),
            {"loss": "l"},
            "No column 'l'; did you mean 'L'?",
        ),
        (
            make_frame_without("tokens").assign(token=1.0),
            {},
            "no column 'tokens'; did you mean 'token'?",
        ),
        (make_frame_without("loss"), {}, "name it with loss="),
        (make_frame_without("budget"), {}, "name it with flops= or budget=, or take flops='6ND'"),
        (make_frame(), {"loss": "lss"}, "no column 'lss'; did you mean 'loss'?"),
        (make_frame(), {"n": "one_embedding"}, "no column 'params_one_embedding'"),
        (make_frame(), {"n": "body"}, "unknown parameter count 'body'"),
        (make_frame(), {"loss_unit": "bytes"}, "unknown loss unit 'bytes'"),
        (
            make_frame(state=["failed", "failed", "running"]),
            {},
            "no run is done (2 failed, 1 running)",
        ),
        (
            pd.concat([make_frame(), make_frame()[["loss"]]], axis=1),
            {},
            "column 'loss' appears more than once",
        ),
        (
            make_frame(flops=np.geomspace(1e15, 1.5e15, 3)).drop(columns="budget").sample(frac=1),
            {},
            None,
        ),
        (
            pd.DataFrame(
                {"params": 1e6, "tokens": 1e8, "loss": 3.0, "flops": np.geomspace(1e15, 3e15, 40)}
            ),
            {},
            "the FLOPs don't fall into budgets (1e15 to 3e15, no gap wider than the scatter)",
        ),
    ],
)
def test_refusals_name_column_and_rows(table, options, message):
    if message is None:
        assert len(read_table(table, **options)) == 3
        return
    with pytest.raises(FitError) as refusal:
        read_table(table, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "the file is empty"),
        ("head.csv", b"params,tokens,loss,budget\n", "has no rows"),
        ("blank.csv", b"\n\n", "can't be read"),
        ("twice.csv", b"loss,params,loss\n1,2,3\n", "column 'loss' appears more than once"),
        ("long.csv", b"params,tokens\n1,2\n1,2,3\n", "can't be read"),
        ("long1.csv", b"params,tokens\n1,2,3\n", "can't be read"),
        ("latin.csv", "größe,é\n1,2\n".encode("latin-1"), "can't be read"),
        (
            "excel.csv",
            "params,tokens\n1,2\n".encode("utf-16"),
            "is UTF-16, as Excel's 'Unicode text' is; save it as",
        ),
        ("excel.jsonl", '{"loss": 1}\n'.encode("utf-16"), "is UTF-16"),
        (
            "comma.csv",
            b"params;tokens;loss;flops\n1e6;1e9;4,386;6e15\n",
            "write numbers with a decimal point, 4.38",
        ),
        (
            "thousands.csv",
            b'params,tokens,loss,flops\n"1,234,567",1e9,4.3,6e15\n',
            "without thousands separators",
        ),
        ("bad.jsonl", b'{"loss": 1}\n{"loss": \n', "line 2: not JSON"),
        ("list.jsonl", b"[1, 2]\n", "line 1: expected one JSON object"),
        ("twice.jsonl", b'{"loss": 1, "loss": 2}\n', "more than once"),
        ("not.parquet", b"PAR1 no", "can't be read"),
        ("runs.xlsx", b"x", "unknown kind of table"),
        ("sub", "dir", "has no runs.parquet"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name, content, message):
    path = tmp_path / name
    if content == "dir":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(FitError) as refusal:
        read_table(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_kind_of_file_gives_the_same_table(tmp_path: Path):
    runs = simulate_isoflop(points=5)
    expected = read_table(runs)
    runs.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    runs.to_parquet(tmp_path / "runs.parquet")
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, runs.to_dict("records"))))
    for source in (
        tmp_path / "bom.csv",
        tmp_path / "runs.parquet",
        tmp_path / "runs.jsonl",
        tmp_path,
        str(tmp_path),
    ):
        table = read_table(source)
        assert table.hash == expected.hash
        pd.testing.assert_frame_equal(table.frame, expected.frame)


def test_columns_units_and_counts_are_recorded():
    runs = make_frame(
        params_one_embedding=[1e5, 2e5, 3e5],
        bits=[1.0, 2.0, 3.0],
        train_flops=[1.01e15, 1e15, 1e15],
    )
    table = read_table(runs, n="one_embedding", loss="bits", loss_unit="bits")
    assert table.columns == {
        "params": "params_one_embedding",
        "tokens": "tokens",
        "loss": "bits",
        "flops": "train_flops",
        "budget": "budget",
    }
    assert (table.n, table.loss_unit) == ("one_embedding", "bits")
    np.testing.assert_allclose(table.array("loss"), np.log(2.0) * np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(table.array("flops"), [1.01e15, 1e15, 1e15])


def test_params_total_stands_in_for_params():
    assert (
        read_table(make_frame().rename(columns={"params": "params_total"})).columns["params"]
        == "params_total"
    )
    assert read_table(make_frame(), params="tokens").columns["params"] == "tokens"


def test_integers_do_not_overflow():
    runs = make_frame(
        params=np.array([4_000_000_000] * 3),
        tokens=np.array([9_000_000_000] * 3),
        budget=[10**19] * 3,
    )
    assert runs["params"].dtype == np.int64
    table = read_table(runs)
    assert (table.array("params") * table.array("tokens") == 3.6e19).all()
    huge = read_table(
        make_frame(budget=[10**21, 10**21, 2 * 10**21])
    )  # Python integers beyond int64
    assert set(huge.array("budget")) == {1e21, 2e21}


def test_budgets_are_clustered_not_rounded():
    flops = [1.8e19, 1.795e19, 1.81e19, 2.0e19, 1.99e19]
    runs = pd.DataFrame({"params": 1e6, "tokens": 1e8, "loss": 3.0, "flops": flops})
    table = read_table(runs)
    assert len(set(table.array("budget"))) == 2
    assert table.columns["budget"] == "(flops, clustered)"
    np.testing.assert_array_equal(cluster([1.8e19, 2e19, 1.8e19 * (1 + 1e-9)], 1e-6), [0, 1, 0])


def test_seeds_are_one_configuration_but_settings_are_not():
    runs = pd.DataFrame(
        {"params": 1e6, "tokens": 1e8, "budget": 1e15, "loss": [3.0, 3.2, 3.3], "seed": [0, 1, 0]}
    )
    assert read_table(runs).configurations["seeds"].tolist() == [3]
    tuned = read_table(runs.assign(lr=[0.1, 0.1, 0.2])).configurations
    assert tuned["seeds"].tolist() == [2, 1]
    assert tuned["loss"].tolist() == pytest.approx([3.1, 3.3])


def test_order_of_rows_changes_nothing():
    runs = simulate_isoflop(points=5, seeds=2)
    mixed = runs.sample(frac=1.0, random_state=1)
    assert read_table(runs).hash == read_table(mixed).hash
    assert (
        fit_isoflop(runs, bootstrap=200).to_dict()["exponents"]
        == fit_isoflop(mixed, bootstrap=200).to_dict()["exponents"]
    )
    changed = runs.assign(loss=runs["loss"].where(runs.index != 3, 3.14159))
    assert read_table(changed).hash != read_table(runs).hash


def attempt(call: Callable[[], T]) -> tuple[str, T | None]:
    """Return the message of a refusal, or the result."""
    try:
        return "", call()
    except FitError as error:
        return str(error), None


CELLS = st.one_of(
    st.floats(1e-3, 1e25),
    st.sampled_from(
        [
            1e18,
            3e18,
            1e19,
            1e6,
            1e9,
            2.5,
            0.0,
            -1.0,
            float("nan"),
            float("inf"),
            None,
            "x",
            "3",
            "",
            True,
        ]
    ),
    st.integers(-(2**70), 2**70),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"params": CELLS, "tokens": CELLS, "loss": CELLS},
        optional={
            "flops": CELLS,
            "budget": CELLS,
            "seed": CELLS,
            "state": st.sampled_from(["done", "failed", None]),
            "epochs": CELLS,
        },
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS)
def test_any_table_is_read_or_refused(rows):
    refusal, table = attempt(lambda: read_table(pd.DataFrame(rows)))
    if table is None:
        assert refusal
        assert "\n" not in refusal
        return
    assert isinstance(table, RunsTable)
    values = table.frame[["params", "tokens", "loss", "flops", "budget"]].to_numpy()
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values > 0).all()


SIZES = st.floats(1e5, 1e12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1e17, 1e18, 1e19, 1e20]),
            SIZES | st.sampled_from([1e7, 2e7, 4e7, 8e7]),
            st.floats(0.5, 9.0),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_any_good_table_is_fitted_or_refused(rows):
    budget, params, loss = np.array(rows).T
    runs = pd.DataFrame(
        {"budget": budget, "params": params, "tokens": budget / (6 * params), "loss": loss}
    )
    refusal, fit = attempt(lambda: fit_isoflop(runs, use="all", bootstrap=100))
    if fit is None:
        assert "budgets can be used" in refusal or "negative loss" in refusal
        return
    assert np.isfinite(fit.exponents["value"]).all()
    json.loads(fit.to_json())
    assert fit.summary()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_as_csv_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("csv") / "runs.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FitError):
        read_table(path)


@pytest.mark.parametrize("runs", [{"loss": [3.0]}, [{"loss": 3.0}], None, 3.0])
@pytest.mark.parametrize("fit", [fit_isoflop, fit_joint, fit_parametric, fit_envelope])
def test_other_types_are_refused_in_a_line(fit, runs):
    message = "runs must be a DataFrame, or the path of a table or of a sweep, not a"
    with pytest.raises(FitError, match=message):
        fit(runs)
