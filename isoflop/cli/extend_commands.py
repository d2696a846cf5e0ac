"""Command for follow-up runs of a study: extend."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from isoflop.choices import ParamCount
from isoflop.cli.options import Directory, app, check_number
from isoflop.errors import ConfigError

Purpose = Literal["exponents", "loss"]


@app.command(
    "extend", short_help="Choose the follow-up runs of a study that are worth their compute."
)
def extend(
    directory: Directory,
    max_flops: Annotated[
        float | None,
        typer.Option(
            metavar="F", help="Training FLOPs of all new runs; default: those of the study's runs."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, metavar="K", help="Largest number of new runs.")] = 24,
    purpose: Annotated[
        Purpose | None,
        typer.Option(
            "--for",
            help="Interval to narrow; default: the exponents', with --target the loss's.",
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="FLOPS",
            help="Budget to predict the loss at; default: 10 times the largest budget.",
        ),
    ] = None,
    until: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="X", help="Stop at an interval of +/- X (for the loss: relative)."
        ),
    ] = 0.0,
    n: Annotated[ParamCount, typer.Option(help="Parameter count of the law.")] = "total",
    loss: Annotated[
        str | None, typer.Option(metavar="COL", help="Column of the loss, such as loss_text.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Sweep file to write; default: NAME-extended.yaml."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Example: isoflop extend runs/soda --max-flops 1e20 --runs 12

    Extend profiles that do not bracket their optimum, then add the runs that narrow the interval
    most for their compute, and write a sweep file with them. Submitting or running this file
    trains only the new runs.
    """
    from isoflop.config import load_sweep
    from isoflop.config.grid_schema import MAX_BUDGET_FLOPS
    from isoflop.followup.extend import extend as extend_sweep
    from isoflop.followup.extended_sweep import write_sweep
    from isoflop.reporting.terminal.console import warn
    from isoflop.reporting.terminal.followup_text import print_extension
    from isoflop.runs.runs_table import read_runs

    check_number("--target", target, MAX_BUDGET_FLOPS)
    check_number("--max-flops", max_flops, MAX_BUDGET_FLOPS)
    check_number("--until", until or None, 1e3)
    definition = directory / "sweep.yaml"
    if not definition.exists():
        raise ConfigError(
            f"{directory}: has no sweep.yaml; only a study that isoflop planned can be extended"
        )
    if purpose == "exponents" and target is not None:
        raise ConfigError(
            "--target: the exponents do not depend on compute; leave it out, or use --for loss"
        )
    sweep, table = load_sweep(definition), read_runs(directory)
    if "simulated" in table and bool(table["simulated"].any()):
        warn(
            f"{directory}: its losses are simulated (train.trainer), so the gain of new runs is too"
        )
    extension = extend_sweep(
        sweep,
        table,
        purpose=purpose or ("loss" if target is not None else "exponents"),
        target=target,
        max_flops=max_flops,
        max_runs=runs,
        enough=until,
        n=n,
        loss=loss,
    )
    file = None
    if extension.picks:
        file = write_sweep(extension, output or Path(f"{sweep.name}-extended.yaml"), force=force)
    if as_json:
        print(
            json.dumps(
                extension.to_dict() | {"file": file and str(file)}, indent=2, allow_nan=False
            )
        )
    else:
        print_extension(extension, file, _next_step(directory, sweep.name, file) if file else "")


def _next_step(directory: Path, name: str, file: Path) -> str:
    """Return the hint with the command that trains the new runs in the study's directory."""
    from isoflop.launching.records.sweep_directory import runs_root

    if not any(directory.glob("*/config.yaml")):
        return (
            f"{directory} has a table but no run directories: running the new file there would "
            "train all runs again"
        )
    study = directory.resolve()
    root = "" if study.parent == runs_root() else f"ISOFLOP_ROOT={shlex.quote(str(study.parent))} "
    renamed = "" if study.name == name else f" {shlex.quote(f'name={study.name}')}"
    return f"train the new runs: {root}isoflop run {shlex.quote(str(file))}{renamed}"
