"""Benchmarks of fits print their measures; the figures are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.fitting import simulate_isoflop

FIT = Path(__file__).parents[1] / "benchmarks" / "fit.py"


@pytest.mark.parametrize("case", ["profiles", "rows"])
def test_a_case_prints_its_time_and_memory(case: str, tmp_path: Path) -> None:
    simulate_isoflop().to_csv(tmp_path / "runs.csv")
    arguments = ["--case", case, "--data", str(tmp_path / "runs.csv"), "--repeats", "1"]
    command = [sys.executable, str(FIT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measures = json.loads(done.stdout)
    assert set(measures) == {"seconds", "cpu", "mib"}
    assert measures["seconds"] > 0.0
