"""Shared parts of the commands: the two programs, common arguments, checks, the bill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isoflop.errors import ConfigError

if TYPE_CHECKING:
    from isoflop.config.profile import Profile
    from isoflop.planning.calibration import Calibration
    from isoflop.planning.plan import Plan

MAX_INTERRUPTIONS_PER_DAY = 10_000
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


def with_bill(
    plan: Plan,
    cluster: str,
    order: Order,
    interruptions: float | None,
    max_gpu_hours: float | None,
    max_array_size: int | None = None,
) -> Plan:
    """Return the plan with its bill on a cluster, by measured speeds if there are any.

    Raises:
        ConfigError: an invalid profile or rate of interruptions.
        BudgetError: the bill exceeds `max_gpu_hours`.
    """
    from isoflop.config.profile import load_profile
    from isoflop.planning import pricing
    from isoflop.planning.job_arrays import UNLIMITED

    if interruptions is not None and not interruptions <= MAX_INTERRUPTIONS_PER_DAY:
        raise ConfigError(
            f"--interruptions: expected 0 to {MAX_INTERRUPTIONS_PER_DAY:,} a day, "
            f"got {interruptions:g}"
        )
    profile = load_profile(cluster, to_plan=True)
    calibration = find_calibration(plan, profile)
    try:
        billed = pricing.with_bill(
            plan,
            profile,
            order=order,
            interruptions_per_day=interruptions,
            calibration=calibration,
            max_array_size=max_array_size or UNLIMITED,
        )
    except ConfigError as problem:
        raise ConfigError(f"{cluster}: {problem}") from None
    if billed.bill is not None:
        pricing.check_cap(billed.bill.gpu_hours, max_gpu_hours)
    return billed


def find_calibration(plan: Plan, profile: Profile) -> Calibration | None:
    """Return the measurements of `isoflop calibrate` for a plan on a cluster, if any."""
    from isoflop.config.profile import ROOT_NOT_GIVEN
    from isoflop.launching.records.sweep_directory import resolve_root
    from isoflop.planning.calibration import read_calibration

    if profile.root == ROOT_NOT_GIVEN:
        return None
    return read_calibration(resolve_root(profile), plan.sweep, profile)
