"""Calibration of a cluster: short jobs that train each shape class on random tokens and time it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.config.identity import data_hash
from isoflop.config.profile import Profile
from isoflop.config.schema import Sweep
from isoflop.errors import MAX_MESSAGE_CHARACTERS, ClusterError, ConfigError, RunError
from isoflop.launching.queue.reconcile import OUT_OF_MEMORY, explain, never_starts
from isoflop.launching.queue.submit_array import queue_job
from isoflop.launching.records.code_snapshot import snapshot_code
from isoflop.launching.records.sweep_directory import run_config
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.tasks import Task
from isoflop.launching.worker.calibration_job import (
    REQUEST_FILE,
    Group,
    MeasureJob,
)
from isoflop.lease import take_lease
from isoflop.planning.calibration import (
    Calibration,
    calibration_file,
    choose_classes,
    read_calibration,
    write_calibration,
)
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.wall_time import max_job_hours
from isoflop.runs.run_directory import RunDirectory

MANY_STEPS = 10**6
"""Steps in the schedule of a measured run: more than it can reach."""

JOB_HOURS = 1.0
"""Time limit of a job, unless the profile's is shorter: short jobs start sooner."""

MEASUREMENTS_POLL_S = 0.5
MISSING_JOB_TIMEOUT_S = 20.0
"""Longest delay of a job's entry in the queue, or of its results on a shared file system."""

JOB_NAME = "job_name"


def calibrate(
    plan: Plan,
    profile: Profile,
    root: Path,
    *,
    seconds: float = 20.0,
    wait_s: float = 1800.0,
    report_line: Callable[[str], None] = lambda _: None,
) -> tuple[Calibration, Path]:
    """Measure speed and memory of a plan's classes on a cluster and save them with earlier ones.

    Args:
        plan: the study, with its bill if the profile has GPUs.
        profile: the cluster; with `executor: local` this machine, one run at a time.
        root: folder of runs, shared by all nodes.
        seconds: seconds to time each class.
        wait_s: seconds that a job may wait in the queue.
        report_line: called with a line of text for each event.

    Returns:
        All measurements so far, and their file.

    Raises:
        ConfigError: a trainer that isoflop can't time, a job that the cluster refuses, or a
            damaged file.
        ClusterError: no SLURM, or jobs that fail or don't start; earlier measurements are kept.
        RunError: another process measures the same.
    """
    if plan.sweep.train.trainer != "builtin":
        raise ConfigError(
            "train.trainer: only the builtin trainer can be measured; "
            "time other trainers outside isoflop"
        )
    if profile.executor == "slurm":
        slurm.queue()  # raises before any file is written if the cluster does not answer
    file = calibration_file(root, plan.sweep, profile)
    known = read_calibration(root, plan.sweep, profile)
    with take_lease(file.with_name(f".{file.stem}.lease"), settle_s=0.1) as lease:
        if not lease:
            raise RunError(f"{file}: another `isoflop calibrate` is running; wait for it")
        with _work_folder(file) as work:
            groups = _prepare(plan, work, seconds)
            for group in groups:
                widths = ", ".join(dict.fromkeys(str(run.width) for run in group.runs))
                report_line(
                    f"measuring {len(group.runs)} classes on {group.label}: widths {widths}"
                )
            try:
                if profile.executor == "slurm":
                    _measure_in_jobs(groups, profile, work, wait_s, report_line)
                else:
                    _measure_locally(groups)
            finally:
                calibration = (known or Calibration(())).merge(
                    measurement for group in groups for measurement in group.measurements()
                )
                if calibration != known and calibration.measurements:
                    write_calibration(root, plan.sweep, profile, calibration)
    return calibration, file


@contextmanager
def _work_folder(file: Path) -> Iterator[Path]:
    """Create the folder of measured runs and remove it at the end; requires the lease.

    Remove the jobs and files of a killed call first.
    """
    work = file.with_name(f".{file.stem}")
    _remove(work)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        with suppress(ClusterError):
            _remove(work)


def _remove(work: Path) -> None:
    """Cancel the jobs that work in a folder, then remove it."""
    for record in work.glob(f"*/{JOB_NAME}"):
        if job_id := slurm.find_job_id(record.read_text()):
            slurm.cancel([job_id])
    shutil.rmtree(work, ignore_errors=True)


def _prepare(plan: Plan, work: Path, seconds: float) -> list[Group]:
    """Write the classes as runs of one corpus of random tokens, and return them by resources."""
    classes = choose_classes(plan.runs)
    write_tokens(plan.sweep, work, max(run.batch_size for run in classes))
    folders: dict[Path, list[RunSpec]] = {}
    for run in classes:
        folders.setdefault(work / f"{run.gpus or 0}x{run.nodes or 1}", []).append(run)
    for folder, runs in folders.items():
        for run in runs:
            config = run_config(plan.sweep, run)
            config["run"]["steps"] = MANY_STEPS
            RunDirectory(folder / run.run_id).create(config)
        order = {
            "seconds": seconds,
            "gpus": runs[0].gpus or 0,
            "runs": [run.run_id for run in runs],
        }
        (folder / REQUEST_FILE).write_text(json.dumps(order))
    return [Group(folder, tuple(runs)) for folder, runs in folders.items()]


