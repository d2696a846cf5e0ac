"""Measuring a cluster: short jobs that each train a few classes of runs on random tokens, and what they found."""

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
from isoflop.errors import ClusterError, ConfigError, RunError
from isoflop.launching.queue.reconcile import OUT_OF_MEMORY, explain, is_hopeless
from isoflop.launching.queue.submit_array import queue_job
from isoflop.launching.records.code_snapshot import study_code
from isoflop.launching.records.sweep_directory import run_config
from isoflop.launching.slurm import client as slurm
from isoflop.launching.worker.calibration_job import LAST_WORDS, ORDER, Group, MeasureJob
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
from isoflop.planning.wall_time import time_limit_hours
from isoflop.runs.run_directory import RunDirectory

MANY_STEPS = 10**6
"""Of a measured run, so that its schedule never ends."""

JOB_HOURS = 1.0
"""Time limit of a job, where the profile's is not shorter: short jobs start sooner."""

POLL_S = 0.5
GONE_S = 20.0
"""How long a job that the queue does not show may still be on its way, or its last words on a shared file system."""

JOB_NAME = "job_name"


def calibrate(
    plan: Plan,
    profile: Profile,
    root: Path,
    *,
    seconds: float = 20.0,
    wait_s: float = 1800.0,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Calibration, Path]:
    """Measures speed and memory of a plan's classes on a cluster, and keeps them beside earlier ones.

    Args:
        plan: the study, with its bill where the profile has GPUs.
        profile: the cluster; with `executor: local` it is this machine, one run at a time.
        root: the folder of runs, which all nodes share.
        seconds: how long each class is timed.
        wait_s: how long a job may wait in the queue.
        tell: told what happens, a line each.

    Returns:
        All that is measured now, and its file.

    Raises:
        ConfigError: a trainer that isoflop does not time, what the cluster refuses, or a file that is damaged.
        ClusterError: no SLURM, or jobs that fail or don't start; what was measured before that is kept.
        RunError: another process measures the same.
    """
    if plan.sweep.train.trainer != "builtin":
        raise ConfigError(
            "train.trainer: only the builtin trainer can be measured; time another one by itself"
        )
    if profile.executor == "slurm":
        slurm.queue()  # a cluster that does not answer is found before anything is made
    file, known = (
        calibration_file(root, plan.sweep, profile),
        read_calibration(root, plan.sweep, profile),
    )
    with take_lease(file.with_name(f".{file.stem}.lease"), settle_s=0.1) as lease:
        if not lease:
            raise RunError(f"{file}: another `isoflop calibrate` is at work; wait for it")
        with _work_folder(file) as work:
            groups = _prepare(plan, work, seconds)
            for group in groups:
                widths = ", ".join(dict.fromkeys(str(run.width) for run in group.runs))
                tell(f"measuring {len(group.runs)} classes on {group.label}: widths {widths}")
            try:
                if profile.executor == "slurm":
                    _measure_in_jobs(groups, profile, work, wait_s, tell)
                else:
                    _measure_here(groups)
            finally:
                calibration = (known or Calibration(())).with_more(
                    one for group in groups for one in group.found()
                )
                if calibration != known and calibration.measurements:
                    write_calibration(root, plan.sweep, profile, calibration)
    return calibration, file


@contextmanager
def _work_folder(file: Path) -> Iterator[Path]:
    """A folder for what is measured, for who holds the lease; what a killed call left there goes first."""
    work = file.with_name(f".{file.stem}")
    _remove(work)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        with suppress(ClusterError):
            _remove(work)


def _remove(work: Path) -> None:
    """Cancels the jobs that work in a folder, and removes it."""
    for record in work.glob(f"*/{JOB_NAME}"):
        if job_id := slurm.named(record.read_text()):
            slurm.cancel([job_id])
    shutil.rmtree(work, ignore_errors=True)


