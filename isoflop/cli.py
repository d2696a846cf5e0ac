"""The command line: `isoflop` and its family, and `sweep-plan`, which is `isoflop plan`.

Parsing only: what is printed is in `reporting.printing`. Data goes to stdout, all else to stderr. Each command imports
what it needs when it runs, so that help is instant. A new command is a function under "Commands" with
`@app.command("name")`.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, cast

import typer

from isoflop.errors import ClusterError, ConfigError, FitError, IsoflopError

if TYPE_CHECKING:
    from isoflop.fitting.parabola import Status
    from isoflop.planning.plan import Plan

ParamCount = Literal["total", "one_embedding", "non_embedding"]
Axis = Literal["params", "tokens"]
LossUnit = Literal["nats", "bits"]
Order = Literal["longest", "budget"]
INTERRUPTED = 130
WATCH_S = 5.0
PIPE_CLOSED = 1
"""Exit code where the reader, such as `head`, has seen enough; typer's own for what it sees of it."""
PLAIN_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EDQUOT)
"""What is wrong with a file or folder that the user named; others are errors of the program."""

_SETTINGS = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(no_args_is_help=True, **_SETTINGS)
plan_app = typer.Typer(**_SETTINGS)


# Entry points


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `isoflop` program."""
    _run(app, "isoflop", arguments)


def sweep_plan(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `sweep-plan` program."""
    _run(plan_app, "sweep-plan", arguments)


def _run(program: typer.Typer, name: str, arguments: Sequence[str] | None) -> NoReturn:
    """Runs a program and turns what a user can cause into one line and an exit code."""
    try:
        try:
            code = program(args=arguments, prog_name=name, standalone_mode=True)
        finally:
            sys.stdout.flush()
    except IsoflopError as problem:
        print(f"isoflop: error: {' '.join(str(problem).split())}", file=sys.stderr)
        code = problem.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        code = PIPE_CLOSED
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            if not problem.filename:
                _silence_stdout()
            print(f"isoflop: error: {problem.filename or 'standard output'}: the disk is full", file=sys.stderr)
        elif problem.errno in PLAIN_ERRORS and problem.filename:
            print(f"isoflop: error: {problem.filename}: {problem.strerror}", file=sys.stderr)
        else:
            raise
        code = IsoflopError.exit_code
    sys.exit(code or 0)


def _silence_stdout() -> None:
    """Keeps Python from complaining when it flushes, at exit, what can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("isoflop"))
        raise typer.Exit


@app.callback()
def isoflop(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Example: isoflop plan sweeps/soda.yaml

    How large a model to train, on how much data, for any compute budget: plans, runs and fits IsoFLOP studies.
    """


# Commands


@plan_app.command("plan")
@app.command("plan", short_help="Lay out the runs of a sweep.")
def plan(
    context: typer.Context,
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a shipped sweep such as soda.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the sweep's keys.")
    ] = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="List what the rules dropped, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the runs as CSV too.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the runs as Parquet too.")] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="A cluster profile: adds GPUs, hours, cost, finish time.")
    ] = None,
    order: Annotated[Order, typer.Option(help="Which runs start first on the cluster.")] = "longest",
    interruptions: Annotated[
        float, typer.Option(min=0, metavar="R", help="Preemptions and failures of a job to expect in a day.")
    ] = 0.0,
    max_gpu_hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="Refuse a study that needs more (exit code 3).")
    ] = None,
    submit_too: Annotated[bool, typer.Option("--submit", help="Go on to submission, as `isoflop submit`.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --submit: queue without asking.")] = False,
) -> None:
    """Example: sweep-plan sweeps/soda.yaml seq_len=2048 --dropped

    Lays out the runs of a sweep, with totals. Works offline and trains nothing.
    """
    from isoflop.planning.plan import plan as lay_out
    from isoflop.reporting.printing import drop_reasons, print_dropped, print_plan, print_plan_json
    from isoflop.reporting.terminal import warn

    laid_out = lay_out(sweep, overrides or ())
    if cluster is not None:
        laid_out = _with_bill(laid_out, cluster, order, interruptions, max_gpu_hours)
    elif max_gpu_hours is not None:
        raise ConfigError("--max-gpu-hours: GPU-hours are known with a cluster only; add --cluster PROFILE")
    if csv is not None:
        laid_out.write_csv(csv)
    if parquet is not None:
        laid_out.write_parquet(parquet)
    if as_json:
        print_plan_json(laid_out, dropped)
    else:
        print_plan(laid_out)
        if dropped:
            print_dropped(laid_out)
    sys.stdout.flush()
    for message in laid_out.warnings:
        warn(message)
    if laid_out.dropped and not dropped:
        command = shlex.join([*context.command_path.split(), sweep, *(overrides or ()), "--dropped"])
        print(
            f"{len(laid_out.dropped)} candidates dropped ({drop_reasons(laid_out)}); list them: {command}",
            file=sys.stderr,
        )
    for path in filter(None, (csv, parquet)):
        print(f"wrote {path}", file=sys.stderr)
    if submit_too:
        if cluster is None:
            raise ConfigError("--submit: needs a cluster; add --cluster PROFILE")
        submit(sweep, overrides, cluster=cluster, yes=yes, max_gpu_hours=max_gpu_hours, order=order)


