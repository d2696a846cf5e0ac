"""Commands for a study on this machine: run, prepare and report."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import Overrides, Sweep, app
from isoflop.errors import FitError


@app.command("run", short_help="Plan, prepare, train, fit and report on this machine.")
def run(
    sweep: Sweep,
    overrides: Overrides = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at once; default: one per GPU, else one per core."),
    ] = None,
) -> None:
    """Example: isoflop run sweeps/pocket.yaml

    Run the whole study on this machine: plan, prepare data, train every run, fit, report. Finished
    runs are skipped, interrupted runs resume.
    """
    from isoflop.launching.records.sweep_directory import runs_root
    from isoflop.planning.plan import plan as make_plan
    from isoflop.reporting.terminal.bill_text import print_plan_size, print_study
    from isoflop.reporting.terminal.progress_text import StudyProgress
    from isoflop.studies import conclude_study, train_study

    plan, start = make_plan(sweep, overrides or ()), time.monotonic()
    print_plan_size(plan)
    try:
        with (
            _all_stops_interrupt(),
            StudyProgress({spec.run_id: spec.steps for spec in plan.runs}) as progress,
        ):
            callbacks = {
                "on_data": progress.show_data,
                "on_progress": progress.show_runs,
                "on_stopping": progress.show_stopping,
            }
            directory = train_study(plan, runs_root(), workers=workers, **callbacks)
    except KeyboardInterrupt:
        print(
            "stopped; every run keeps its last checkpoint, from which the same command resumes",
            file=sys.stderr,
        )
        raise
    study = conclude_study(directory)
    seconds = time.monotonic() - start
    print_study(study.directory, study.runs, study.fits, study.report, seconds)
    if len(study.unfinished):
        if study.refusal:
            print(study.refusal, file=sys.stderr)
        raise typer.Exit(1)
    if study.refusal and len(study.runs) > 1:  # a single run needs no law
        raise FitError(study.refusal)


@app.command("prepare", short_help="Make the data of a sweep.")
def prepare(sweep: Sweep, overrides: Overrides = None) -> None:
    """Example: isoflop prepare sweeps/pocket.yaml

    Tokenise and shard the data of a sweep, once: other sweeps with the same data section use it
    too. Existing data are read in full to find damage.
    """
    from isoflop.config import load_sweep
    from isoflop.data.prepare import prepare as prepare_data
    from isoflop.data.shards import Manifest
    from isoflop.launching.records.sweep_directory import runs_root
    from isoflop.reporting.terminal.progress_text import StudyProgress
    from isoflop.text import count_text

    loaded = load_sweep(sweep, overrides or ())
    with StudyProgress({}) as progress:
        folder = prepare_data(runs_root(), loaded.data, progress=progress.show_data)
    manifest = Manifest.read(folder)
    manifest.check(folder)
    print(folder)
    print(
        f"{count_text(manifest.tokens('train'))} training and "
        f"{count_text(manifest.tokens('heldout'))} held-out tokens, "
        f"vocabulary {manifest.vocabulary.size:,}, checksum {manifest.checksum[:12]}",
        file=sys.stderr,
    )


@app.command("report", short_help="Write the HTML report of a sweep's directory.")
def report(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A sweep's directory.")],
) -> None:
    """Example: isoflop report runs/pocket

    Gather the runs, and write figures and one self-contained page.
    """
    from isoflop.studies import conclude_study

    study = conclude_study(Path(directory))
    print(study.report)
    if study.refusal:
        raise FitError(study.refusal)


@contextmanager
def _all_stops_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block like Ctrl-C, unless they are ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in before:
            if before[number] == signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
