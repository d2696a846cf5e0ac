"""A whole study on this machine: prepare, train, fit, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.config import Sweep
from isoflop.config.sweep_definition import sweep_in
from isoflop.data.prepare import prepare
from isoflop.data.shards import Manifest, Windows
from isoflop.data.vocabulary import Kind as TokenKind
from isoflop.errors import DataError, FitError, RunError
from isoflop.launching.local import LocalPool, Progress, default_workers
from isoflop.launching.records.sweep_directory import check_study, make_directory, sweep_directory
from isoflop.lease import take_lease
from isoflop.planning.plan import Plan
from isoflop.runs.collect import write_runs
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.loggers import check_installed

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.fitting.study_fits import StudyFits


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
    on_stopping: Callable[[float], None] | None = None,
) -> Path:
    """Prepares a plan's data and trains what is not done yet; returns the sweep's directory.

    Raises:
        ConfigError, DataError, RunError: before anything is trained, where the input can't be used, or another process
            is at work in the directory.
    """
    directory = sweep_directory(plan.sweep, root)
    with take_lease(directory / "workers" / "lease") as mine:
        if not mine:
            raise RunError(
                f"{directory}: another `isoflop run` is at work here; wait for it, or stop it"
            )
        check_installed(plan.sweep.train.loggers)
        check_study(plan, directory)
        pool = LocalPool(directory, plan, workers or default_workers(), on_stopping)
        if pool.left:
            prepare_data(plan.sweep, root, on_data)
        make_directory(plan, root)
        with closing(pool.run()) as progresses:
            for progress in progresses:
                if on_progress:
                    on_progress(progress)
    return directory


def prepare_data(
    sweep: Sweep, root: Path, on_data: Callable[[int, float], None] | None = None
) -> None:
    """Makes the data that a sweep's trainer reads, and finds before any run does what a run could not use.

    Raises:
        DataError: data that can't be made, damaged shards, splits too small, no target tokens of the metric's kind, or
            other data than the sweep's runs began with.
    """
    kind, argument = sweep.train.program
    if kind == "builtin" or (kind == "command" and "{data_dir}" in argument):
        folder = prepare(root, sweep.data, progress=on_data)
        if kind == "builtin":
            manifest, metric = Manifest.read(folder), sweep.metric
            _check_same_data(sweep_directory(sweep, root), folder, manifest)
            Windows(folder, "train", sweep.seq_len, manifest)
            heldout = Windows(folder, metric.set, sweep.seq_len, manifest)
            if metric.kind != "all":
                targets = heldout[heldout.spread(metric.tokens)][:, 1:]
                if not (manifest.vocabulary.kinds[targets] == TokenKind[metric.kind.upper()]).any():
                    raise DataError(
                        f"{folder}: no {metric.kind} tokens among the {targets.size:,} of split {metric.set!r} that "
                        "are measured; raise metric.tokens"
                    )


def _check_same_data(directory: Path, folder: Path, manifest: Manifest) -> None:
    """Refuses to add runs to a sweep whose others began with other tokens: their losses don't compare."""
    for file in sorted(directory.glob("[!.]*/state.json")):
        run = RunDirectory(file.parent)
        began_with = run.state().get("data_checksum", manifest.checksum)
        if began_with != manifest.checksum:
            raise DataError(
                f"{folder}: its checksum is {manifest.checksum[:12]}, {run.run_id} of this sweep began with "
                f"{began_with[:12]}; restore that data, or give the sweep another name (name=...)"
            )


def conclude_study(directory: Path) -> Study:
    """Gathers a sweep's runs, fits them and writes the report.

    Where they can't be fitted, the fit of an earlier conclusion goes: nothing is to be predicted from it. One that a
    person wrote there stays.
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
            sweep=sweep_in(directory),
            more={**fits.parts(), "concluded": True},
        )
    except FitError as error:
        refusal = str(error)
    if fits is None:
        _forget_fit(directory)
    return Study(directory, runs, fits, refusal, report_sweep(directory))


def _forget_fit(directory: Path) -> None:
    """Removes fit.json and fit.npz, if an earlier `conclude_study` wrote them."""
    try:
        document = json.loads((directory / "fit.json").read_text())
    except (OSError, ValueError):
        return
    if isinstance(document, dict) and document.get("concluded") is True:
        for name in ("fit.json", "fit.npz"):
            (directory / name).unlink(missing_ok=True)