def write_tokens(sweep: Sweep, work: Path, windows: int) -> None:
    """Write a corpus of windows of random ids from the sweep's vocabulary."""
    import numpy as np

    from isoflop.data.shards import Manifest, write_shard
    from isoflop.data.vocabulary import build_vocabulary

    ids = build_vocabulary(sweep.data.codec, sweep.data.text_tokenizer)
    folder, generator = work / "data" / data_hash(sweep.data), np.random.default_rng(0)
    shards = tuple(
        write_shard(
            folder,
            split,
            split,
            [generator.integers(0, ids.size, count * sweep.seq_len + 1)],
            0.0,
            ids,
        )
        for split, count in {sweep.metric.set: 1, "train": windows}.items()
    )
    Manifest(ids, shards, {}, {}).write(folder)


# On this machine, and in jobs


def _measure_locally(groups: Sequence[Group]) -> None:
    """Measure each group in its own process, like `isoflop run`: one GPU, or one core, per run."""
    code = f"import sys; from {MeasureJob.__module__} import MeasureJob; MeasureJob(sys.argv[1])()"
    for group in groups:
        command = [sys.executable, "-c", code, str(group.folder)]
        process = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        group.check()
        if process.returncode:
            raise ClusterError(
                f"measuring on {group.label} ended with {process.returncode}: "
                f"{_last_line(process.stderr)}"
            )


def _measure_in_jobs(
    groups: Sequence[Group],
    profile: Profile,
    work: Path,
    wait_s: float,
    report_line: Callable[[str], None],
) -> None:
    """Queue a job for each group and wait for all of them."""
    hours = min(JOB_HOURS, max_job_hours(profile))
    short = replace(profile, slurm={**profile.slurm, "time": f"{math.ceil(60 * hours)}:00"})
    code, _ = snapshot_code(work)
    pending: dict[str, _PendingJob] = {}
    for group in groups:
        name = f"isoflop-calibrate-{uuid.uuid4().hex[:8]}"
        (group.folder / JOB_NAME).write_text(name)
        tasks = max(1, group.gpus // group.nodes)
        job = MeasureJob(str(group.folder))
        job_id = queue_job(
            job,
            short,
            group.folder / "job",
            code,
            name,
            gpus=group.gpus,
            nodes=group.nodes,
            tasks=tasks,
        )
        report_line(f"queued {job_id}: {group.label}")
        pending[job_id] = _PendingJob(group, time.monotonic() + wait_s)
    while pending:
        time.sleep(MEASUREMENTS_POLL_S)
        try:
            queue = slurm.queue()
        except ClusterError:
            if time.monotonic() > max(entry.queue_limit for entry in pending.values()):
                raise
            continue
        for job_id, entry in list(pending.items()):
            if entry.is_measured(job_id, queue.get(job_id), wait_s):
                del pending[job_id]
                (entry.group.folder / JOB_NAME).unlink()
                report_line(f"measured {entry.group.label}")


@dataclass
class _PendingJob:
    """Measuring job.

    Attributes:
        group: its classes.
        queue_limit: time until which it may wait in the queue, on the monotonic clock.
        missing_since: time since which the queue has not shown it.
    """

    group: Group
    queue_limit: float
    missing_since: float | None = None

    def is_measured(self, job_id: str, task: Task | None, wait_s: float) -> bool:
        """Return whether all classes are measured.

        Raises:
            ClusterError: a class or the job failed, it can never start, or it waits for too long.
        """
        self.group.check()
        if len(self.group.measurements()) == len(self.group.runs):
            return True
        name, now = f"job {job_id} on {self.group.label}", time.monotonic()
        if task is not None and task.waits:
            reason = explain(task.wait_reason) or "no reason given"
            if never_starts(task.wait_reason):
                raise ClusterError(f"{name} can never start: {reason}")
            if now > self.queue_limit:
                raise ClusterError(
                    f"{name} still waits after {wait_s:.0f} s ({reason}); wait longer with --wait S"
                )
        if task is not None and task.active:
            self.missing_since = None
        elif self.missing_since is None:
            self.missing_since = now
        elif now - self.missing_since > MISSING_JOB_TIMEOUT_S:
            logs = self.group.folder.glob("job/*_log.err")
            log = "".join(path.read_text(errors="replace") for path in logs)
            problem = _last_line(log)
            if OUT_OF_MEMORY.search(log):
                problem = "out of memory: raise slurm.mem or mem_per_cpu"
            state = task.state.lower() if task else "gone"
            raise ClusterError(f"{name} ended before all was measured ({state}): {problem}")
        return False


def _last_line(text: str) -> str:
    """Return the last line of a process's output, those of srun only if there are no others."""
    lines = [
        line for line in text.strip().splitlines() if not line.startswith("srun: ")
    ] or text.strip().splitlines()
    return lines[-1][-MAX_MESSAGE_CHARACTERS:] if lines else "it wrote nothing"
