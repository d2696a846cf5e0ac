"""What the commands share: the two programs, and the arguments that several take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isoflop.errors import ConfigError

if TYPE_CHECKING:
    from isoflop.config.profile import Profile
    from isoflop.planning.calibration import Calibration
    from isoflop.planning.plan import Plan

MOST_INTERRUPTIONS = 10_000
Order = Literal["longest", "budget"]
Sweep = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep file, or a shipped sweep such as pocket.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the sweep's keys.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's directory.")]
Runs = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help="Runs, by the beginning of their names.")
]
MaxGpuHours = Annotated[
    float | None,
    typer.Option(min=0, metavar="H", help="Refuse a study that needs more (exit code 3)."),
]
Interruptions = Annotated[
    float | None,
    typer.Option(min=0, metavar="R", help="Preemptions and failures of a job to expect in a day."),
]

_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(no_args_is_help=True, **_SETTINGS)
plan_app = typer.Typer(**_SETTINGS)


def check_number(option: str, value: float | None, most: float, least: float = 0.0) -> None:
    """Raises ConfigError for the value of an option that is not from `least`, or above 0, up to `most`."""
    if value is not None and not (least <= value <= most and value > 0):
        raise ConfigError(
            f"{option}: expected a number {f'from {least:g}' if least else 'above 0'} to {most:g}, got {value:g}"
        )


def with_bill(
    plan: Plan,
    cluster: str,
    order: Order,
    interruptions: float | None,
    max_gpu_hours: float | None,
    most_tasks: int | None = None,
) -> Plan:
    """The plan with its bill on a cluster, within its cap, by what was measured there where something was."""
    from isoflop.config.profile import load_profile
    from isoflop.planning.array_limits import UNLIMITED
    from isoflop.planning.pricing import check_cap
    from isoflop.planning.pricing import with_bill as price

    if interruptions is not None and not interruptions <= MOST_INTERRUPTIONS:
        raise ConfigError(
            f"--interruptions: expected 0 to {MOST_INTERRUPTIONS:,} in a day, got {interruptions:g}"
        )
    profile = load_profile(cluster, to_plan=True)
    calibration = calibration_of(plan, profile)
    try:
        billed = price(
            plan,
            profile,
            order=order,
            interruptions_per_day=interruptions,
            calibration=calibration,
            max_array_size=most_tasks or UNLIMITED,
        )
    except ConfigError as problem:
        raise ConfigError(f"{cluster}: {problem}") from None
    if billed.bill is not None:
        check_cap(billed.bill.gpu_hours, max_gpu_hours)
    return billed


def calibration_of(plan: Plan, profile: Profile) -> Calibration | None:
    """What `isoflop calibrate` found for a plan on a cluster, if anything."""
    from isoflop.config.profile import ROOT_NOT_GIVEN
    from isoflop.launching.records.sweep_directory import resolve_root
    from isoflop.planning.calibration import read_calibration

    return (
        None
        if profile.root == ROOT_NOT_GIVEN
        else read_calibration(resolve_root(profile), plan.sweep, profile)
    )
