"""Shared parts of the commands: the two programs, common arguments, checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from isoflop.errors import ConfigError

Order = Literal["longest", "budget"]
Sweep = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep file, or a shipped sweep such as pocket.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the sweep's keys.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's directory.")]
Runs = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help="Runs, by unique prefixes of their names.")
]
MaxGpuHours = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="H", help="Refuse a study that needs more GPU-hours (exit code 3)."
    ),
]
Interruptions = Annotated[
    float | None,
    typer.Option(min=0, metavar="R", help="Expected preemptions and failures of a job per day."),
]

_TYPER_OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(no_args_is_help=True, **_TYPER_OPTIONS)
plan_app = typer.Typer(**_TYPER_OPTIONS)


def check_number(option: str, value: float | None, largest: float, smallest: float = 0.0) -> None:
    """Raise ConfigError unless a value is None, or above 0 and from `smallest` to `largest`."""
    from isoflop.text import flops_text

    if value is not None and not (smallest <= value <= largest and value > 0):
        start = f"from {flops_text(smallest)}" if smallest else "above 0"
        raise ConfigError(
            f"{option}: expected a number {start} to {flops_text(largest)}, "
            f"got {flops_text(value, 6)}"
        )