def _prepare(plan: Plan, work: Path, seconds: float) -> list[Group]:
    """The classes as runs that a trainer can open, on one corpus of random tokens."""
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
        (folder / ORDER).write_text(json.dumps(order))
    return [Group(folder, tuple(runs)) for folder, runs in folders.items()]


def write_tokens(sweep: Sweep, work: Path, windows: int) -> None:
    """A corpus of some windows of random ids of the sweep's vocabulary."""
    import numpy as np

    from isoflop.data.shards import Manifest, write_shard
    from isoflop.data.vocabulary import vocabulary

    ids = vocabulary(sweep.data.codec, sweep.data.text_tokenizer)
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


def _measure_here(groups: Sequence[Group]) -> None:
    """Measures in a process of its own for each group, as `isoflop run` trains: one GPU, or one core, a run."""
    code = f"import sys; from {MeasureJob.__module__} import MeasureJob; MeasureJob(sys.argv[1])()"
    for group in groups:
        command = [sys.executable, "-c", code, str(group.folder)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        group.check()
        if done.returncode:
            raise ClusterError(
                f"measuring on {group.label} ended with {done.returncode}: {_last(done.stderr)}"
            )


def _measure_in_jobs(
    groups: Sequence[Group],
    profile: Profile,
    work: Path,
    wait_s: float,
    tell: Callable[[str], None],
) -> None:
    """Queues a job for each group, and waits for all of them."""
    hours = min(JOB_HOURS, time_limit_hours(profile))
    short = replace(profile, slurm={**profile.slurm, "time": f"{math.ceil(60 * hours)}:00"})
    code, _ = study_code(work)
    waiting: dict[str, _Waiting] = {}
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
        tell(f"queued {job_id}: {group.label}")
        waiting[job_id] = _Waiting(group, time.monotonic() + wait_s)
    while waiting:
        time.sleep(POLL_S)
        try:
            queue = slurm.queue()
        except ClusterError:
            if time.monotonic() > max(one.until for one in waiting.values()):
                raise
            continue
        for job_id, one in list(waiting.items()):
            if one.is_over(job_id, queue.get(job_id), wait_s):
                del waiting[job_id]
                (one.group.folder / JOB_NAME).unlink()
                tell(f"measured {one.group.label}")


@dataclass
class _Waiting:
    """A job that measures: until when it may wait in the queue, and since when the queue has nothing more of it."""

    group: Group
    until: float
    gone_since: float | None = None

    def is_over(self, job_id: str, task: slurm.Task | None, wait_s: float) -> bool:
        """Whether all is measured.

        Raises:
            ClusterError: a class or the job failed, or it waits for ever or for too long.
        """
        self.group.check()
        if len(self.group.found()) == len(self.group.runs):
            return True
        what, now = f"job {job_id} on {self.group.label}", time.monotonic()
        if task is not None and task.waits:
            reason = explain(task.reason) or "no reason given"
            if is_hopeless(task.reason):
                raise ClusterError(f"{what} waits for ever: {reason}")
            if now > self.until:
                raise ClusterError(
                    f"{what} still waits after {wait_s:.0f} s ({reason}); wait longer with --wait S"
                )
        if task is not None and task.active:
            self.gone_since = None
        elif self.gone_since is None:
            self.gone_since = now
        elif now - self.gone_since > GONE_S:
            logs = self.group.folder.glob("job/*_log.err")
            said = "".join(log.read_text(errors="replace") for log in logs)
            words = (
                "out of memory: raise slurm.mem or mem_per_cpu"
                if OUT_OF_MEMORY.search(said)
                else _last(said)
            )
            how = task.state.lower() if task else "gone"
            raise ClusterError(f"{what} ended before all was measured ({how}): {words}")
        return False


def _last(text: str) -> str:
    """The last line of what a process wrote."""
    lines = [
        line for line in text.strip().splitlines() if not line.startswith("srun: ")
    ] or text.strip().splitlines()
    return lines[-1][-LAST_WORDS:] if lines else "it wrote nothing"
