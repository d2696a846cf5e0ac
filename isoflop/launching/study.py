"""A whole study on this machine: prepare, train, fit, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.data.prepare import prepare
from isoflop.errors import FitError
from isoflop.launching.directory import make_directory
from isoflop.launching.local import LocalPool, Progress, default_workers
from isoflop.planning.plan import Plan
from isoflop.runs import write_runs

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.fitting.result import IsoflopFit


@dataclass(frozen=True)
class Study:
    """What a study came to.

    Attributes:
        directory: of the sweep.
        runs: a row a run.
        fit: None where it was refused.
        refusal: why, in one line.
        report: the HTML page.
    """

    directory: Path
    runs: pd.DataFrame
    fit: IsoflopFit | None
    refusal: str
    report: Path

    @property
    def unfinished(self) -> pd.DataFrame:
        return self.runs.query("state != 'done'")


def train_study(
    plan: Plan,
    root: Path,
    *,
    workers: int | None = None,
    on_data: Callable[[int, float], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Prepares a plan's data and trains what is not done yet; returns the sweep's directory.

    Raises:
        ConfigError, DataError, RunError: before anything is trained, where the input can't be used.
    """
    directory = make_directory(plan, root)
    workers = workers or default_workers()
    prepare(root, plan.sweep.data, progress=on_data)
    for progress in LocalPool(directory, plan, workers).run():
        if on_progress:
            on_progress(progress)
    return directory


def conclude_study(directory: Path, recipe: str | None) -> Study:
    """Gathers a sweep's runs, fits them and writes the report.

    A kept result, with `runs.parquet` and no run directories, is fitted as it is.
    """
    from isoflop.fitting import fit_isoflop, write_fit
    from isoflop.fitting.files import read_frame
    from isoflop.reporting.sweep import report_sweep

    kept = (directory / "runs.parquet").exists() and not any(directory.glob("*/config.yaml"))
    runs = read_frame(directory) if kept else write_runs(directory)
    fit, refusal = None, ""
    try:
        fit = fit_isoflop(directory)
        write_fit(directory, [fit], recipe=recipe)
    except FitError as error:
        refusal = str(error)
    return Study(directory, runs, fit, refusal, report_sweep(directory))
