"""Files of a submitted study: its profile and `sweep.yaml`, from which its plan is made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from isoflop.config.profile import ROOT_NOT_GIVEN, Profile, load_profile
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import ConfigError, RunError
from isoflop.files import replace_file
from isoflop.launching.records.submissions import lease_submissions, read_submissions
from isoflop.launching.records.sweep_directory import resolve_root
from isoflop.lease import Lease
from isoflop.planning.calibration import Calibration, read_calibration
from isoflop.planning.plan import Plan
from isoflop.planning.plan import plan as make_plan
from isoflop.planning.pricing import with_bill

STUDY_PROFILE_FILE = "cluster.yaml"


def write_study_profile(profile: Profile, directory: Path) -> None:
    """Write the profile of a submission to the sweep's directory, for `retry` and readers."""
    text = to_yaml(replace(profile, root=str(resolve_root(profile))))
    with suppress(OSError, ValueError):
        if (directory / STUDY_PROFILE_FILE).read_text() == text:
            return
    with replace_file(directory / STUDY_PROFILE_FILE) as temporary:
        temporary.write_text(text)


def read_study_profile(directory: Path) -> Profile:
    """Return the profile of a sweep's last submission.

    Raises:
        RunError: no directory, or a sweep that was never submitted.
        ConfigError: a damaged profile.
    """
    file = directory / STUDY_PROFILE_FILE
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory; give that of a sweep, such as runs/soda")
    if not file.exists():
        if read_submissions(directory):
            raise RunError(f"{file}: missing; `isoflop submit` of the sweep writes it again")
        raise RunError(f"{directory}: was never submitted; see `isoflop submit --help`")
    try:
        return load_profile(file)
    except ConfigError as problem:
        raise ConfigError(
            f"{problem}; delete it, and `isoflop submit` of the sweep writes it again"
        ) from None


def read_study(directory: Path) -> tuple[Plan, Profile]:
    """Return plan and profile of a submitted sweep, read from its directory.

    The plan has a bill if the profile has GPUs or calibrated CPUs.

    Raises:
        RunError: a sweep that was never submitted.
        ConfigError: an invalid definition, such as an edited one.
    """
    profile = read_study_profile(directory)
    plan = make_plan(directory / "sweep.yaml")
    calibration = find_calibration(plan, profile)
    if profile.gpu is None and calibration is None:
        return plan, profile
    try:
        return with_bill(plan, profile, calibration=calibration), profile
    except ConfigError as problem:
        raise ConfigError(f"{directory / STUDY_PROFILE_FILE}: {problem}") from None


def find_calibration(plan: Plan, profile: Profile) -> Calibration | None:
    """Return the measurements of `isoflop calibrate` for a plan on a cluster, if any."""
    if profile.root == ROOT_NOT_GIVEN:
        return None
    return read_calibration(resolve_root(profile), plan.sweep, profile)


@contextmanager
def lease_study(directory: Path) -> Iterator[tuple[Plan, Profile, Lease]]:
    """Take the submissions lease; yield plan, profile and lease, read under the lease.

    Raises:
        RunError, ConfigError: as `read_study`.
        BusyError: another process keeps the lease.
    """
    read_study_profile(directory)  # without a study no lease file is made
    with lease_submissions(directory) as lease:
        yield *read_study(directory), lease
