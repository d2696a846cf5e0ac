"""A study of three runs that need no data, submitted to a fake SLURM."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isoflop.config.profile import Profile, load_profile
from isoflop.launching.queue import submit_array as queueing
from isoflop.launching.queue.arrays import Array
from isoflop.launching.queue.submission_plan import SubmissionPlan
from isoflop.launching.queue.submit_array import submit_array
from isoflop.launching.records import code_snapshot as snapshot
from isoflop.launching.records import submissions
from isoflop.launching.records.study_files import write_study_profile
from isoflop.launching.records.submissions import Submission, read_submissions, submissions_folder
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.submit import submit
from isoflop.lease import take_lease
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory
from support.fake_slurm import FakeSlurm
from support.slurm_bed import PROFILE
from support.tiny_studies import tiny_plan

SIMULATED = "train.trainer=simulated: chinchilla"
BUSY = "slurm_load_jobs error: Unable to contact slurm controller"
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@dataclass
class Study:
    """A study with its cluster and profile."""

    slurm: FakeSlurm
    folder: Path
    plan: Plan
    profile: Profile

    @property
    def directory(self) -> Path:
        return self.folder / "runs" / "tiny"

    @property
    def ids(self) -> list[str]:
        return [run.run_id for run in self.plan.runs]

    def run(self, number: int) -> RunDirectory:
        return RunDirectory(self.directory / self.ids[number])

    def prepare(self) -> None:
        """Make the runs' directories, as a submission does."""
        make_directory(self.plan, self.directory.parent)

    def submit(self, **options: Any) -> SubmissionPlan:
        return submit(self.plan, self.profile, **options)

    def submit_runs(self) -> Submission:
        """Queue an array of all runs without the earlier steps of a submission."""
        return submit_array(
            Array(self.plan.runs, 0, 1, 3), self.profile, self.directory, self.folder / "code"
        )

    def queued(self) -> Submission:
        """Write the files of a submitted study without submitting it, which takes longer."""
        self.prepare()
        write_study_profile(self.profile, self.directory)
        made = Submission("tiny-1", tuple(self.ids), 0, time.time(), "100")
        made.write(submissions_folder(self.directory))
        queue = {f"100_{index}": ["PENDING", "", "Priority"] for index in range(len(self.ids))}
        self.slurm.change(jobs={"100": {"name": made.name, "hidden": False}}, queue=queue, next=101)
        return made

    def half_made(self, name: str = "tiny-half") -> Submission:
        """Leave the files of a call that was killed before it had a job id."""
        made = Submission(name, tuple(self.ids), 0, 1.0)
        made.write(submissions_folder(self.directory))
        (submissions_folder(self.directory) / name).mkdir()
        return made

    def records(self) -> list[Path]:
        return sorted(submissions_folder(self.directory).glob("*.json"))

    def has_pickles(self) -> bool:
        """Return whether every task of every submission finds its pickled job."""
        for made in read_submissions(self.directory):
            for run_id in made.runs:
                file = (
                    submissions_folder(self.directory)
                    / made.name
                    / f"{made.task(run_id)}_submitted.pkl"
                )
                if not file.exists():
                    return False
                job = pickle.loads(file.read_bytes()).function
                if str(self.directory / run_id) not in vars(job).values():
                    return False
        return True


def make_study(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Study:
    slurm = FakeSlurm.make(folder / "slurm")
    (package := folder / "package").mkdir()
    (package / "code.py").touch()
    monkeypatch.setattr(snapshot, "PACKAGE", package)  # the whole package is slow to copy
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(queueing, "PAUSES_S", (0.001, 0.002, 0.004))
    monkeypatch.setattr(submissions, "LEASE_WAIT_S", 0.0)
    monkeypatch.setenv("PATH", str(slurm.folder))
    made = load_profile(PROFILE, {"root": str(folder / "runs")})
    return Study(slurm, folder, tiny_plan(folder, SIMULATED, *overrides), made)


def act_meanwhile(study: Study, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Hold the submissions lease; the next call waits until `act` has run and the lease is free."""
    work = ExitStack()
    assert work.enter_context(take_lease(submissions_folder(study.directory) / "lease"))

    def sleep(_: float) -> None:
        work.close()
        act()

    monkeypatch.setattr(submissions, "LEASE_WAIT_S", 60.0)
    monkeypatch.setattr(submissions, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
