"""Whether a cluster and a profile fit each other, checked one thing after the other, each with its mend."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.config.sbatch import hours_of
from isoflop.errors import ClusterError, ConfigError
from isoflop.launching.queue.reconcile import explain, is_hopeless
from isoflop.launching.records.code_snapshot import PACKAGE
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.signals import Job

WAIT_S = 120.0
POLL_S = 0.5
SETTLE_S = 2.0
LAST_WORDS = 500
CLOCK_S = 30.0
PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is `fine`, what was found, and how to mend it if it is not."""

    name: str
    fine: bool
    found: str
    mend: str = ""


@dataclass
class Probe(Job):
    """A job that looks around on a node, and writes what it sees into a folder."""

    def __call__(self) -> str:
        seen = {
            "node": os.uname().nodename,
            "time": time.time(),
            "python": sys.version.split()[0],
            "isoflop": version("isoflop"),
            "torch": version("torch"),
            "gpus": _gpus(),
            "scontrol": shutil.which("scontrol") is not None,
        }
        answer = Path(self.directory) / "answer.json"
        part = answer.with_suffix(".part")
        part.write_text(json.dumps(seen))
        part.rename(answer)
        return "seen"


def _gpus() -> int:
    """How many GPUs NVIDIA's driver shows here."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listed.stdout.splitlines())


def examine(profile: Profile, root: Path, wait_s: float = WAIT_S) -> Iterator[Check]:
    """The checks of a profile in order; those that the failure of another makes pointless are left out."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    mend = "log in to a node of the cluster that has SLURM on its PATH"
    yield Check(
        "programs",
        not missing,
        f"missing: {', '.join(missing)}" if missing else ", ".join(PROGRAMS),
        mend,
    )
    if missing:
        return
    try:
        slurm.queue()
    except ClusterError as problem:
        yield Check(
            "controller",
            False,
            str(problem),
            "try again later, or ask the cluster's administrators",
        )
        return
    yield Check("controller", True, f"answers; arrays of up to {slurm.max_array_size():,} runs")
    yield _accounting()
    partition = yield from _partition(profile)
    folder = yield from _root(root)
    if partition and folder:
        yield from _node(profile, folder, wait_s)


def _accounting() -> Check:
    try:
        slurm.call("sacct", "-n", "-X", "-S", "now-1minutes", "-o", "JobID")
    except ClusterError as problem:
        return Check(
            "accounting",
            True,
            f"not used: {problem}; runs are watched by the queue and their folders",
        )
    return Check("accounting", True, "answers")


def _partition(profile: Profile) -> Iterator[Check]:
    """Whether one of the profile's partitions can take its jobs; returns that too."""
    try:
        lines = slurm.call("scontrol", "-a", "-o", "show", "partition").splitlines()
    except ClusterError as problem:
        yield Check(
            "partition", False, str(problem), "try again later, or ask the cluster's administrators"
        )
        return False
    known = {
        fields["PartitionName"]: fields
        for line in lines
        if (fields := dict(re.findall(r"(\w+)=(\S+)", line)))
    }
    names = [
        name for name in re.split(r"[,\s]+", str(profile.slurm.get("partition") or "")) if name
    ]
    if missing := [name for name in names if name not in known]:
        mend = f"slurm.partition: take one of {', '.join(known)}"
        yield Check("partition", False, f"{missing[0]!r} does not exist", mend)
        return False
    names = names or [name for name, fields in known.items() if fields.get("Default") == "YES"]
    if not names:
        yield Check("partition", False, "none is the default", "slurm.partition: name one")
        return False
    checks = [_takes(name, known[name], profile.slurm.get("time")) for name in names]
    if not any(check.fine for check in checks):  # sbatch takes several; a job starts where it can
        yield checks[0]
        return False
    yield Check("partition", True, "; ".join(check.found for check in checks))
    return True


