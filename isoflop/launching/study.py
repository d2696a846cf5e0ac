"""A whole study on this machine: prepare, train, fit, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.config import Sweep
from isoflop.config.loading import sweep_in
from isoflop.data.prepare import prepare
from isoflop.data.shards import Windows
from isoflop.errors import FitError, RunError
from isoflop.launching.directory import make_directory, sweep_directory
from isoflop.launching.local import LocalPool, Progress, default_workers
from isoflop.lease import take_lease
from isoflop.planning.plan import Plan
from isoflop.runs import write_runs
from isoflop.training.loggers import check_installed

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.fitting.study import StudyFits


@dataclass(frozen=True)
class Study:
    """What a study came to.

    Attributes:
        directory: of the sweep.
        runs: a row a run.
        fits: by every method that its runs can be fitted by; None where there is none.
        refusal: why, in one line.
        report: the HTML page.
    """

    directory: Path
    runs: pd.DataFrame
    fits: StudyFits | None
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
        ConfigError, DataError, RunError: before anything is trained, where the input can't be used, or another process
            is at work in the directory.
    """
    directory = sweep_directory(plan.sweep, root)
    with take_lease(directory / "workers" / "lease") as mine:
        if not mine:
            raise RunError(f"{directory}: another `isoflop run` is at work here; wait for it, or stop it")
        check_installed(plan.sweep.train.loggers)
        make_directory(plan, root)
        pool = LocalPool(directory, plan, workers or default_workers())
        if pool.left:
            prepare_data(plan.sweep, root, on_data)
        with closing(pool.run()) as progresses:
            for progress in progresses:
                if on_progress:
                    on_progress(progress)
    return directory


def prepare_data(sweep: Sweep, root: Path, on_data: Callable[[int, float], None] | None = None) -> None:
    """Makes the data that a sweep's trainer reads, and finds damaged shards, and splits too small, before any run does.

    Raises:
        DataError: data that can't be made or used.
    """
    kind, argument = sweep.train.program
    if kind == "builtin" or (kind == "command" and "{data_dir}" in argument):
        folder = prepare(root, sweep.data, progress=on_data)
        if kind == "builtin":
            for split in ("train", sweep.metric.set):
                Windows(folder, split, sweep.seq_len)


def conclude_study(directory: Path) -> Study:
    """Gathers a sweep's runs, fits them and writes the report."""
    from isoflop.fitting import write_fit
    from isoflop.fitting.study import fit_study
    from isoflop.reporting.sweep import report_sweep

    runs = write_runs(directory)
    fits, refusal = None, ""
    try:
        fits = fit_study(directory)
        write_fit(directory, fits.fits, sweep=sweep_in(directory), more=fits.parts())
    except FitError as error:
        refusal = str(error)
    return Study(directory, runs, fits, refusal, report_sweep(directory))
