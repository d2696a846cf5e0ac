"""Benchmarks of fits print their measures; the figures are not tested."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.fitting import simulate_isoflop

FIT = Path(__file__).parents[1] / "benchmarks" / "fit.py"


def check_measures(output: str) -> None:
    measures = json.loads(output)
    assert set(measures) == {"seconds", "cpu", "mib"}
    assert measures["seconds"] > 0.0


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    simulate_isoflop().to_csv(tmp_path / "runs.csv")
    return [str(FIT), "--data", str(tmp_path / "runs.csv"), "--repeats", "1", "--case"]


def test_a_case_prints_its_time_and_memory(arguments: list[str]) -> None:
    command = [sys.executable, *arguments, "profiles"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_measures(done.stdout)


def test_rows_are_a_case(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FIT.parent)
    monkeypatch.setattr(sys, "argv", [*arguments, "rows"])
    runpy.run_path(str(FIT), run_name="__main__")
    check_measures(capsys.readouterr().out)