def _takes(name: str, fields: dict[str, str], asked: str | None) -> Check:
    """Whether a partition takes jobs of such a time."""
    state, most = fields.get("State", "?"), fields.get("MaxTime", "UNLIMITED")
    if state != "UP":
        return Check("partition", False, f"{name} is {state}", "slurm.partition: another one")
    if asked is not None and hours_of(asked) > hours_of(most):
        return Check(
            "partition",
            False,
            f"{name} allows {most}, slurm.time asks for {asked}",
            f'slurm.time: "{most}"',
        )
    return Check("partition", True, f"{name}, {fields.get('TotalNodes')} nodes, up to {most} a job")


def _root(root: Path) -> Iterator[Check]:
    """Whether the folder of runs can be written; returns a folder in it for the probe."""
    folder = root / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        yield Check(
            "root", False, f"{root}: {problem.strerror}", "root: a folder that you may write to"
        )
        return None
    free = shutil.disk_usage(root).free / 1e9
    yield Check("root", True, f"{root}, {free:,.0f} GB free")
    return folder


def _node(profile: Profile, folder: Path, wait_s: float) -> Iterator[Check]:
    """What a job sees of the same folder, of Python, of GPUs and of the time."""
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
        began, answer, task = time.monotonic(), folder / "answer.json", None
        queued = time.time()
        while not answer.exists() and time.monotonic() - began < wait_s:
            task = slurm.queue().get(job_id)
            if task is not None and not task.active:
                time.sleep(SETTLE_S)  # for a shared file system to show what the node has written
                break
            if task is not None and task.waits and is_hopeless(task.reason):
                break
            time.sleep(POLL_S)
        if not answer.exists():
            yield _no_answer(task, folder, time.monotonic() - began)
            return
        seen, answered = json.loads(answer.read_text()), time.time()
    except (ConfigError, ClusterError) as problem:
        yield Check("job", False, str(problem), "the profile's key that is named")
        return
    finally:
        if job_id is not None:
            slurm.cancel([job_id])
        shutil.rmtree(folder, ignore_errors=True)
    yield Check("job", True, f"ran on {seen['node']}, which shares the folder")
    same = seen["isoflop"] == version("isoflop")
    yield Check("python", same, f"Python {seen['python']}, isoflop {seen['isoflop']}, torch {seen['torch']}",
                f"python: the interpreter of an environment with isoflop {version('isoflop')}")  # fmt: skip
    yield Check(
        "requeue",
        seen["scontrol"],
        f"scontrol {'is' if seen['scontrol'] else 'is not'} on the node's PATH",
        "setup: a line that puts SLURM's programs on the PATH, else preempted runs wait for the next submit",
    )
    if profile.gpu is not None:
        mend = "gpu.per_node, or how the cluster wants GPUs asked for, e.g. slurm: {gres: ...}"
        yield Check("gpus", seen["gpus"] >= gpus, f"{seen['gpus']} seen, {gpus} asked for", mend)
    off = max(
        0.0, queued - seen["time"], seen["time"] - answered
    )  # a shared file system may show the answer late
    yield Check(
        "clock", off < CLOCK_S, f"{off:.0f} s off this machine's", "the cluster's clocks (NTP)"
    )


def _no_answer(task: slurm.Task | None, folder: Path, waited_s: float) -> Check:
    if task is not None and task.waits and is_hopeless(task.reason):
        return Check(
            "job", False, f"waits for ever: {task.reason}", explain(task.reason).partition(": ")[2]
        )
    if task is not None and task.waits:
        return Check("job", False, f"still waits after {waited_s:.0f} s ({explain(task.reason) or 'no reason given'})",
                     "wait longer (--wait SECONDS) where it is the queue, else the key that is named")  # fmt: skip
    if task is not None and task.active:
        return Check(
            "job",
            False,
            f"still runs on {task.node} after {waited_s:.0f} s",
            "wait longer (--wait SECONDS)",
        )
    words = _words(folder, "err") or _words(folder, "out") or "it wrote nothing"
    return Check("job", False, f"ended without an answer: {words}",
                 "setup: lines that fail there; root: a folder that all nodes share; python: an interpreter that all "
                 "nodes have")  # fmt: skip


def _words(folder: Path, kind: str) -> str:
    """The end of what the job wrote; its folder goes."""
    text = "".join(path.read_text(errors="replace") for path in folder.glob(f"*_log.{kind}"))
    return " ".join(text[-LAST_WORDS:].split())
