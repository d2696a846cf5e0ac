"""Text of plans, bills, calibrations, submissions and studies."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, TextIO

from isoflop.config.identity import budget_label
from isoflop.planning.plan import count_dropped
from isoflop.planning.pricing import concurrency_limit
from isoflop.planning.wall_time import RESTART_HOURS
from isoflop.reporting.terminal.console import print_table, warn
from isoflop.runs.run_directory import RunDirectory
from isoflop.text import (
    bytes_text,
    count_text,
    duration_text,
    flops_text,
    gpu_hours_text,
    hours_text,
    money_text,
    percent_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from isoflop.fitting.study_fits import StudyFits
    from isoflop.followup.power_analysis import ExpectedIntervals
    from isoflop.launching.queue.submission_plan import SubmissionPlan
    from isoflop.launching.records.submissions import Submission
    from isoflop.planning.bill import Bill
    from isoflop.planning.calibration import Calibration
    from isoflop.planning.plan import Plan


def print_plan_size(plan: Plan) -> None:
    """Print the size of a plan and its warnings on stderr."""
    total = flops_text(plan.total_flops, 3)
    print(f"{plan.sweep.name}: {len(plan.runs)} runs, {total} training FLOPs", file=sys.stderr)
    for message in plan.warnings:
        warn(message)


def print_study(
    directory: Path, runs: pd.DataFrame, fits: StudyFits | None, report: Path, seconds: float
) -> None:
    """Print the outcome of a study.

    Its laws, or the loss of its only run, go to stdout; unfinished runs, the number of finished
    ones and the path of the report go to stderr.
    """
    unfinished = runs.query("state != 'done'")
    for row in unfinished.to_dict("records"):
        log = RunDirectory(directory / row["run_id"]).log_file(row["restarts"] + 1)
        hint = f" (log: {log})" if log.exists() and str(log) not in row["reason"] else ""
        print(f"{row['run_id']} {row['state']}: {row['reason']}{hint}", file=sys.stderr)
    if fits is not None:
        from isoflop.reporting.terminal.fit_text import print_fits  # loads numpy

        print_fits(fits)
        sys.stdout.flush()
        for reason in fits.reasons():
            warn(reason)
    elif len(runs) == 1 and not len(unfinished):
        print(f"loss {runs['loss'].iloc[0]:.4f}", flush=True)
    done = len(runs) - len(unfinished)
    print(f"{done} of {len(runs)} runs done in {duration_text(seconds)}", file=sys.stderr)
    print(f"report: {report}", file=sys.stderr)


def print_plan_json(plan: Plan, dropped: bool, expected: ExpectedIntervals | None = None) -> None:
    """Print the document of `--json`.

    Args:
        plan: the plan.
        dropped: include the dropped candidates.
        expected: expected intervals to include.
    """
    document = {"schema": 1, "sweep": plan.sweep.name, "runs": plan.rows(), "totals": plan.totals()}
    if dropped:
        document["dropped"] = [
            {
                "budget": item.budget,
                "width": item.width,
                "reason": str(item.reason),
                "detail": item.detail,
            }
            for item in plan.dropped
        ]
    if expected is not None:
        document["expected"] = expected.to_dict()
    print(json.dumps(document, indent=2, allow_nan=False))


def print_plan(plan: Plan) -> None:
    """Print a line per run, totals and the bill."""
    seeds = len({run.seed for run in plan.runs}) > 1
    checks = any(run.check for run in plan.runs)
    headers = ["budget", "width", *(["seed"] if seeds else []), *(["check"] if checks else [])]
    headers += ["layers", "heads", "batch", "steps", "lr", "beta2", "params", "tokens", "epochs"]
    on_gpus = plan.bill is not None and plan.bill.profile.gpu is not None
    headers += ["gpus", "hours", "gpu_hours"] if on_gpus else ["hours"] if plan.bill else []
    rows = [
        [
            budget_label(run.budget),
            str(run.width),
            *([str(run.seed)] if seeds else []),
            *([run.check] if checks else []),
            str(run.layers),
            str(run.heads),
            f"{run.batch_size:,}",
            f"{run.steps:,}",
            f"{run.lr:.3g}",
            f"{run.beta2:.4f}",
            count_text(run.params_total),
            count_text(run.tokens),
            "" if run.epochs is None else f"{run.epochs:.2f}",
            *([str(run.gpus)] if on_gpus else []),
            *([_hours_cell(run.est_hours)] if plan.bill else []),
            *([_hours_cell(run.est_gpu_hours)] if on_gpus else []),
        ]
        for run in plan.runs
    ]
    print_table(headers, rows, text=["budget", "check"])
    params = [run.params_total for run in plan.runs]
    budgets = len({run.budget for run in plan.runs})
    sizes = f"{count_text(min(params))} to {count_text(max(params))} parameters"
    total = flops_text(plan.total_flops, 3)
    print(f"\n{len(plan.runs):,} runs, {budgets} budgets, {sizes}, {total} training FLOPs")
    if plan.bill:
        print_bill(plan.bill)


def _hours_cell(hours: float | None) -> str:
    return "" if hours is None else hours_text(hours)


def print_bill(bill: Bill, file: TextIO | None = None) -> None:
    """Print the bill in a few lines: cost, finish time and its critical runs, memory, disk.

    Args:
        bill: the bill.
        file: where to print; default stdout.
    """
    profile, limit = bill.profile, concurrency_limit(bill.profile)
    lines = []
    if profile.gpu is None:
        hours = duration_text(3600 * sum(bill.hours))
        lines.append(f"time: {hours} of runs on {profile.name}, on CPUs (speed: {bill.source})")
        capacity = "no limit on runs at once" if limit is None else f"{limit} runs at once"
        capacity = f"with {capacity}"
    else:
        cost = ""
        if bill.cost is not None:
            cost = f", {money_text(bill.cost)} at {profile.price_per_gpu_hour:g} a GPU-hour"
        hours = gpu_hours_text(bill.gpu_hours)
        lines.append(f"cost: {hours} on {profile.name}{cost} (speed: {bill.source})")
        capacity = "with no limit on GPUs" if limit is None else f"on {limit} GPUs"
        capacity += f", {profile.max_jobs} runs at once" if profile.max_jobs else ""
    order = "longest runs first" if bill.order == "longest" else "small budgets first"
    others = "".join(
        f"; on {count}: {duration_text(3600 * other.finish_hours)}, "
        + gpu_hours_text(other.gpu_hours)
        for count, other in bill.alternatives.items()
    )
    finish = duration_text(3600 * bill.finish_hours)
    lines.append(f"finish: {finish} after submission {capacity}, {order}{others}")
    chain = bill.schedule.critical
    between = [f"{len(chain) - 4} more"] if len(chain) > 5 else list(chain[2:-2])
    lines.append(f"critical: {', '.join([*chain[:2], *between, *chain[2:][-2:]])}")
    if bill.interruptions_per_day:
        rate = f"{bill.interruptions_per_day:g} preemptions or failures per job and day"
        lines.append(f"interruptions: {rate} included")
    starts = [count for count in bill.starts if count > 1]
    if starts:
        lines.append(
            f"restarts: {len(starts)} runs exceed the time limit of a job: up to {max(starts)} "
            f"starts, {RESTART_HOURS:g} h each"
        )
    memory = bytes_text(max(size.memory_fit.memory_bytes for size in bill.sizes))
    if profile.gpu is None:
        lines.append(f"memory: up to {memory} a process")
    else:
        checkpointing = sum(size.memory_fit.checkpointing for size in bill.sizes)
        lines.append(
            f"memory: up to {memory} a GPU, {checkpointing} runs with activation checkpointing"
        )
    disk, weights = bytes_text(bill.disk_bytes), bytes_text(bill.weights_bytes)
    lines.append(f"disk: up to {disk} at a time, {weights} of final weights stay")
    print("\n".join(lines), file=file)


def print_calibration(calibration: Calibration) -> None:
    """Print a line per measured shape class on stdout."""
    headers = ["gpus", "width", "layers", "params", "batch", "tokens/s", "mfu", "memory", "save s"]
    headers += ["measured", "device"]
    rows = [
        [
            str(measurement.gpus or "CPU"),
            str(measurement.shape.width),
            str(measurement.shape.layers),
            count_text(measurement.shape.params_total),
            f"{measurement.batch_size:,}",
            count_text(measurement.tokens_per_second),
            "" if measurement.mfu is None else percent_text(measurement.mfu),
            bytes_text(measurement.memory_bytes),
            "" if measurement.save_seconds is None else f"{measurement.save_seconds:.2g}",
            time.strftime("%Y-%m-%d", time.gmtime(measurement.measured)),
            measurement.device,
        ]
        for measurement in calibration.measurements
    ]
    print_table(headers, rows, text=["measured", "device"])


def print_submission(submission: SubmissionPlan, plan: Plan) -> None:
    """Print the effect of a submission on stderr."""
    for note in submission.status.notes:
        warn(note)
    counts = ", ".join(f"{count} {label}" for label, count in submission.counts().items())
    print(f"{submission.directory}: {counts}", file=sys.stderr)
    if (
        plan.bill is not None
        and submission.queued
        and submission.gpu_hours(plan) < plan.bill.gpu_hours
    ):
        whole = f"the whole study takes {gpu_hours_text(plan.bill.gpu_hours)}"
        print(f"estimate for the remaining work of the queued runs; {whole}", file=sys.stderr)
    for run in submission.status.runs.values():
        if run.state in ("failed", "diverged"):
            hint = "" if run.state == "diverged" else "; see `isoflop retry`"
            action = "retried" if run.run_id in submission.queued else f"not retried{hint}"
            print(f"{run.run_id} {run.state}, {action}: {run.reason}", file=sys.stderr)
    if submission.removed:
        states = ", ".join(f"{run.run_id} ({run.state})" for run in submission.removed[:3])
        more = ", ..." if len(submission.removed) > 3 else ""
        warn(
            f"{len(submission.removed)} existing runs are no longer in the sweep; "
            f"they were not changed: {states}{more}"
        )
    if submission.bad_nodes:
        nodes = ", ".join(submission.bad_nodes)
        warn(f"excluded nodes, where different runs failed while runs elsewhere did not: {nodes}")


def print_submitted(submission: Submission) -> None:
    """Print a line for a queued array on stderr."""
    gpus = f"{submission.gpus} GPUs each" if submission.gpus else "on CPUs"
    print(f"queued {submission.job_id}: {len(submission.runs)} runs, {gpus}", file=sys.stderr)


def print_scripts(scripts: Sequence[str]) -> None:
    """Print the scripts of sbatch on stdout."""
    for script in scripts:
        print(script)


def print_dropped(plan: Plan) -> None:
    """Print the candidates that the rules dropped, with reasons."""
    if not plan.dropped:
        print("\nno candidates dropped")
        return
    print()
    rows = [[budget_label(item.budget), str(item.width), item.detail] for item in plan.dropped]
    print_table(["budget", "width", "dropped because"], rows, text=["budget", "dropped because"])
    print(f"\n{len(plan.dropped)} candidates dropped ({drop_reasons(plan)})")


def drop_reasons(plan: Plan) -> str:
    """Return the number of dropped candidates by reason."""
    counts = count_dropped(plan.dropped)
    return ", ".join(f"{count} for {reason}" for reason, count in counts.items())