Sweep = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a shipped sweep such as pocket.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the sweep's keys.")]


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


@app.command("submit", short_help="Queue a sweep on a SLURM cluster, after showing the bill.")
def submit(
    sweep: Sweep,
    overrides: Overrides = None,
    *,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="A cluster profile.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the bill and the scripts; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Queue without asking.")] = False,
    max_gpu_hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="Refuse a study that needs more (exit code 3).")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Queue some runs: a query such as 'budget <= 3e18'.")
    ] = None,
    order: Annotated[Order, typer.Option(help="Which runs start first.")] = "longest",
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Queue a job of one core too, which queues again what is lost.")
    ] = False,
    new_code: Annotated[
        bool, typer.Option("--new-code", help="Give what is not done today's code, not the first submission's.")
    ] = False,
) -> None:
    """Example: isoflop submit sweeps/soda.yaml --cluster slurm/h100.yaml

    Shows what is new, resuming and done, and the bill; then queues what is missing. Safe to call again at any time.
    """
    from isoflop.config.profile import load_profile
    from isoflop.launching.submitting import intend
    from isoflop.launching.submitting import submit as queue
    from isoflop.planning.plan import plan as lay_out
    from isoflop.reporting.printing import print_bill, print_intent, print_scripts, print_submission, print_submitted
    from isoflop.reporting.progress import StudyProgress

    profile = load_profile(cluster)
    if profile.executor != "slurm":
        raise ConfigError(f"{cluster}: executor: is local; on this machine a sweep is run by `isoflop run {sweep}`")
    plan = lay_out(sweep, overrides or ())
    if profile.gpu is not None:
        plan = _with_bill(plan, cluster, order, 0.0, max_gpu_hours)
    intent = intend(plan, profile, only)
    print_intent(plan)
    if plan.bill is not None:
        print_bill(plan.bill, sys.stderr)
    print_submission(intent)
    if dry_run:
        print_scripts(plan, profile, intent, order)
        return
    if intent.queued or not intent.picture.certain:
        if not yes:
            if not sys.stdin.isatty():
                raise ConfigError("not a terminal, so nobody can be asked: add --yes to queue, or --dry-run to look")
            if not typer.confirm(f"queue {len(intent.queued)} runs?", err=True):
                raise typer.Exit(0)
        with StudyProgress({}) as shown:
            queue(
                plan, profile, order=order, only=only, new_code=new_code, on_data=shown.data, on_queued=print_submitted
            )
    if supervise:
        from isoflop.launching.supervising import add_supervisor

        job_id = add_supervisor(profile, intent.directory)
        print(f"queued {job_id}: the supervisor" if job_id else "a supervisor is queued already", file=sys.stderr)
    print(intent.directory)


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's directory.")]
Runs = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Runs, by the beginning of their names.")]


