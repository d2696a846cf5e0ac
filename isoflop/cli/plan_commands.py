"""Commands that plan a study: plan and init."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.cluster_commands import submit
from isoflop.cli.options import (
    Interruptions,
    MaxGpuHours,
    Order,
    app,
    check_number,
    plan_app,
)
from isoflop.errors import ConfigError


@plan_app.command("plan")
@app.command("plan", short_help="List the runs of a sweep.")
def plan(
    context: typer.Context,
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep file, or a shipped sweep such as soda.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the sweep's keys.")
    ] = None,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="List dropped candidates, with reasons.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the runs as CSV.")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the runs as Parquet.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", help="A cluster profile: adds GPUs, hours, cost, finish time."
        ),
    ] = None,
    order: Annotated[
        Order | None, typer.Option(help="Runs to start first on the cluster; default: longest.")
    ] = None,
    interruptions: Interruptions = None,
    max_gpu_hours: MaxGpuHours = None,
    law: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="LAW",
            help="Add the expected intervals under a law: soda, chinchilla or a fit.json.",
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="With --expect: relative sd between seeds; default: the fit.json's, else .003.",
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="FLOPS", help="With --expect: also predict the loss at this budget."),
    ] = None,
    submit_too: Annotated[
        bool, typer.Option("--submit", help="Then submit, like `isoflop submit`.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --submit: queue without asking.")
    ] = False,
) -> None:
    """Example: sweep-plan sweeps/soda.yaml seq_len=2048 --dropped

    List the runs of a sweep, with totals. Works offline and trains nothing.
    """
    from isoflop.config.grid_schema import MAX_BUDGET_FLOPS
    from isoflop.planning.plan import plan as make_plan
    from isoflop.reporting.terminal.bill_text import (
        drop_reasons,
        print_dropped,
        print_plan,
        print_plan_json,
    )
    from isoflop.reporting.terminal.console import warn

    check_number("--noise", noise, 1.0, 1e-9)
    check_number("--target", target, MAX_BUDGET_FLOPS)
    laid_out = make_plan(sweep, overrides or ())
    if cluster is not None:
        from isoflop.launching.cost_estimate import estimate_cost

        laid_out = estimate_cost(
            laid_out, cluster, order or "longest", interruptions, max_gpu_hours
        )
    elif max_gpu_hours is not None:
        raise ConfigError("--max-gpu-hours: only a cluster gives GPU-hours; add --cluster PROFILE")
    for name, is_set in (
        ("--submit", submit_too),
        ("--order", order is not None),
        ("--interruptions", interruptions is not None),
    ):
        if is_set and cluster is None:
            raise ConfigError(f"{name}: needs a cluster; add --cluster PROFILE")
    expected = None
    if law is not None:
        from isoflop.followup.power_analysis import expect_intervals
        from isoflop.laws import expected_law

        expected = expect_intervals(
            laid_out, expected_law(law), noise=noise, targets=[] if target is None else [target]
        )
    elif noise is not None or target is not None:
        option = "--noise" if noise is not None else "--target"
        raise ConfigError(f"{option}: needs a law; add --expect LAW")
    if csv is not None:
        laid_out.write_csv(csv)
    if parquet is not None:
        laid_out.write_parquet(parquet)
    if as_json:
        print_plan_json(laid_out, dropped, expected)
    else:
        print_plan(laid_out)
        if dropped:
            print_dropped(laid_out)
        if expected is not None:
            from isoflop.reporting.terminal.followup_text import print_expectation

            print_expectation(expected)
    sys.stdout.flush()
    for message in laid_out.warnings:
        warn(message)
    if laid_out.dropped and not dropped:
        command = shlex.join(
            [*context.command_path.split(), sweep, *(overrides or ()), "--dropped"]
        )
        print(
            f"{len(laid_out.dropped)} candidates dropped ({drop_reasons(laid_out)}); "
            f"list them: {command}",
            file=sys.stderr,
        )
    for path in filter(None, (csv, parquet)):
        print(f"wrote {path}", file=sys.stderr)
    if submit_too and cluster is not None:
        submit(
            sweep,
            overrides,
            cluster=cluster,
            yes=yes,
            max_gpu_hours=max_gpu_hours,
            order=order or "longest",
            interruptions=interruptions,
        )


@app.command("init", short_help="Write a sweep file and a cluster profile to start from.")
def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the new files.")
    ] = Path(),
    source: Annotated[
        str, typer.Option("--from", metavar="NAME", help="The shipped sweep to start from.")
    ] = "soda",
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Example: isoflop init --from soda my-study

    Write NAME.yaml and cluster.yaml, commented copies of shipped files to edit.
    """
    from isoflop.config.init_files import write_start

    sweep, profile = write_start(source, directory, force)
    print(f"wrote {sweep}\nwrote {profile}", file=sys.stderr)
    print(f"plan it: {shlex.join(['sweep-plan', str(sweep)])}", file=sys.stderr)
