"""Commands for a study on a SLURM cluster."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from isoflop.cli.options import (
    Directory,
    Interruptions,
    MaxGpuHours,
    Order,
    Overrides,
    Runs,
    Sweep,
    app,
)
from isoflop.errors import ClusterError, ConfigError

WATCH_S = 5.0


@app.command("submit", short_help="Queue a sweep on a SLURM cluster, after its cost estimate.")
def submit(
    sweep: Sweep,
    overrides: Overrides = None,
    *,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="A cluster profile.")],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the cost estimate and the scripts; queue nothing."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Queue without asking.")] = False,
    max_gpu_hours: MaxGpuHours = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR", help="Queue only runs that match a query such as 'budget <= 3e18'."
        ),
    ] = None,
    order: Annotated[Order, typer.Option(help="Runs to start first.")] = "longest",
    interruptions: Interruptions = None,
    supervise: Annotated[
        bool,
        typer.Option("--supervise", help="Also queue a one-core job that requeues lost runs."),
    ] = False,
    new_code: Annotated[
        bool,
        typer.Option(
            "--new-code",
            help="Run unfinished runs with the current code instead of the first submission's "
            "snapshot.",
        ),
    ] = False,
) -> None:
    """Example: isoflop submit sweeps/soda.yaml --cluster slurm/h100.yaml

    Show the new, resuming and finished runs and the cost estimate, then queue the missing ones.
    Safe to call again at any time.
    """
    from isoflop.launching.control import REASONS_S, count_never_starting
    from isoflop.launching.priced_submission import price_submission
    from isoflop.launching.queue.submit_array import SubmitLimitError
    from isoflop.launching.records.code_snapshot import describe_code_difference
    from isoflop.reporting.terminal.bill_text import (
        print_bill,
        print_plan_size,
        print_scripts,
        print_submission,
        print_submitted,
    )
    from isoflop.reporting.terminal.console import warn
    from isoflop.reporting.terminal.progress_text import StudyProgress

    priced = price_submission(
        sweep,
        overrides or (),
        cluster,
        order=order,
        only=only,
        interruptions=interruptions,
        max_gpu_hours=max_gpu_hours,
    )
    submission = priced.runs
    print_plan_size(priced.remaining)
    if priced.remaining.bill is not None:
        print_bill(priced.remaining.bill, sys.stderr)
    print_submission(submission, priced.plan)
    keeps_code = submission.queued and not new_code
    if keeps_code and (difference := describe_code_difference(submission.directory)):
        warn(difference)
    if dry_run:
        print_scripts(priced.scripts())
        return
    submission.status.check("queued")
    if submission.queued and not yes:
        _confirm(f"queue {len(submission.queued)} runs?")
    try:
        with StudyProgress({}) as progress:
            priced.queue(new_code=new_code, on_data=progress.show_data, on_queued=print_submitted)
    except SubmitLimitError as problem:
        if not supervise:
            raise
        warn(problem.reason)
    for reason, count in count_never_starting(
        submission.directory, REASONS_S if submission.queued else 0.0
    ).items():
        fix = "" if "scontrol release" in reason else "; fix this, cancel them and resubmit"
        warn(f"{count} queued {'jobs' if count > 1 else 'job'} can never start: {reason}{fix}")
    if supervise:
        from isoflop.launching.supervisor import add_supervisor

        try:
            job_id = add_supervisor(priced.profile, submission.directory)
        except SubmitLimitError as problem:
            raise ClusterError(
                "could not submit the supervisor; lost runs will not be requeued automatically: "
                f"{problem}"
            ) from None
        print(
            f"queued {job_id}: the supervisor" if job_id else "a supervisor is already queued",
            file=sys.stderr,
        )
    print(submission.directory)


def _confirm(question: str) -> None:
    """Ask the user, and exit unless the answer is yes.

    Raises:
        ConfigError: nobody can answer.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            "cannot ask for confirmation: stdin is not a terminal; add --yes to queue, or "
            "--dry-run to see the cost estimate"
        )
    if not typer.confirm(question, err=True):
        raise typer.Exit(0)


