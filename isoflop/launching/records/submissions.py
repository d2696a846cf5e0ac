"""Submissions: arrays of jobs, recorded before sbatch is called: a killed call loses nothing.

A record first holds a name, by which SLURM finds the array, and the runs in order; then the job id.
A record without an id is looked up by name: if its array was queued, the id is added.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop.errors import BusyError, ConfigError, RunError
from isoflop.files import read_replaced, replace_file
from isoflop.lease import Lease, describe_holder, take_lease

LEASE_WAIT_S = 30.0
"""Time for which a call waits for another call's lease."""


@dataclass(frozen=True)
class Submission:
    """An array of jobs, or one job.

    Attributes:
        name: name of the jobs in SLURM, never used twice.
        runs: run ids by index of the task.
        gpus: GPUs of a run.
        submitted: time, in seconds since 1970.
        job_id: id of the array; None until sbatch has answered.
        cancelled: runs whose task isoflop cancelled.
        at_once: number of its tasks that SLURM runs at once; 0 if unset.
        user: number of the user who submitted; None in records of earlier versions.
    """

    name: str
    runs: tuple[str, ...]
    gpus: int
    submitted: float
    job_id: str | None = None
    cancelled: tuple[str, ...] = ()
    at_once: int = 0
    user: int | None = None

    def task(self, run_id: str) -> str | None:
        """Return SLURM's id of a run's task; None until the job id is known."""
        if self.job_id is None:
            return None
        return self.job_id if len(self.runs) == 1 else f"{self.job_id}_{self._index[run_id]}"

    @cached_property
    def _index(self) -> dict[str, int]:
        """Index of each run; a mapping, as a study may have thousands of runs."""
        return {run_id: index for index, run_id in enumerate(self.runs)}

    def write(self, folder: Path) -> None:
        """Write the record to a folder of submissions."""
        with replace_file(folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n")


def submissions_folder(directory: Path) -> Path:
    """Return the folder of a sweep's submissions and of submitit's files for them."""
    return directory / "submissions"


def read_submissions(directory: Path) -> list[Submission]:
    """Return a sweep's submissions, the oldest first.

    Raises:
        ConfigError: a record that can't be read.
    """
    submissions = []
    for path in submissions_folder(directory).glob("*.json"):
        try:
            submissions.append(_parse_record(json.loads(read_replaced(path))))
        except FileNotFoundError:  # another call has deleted it
            continue
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path}: damaged; cancel its jobs (squeue -n {path.stem}) and delete it"
            ) from None
    return sorted(submissions, key=lambda submission: submission.submitted)


def _parse_record(values: dict[str, Any]) -> Submission:
    """Return the submission of a record; keys of other versions are ignored.

    Raises:
        KeyError, TypeError: a missing key, or a value of another type.
    """
    lists = {
        key: tuple(values[key]) for key in ("runs", "cancelled") if isinstance(values[key], list)
    }
    known = {field.name for field in dataclasses.fields(Submission)}
    record = Submission(
        **{key: value for key, value in {**values, **lists}.items() if key in known}
    )
    job_id = [] if record.job_id is None else [record.job_id]
    user = [] if record.user is None else [record.user]
    texts = (record.name, *record.runs, *record.cancelled, *job_id)
    numbers = (record.gpus, record.at_once, *user)
    if (
        len(lists) < 2
        or not all(isinstance(text, str) for text in texts)
        or any(type(number) is not int for number in numbers)
    ):
        raise TypeError
    return dataclasses.replace(record, submitted=0.0 + record.submitted)


@contextmanager
def lease_submissions(directory: Path, held: Lease | None = None) -> Iterator[Lease]:
    """Take the lease on a sweep's submissions; wait for another call up to `LEASE_WAIT_S`.

    Args:
        directory: the sweep's directory.
        held: a lease that the caller already has; it is yielded and not released.

    Raises:
        BusyError: another call keeps the lease.
        RunError: another user submitted the sweep; only that user can cancel its jobs.
    """
    if held is not None:
        yield held
        return
    path, limit = submissions_folder(directory) / "lease", time.monotonic() + LEASE_WAIT_S
    others = {item.user for item in read_submissions(directory)} - {None, os.geteuid()}
    if others:
        raise RunError(
            f"{directory}: submitted by {_user_name(others.pop())}; "
            "only that user can submit, cancel or retry its runs; "
            "give your own study another name (name=...)"
        )
    while True:
        with take_lease(path, settle_s=0.1) as lease:
            if lease:
                yield lease
                return
        if time.monotonic() > limit:
            holder = describe_holder(path)
            command = f"another isoflop command ({holder})" if holder else "another isoflop command"
            raise BusyError(f"{directory}: {command} is working here; wait until it has finished")
        time.sleep(1.0)


def _user_name(number: int | None) -> str:
    try:
        return pwd.getpwuid(number or 0).pw_name
    except KeyError:
        return f"user {number}"
