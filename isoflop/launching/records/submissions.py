"""Submissions: one array of jobs each, written down before sbatch is called, so that a killed call loses nothing.

The record of a submission is its intent (a name that SLURM knows the array by, and the runs in order) until its job id
is added. An intent without one is looked up by name: either its array was queued, and the id is added, or it was not.
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
from isoflop.lease import Lease, holder_of, take_lease

WAIT_S = 30.0
"""How long one call waits for another."""


@dataclass(frozen=True)
class Submission:
    """An array of jobs, or one job.

    Attributes:
        name: of the jobs in SLURM, used once.
        runs: the run of each task, by index.
        gpus: of a run.
        submitted: seconds since 1970.
        job_id: of the array; None until sbatch has answered.
        cancelled: runs whose task was cancelled by isoflop.
        at_once: how many of its tasks SLURM lets run at once; 0 where nobody has said.
        user: number of the user whose jobs they are; None in records of earlier versions.
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
        """SLURM's id of a run's task."""
        if self.job_id is None:
            return None
        return self.job_id if len(self.runs) == 1 else f"{self.job_id}_{self._index[run_id]}"

    @cached_property
    def _index(self) -> dict[str, int]:
        """The index of each run; looked up for every run of a study, of which there may be thousands."""
        return {run_id: index for index, run_id in enumerate(self.runs)}

    def write(self, folder: Path) -> None:
        with replace_file(folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n")


def submissions_folder(directory: Path) -> Path:
    """Where a sweep's submissions and what submitit writes for them are."""
    return directory / "submissions"


def read_submissions(directory: Path) -> list[Submission]:
    """A sweep's submissions, the oldest first.

    Raises:
        ConfigError: a record that can't be read.
    """
    found = []
    for path in submissions_folder(directory).glob("*.json"):
        try:
            found.append(_record(json.loads(read_replaced(path))))
        except FileNotFoundError:  # another call has dropped it
            continue
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path}: damaged; cancel its jobs (squeue -n {path.stem}) and delete it"
            ) from None
    return sorted(found, key=lambda submission: submission.submitted)


def _record(values: dict[str, Any]) -> Submission:
    """A submission as its record has it; raises what a record without a key or of other types happens to raise.

    Keys that only other versions know count for nothing.
    """
    lists = {
        key: tuple(values[key]) for key in ("runs", "cancelled") if isinstance(values[key], list)
    }
    known = {field.name for field in dataclasses.fields(Submission)}
    made = Submission(**{key: value for key, value in {**values, **lists}.items() if key in known})
    words = (
        made.name,
        *made.runs,
        *made.cancelled,
        *([] if made.job_id is None else [made.job_id]),
    )
    numbers = (made.gpus, made.at_once, *([] if made.user is None else [made.user]))
    if (
        len(lists) < 2
        or not all(isinstance(word, str) for word in words)
        or any(type(n) is not int for n in numbers)
    ):
        raise TypeError
    return dataclasses.replace(made, submitted=0.0 + made.submitted)


@contextmanager
def lease_submissions(directory: Path, held: Lease | None = None) -> Iterator[Lease]:
    """The right to change a sweep's submissions; another call that is at work is waited for a while.

    Whoever has it already gives it as `held`, and keeps it.

    Raises:
        BusyError: it stays at work.
        RunError: another user has submitted the sweep, whose jobs nobody else can see or cancel.
    """
    if held is not None:
        yield held
        return
    path, limit = submissions_folder(directory) / "lease", time.monotonic() + WAIT_S
    others = {item.user for item in read_submissions(directory)} - {None, os.geteuid()}
    if others:
        raise RunError(
            f"{directory}: submitted by {_user_name(others.pop())}, who alone can submit, cancel or retry its runs; "
            "give a study of your own another name (name=...)"
        )
    while True:
        with take_lease(path, settle_s=0.1) as lease:
            if lease:
                yield lease
                return
        if time.monotonic() > limit:
            who = holder_of(path)
            raise BusyError(
                f"{directory}: another isoflop command{f' ({who})' if who else ''} is at work here; wait for it"
            )
        time.sleep(1.0)


def _user_name(number: int | None) -> str:
    try:
        return pwd.getpwuid(number or 0).pw_name
    except KeyError:
        return f"user {number}"
