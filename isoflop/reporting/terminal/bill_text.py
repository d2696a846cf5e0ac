"""What the commands print of a plan and of a study."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, TextIO

from isoflop.config.identity import budget_label
from isoflop.launching.worker.attempt import log_file
from isoflop.planning.bill import places_of
from isoflop.planning.plan import drop_counts
from isoflop.planning.wall_time import RESTART_HOURS
from isoflop.reporting.terminal.console import duration, flops, print_table, short, warn
from isoflop.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from isoflop.config.profile import Profile
    from isoflop.followup.power_analysis import Expectation
    from isoflop.launching.prepare_data import Study
    from isoflop.launching.records.submissions import Submission
    from isoflop.launching.submit import Intent
    from isoflop.planning.bill import Bill
    from isoflop.planning.calibration import Calibration
    from isoflop.planning.plan import Plan
    from isoflop.planning.queue_simulation import Order


def print_intent(plan: Plan) -> None:
    """What is about to be run, on stderr, with the plan's warnings."""
    print(
        f"{plan.sweep.name}: {len(plan.runs)} runs, {flops(plan.total_flops)} training FLOPs",
        file=sys.stderr,
    )
    for message in plan.warnings:
        warn(message)


def print_study(study: Study, seconds: float) -> None:
    """What came of a study: on stdout its laws, or the loss of its one run; on stderr what did not end, the count, and
    the report's place.
    """
    for row in study.unfinished.to_dict("records"):
        log = log_file(RunDirectory(study.directory / row["run_id"]), row["restarts"] + 1)
        where = f" (log: {log})" if log.exists() and str(log) not in row["reason"] else ""
        print(f"{row['run_id']} {row['state']}: {row['reason']}{where}", file=sys.stderr)
    if study.fits is not None:
        from isoflop.reporting.terminal.fit_text import (
            print_fits,  # loads numpy, which a plan does without
        )

        print_fits(study.fits)
        sys.stdout.flush()
        for reason in study.fits.reasons():
            warn(reason)
    elif len(study.runs) == 1 and not len(study.unfinished):
        print(f"loss {study.runs['loss'].iloc[0]:.4f}", flush=True)
    done = len(study.runs) - len(study.unfinished)
    print(f"{done} of {len(study.runs)} runs done in {duration(seconds)}", file=sys.stderr)
    print(f"report: {study.report}", file=sys.stderr)


def print_plan_json(plan: Plan, dropped: bool, expected: Expectation | None = None) -> None:
    """The document of `--json`."""
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
    """A line a run, and totals."""
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
            short(run.params_total),
            short(run.tokens),
            "" if run.epochs is None else f"{run.epochs:.2f}",
            *(
                [f"{run.gpus}", f"{run.est_hours:,.1f}", f"{run.est_gpu_hours:,.1f}"]
                if on_gpus
                else []
            ),
            *([f"{run.est_hours:.3g}"] if plan.bill and not on_gpus else []),
        ]
        for run in plan.runs
    ]
    print_table(headers, rows, text=["budget", "check"])
    params = [run.params_total for run in plan.runs]
    budgets = len({run.budget for run in plan.runs})
    print(
        f"\n{len(plan.runs):,} runs, {budgets} budgets, {short(min(params))} to {short(max(params))} parameters, "
        f"{flops(plan.total_flops)} training FLOPs"
    )
    if plan.bill:
        print_bill(plan.bill)


def print_bill(bill: Bill, file: TextIO | None = None) -> None:
    """The bill in a few lines: cost, finish time and what decides it, memory, disk."""
    say = partial(print, file=file)
    price, places = bill.profile.price_per_gpu_hour, places_of(bill.profile)
    if bill.profile.gpu is None:
        say(
            f"time: {duration(3600 * sum(bill.hours))} of runs on {bill.profile.name}, on CPUs (speed: {bill.source})"
        )
        place = "with no limit on runs at once" if places is None else f"with {places} runs at once"
    else:
        cost = "" if bill.cost is None else f", {bill.cost:,.0f} at {price:g} a GPU-hour"
        say(
            f"cost: {bill.gpu_hours:,.0f} GPU-hours on {bill.profile.name}{cost} (speed: {bill.source})"
        )
        place = "with no limit on GPUs" if places is None else f"on {places} GPUs"
        place += f", {bill.profile.max_jobs} runs at once" if bill.profile.max_jobs else ""
    first = "longest runs first" if bill.order == "longest" else "small budgets first"
    others = "".join(
        f"; on {count}: {duration(3600 * one.finish_hours)}, {one.gpu_hours:,.0f} GPU-hours"
        for count, one in bill.others.items()
    )
    say(f"finish: {duration(3600 * bill.finish_hours)} after submission {place}, {first}{others}")
    chain = bill.schedule.critical
    between = [f"{len(chain) - 4} more"] if len(chain) > 5 else list(chain[2:-2])
    say(f"critical: {', '.join([*chain[:2], *between, *chain[2:][-2:]])}")
    if bill.interruptions_per_day:
        rate = f"{bill.interruptions_per_day:g} preemptions or failures of a job in a day"
        say(f"interruptions: reckoned with {rate}")
    again = [count for count in bill.starts if count > 1]
    if again:
        cost = f"{RESTART_HOURS:g} h each"
        say(
            f"restarts: {len(again)} runs outlast the time limit of a job: up to {max(again)} starts, {cost}"
        )
    fits = [size.fit for size in bill.sizes]
    largest = max(fit.memory_bytes for fit in fits) / 1e9
    recomputing = sum(fit.checkpointing for fit in fits)
    if bill.profile.gpu is None:
        say(f"memory: up to {largest:.1f} GB a process")
    else:
        say(
            f"memory: up to {largest:.0f} GB a GPU, {recomputing} runs with activation checkpointing"
        )
    say(
        f"disk: up to {bill.disk_bytes / 1e9:,.0f} GB at a time, {bill.kept_bytes / 1e9:,.0f} GB of final weights stay"
    )


