"""The command line: `isoflop` and its family, and `sweep-plan`, which is `isoflop plan`.

Parsing and printing only. Data goes to stdout, all else to stderr. Each command imports what it needs when it runs, so
that help is instant. A new command is a function under "Commands" with `@app.command("name")`.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from isoflop.errors import IsoflopError

if TYPE_CHECKING:
    from isoflop.planning.plan import Plan

INTERRUPTED = 130
PIPE_CLOSED = 1
"""Exit code where the reader, such as `head`, has seen enough; typer's own for what it sees of it."""

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
        if problem.errno != errno.ENOSPC:
            raise
        _silence_stdout()
        print(f"isoflop: error: {problem.filename or 'standard output'}: the disk is full", file=sys.stderr)
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
) -> None:
    """Example: sweep-plan sweeps/soda.yaml seq_len=2048 --dropped

    Lays out the runs of a sweep, with totals. Works offline and trains nothing.
    """
    from isoflop.planning.plan import plan as lay_out
    from isoflop.reporting.terminal import warn

    laid_out = lay_out(sweep, overrides or ())
    if csv is not None:
        laid_out.write_csv(csv)
    if parquet is not None:
        laid_out.write_parquet(parquet)
    if as_json:
        _print_json(laid_out, dropped)
    else:
        _print_runs(laid_out)
        if dropped:
            _print_dropped(laid_out)
    sys.stdout.flush()
    for message in laid_out.warnings:
        warn(message)
    if laid_out.dropped and not dropped:
        command = shlex.join([*context.command_path.split(), sweep, *(overrides or ()), "--dropped"])
        print(
            f"{len(laid_out.dropped)} candidates dropped ({_reasons(laid_out)}); list them: {command}", file=sys.stderr
        )
    for path in filter(None, (csv, parquet)):
        print(f"wrote {path}", file=sys.stderr)


# Printing


def _print_json(plan: Plan, dropped: bool) -> None:
    document = {"schema": 1, "sweep": plan.sweep.name, "runs": plan.rows(), "totals": plan.totals()}
    if dropped:
        document["dropped"] = [
            {"budget": item.budget, "width": item.width, "reason": str(item.reason), "detail": item.detail}
            for item in plan.dropped
        ]
    print(json.dumps(document, indent=2, allow_nan=False))


def _print_runs(plan: Plan) -> None:
    from isoflop.config.identity import budget_label
    from isoflop.reporting.terminal import flops, print_table, short

    seeds = len({run.seed for run in plan.runs}) > 1
    headers = ["budget", "width", *(["seed"] if seeds else [])]
    headers += ["layers", "heads", "batch", "steps", "lr", "beta2", "params", "tokens", "epochs"]
    rows = [
        [
            budget_label(run.budget),
            str(run.width),
            *([str(run.seed)] if seeds else []),
            str(run.layers),
            str(run.heads),
            f"{run.batch_size:,}",
            f"{run.steps:,}",
            f"{run.lr:.3g}",
            f"{run.beta2:.4f}",
            short(run.params_total),
            short(run.tokens),
            "" if run.epochs is None else f"{run.epochs:.2f}",
        ]
        for run in plan.runs
    ]
    print_table(headers, rows, text=["budget"])
    params = [run.params_total for run in plan.runs]
    budgets = len({run.budget for run in plan.runs})
    print(
        f"\n{len(plan.runs):,} runs, {budgets} budgets, {short(min(params))} to {short(max(params))} parameters, "
        f"{flops(plan.total_flops)} training FLOPs"
    )


def _print_dropped(plan: Plan) -> None:
    from isoflop.config.identity import budget_label
    from isoflop.reporting.terminal import print_table

    if not plan.dropped:
        print("\nno candidates dropped")
        return
    print()
    rows = [[budget_label(item.budget), str(item.width), item.detail] for item in plan.dropped]
    print_table(["budget", "width", "dropped because"], rows, text=["budget", "dropped because"])
    print(f"\n{len(plan.dropped)} candidates dropped ({_reasons(plan)})")


def _reasons(plan: Plan) -> str:
    from isoflop.planning.plan import drop_counts

    return ", ".join(f"{count} for {reason}" for reason, count in drop_counts(plan.dropped).items())
