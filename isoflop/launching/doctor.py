"""Checks of a cluster against a profile, in order, each with its fix."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoflop.config.profile import Profile
from isoflop.config.sbatch import parse_time_limit
from isoflop.errors import ClusterError, ConfigError
from isoflop.launching.queue.reconcile import explain, never_starts
from isoflop.launching.records.code_snapshot import PACKAGE
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.signals import Job
from isoflop.launching.slurm.tasks import Task
from isoflop.text import bytes_text

WAIT_S = 120.0
PROBE_POLL_S = 0.5
PROBE_SETTLE_S = 2.0
NVIDIA_SMI_TIMEOUT_S = 60
MAX_LOG_CHARACTERS = 500
MAX_CLOCK_OFFSET_S = 30.0
PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
ADMINISTRATORS = "try again later, or ask the cluster's administrators"


@dataclass(frozen=True)
class Check:
    """Result of a check.

    Attributes:
        name: subject of the check, such as `partition`.
        passed: True if the cluster and the profile fit.
        result: state of the subject.
        fix: change that lets a failed check pass.
    """

    name: str
    passed: bool
    result: str
    fix: str = ""


@dataclass
class Probe(Job):
    """Job that writes the properties of its node into a folder."""

    def __call__(self) -> str:
        properties = {
            "node": os.uname().nodename,
            "time": time.time(),
            "python": sys.version.split()[0],
            "isoflop": version("isoflop"),
            "torch": version("torch"),
            "gpus": _count_gpus(),
            "scontrol": shutil.which("scontrol") is not None,
        }
        answer = Path(self.directory) / "answer.json"
        temporary = answer.with_suffix(".part")
        temporary.write_text(json.dumps(properties))
        temporary.rename(answer)
        return "seen"


def _count_gpus() -> int:
    """Return the number of GPUs that NVIDIA's driver shows to this process."""
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listing.stdout.splitlines())


def check_cluster(profile: Profile, root: Path, wait_s: float = WAIT_S) -> Iterator[Check]:
    """Yield the checks of a profile in order, without those that an earlier failure prevents.

    Args:
        profile: the cluster.
        root: folder of runs, shared by all nodes.
        wait_s: seconds to wait for a small job.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    programs = f"missing: {', '.join(missing)}" if missing else ", ".join(PROGRAMS)
    fix = "log in to a node of the cluster that has SLURM on its PATH"
    yield Check("programs", not missing, programs, fix)
    if missing:
        return
    try:
        slurm.queue()
    except ClusterError as problem:
        yield Check("controller", False, str(problem), ADMINISTRATORS)
        return
    yield Check("controller", True, f"answers; arrays of up to {slurm.max_array_size():,} runs")
    yield _check_accounting()
    partition = yield from _check_partitions(profile)
    folder = yield from _check_root(root)
    if partition and folder:
        yield from _check_node(profile, folder, wait_s)


def _check_accounting() -> Check:
    try:
        slurm.call("sacct", "-n", "-X", "-S", "now-1minutes", "-o", "JobID")
    except ClusterError as problem:
        result = f"not used: {problem}; runs are watched by the queue and their folders"
        return Check("accounting", True, result)
    return Check("accounting", True, "answers")


def _check_partitions(profile: Profile) -> Generator[Check, None, bool]:
    """Yield the check of the profile's partitions; return whether one of them takes its jobs."""
    try:
        lines = slurm.call("scontrol", "-a", "-o", "show", "partition").splitlines()
    except ClusterError as problem:
        yield Check("partition", False, str(problem), ADMINISTRATORS)
        return False
    partitions = {
        fields["PartitionName"]: fields
        for line in lines
        if (fields := dict(re.findall(r"(\w+)=(\S+)", line)))
    }
    option = str(profile.slurm.get("partition") or "")
    names = [name for name in re.split(r"[,\s]+", option) if name]
    if missing := [name for name in names if name not in partitions]:
        fix = f"slurm.partition: take one of {', '.join(partitions)}"
        yield Check("partition", False, f"{missing[0]!r} does not exist", fix)
        return False
    names = names or [name for name, fields in partitions.items() if fields.get("Default") == "YES"]
    if not names:
        yield Check("partition", False, "none is the default", "slurm.partition: name one")
        return False
    checks = [_check_partition(name, partitions[name], profile.slurm.get("time")) for name in names]
    # sbatch accepts several partitions: a job starts in the first that can take it.
    if not any(check.passed for check in checks):
        yield checks[0]
        return False
    yield Check("partition", True, "; ".join(check.result for check in checks))
    return True


def _check_partition(name: str, fields: dict[str, str], time_limit: str | None) -> Check:
    """Return the check that a partition takes jobs of a time limit."""
    state, max_time = fields.get("State", "?"), fields.get("MaxTime", "UNLIMITED")
    if state != "UP":
        return Check("partition", False, f"{name} is {state}", "slurm.partition: another one")
    if time_limit is not None and parse_time_limit(time_limit) > parse_time_limit(max_time):
        result = f"{name} allows {max_time}, slurm.time asks for {time_limit}"
        return Check("partition", False, result, f'slurm.time: "{max_time}"')
    result = f"{name}, {fields.get('TotalNodes')} nodes, up to {max_time} a job"
    return Check("partition", True, result)