def print_calibration(calibration: Calibration) -> None:
    """A line for each class that was measured, on stdout."""
    headers = [
        "gpus",
        "width",
        "layers",
        "params",
        "batch",
        "tokens/s",
        "mfu",
        "memory GB",
        "save s",
    ]
    headers += ["measured", "device"]
    rows = [
        [
            str(one.gpus or "CPU"),
            str(one.shape.width),
            str(one.shape.layers),
            short(one.shape.params_total),
            f"{one.batch_size:,}",
            short(one.tokens_per_second),
            "" if one.mfu is None else f"{one.mfu:.1%}",
            f"{one.memory_bytes / 1e9:.1f}",
            "" if one.save_seconds is None else f"{one.save_seconds:.2g}",
            time.strftime("%Y-%m-%d", time.gmtime(one.measured)),
            one.device,
        ]
        for one in calibration.measurements
    ]
    print_table(headers, rows, text=["measured", "device"])


def print_submission(intent: Intent, plan: Plan) -> None:
    """What a submission would do, on stderr."""
    for note in intent.picture.notes:
        warn(note)
    counts = ", ".join(f"{count} {word}" for word, count in intent.counts().items())
    print(f"{intent.directory}: {counts}", file=sys.stderr)
    if plan.bill is not None and intent.queued and intent.gpu_hours(plan) < plan.bill.gpu_hours:
        whole = f"the whole study takes {plan.bill.gpu_hours:,.0f} GPU-hours"
        print(f"this bill is of what is to be queued, from where it is; {whole}", file=sys.stderr)
    for where in intent.picture.runs.values():
        if where.state in ("failed", "diverged"):
            mend = "" if where.state == "diverged" else "; see `isoflop retry`"
            what = "tried again" if where.run_id in intent.queued else f"not tried again{mend}"
            print(f"{where.run_id} {where.state}, {what}: {where.reason}", file=sys.stderr)
    if intent.left:
        states = ", ".join(f"{where.run_id} ({where.state})" for where in intent.left[:3])
        more = ", ..." if len(intent.left) > 3 else ""
        warn(
            f"{len(intent.left)} runs are not in the sweep any more, and are left as they are: {states}{more}"
        )
    if intent.bad_nodes:
        warn(
            f"left out, since different runs failed there and nowhere else: {', '.join(intent.bad_nodes)}"
        )


def print_submitted(submission: Submission) -> None:
    """One line for an array that was queued, on stderr."""
    what = f"{submission.gpus} GPUs each" if submission.gpus else "on CPUs"
    print(f"queued {submission.job_id}: {len(submission.runs)} runs, {what}", file=sys.stderr)


def print_scripts(plan: Plan, profile: Profile, intent: Intent, order: Order) -> None:
    """The scripts that sbatch would get, on stdout."""
    from isoflop.launching.queue.excluded_nodes import with_excluded
    from isoflop.launching.queue.submit_array import sbatch_script

    excluded = with_excluded(profile, intent.bad_nodes)
    for number, array in enumerate(intent.arrays(plan, profile, order), start=1):
        names = ", ".join(run.run_id for run in array.runs[:3]) + (
            ", ..." if len(array.runs) > 3 else ""
        )
        print(f"# {len(array.runs)} runs: {names}")
        if array.after:
            others = ", ".join(str(1 + place) for place in array.after)
            print(f"# array {number}, which starts once these have ended: {others}")
        print(sbatch_script(array, excluded, intent.directory, intent.directory / "code"))


def print_dropped(plan: Plan) -> None:
    """What the rules left out, and why."""
    if not plan.dropped:
        print("\nno candidates dropped")
        return
    print()
    rows = [[budget_label(item.budget), str(item.width), item.detail] for item in plan.dropped]
    print_table(["budget", "width", "dropped because"], rows, text=["budget", "dropped because"])
    print(f"\n{len(plan.dropped)} candidates dropped ({drop_reasons(plan)})")


def drop_reasons(plan: Plan) -> str:
    """How many candidates fell to each reason."""
    return ", ".join(f"{count} for {reason}" for reason, count in drop_counts(plan.dropped).items())
