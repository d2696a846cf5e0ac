"""Copy the results of a study: tables, laws, figures and loss logs, without run directories.

    python analysis/gather.py runs/pocket-64 analysis/pocket-64

The loss logs of all runs become one table, `losses.parquet`, with `run_id` and `budget`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

from isoflop.reporting.sweep_report import GATHERED_LOSSES_FILE
from isoflop.runs.run_directory import RunDirectory
from isoflop.runs.runs_table import read_runs

FILES = ("sweep.yaml", "plan.parquet", "runs.parquet", "fit.json", "fit.npz", "report.html")


def gather(study: Path, target: Path) -> None:
    """Copy the files of a sweep's directory and join its loss logs."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (study / name).exists():
            shutil.copyfile(study / name, target / name)
    figures = study / "figures"
    if figures.is_dir():
        without_svg = shutil.ignore_patterns("*.svg")
        shutil.copytree(figures, target / "figures", dirs_exist_ok=True, ignore=without_svg)
    runs = read_runs(study)
    logs = [
        RunDirectory(study / run_id).log().assign(run_id=run_id, budget=budget)
        for run_id, budget in zip(runs["run_id"], runs["budget"], strict=True)
    ]
    pd.concat(logs, ignore_index=True).to_parquet(
        target / GATHERED_LOSSES_FILE, index=False, compression="zstd"
    )


if __name__ == "__main__":
    gather(Path(sys.argv[1]), Path(sys.argv[2]))