@app.command("status", short_help="Where every run of a submitted sweep is.")
def status(
    directory: Directory,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Example: isoflop status runs/soda --watch

    State, progress, speed and reason of every run, and totals. Exit code 1 where a run failed or diverged.
    """
    from isoflop.launching.submitting import kept_profile
    from isoflop.reporting.status import print_status, print_status_json, read_status

    retries = kept_profile(directory).retries
    while True:
        found = read_status(directory, retries)
        if watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print_status_json(found) if as_json else print_status(found)
        if not watch or not found.picture.ids("queued", "running", "requeued"):
            break
        sys.stdout.flush()
        time.sleep(WATCH_S)
    if found.picture.ids("failed", "diverged"):
        raise typer.Exit(1)


@app.command("cancel", short_help="Cancel the jobs of a submitted sweep.")
def cancel(directory: Directory, runs: Runs = None) -> None:
    """Example: isoflop cancel runs/soda 3e20-w2304

    Cancels the jobs of some runs, or of all. What they reached is kept: `isoflop submit` goes on from there.
    """
    from isoflop.launching.steering import cancel as stop

    stopped = stop(directory.resolve(), runs or ())
    print(f"cancelled {len(stopped)} jobs; every run keeps its last checkpoint", file=sys.stderr)


@app.command("retry", short_help="Queue failed or cancelled runs again.")
def retry(directory: Directory, runs: Runs = None) -> None:
    """Example: isoflop retry runs/soda 3e20-w2304

    Queues failed and cancelled runs again, all of them or those named, however often they have failed before.
    """
    from isoflop.launching.steering import retry as make_ready
    from isoflop.launching.submitting import kept_profile
    from isoflop.launching.submitting import submit as queue
    from isoflop.planning.plan import plan as lay_out
    from isoflop.reporting.printing import print_submitted

    directory = directory.resolve()
    profile = kept_profile(directory)
    ready = make_ready(directory, runs or ())
    if not ready:
        print("no run has failed or was cancelled", file=sys.stderr)
        return
    plan = lay_out(str(directory / "sweep.yaml"))
    if profile.gpu is not None:
        plan = _with_bill(plan, str(directory / "cluster.yaml"), "longest", 0.0, None)
    queue(plan, profile, runs=ready, on_queued=print_submitted)


@app.command("logs", short_help="What a run has written.")
def logs(
    directory: Directory,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, by the beginning of its name.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it is written.")] = False,
) -> None:
    """Example: isoflop logs runs/soda 3e20-w2304 --follow

    The log of a run's newest attempt; of its job, where the run has not begun.
    """
    from isoflop.launching.steering import choose, newest_log

    (run_id,) = choose(directory, [run])
    log = newest_log(directory, run_id)
    print(log, file=sys.stderr)
    with log.open(errors="replace") as file:
        while True:
            print(file.read(), end="", flush=True)
            if not follow:
                break
            time.sleep(1.0)


@app.command("doctor", short_help="Check a cluster and its profile.")
def doctor(
    *,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="A cluster profile.")],
    wait: Annotated[float, typer.Option(min=1, metavar="S", help="Seconds that a small job may wait.")] = 120.0,
) -> None:
    """Example: isoflop doctor --cluster slurm/h100.yaml

    Checks SLURM, partition, limits, shared folder, and with a small job Python, GPUs and clock on a node; says how to
    mend what is wrong.
    """
    from isoflop.config.profile import load_profile
    from isoflop.launching.doctor import examine
    from isoflop.launching.submitting import root_of

    profile = load_profile(cluster)
    if profile.executor != "slurm":
        raise ConfigError(f"{cluster}: executor: is local; there is no cluster to check")
    wrong = 0
    for check in examine(profile, root_of(profile), wait):
        print(f"{'ok   ' if check.fine else 'WRONG'} {check.name}: {check.found}", flush=True)
        if not check.fine:
            wrong += 1
            print(f"      mend: {check.mend}", flush=True)
    if wrong:
        raise typer.Exit(ClusterError.exit_code)


@app.command("fit", short_help="Fit scaling laws to a sweep's directory or a table of runs.")
def fit(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A sweep's directory, Parquet, CSV or JSONL.")],
    params: Annotated[str | None, typer.Option(metavar="COL", help="Column of parameters.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="COL", help="Column of training tokens.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="COL", help="Column of the loss, such as loss_text.")] = None,
    flops: Annotated[str | None, typer.Option(metavar="COL", help="Column of training FLOPs.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="COL", help="Column of planned budgets.")] = None,
    n: Annotated[ParamCount, typer.Option(help="Which parameter count of our own tables.")] = "total",
    axis: Annotated[Axis, typer.Option(help="What the parabolas are in.")] = "params",
    use: Annotated[str, typer.Option(help="Profiles that enter the laws: statuses with commas, or all.")] = "interior",
    bootstrap: Annotated[int, typer.Option(min=0, metavar="K", help="Resamples.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    loss_unit: Annotated[LossUnit, typer.Option(help="Unit of the loss column.")] = "nats",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a summary.")] = False,
) -> None:
    """Example: isoflop fit runs/pocket --loss loss_text

    Optimal model size and data as power laws of compute, from the minimum of each budget's profile.
    """
    from isoflop.fitting import fit_document, fit_isoflop
    from isoflop.runs import write_runs

    if (Path(source) / "plan.parquet").exists():
        try:
            write_runs(Path(source))
        except OSError as problem:
            if problem.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise  # somebody else's study is fitted as its owner left it
    law = fit_isoflop(
        Path(source), axis=axis, n=n, loss=loss, params=params, tokens=tokens, flops=flops, budget=budget,
        loss_unit=loss_unit, use="all" if use == "all" else _statuses(use), bootstrap=bootstrap,
        confidence=confidence, seed=seed,
    )  # fmt: skip
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


@app.command("init", short_help="Write a sweep file and a cluster profile to start from.")
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go.")] = Path(),
    source: Annotated[str, typer.Option("--from", metavar="NAME", help="The shipped sweep to start from.")] = "soda",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Example: isoflop init --from soda my-study

    Writes NAME.yaml and cluster.yaml, commented copies of shipped files, to change as you like.
    """
    from isoflop.config.starting import write_start

    sweep, profile = write_start(source, directory, force)
    print(f"wrote {sweep}\nwrote {profile}", file=sys.stderr)
    print(f"lay it out: {shlex.join(['sweep-plan', str(sweep)])}", file=sys.stderr)


def _with_bill(plan: Plan, cluster: str, order: Order, interruptions: float, max_gpu_hours: float | None) -> Plan:
    """The plan with its bill on a cluster, within its cap."""
    from isoflop.config.profile import load_profile
    from isoflop.planning.bill import check_cap, with_bill

    profile = load_profile(cluster, to_plan=True)
    try:
        billed = with_bill(plan, profile, order=order, interruptions_per_day=interruptions)
    except ConfigError as problem:
        raise ConfigError(f"{cluster}: {problem}") from None
    if billed.bill is not None:
        check_cap(billed.bill, max_gpu_hours)
    return billed


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
