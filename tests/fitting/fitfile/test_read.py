"""fit.json and fit.npz read back: the same predictions to the last digit, and one line for a file
that can't be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.fits import Fits
from support.token_costs import with_embeddings

from isoflop.config import load_sweep
from isoflop.errors import FitError
from isoflop.fitting import (
    compare,
    fit_envelope,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    load_fit,
    predict,
    simulate_isoflop,
    write_fit,
)
from isoflop.fitting.fitfile.read import laws_by_name

RUNS = simulate_isoflop(points=7)
FITS = Fits(
    isoflop=lambda: fit_isoflop(RUNS, bootstrap=200, seed=3),
    joint=lambda: fit_joint(RUNS),
    parametric=lambda: fit_parametric(RUNS, bootstrap=200, seed=3),
    envelope=lambda: fit_envelope(RUNS),
)
BUDGETS = [1e15, 1e20, 1e22, 3e25]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_fit(tmp_path, list(FITS.values()), sweep=load_sweep("soda"))


@pytest.mark.parametrize("method", FITS)
def test_a_saved_fit_equals_the_fit_to_the_last_digit(file: Path, method: str) -> None:
    fit, saved = FITS[method], load_fit(file)[method]
    for confidence in (0.5, 0.95):
        pd.testing.assert_frame_equal(
            saved.predict(BUDGETS, confidence), fit.predict(BUDGETS, confidence), rtol=0
        )
        pd.testing.assert_frame_equal(
            saved.intervals(confidence), fit.intervals(confidence), rtol=0
        )
    assert saved.headline() == fit.headline()
    assert (saved.method, saved.n, saved.loss_column, saved.dof) == (
        fit.method,
        fit.n,
        fit.loss_column,
        fit.dof,
    )
    assert (saved.reach, saved.provenance, saved.diagnostics) == (
        fit.reach,
        fit.provenance,
        fit.diagnostics,
    )


def test_a_saved_fit_has_the_cost_of_a_token(tmp_path: Path) -> None:
    runs = with_embeddings()
    fit = fit_parametric(runs, bootstrap=200)
    path = write_fit(tmp_path, [fit])
    saved = load_fit(path)[0]
    pd.testing.assert_frame_equal(saved.predict(BUDGETS), fit.predict(BUDGETS), rtol=0)
    for kind in ("t", "percentile"):
        pd.testing.assert_frame_equal(saved.intervals(kind=kind), fit.intervals(kind=kind), rtol=0)
    (law,) = predict(load_fit(path), 1e18).to_dict()["laws"]
    assert law["over"] == "table"
    assert [n for n in predict(load_fit(path), 1e23).notes if "beyond the sizes that were run" in n]

    document = json.loads(path.read_text())
    del document["fits"][0]["law"]["cost"]  # as in files of isoflop 0.1
    path.write_text(json.dumps(document))
    alpha, beta = fit.theta[3:]
    old = load_fit(path)[0].exponents.loc["a", "value"]
    assert old == pytest.approx(beta / (alpha + beta), rel=1e-12)


NO_LAW = {
    "two budgets": RUNS[RUNS["budget"] <= 3e18],
    "random losses": RUNS.assign(loss=3.0 + np.random.default_rng(0).normal(0.0, 0.01, len(RUNS))),
}


@pytest.mark.parametrize("runs", NO_LAW.values(), ids=NO_LAW)
def test_no_law_stays_no_law_in_its_file(runs: pd.DataFrame, tmp_path: Path) -> None:
    fit = fit_parametric(runs, bootstrap=0)
    path = write_fit(tmp_path, [fit, FITS["joint"]])
    saved = load_fit(path)
    assert saved[0].headline() == fit.headline() == f"No law of compute: {fit.no_law}"
    assert [law.no_law for law in saved] == [fit.no_law, ""]
    note = f"parametric: no law of compute: {fit.no_law}"
    prediction = predict(saved, 1e20)
    assert note in prediction.notes
    assert prediction.chosen.name == "joint"
    comparison = compare(laws_by_name([saved]))
    assert comparison.notes == (note,)
    assert comparison.to_dict()["notes"] == [note]

    document = json.loads(path.read_text())
    for entry in document["fits"]:
        del entry["no_law"]  # as in files of before
    path.write_text(json.dumps(document))
    assert load_fit(path)[0].no_law == ""


def test_unreported_hold_out_tests_widen_a_prediction(file: Path) -> None:
    document = json.loads(file.read_text())
    entry = next(e for e in document["fits"] if e["method"] == "parametric")
    assert len(entry["law"]["rollout"]["misses"]) > len(entry["rollout"])


@pytest.mark.parametrize("method", ["isoflop", "parametric"])
def test_resamples_are_read_back(file: Path, method: str) -> None:
    saved = load_fit(file)[method]
    pd.testing.assert_frame_equal(
        saved.intervals(kind="percentile"), FITS[method].intervals(kind="percentile"), rtol=0
    )


def test_a_directory_stands_for_its_fit_and_the_sweep_comes_with_it(file: Path) -> None:
    loaded = load_fit(file.parent)
    assert [fit.method for fit in loaded] == list(FITS)
    assert (loaded.recipe, loaded.sweep, len(loaded)) == ("soda", load_sweep("soda"), 4)
    with pytest.raises(
        FitError, match="has no fit by 'ridge'; it has isoflop, joint, parametric, envelope"
    ):
        _ = loaded["ridge"]


def test_without_the_draws_the_t_interval_remains(file: Path) -> None:
    (file.parent / "fit.npz").unlink()
    loaded = load_fit(file)
    assert loaded.notes[0] == "no fit.npz beside it: intervals are the t intervals alone"
    assert [note.partition("fit.json: ")[2][:24] for note in loaded.notes[1:]] == [
        "All losses are simulated"
    ]
    pd.testing.assert_frame_equal(
        loaded["isoflop"].law_estimate.intervals(0.95),
        FITS["isoflop"].intervals(kind="t")[["value", "low", "high"]],
    )
    with pytest.raises(FitError, match="no resamples"):
        loaded["isoflop"].intervals(kind="percentile")


# Laws that others published


@pytest.mark.parametrize(("flops", "size"), [(3e18, 0.368e9), (9e19, 1.39e9), (1.32e22, 9.8e9)])
def test_a_published_law_by_name(flops: float, size: float) -> None:
    (law,) = load_fit("soda")
    table = law.predict(flops)
    assert table.loc["params", "value"] == pytest.approx(size, rel=6e-3)
    assert np.isnan(table[["low", "high"]].to_numpy()).all()
    assert (
        law.headline()
        == "Optimal data grows 1.6x faster than optimal model size: N* ~ C^0.391, D* ~ C^0.609"
    )


def test_values_alone_predict_without_intervals(tmp_path: Path) -> None:
    """SODA's IsoFLOP law: exponents as published, through an optimum of 0.27B parameters and 2.4B
    tokens at 3e18.
    """
    laws = {"N": (0.27e9, 0.367), "D": (2.4e9, 0.579)}
    coefficients = {k: {"value": y / 3e18**b, "exponent": b} for k, (y, b) in laws.items()}
    (tmp_path / "fit.json").write_text(
        json.dumps({"schema": 1, "fits": [{"method": "isoflop", "coefficients": coefficients}]})
    )
    loaded = load_fit(tmp_path)
    table = loaded[0].predict(1.32e22)
    assert 5.4e9 < table.loc["params", "value"] < 6.6e9
    assert 260e9 < table.loc["tokens", "value"] < 340e9
    assert np.isnan(table["low"].to_numpy()).all()
    assert loaded.notes == (
        "fits[0] (isoflop): the file has only its values, so it has no intervals",
    )


def test_a_covariance_alone_gives_the_intervals(tmp_path: Path) -> None:
    entry = {k: v for k, v in FITS["parametric"].to_dict().items() if k != "law"}
    (tmp_path / "fit.json").write_text(json.dumps({"schema": 1, "fits": [entry]}))
    (law,) = load_fit(tmp_path)
    np.testing.assert_allclose(law.intervals(), FITS["parametric"].intervals(), rtol=1e-6)
    inner = ["value", "statistical_low", "statistical_high"]
    np.testing.assert_allclose(
        law.predict(1e22)[inner], FITS["parametric"].predict(1e22)[inner], rtol=1e-6
    )


# Files that can't be read


def changed(*path: Any, to: Any = None, drop: bool = False) -> Callable[[dict[str, Any]], None]:
    """Return a function that puts a value into a document, or removes a key."""

    def change(document: Any) -> None:
        *parents, last = path
        for key in parents:
            document = document[key]
        if drop:
            del document[last]
        else:
            document[last] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("schema", to=2),
            "has schema 2, and this isoflop reads 1; write it again with: isoflop fit",
        ),
        (changed("fits", drop=True), "not a fit of isoflop: it has no `schema` and `fits`"),
        (changed("fits", to=[]), "fits: expected a list of fits"),
        (changed("fits", 1, to=7), "fits[1]: expected a mapping"),
        (changed("fits", 0, "method", to="ridge"), "fits[0].method: 'ridge' is none of parametric"),
        (changed("fits", 0, "n", to="some"), "fits[0].n: 'some' is none of total"),
        (
            changed("fits", 0, "confidence", to=2),
            "fits[0].confidence: 2 is not a share between 0 and 1",
        ),
        (changed("fits", 0, "law", "lines", "params", drop=True), "fits[0].law.params: missing"),
        (
            changed("fits", 0, "law", "lines", "params", "slope", to="x"),
            "fits[0].law.slope: expected a number",
        ),
        (
            changed("fits", 1, "law", "covariance", to=[1, 2]),
            "fits[1].law.covariance: expected 5 x 5 numbers",
        ),
        (changed("fits", 2, "law", "theta", to=["a"] * 5), "fits[2].law.theta: expected numbers"),
        (changed("fits", 2, "law", "dof", to=-1), "fits[2].law.dof: expected a whole number"),
        (changed("fits", 2, "law", "rollout", "reach", drop=True), "fits[2].law.reach: missing"),
        (changed("fits", 2, "law", "cost", to=7), "fits[2].law.cost: expected a mapping"),
        (
            changed("fits", 2, "law", "cost", "ln_params", to=[]),
            "fits[2].law.ln_params: expected ascending numbers",
        ),
        (
            changed("fits", 2, "law", "cost", "ln_ratio", to=[0.0, 1.0]),
            "fits[2].law.ln_ratio: expected 1 numbers",
        ),
        (
            changed("fits", 2, "law", "cost", "ln_flops", to="x"),
            "fits[2].law.ln_flops: expected a list",
        ),
        (changed("sweep", "budgets", to=[]), "sweep: budgets: an empty list"),
        (changed("draws", to="0123"), "fit.npz beside it belongs to another fit"),
    ],
)
def test_a_damaged_file_is_one_line(
    file: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(FitError) as refused:
        load_fit(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("fit.json", b"{", "not JSON"),
        ("fit.json", b"\xff\xfe", "not JSON"),
        ("fit.json", b"[1]", "not a fit of isoflop"),
        (
            "fit.npz",
            b"PK\x03\x04",
            "fit.npz beside it is damaged; write it again with: isoflop fit SOURCE",
        ),
    ],
)
def test_a_foreign_file_is_one_line(file: Path, name: str, text: bytes, message: str) -> None:
    (file.parent / name).write_bytes(text)
    with pytest.raises(FitError, match=message):
        load_fit(file)


def test_a_missing_file_names_the_published_laws(tmp_path: Path) -> None:
    with pytest.raises(
        FitError, match=r"no such file; write one with: isoflop fit SOURCE --output DIR.*soda"
    ):
        load_fit(tmp_path / "absent.json")


# Names


def test_names_of_laws_are_distinct(tmp_path: Path) -> None:
    runs = RUNS.assign(loss_text=RUNS["loss"] * 0.8)
    fits = [FITS["joint"], fit_joint(runs, loss="loss_text"), fit_joint(RUNS, axis="tokens")]
    first, second = (load_fit(write_fit(tmp_path / name, fits)) for name in ("one", "two"))
    assert list(laws_by_name([first])) == ["joint loss", "joint loss_text", "joint loss 2"]
    assert list(laws_by_name([first, second]))[3:] == [
        "two joint loss",
        "two joint loss_text",
        "two joint loss 2",
    ]
    assert len(laws_by_name([first, load_fit(write_fit(tmp_path / "more" / "one", fits))])) == 6
