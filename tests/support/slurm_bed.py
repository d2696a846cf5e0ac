"""A true SLURM for tests: the test bed of `slurm/testbed`, and studies submitted to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.profile import Profile, load_profile
from isoflop.launching.control import query_status
from isoflop.launching.queue.sweep_status import SweepStatus
from isoflop.launching.submit import submit
from isoflop.planning.plan import Plan
from isoflop.process_info import start_time
from isoflop.runs.run_directory import RunDirectory
from support.tiny_studies import exact, tiny_plan, wait_for, write_corpus

SCRIPT = Path(__file__).parents[2] / "slurm" / "testbed" / "testbed.sh"
PROFILE = SCRIPT.parents[1] / "testbed.yaml"

LONG = ("budgets=[2.0e9]", "widths=[8, 12]", "data.tokens.pocket=8.0e4", "data.max_epochs=1000")
"""Two runs of about 1,500 steps, which take seconds."""


@dataclass(frozen=True)
class Bed:
    """A test bed that is up, in its folder."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str) -> str:
        """Calls the test bed's script."""
        return self.run(str(SCRIPT), *arguments)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    def restart_crashed_controller(self) -> None:
        """Start slurmctld if it is gone, as systemd does on clusters.

        The one of SLURM 22.05.8 has crashed while it answered about a requeued job.
        """
        pid_file = self.folder / "pid" / "slurmctld"  # a test that stops it removes the file
        if pid_file.exists() and start_time(int(pid_file.read_text())) is None:
            pid_file.unlink()  # its process may be a zombie
            self("ctld-start")


@contextmanager
def open_bed(folder: Path, port: int, *, accounting: bool) -> Iterator[Bed]:
    """A cluster of its own, in `folder`; the test is skipped where SLURM is not installed."""
    needed = [
        "slurmctld",
        "slurmd",
        "munged",
        "sbatch",
        *(["slurmdbd", "mariadbd"] if accounting else []),
    ]
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if missing := [program for program in needed if shutil.which(program, path=path) is None]:
        pytest.skip(
            f"{' and '.join(missing)} not installed; get them with: sudo make slurm-install"
        )
    settings = {
        "TESTBED": str(folder),
        "TESTBED_PORT": str(port),
        "TESTBED_ACCOUNTING": str(int(accounting)),
    }
    bed = Bed(folder, {**settings, "SLURM_CONF": str(folder / "etc" / "slurm.conf")})
    try:
        bed("up")
        yield bed
    finally:
        bed("down")


ACCOUNTING = pytest.param(True, id="accounting")
NO_ACCOUNTING = pytest.param(False, id="no-accounting")
"""A cluster of each kind is up once a session: its tests run in one process (`scheduling`)."""
WITH_ACCOUNTING = pytest.mark.parametrize("bed", [ACCOUNTING], indirect=True)
WITHOUT_ACCOUNTING = pytest.mark.parametrize("bed", [NO_ACCOUNTING], indirect=True)
"""For tests that need one kind of cluster, or for which the kind makes no difference."""
LONG_WITHOUT_ACCOUNTING = pytest.mark.parametrize(
    "bed",
    [ACCOUNTING, pytest.param(False, id="no-accounting", marks=pytest.mark.long)],
    indirect=True,
)
LONG_WITH_ACCOUNTING = pytest.mark.parametrize(
    "bed",
    [NO_ACCOUNTING, pytest.param(True, id="accounting", marks=pytest.mark.long)],
    indirect=True,
)
"""For tests on both kinds that differ little: one kind runs only with the long repetitions."""


@dataclass(frozen=True)
class Submitted:
    """A study on a test bed."""

    bed: Bed
    directory: Path
    plan: Plan
    profile: Profile

    def submit(self, **options: Any) -> Any:
        return submit(self.plan, self.profile, **options)

    def query(self) -> SweepStatus:
        self.bed.restart_crashed_controller()
        return query_status(self.directory, self.profile.retries)

    @property
    def runs(self) -> list[RunDirectory]:
        return [RunDirectory(self.directory / run.run_id) for run in self.plan.runs]

    def wait(self, happened: Callable[[SweepStatus], Any], seconds: float = 300.0) -> SweepStatus:
        """Looks until it has happened."""
        limit = time.monotonic() + seconds
        while not happened(status := self.query()):
            assert time.monotonic() < limit, (status.runs, self.words())
            time.sleep(0.5)
        return status

    def wait_for_step(self, step: int, number: int = 0) -> None:
        """Until a run has a checkpoint at `step` or later."""
        wait_for(lambda: self.runs[number].checkpointed_step() >= step, 240)

    def finish(self, seconds: float = 400.0, *, resubmit: bool = False) -> None:
        """Until every run is done; `resubmit` as a supervisor does."""

        def done(status: SweepStatus) -> bool:
            if resubmit and (status.held or any(run.retry for run in status.runs.values())):
                self.submit()
            assert resubmit or not status.ids("failed"), (status.runs, self.words())
            return all(run.state == "done" for run in status.runs.values())

        self.wait(done, seconds)

    def words(self) -> str:
        """What the jobs wrote, for a failure's message."""
        logs = [
            *self.directory.glob("submissions/*/*_log.err"),
            *self.directory.glob("*/attempts/*/log.txt"),
        ]
        return "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in logs)

    def equals(self, undisturbed: Path) -> None:
        """Every loss log is that of a study that nothing disturbed, and has each step once."""
        for run in self.runs:
            log, wanted = exact(run), exact(RunDirectory(undisturbed / run.run_id))
            assert log.equals(wanted), run.run_id
            assert not log.duplicated(["step", "split", "kind"]).any()


def submitted(
    bed: Bed, folder: Path, *overrides: str, options: tuple[str, ...] = (), **profile: Any
) -> Submitted:
    """A study of two runs of some seconds with its corpus, ready to be submitted to a test bed."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, root = tiny_plan(folder, *LONG, *overrides), folder / "runs"
    write_corpus(root, plan)
    changes = [f"root={root}", *options, *(f"{key}={value}" for key, value in profile.items())]
    return Submitted(bed, root / plan.sweep.name, plan, load_profile(PROFILE, changes))


def find_worker(study: Submitted, number: int = 0, rank: int = 0) -> int:
    """Return the process that trains a run, as this machine numbers it.

    Another cluster may have a job of the same number, so the study's folder is matched too.
    """
    job_id, directory = study.runs[number].state()["job_id"], str(study.directory).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" not in arguments or arguments[0].endswith(b"srun"):
                continue
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if not any(argument.startswith(directory) for argument in arguments):
            continue
        environment = dict(item.split(b"=", 1) for item in variables if b"=" in item)
        task = b"%b_%b" % (
            environment.get(b"SLURM_ARRAY_JOB_ID", b""),
            environment.get(b"SLURM_ARRAY_TASK_ID", b""),
        )
        names = {task.decode(), environment.get(b"SLURM_JOB_ID", b"").decode()}
        if job_id in names and environment.get(b"SLURM_PROCID") == b"%d" % rank:
            return int(folder.name)
    raise AssertionError(f"no process trains {job_id}")


TWO_NODES = (
    "slurm.ntasks_per_node=1",
    "slurm.nodes=2",
    "slurm.cpus_per_task=1",
    "slurm.mem_per_cpu=1500",
)
"""Options of a profile: a process on each of two nodes."""