def _check_root(root: Path) -> Generator[Check, None, Path | None]:
    """Yield the check that the folder of runs is writable; return a folder in it for the probe."""
    folder = root / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        fix = "root: a folder that you may write to"
        yield Check("root", False, f"{root}: {problem.strerror}", fix)
        return None
    free = shutil.disk_usage(root).free
    yield Check("root", True, f"{root}, {bytes_text(free)} free")
    return folder


def _check_node(profile: Profile, folder: Path, wait_s: float) -> Iterator[Check]:
    """Yield the checks of a job on a node: shared folder, Python, GPUs and clock."""
    from isoflop.launching.queue.submit_array import queue_job

    job_id = None
    try:
        gpus = profile.gpu.per_node if profile.gpu is not None else 0
        job_id = queue_job(
            Probe(str(folder)),
            profile,
            folder,
            PACKAGE.parent,
            f"isoflop-doctor-{folder.name[-8:]}",
            gpus=gpus,
        )
        start, answer, task = time.monotonic(), folder / "answer.json", None
        queued = time.time()
        while not answer.exists() and time.monotonic() - start < wait_s:
            task = slurm.queue().get(job_id)
            if task is not None and not task.active:
                time.sleep(PROBE_SETTLE_S)  # a shared file system may show the node's file late
                break
            if task is not None and task.waits and never_starts(task.wait_reason):
                break
            time.sleep(PROBE_POLL_S)
        if not answer.exists():
            yield _no_answer(task, folder, time.monotonic() - start)
            return
        properties, answered = json.loads(answer.read_text()), time.time()
    except (ConfigError, ClusterError) as problem:
        yield Check("job", False, str(problem), "the profile's key that is named")
        return
    finally:
        if job_id is not None:
            slurm.cancel([job_id])
        shutil.rmtree(folder, ignore_errors=True)
    yield from _check_properties(properties, profile, gpus)
    # The answer may be read late, so only a time outside queueing and reading is an offset.
    offset = max(0.0, queued - properties["time"], properties["time"] - answered)
    result = f"{offset:.0f} s off this machine's"
    yield Check("clock", offset < MAX_CLOCK_OFFSET_S, result, "the cluster's clocks (NTP)")


def _check_properties(properties: dict[str, Any], profile: Profile, gpus: int) -> Iterator[Check]:
    """Yield the checks of the properties of a node that a probe wrote."""
    yield Check("job", True, f"ran on {properties['node']}, which shares the folder")
    local_version = version("isoflop")
    versions = f"isoflop {properties['isoflop']}, torch {properties['torch']}"
    yield Check(
        "python",
        properties["isoflop"] == local_version,
        f"Python {properties['python']}, {versions}",
        f"python: the interpreter of an environment with isoflop {local_version}",
    )
    on_path = properties["scontrol"]
    yield Check(
        "requeue",
        on_path,
        f"scontrol {'is' if on_path else 'is not'} on the node's PATH",
        "setup: a line that puts SLURM's programs on the PATH, else preempted runs wait for the "
        "next submit",
    )
    if profile.gpu is not None:
        count = properties["gpus"]
        fix = "gpu.per_node, or how the cluster wants GPUs requested, e.g. slurm: {gres: ...}"
        yield Check("gpus", count >= gpus, f"{count} visible, {gpus} requested", fix)


def _no_answer(task: Task | None, folder: Path, waited_s: float) -> Check:
    """Return the failed check of a probe that wrote no answer."""
    if task is not None and task.waits and never_starts(task.wait_reason):
        fix = explain(task.wait_reason).partition(": ")[2]
        return Check("job", False, f"can never start: {task.wait_reason}", fix)
    if task is not None and task.waits:
        reason = explain(task.wait_reason) or "no reason given"
        result = f"still waits after {waited_s:.0f} s ({reason})"
        fix = "wait longer (--wait SECONDS) if the queue is long, else the key that is named"
        return Check("job", False, result, fix)
    if task is not None and task.active:
        result = f"still runs on {task.node} after {waited_s:.0f} s"
        return Check("job", False, result, "wait longer (--wait SECONDS)")
    log = _log_end(folder, "err") or _log_end(folder, "out") or "it wrote nothing"
    fix = (
        "setup: lines that fail there; root: a folder that all nodes share; "
        "python: an interpreter that all nodes have"
    )
    return Check("job", False, f"ended without an answer: {log}", fix)


def _log_end(folder: Path, stream: str) -> str:
    """Return the end of a job's log in one line; its folder is removed afterwards."""
    text = "".join(path.read_text(errors="replace") for path in folder.glob(f"*_log.{stream}"))
    return " ".join(text[-MAX_LOG_CHARACTERS:].split())
