"""Commands for what comes after a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from isoflop.cli.shared import Directory, app
from isoflop.errors import ConfigError

ParamCount = Literal["total", "one_embedding", "non_embedding"]
Purpose = Literal["exponents", "loss"]


@app.command("extend", short_help="Choose the follow-up runs of a study that are worth their compute.")
def extend(
    directory: Directory,
    max_flops: Annotated[
        float | None, typer.Option(metavar="F", help="Of all new runs; default: what the study's runs have cost.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, metavar="K", help="Most new runs.")] = 24,
    purpose: Annotated[Purpose, typer.Option("--for", help="Whose interval is to become narrow.")] = "exponents",
    target: Annotated[
        float | None,
        typer.Option(metavar="FLOPS", help="Where the loss is to be predicted; default: 10 times the largest budget."),
    ] = None,
    until: Annotated[
        float,
        typer.Option(min=0.0, metavar="X", help="Stop where the interval is +/- X (the loss: as a share)."),
    ] = 0.0,
    n: Annotated[ParamCount, typer.Option(help="Which parameter count the law is about.")] = "total",
    loss: Annotated[str | None, typer.Option(metavar="COL", help="Column of the loss, such as loss_text.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Sweep file to write; default: NAME-extended.yaml."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Example: isoflop extend runs/soda --max-flops 1e20 --runs 12

    Mends profiles that do not bracket their optimum, then adds the runs that narrow the interval most for their price,
    and writes a sweep file with them: submitted or run, it trains only what is new.
    """
    from isoflop.config import load_sweep
    from isoflop.following.extend import extend as choose
    from isoflop.following.sweep_file import write_sweep
    from isoflop.reporting.following import print_extension
    from isoflop.runs import read_runs

    definition = directory / "sweep.yaml"
    if not definition.exists():
        raise ConfigError(f"{directory}: has no sweep.yaml; only a study that was laid out here can be extended")
    sweep = load_sweep(definition)
    extension = choose(
        sweep, read_runs(directory), purpose="loss" if target is not None else purpose, target=target,
        max_flops=max_flops, max_runs=runs, enough=until, n=n, loss=loss,
    )  # fmt: skip
    file = None
    if extension.picks:
        file = write_sweep(extension, output or Path(f"{sweep.name}-extended.yaml"), force=force)
    if as_json:
        print(json.dumps(extension.to_dict() | {"file": file and str(file)}, indent=2, allow_nan=False))
    else:
        print_extension(extension, file)
