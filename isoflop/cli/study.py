"""Commands for a study on this machine, and for its results."""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from isoflop.cli.shared import Overrides, Sweep, app
from isoflop.errors import FitError

if TYPE_CHECKING:
    from isoflop.fitting.parabola import Status

ParamCount = Literal["total", "one_embedding", "non_embedding"]
Axis = Literal["params", "tokens"]
LossUnit = Literal["nats", "bits"]
FinalRule = Literal["auto", "line", "mean", "last"]


@app.command("run", short_help="Plan, prepare, train, fit and report on this machine.")
def run(
    sweep: Sweep,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; default: one for each GPU, else each core.")
    ] = None,
) -> None:
    """Example: isoflop run sweeps/pocket.yaml

    The whole study on this machine: plan, prepare data, train every run, fit, report. What is done is skipped, what was
    interrupted resumes where it was.
    """
    from isoflop.launching.directory import runs_root
    from isoflop.launching.study import conclude_study, train_study
    from isoflop.planning.plan import plan as lay_out
    from isoflop.reporting.printing import print_intent, print_study
    from isoflop.reporting.progress import StudyProgress

    plan, began = lay_out(sweep, overrides or ()), time.monotonic()
    print_intent(plan)
    try:
        with _all_stops_interrupt(), StudyProgress({spec.run_id: spec.steps for spec in plan.runs}) as shown:
            directory = train_study(plan, runs_root(), workers=workers, on_data=shown.data, on_progress=shown.runs_at)
    except KeyboardInterrupt:
        print("stopped; every run keeps its last checkpoint: the same command goes on from there", file=sys.stderr)
        raise
    study = conclude_study(directory, plan.sweep.recipe)
    print_study(study, time.monotonic() - began)
    if len(study.unfinished):
        if study.refusal:
            print(study.refusal, file=sys.stderr)
        raise typer.Exit(1)
    if study.refusal:
        raise FitError(study.refusal)


@app.command("prepare", short_help="Make the data that a sweep names.")
def prepare(sweep: Sweep, overrides: Overrides = None) -> None:
    """Example: isoflop prepare sweeps/pocket.yaml

    Tokenises and shards the data that a sweep names, once: another sweep with the same data section uses it too.
    """
    from isoflop.config import load_sweep
    from isoflop.data.prepare import prepare as make
    from isoflop.data.shards import Manifest
    from isoflop.launching.directory import runs_root
    from isoflop.reporting.progress import StudyProgress
    from isoflop.reporting.terminal import short

    loaded = load_sweep(sweep, overrides or ())
    with StudyProgress({}) as shown:
        folder = make(runs_root(), loaded.data, progress=shown.data)
    manifest = Manifest.read(folder)
    print(folder)
    print(
        f"{short(manifest.tokens('train'))} training and {short(manifest.tokens('heldout'))} held-out tokens, "
        f"vocabulary {manifest.vocabulary.size:,}, checksum {manifest.checksum[:12]}",
        file=sys.stderr,
    )


@app.command("fit", short_help="Fit scaling laws to a sweep's directory or a table of runs.")
def fit(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A sweep's directory, a table of runs or loss logs, a logger's folder."),
    ],
    params: Annotated[str | None, typer.Option(metavar="COL", help="Column of parameters.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="COL", help="Column of training tokens.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="COL", help="Column of the loss, such as loss_text.")] = None,
    flops: Annotated[str | None, typer.Option(metavar="COL", help="Column of training FLOPs, or 6ND.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="COL", help="Column of planned budgets.")] = None,
    n: Annotated[ParamCount, typer.Option(help="Which parameter count of our own tables.")] = "total",
    axis: Annotated[Axis, typer.Option(help="What the parabolas are in.")] = "params",
    use: Annotated[str, typer.Option(help="Profiles that enter the laws: statuses with commas, or all.")] = "interior",
    bootstrap: Annotated[int, typer.Option(min=0, metavar="K", help="Resamples.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    loss_unit: Annotated[LossUnit, typer.Option(help="Unit of the loss column.")] = "nats",
    run: Annotated[str | None, typer.Option(metavar="COL", help="Loss logs: column of the runs' names.")] = None,
    step: Annotated[str | None, typer.Option(metavar="COL", help="Loss logs: column of steps.")] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Loss logs: the split that is fitted.")] = None,
    beside: Annotated[Path | None, typer.Option(metavar="FILE", help="Loss logs: a table of their runs.")] = None,
    final: Annotated[FinalRule, typer.Option(help="Loss logs: rule of the final loss.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a summary.")] = False,
) -> None:
    """Example: isoflop fit runs/pocket --loss loss_text

    Optimal model size and data as power laws of compute, from the minimum of each budget's profile. SOURCE is a sweep's
    directory; a CSV, TSV, Parquet or JSONL table with a row a run, or with many (loss logs); or a folder of such
    tables, of TensorBoard's event files or of offline W&B runs. COL may have a factor: --params 'millions*1e6'.
    """
    from isoflop.fitting import fit_document, fit_isoflop, read_table
    from isoflop.runs import write_runs

    if (Path(source) / "plan.parquet").exists():
        try:
            write_runs(Path(source))
        except OSError as problem:
            if problem.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise  # somebody else's study is fitted as its owner left it
    table = read_table(
        source, n=n, loss=loss, params=params, tokens=tokens, flops=flops, budget=budget, loss_unit=loss_unit,
        run=run, step=step, split=split, beside=beside, final=final,
    )  # fmt: skip
    chosen = "all" if use == "all" else _statuses(use)
    law = fit_isoflop(table, axis=axis, use=chosen, bootstrap=bootstrap, confidence=confidence, seed=seed)
    print(f"read {table.reading}", file=sys.stderr)
    print(
        json.dumps(fit_document([law], recipe=_recipe_of(source)), indent=2, allow_nan=False)
        if as_json
        else law.summary()
    )


@app.command("report", short_help="Write the HTML report of a sweep's directory.")
def report(directory: Annotated[str, typer.Argument(metavar="DIR", help="A sweep's directory.")]) -> None:
    """Example: isoflop report runs/pocket

    Gathers the runs, and writes figures and one self-contained page.
    """
    from isoflop.launching.study import conclude_study

    study = conclude_study(Path(directory), _recipe_of(directory))
    print(study.report)
    if study.refusal:
        raise FitError(study.refusal)


@contextmanager
def _all_stops_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does, unless they are ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in before:
            if before[number] == signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _statuses(use: str) -> list[Status]:
    """The statuses of profiles in `--use`; the fit checks them."""
    return cast("list[Status]", [status.strip() for status in use.split(",")])


def _recipe_of(source: str) -> str | None:
    """The recipe of a sweep's directory; None for other tables."""
    from isoflop.config import load_sweep

    definition = Path(source) / "sweep.yaml"
    return load_sweep(definition).recipe if definition.exists() else None