@app.command("status", short_help="Show the state of every run of a sweep.")
def status(
    directory: Directory,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every few seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Example: isoflop status runs/soda --watch

    Show state, progress, speed and reason of every run, and totals. Exit code 1 if a run failed or
    diverged.
    """
    from isoflop.launching.records.study_files import read_study_profile
    from isoflop.launching.status_table import read_status
    from isoflop.reporting.terminal.status_text import print_status, print_status_json

    retries = read_study_profile(directory).retries
    while True:
        study = read_status(directory, retries)
        if watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print_status_json(study) if as_json else print_status(study)
        if not watch or not study.sweep.ids("queued", "running", "requeued"):
            break
        sys.stdout.flush()
        time.sleep(WATCH_S)
    if study.sweep.ids("failed", "diverged"):
        raise typer.Exit(1)


@app.command("cancel", short_help="Cancel the jobs of a submitted sweep.")
def cancel(directory: Directory, runs: Runs = None) -> None:
    """Example: isoflop cancel runs/soda 3e20-w2304

    Cancel the jobs of the named runs, or of all. Each run keeps its last checkpoint, from which
    `isoflop submit` resumes.
    """
    from isoflop.launching import control

    stopped = control.cancel(directory.resolve(), runs or ())
    print(f"cancelled {len(stopped)} runs; each keeps its last checkpoint", file=sys.stderr)


@app.command("retry", short_help="Queue failed or cancelled runs again.")
def retry(directory: Directory, runs: Runs = None) -> None:
    """Example: isoflop retry runs/soda 3e20-w2304

    Queue failed and cancelled runs again, all of them or those named, regardless of the number of
    earlier failures.
    """
    from isoflop.launching import control
    from isoflop.launching.records.study_files import lease_study
    from isoflop.launching.submit import submit as submit_runs
    from isoflop.reporting.terminal.bill_text import print_submitted

    directory = directory.resolve()
    with lease_study(directory) as (plan, profile, lease):
        ready = control.retry(directory, runs or (), lease)
        if not ready:
            print("no failed or cancelled runs", file=sys.stderr)
            return
        submit_runs(plan, profile, runs=ready, lease=lease, on_queued=print_submitted)


@app.command("logs", short_help="Print the log of a run.")
def logs(
    directory: Directory,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, by a unique prefix of its name.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the run is over.")
    ] = False,
) -> None:
    """Example: isoflop logs runs/soda 3e20-w2304 --follow

    Print the log of a run's newest attempt, or of its job if no attempt has begun.
    """
    from isoflop.launching.control import follow_log, match_runs

    (run_id,) = match_runs(directory, [run])
    current = None
    for log, text in follow_log(directory, run_id):
        if log != current:
            print(log, file=sys.stderr)
            current = log
        print(text, end="", flush=True)
        if not follow:
            break


@app.command("doctor", short_help="Check the installation, or a cluster and its profile.")
def doctor(
    *,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="A cluster profile: check this cluster instead."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(min=1, metavar="S", help="With --cluster: seconds to wait for a small job."),
    ] = 120.0,
) -> None:
    """Example: isoflop doctor --cluster slurm/h100.yaml

    Print the versions of isoflop, Python and the packages, and whether each package imports. With
    --cluster check SLURM, partition, limits, shared folder, and with a small job Python, GPUs and
    clock on a node. Each problem is printed with its fix.
    """
    if cluster is None:
        from isoflop.launching.installation import check_installation

        for line in check_installation():
            print(line, flush=True)
        return
    from isoflop.config.profile import load_profile
    from isoflop.launching.doctor import check_cluster
    from isoflop.launching.records.sweep_directory import resolve_root

    profile = load_profile(cluster)
    if profile.executor != "slurm":
        raise ConfigError(f"{cluster}: executor: is local; there is no cluster to check")
    failures = 0
    for check in check_cluster(profile, resolve_root(profile), wait):
        print(f"{'ok   ' if check.passed else 'WRONG'} {check.name}: {check.result}", flush=True)
        if not check.passed:
            failures += 1
            print(f"      fix: {check.fix}", flush=True)
    if failures:
        raise typer.Exit(ClusterError.exit_code)


@app.command("calibrate", short_help="Measure speed and memory on a cluster.")
def calibrate(
    sweep: Sweep,
    overrides: Overrides = None,
    *,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="A cluster profile.")],
    seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Seconds to time each class.")
    ] = 20.0,
    wait: Annotated[
        float, typer.Option(min=1, metavar="S", help="Seconds that a job may wait in the queue.")
    ] = 1800.0,
) -> None:
    """Example: isoflop calibrate sweeps/soda.yaml --cluster slurm/h100.yaml

    Train the smallest, the middle and the largest models of each number of GPUs for a few steps,
    in short jobs. Later plans and cost estimates for this profile use the measured speed and
    memory.
    """
    from isoflop.config.profile import load_profile
    from isoflop.launching.calibrate import calibrate as measure_speed
    from isoflop.launching.cost_estimate import estimate_cost
    from isoflop.launching.records.sweep_directory import resolve_root
    from isoflop.planning.plan import plan as make_plan
    from isoflop.reporting.terminal.bill_text import print_calibration

    profile = load_profile(cluster)
    plan = make_plan(sweep, overrides or ())
    if profile.gpu is not None:
        plan = estimate_cost(plan, cluster)

    def report_line(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    calibration, file = measure_speed(
        plan, profile, resolve_root(profile), seconds=seconds, wait_s=wait, report_line=report_line
    )
    print_calibration(calibration)
    print(f"wrote {file}", file=sys.stderr)
