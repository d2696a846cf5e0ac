"""A whole study: prepare, train, fit, report. No other module imports training and reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.config.sweep_file import load_directory_sweep
from isoflop.errors import FitError, RunError
from isoflop.launching.local import LocalPool, Progress, default_workers
from isoflop.launching.prepare_data import prepare_data
from isoflop.launching.records.sweep_directory import check_study, make_directory, sweep_directory
from isoflop.lease import take_lease
from isoflop.planning.plan import Plan
from isoflop.runs.runs_table import write_runs
from isoflop.training.loggers import check_installed

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.fitting.study_fits import StudyFits


@dataclass(frozen=True)
class Study:
    """The outcome of a study.

    Attributes:
        directory: directory of the sweep.
        runs: the runs table, one row per run.
        fits: fits by every method that the runs allow; None if there is none.
        refusal: reason why there is none, in one line; else empty.
        report: path of the HTML page.
    """

    directory: Path
    runs: pd.DataFrame
    fits: StudyFits | None
    refusal: str
    report: Path

    @property
    def unfinished(self) -> pd.DataFrame:
        """Return the rows of the runs that are not done."""
        return self.runs.query("state != 'done'")


def train_study(
    plan: Plan,
    root: Path,
    *,
    workers: int | None = None,
    on_data: Callable[[int, float], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_stopping: Callable[[float], None] | None = None,
) -> Path:
    """Prepare a plan's data, train its unfinished runs and return the sweep's directory.

    Raises:
        ConfigError, DataError, RunError: before any training, for input that can't be used, or
            another process that trains in the directory.
    """
    directory = sweep_directory(plan.sweep, root)
    with take_lease(directory / "workers" / "lease") as lease:
        if not lease:
            raise RunError(
                f"{directory}: another `isoflop run` is active here; wait for it, or stop it"
            )
        check_installed(plan.sweep.train.loggers)
        check_study(plan, directory)
        pool = LocalPool(directory, plan, workers or default_workers(), on_stopping)
        if pool.remaining:
            prepare_data(plan.sweep, root, on_data)
        make_directory(plan, root)
        with closing(pool.run()) as progresses:
            for progress in progresses:
                if on_progress:
                    on_progress(progress)
    return directory


def conclude_study(directory: Path) -> Study:
    """Gather a sweep's runs, fit them and write the report.

    If the runs can't be fitted, remove the fit of an earlier call, so that nothing is predicted
    from it. A fit that a person wrote stays.
    """
    from isoflop.fitting import write_fit
    from isoflop.fitting.study_fits import fit_study
    from isoflop.reporting.sweep_report import report_sweep

    runs = write_runs(directory)
    fits, refusal = None, ""
    try:
        fits = fit_study(directory)
        write_fit(
            directory,
            fits.fits,
            sweep=load_directory_sweep(directory),
            more={**fits.document_keys(), "concluded": True},
        )
    except FitError as error:
        refusal = str(error)
    if fits is None:
        _forget_fit(directory)
    return Study(directory, runs, fits, refusal, report_sweep(directory))


def _forget_fit(directory: Path) -> None:
    """Remove fit.json and fit.npz, if an earlier `conclude_study` wrote them."""
    try:
        document = json.loads((directory / "fit.json").read_text())
    except (OSError, ValueError):
        return
    if isinstance(document, dict) and document.get("concluded") is True:
        for name in ("fit.json", "fit.npz"):
            (directory / name).unlink(missing_ok=True)
