"""Notes of a prediction: budgets far from the runs, errors that are not known, laws left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.fits import Fits

from isoflop.fitting import (
    fit_envelope,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    load_fit,
    predict,
    simulate_isoflop,
    write_fit,
)
from isoflop.laws import SURFACES
from isoflop.reporting.terminal.fit_text import print_prediction

RUNS = simulate_isoflop(SURFACES["soda"], (3e18, 9e18, 1.8e19, 3e19, 9e19, 1.8e20, 3e20), points=9)
ALL = ("isoflop", "joint", "parametric", "envelope")
CUT = RUNS.query("budget < 3e20 or params < params.median()")
FITS = Fits(
    isoflop=lambda: fit_isoflop(RUNS, bootstrap=0),
    joint=lambda: fit_joint(RUNS),
    parametric=lambda: fit_parametric(RUNS, bootstrap=0),
    envelope=lambda: fit_envelope(RUNS),
    # The largest budget is no profile, so the parabolas' law ends below it.
    cut=lambda: fit_isoflop(CUT, bootstrap=0),
    three=lambda: fit_joint(simulate_isoflop(budgets=(1e18, 1e19, 1e20), points=7)),
    soda=lambda: load_fit("soda")[0],
)


@pytest.mark.parametrize(
    ("fits", "flops", "text"),
    [
        (ALL, 1e21, ""),
        (
            ALL,
            3e22,
            "2.0 decades beyond the largest budget fitted (3e20): a run in between would give",
        ),
        (ALL, 2e17, ""),
        (ALL, 3e16, "2.0 decades below the smallest budget fitted (3e18): a run there would give"),
        (["cut"], 6e21, "1.5 decades beyond the largest budget fitted (1.8e20)"),
        (
            ["parametric", "cut"],
            6e21,
            "1.5 decades beyond the largest budget that isoflop was fitted to (1.8e20)",
        ),
        (["parametric"], 6e21, ""),
    ],
)
def test_a_budget_far_from_the_runs_has_a_note(
    fits: Sequence[str], flops: float, text: str
) -> None:
    prediction = predict([FITS[name] for name in fits], flops)
    notes = [note for note in prediction.notes if "decades" in note]
    assert len(notes) == bool(text)
    assert text in "".join(notes)


def test_the_budgets_of_profiles_left_out_are_beyond_the_law(tmp_path: Path) -> None:
    cut = FITS["cut"]
    assert cut.profiles["used"].tolist() == [True] * 6 + [False]
    (loaded,) = load_fit(write_fit(tmp_path, [cut]))
    assert cut.reach == loaded.reach == (3e18, 1.8e20)


UNKNOWN = "its own error beyond the runs is not known: too few budgets or runs for a hold-out test"


@pytest.mark.parametrize(
    ("fits", "flops", "notes"),
    [
        (["three"], 1e20, []),
        (["three"], 1.1e20, [f"joint: {UNKNOWN}"]),
        (["three"], 9e17, [f"joint: {UNKNOWN}"]),
        (
            ALL,
            1e21,
            ["envelope: its own error beyond the runs is not known: it has no hold-out test"],
        ),
        (["soda"], 1e23, []),
    ],
)
def test_without_a_hold_out_test_the_own_error_is_not_known(
    fits: Sequence[str], flops: float, notes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = predict([FITS[name] for name in fits], flops)
    assert [note for note in prediction.notes if "own error" in note] == notes
    print_prediction(prediction)
    sizes = [
        line
        for line in capsys.readouterr().out.splitlines()
        if " N* " in line and "1/4" not in line
    ]
    assert [line.endswith("not known") for line in sizes].count(True) == len(notes)


def test_a_law_without_an_optimum_is_left_out_with_a_note() -> None:
    parabolas = FITS["isoflop"]
    line = replace(parabolas.lines["params"], slope=1e4)
    steep = replace(parabolas, lines={**parabolas.lines, "params": line})
    prediction = predict([steep, FITS["parametric"]], 1e24)
    assert [method.name for method in prediction.methods] == ["parametric"]
    assert prediction.notes[0] == (
        "isoflop: left out: its N* or D* at 1e24 FLOPs is not a finite number above 0; its runs do "
        "not determine it"
    )
