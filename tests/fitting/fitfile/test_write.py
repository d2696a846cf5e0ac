"""fit.json and fit.npz: complete, and whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_document, fit_isoflop, simulate_isoflop, write_fit

RUNS = simulate_isoflop(points=7)
FIT = fit_isoflop(RUNS, bootstrap=200, seed=3)


def test_document_has_the_agreed_keys(tmp_path: Path):
    path = write_fit(
        tmp_path / "new", [FIT, fit_isoflop(RUNS, axis="tokens", bootstrap=200)], recipe="soda"
    )
    document = json.loads(path.read_text())
    assert {"schema", "source", "options", "data", "recipe", "fits"} <= set(document)
    assert (document["schema"], document["recipe"]) == (1, "soda")
    assert document["data"]["hash"] == FIT.runs.hash
    assert document["data"]["rows"] == len(RUNS)
    assert document["options"]["seed"] == 3
    first, second = document["fits"]
    assert (first["method"], first["n"], first["axis"], second["axis"]) == (
        "isoflop",
        "total",
        "params",
        "tokens",
    )
    assert first["exponents"]["a"]["value"] == FIT.exponents.loc["a", "value"]  # every digit
    assert {"value", "low", "high", "bootstrap", "line"} == set(first["exponents"]["b"])
    required = {"budget", "params_opt", "tokens_opt", "loss_opt", "low", "high", "status"}
    assert all(required <= set(p) for p in first["profiles"])
    assert all(set(d) == {"code", "message"} for d in first["diagnostics"])
    assert first == json.loads(FIT.to_json())


def test_draws_are_kept(tmp_path: Path):
    write_fit(tmp_path, [FIT])
    with np.load(tmp_path / "fit.npz") as draws:
        np.testing.assert_array_equal(draws["0_a"], FIT.draws["a"])
        assert draws["0_optimum"].shape == (200, 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.json", "fit.npz"]


def test_unknown_values_are_null():
    flipped = RUNS.assign(loss=RUNS["loss"].where(RUNS["budget"] != 1e18, 8.0 - RUNS["loss"]))
    document = fit_document([fit_isoflop(flipped, bootstrap=200)], options={"wanted": float("inf")})
    profile = document["fits"][0]["profiles"][0]
    assert (profile["status"], profile["params_opt"], profile["low"]) == ("concave", None, None)
    assert document["options"]["wanted"] is None
    json.dumps(document, allow_nan=False)


def test_refusals(tmp_path: Path):
    with pytest.raises(FitError, match="no fit to write"):
        fit_document([])
    (tmp_path / "file").write_text("")
    with pytest.raises(FitError, match="can't be written"):
        write_fit(tmp_path / "file", [FIT])
