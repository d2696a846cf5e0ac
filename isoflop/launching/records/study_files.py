"""What a sweep's directory keeps of its submission: the profile, and with `sweep.yaml` the whole plan again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from isoflop.config.profile import Profile, load_profile
from isoflop.config.sweep_definition import to_yaml
from isoflop.errors import ConfigError, RunError
from isoflop.files import replace_file
from isoflop.launching.records.submissions import lease_submissions, read_submissions
from isoflop.launching.records.sweep_directory import root_of
from isoflop.lease import Lease
from isoflop.planning.bill import with_bill
from isoflop.planning.calibration import read_calibration
from isoflop.planning.plan import Plan
from isoflop.planning.plan import plan as lay_out

PROFILE_FILE = "cluster.yaml"


def keep_profile(profile: Profile, directory: Path) -> None:
    """Keeps the profile of the last submission in the sweep's directory, for `retry` and for who looks."""
    text = to_yaml(replace(profile, root=str(root_of(profile))))
    with suppress(OSError, ValueError):
        if (directory / PROFILE_FILE).read_text() == text:
            return
    with replace_file(directory / PROFILE_FILE) as temporary:
        temporary.write_text(text)


def kept_profile(directory: Path) -> Profile:
    """The profile of a sweep's last submission.

    Raises:
        RunError: a sweep that was never submitted.
    """
    file = directory / PROFILE_FILE
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory; give that of a sweep, such as runs/soda")
    if not file.exists():
        if read_submissions(directory):
            raise RunError(f"{file}: missing; `isoflop submit` of the sweep writes it anew")
        raise RunError(f"{directory}: was never submitted; see `isoflop submit --help`")
    try:
        return load_profile(file)
    except ConfigError as problem:
        raise ConfigError(
            f"{problem}; delete it, and `isoflop submit` of the sweep writes it anew"
        ) from None


def kept_study(directory: Path) -> tuple[Plan, Profile]:
    """A submitted sweep as its directory has it: its plan, with the bill where there can be one, and its profile.

    Raises:
        RunError: a sweep that was never submitted.
        ConfigError: a definition that was edited and can't be used.
    """
    profile = kept_profile(directory)
    plan = lay_out(directory / "sweep.yaml")
    calibration = read_calibration(root_of(profile), plan.sweep, profile)
    if profile.gpu is None and calibration is None:
        return plan, profile
    try:
        return with_bill(plan, profile, calibration=calibration), profile
    except ConfigError as problem:
        raise ConfigError(f"{directory / PROFILE_FILE}: {problem}") from None


@contextmanager
def lease_study(directory: Path) -> Iterator[tuple[Plan, Profile, Lease]]:
    """A submitted sweep as its directory has it, for who changes its submissions: read once nobody else does.

    Raises:
        RunError, ConfigError: as `kept_study`.
        BusyError: another process stays at work on the submissions.
    """
    kept_profile(directory)  # where there is no study, no lease's file is made
    with lease_submissions(directory) as lease:
        yield *kept_study(directory), lease
