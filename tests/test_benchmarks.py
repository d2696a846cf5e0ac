"""Benchmarks of fits measure what they say; their figures are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.fitting import simulate_isoflop

FIT = Path(__file__).parents[1] / "benchmarks" / "fit.py"


@pytest.mark.parametrize("case", ["profiles", "rows"])
def test_a_case_prints_its_time_and_memory(case: str, tmp_path: Path):
    simulate_isoflop().to_csv(tmp_path / "runs.csv")
    command = [
        sys.executable,
        str(FIT),
        "--case",
        case,
        "--data",
        str(tmp_path / "runs.csv"),
        "--repeats",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert set(measured) == {"seconds", "cpu", "mib"}
    assert measured["seconds"] > 0.0
