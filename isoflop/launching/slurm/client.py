"""Client of SLURM's commands: queue, accounting, limits; each call may fail or hang.

A failed call raises `ClusterError` and proves nothing about any job.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress

from isoflop.errors import ClusterError
from isoflop.launching.slurm.tasks import Task

SLURM_TIMEOUT_S = 30.0
DEFAULT_MAX_ARRAY_SIZE = 1001
DEFAULTS_PREFIXES = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")
"""Prefixes of variables that change the programs' defaults; sbatch's override the script."""


def queue(users: Iterable[int] = ()) -> dict[str, Task]:
    """Return the controller's jobs by task id, in one call of squeue.

    They include jobs that ended some minutes ago.

    Args:
        users: numbers of other users whose jobs are included.

    Raises:
        ClusterError: the controller does not answer.
    """
    return {task.id: task for task in _in_queue("-r", users=users)}


def find_job_id(name: str, *, active: bool = False) -> str | None:
    """Return the id of the job or array with a name, by the controller or, if any, accounting.

    Records of rejected jobs are ignored.

    Args:
        name: the job's name.
        active: ignore ended jobs too.

    Raises:
        ClusterError: the controller does not answer.
    """
    jobs = [task for task in _in_queue("-n", name) if task.active or not (active or task.refused)]
    if not jobs and not active:
        with suppress(ClusterError):
            recent = _in_accounting("--name", name, "-S", "now-30days")
            jobs = [task for task in recent if not task.refused]
    return jobs[0].id.partition("_")[0] if jobs else None


def _in_queue(*options: str, users: Iterable[int] = ()) -> list[Task]:
    """Return jobs of users, including hidden partitions.

    Users go by number: the controller may not know a user's name.
    """
    numbers = ",".join(map(str, sorted({os.geteuid(), *users})))
    output = call("squeue", "-h", "-a", "-t", "all", "-u", numbers, *options, "-o", "%i|%T|%N|%r")
    return [_parse_queue_line(line) for line in output.splitlines() if line.count("|") >= 3]


def accounting(job_ids: Iterable[str]) -> dict[str, Task]:
    """Return accounting's records of jobs and arrays by task id, in one call of sacct.

    Raises:
        ClusterError: accounting does not run or does not answer.
    """
    ids = ",".join(job_ids)
    if not ids:
        return {}
    return {task.id: task for task in _in_accounting("-j", ids)}


def _in_accounting(*options: str) -> list[Task]:
    output = call("sacct", "-n", "-X", "-P", *options, "-o", "JobID,State,NodeList,ExitCode")
    return [
        task
        for line in output.splitlines()
        if line.count("|") == 3
        for task in _parse_accounting_line(*line.split("|"))
    ]


def max_array_size() -> int:
    """Return MaxArraySize of the controller's configuration: the highest index of an array + 1."""
    try:
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    except ClusterError:
        match = None
    return max(1, int(match[1])) if match else DEFAULT_MAX_ARRAY_SIZE


def query_state(job_id: str) -> str:
    """Return the controller's state of one job; empty if the controller has forgotten it."""
    return call("squeue", "-h", "-a", "-j", job_id, "-o", "%T").strip()


def nodes() -> set[str]:
    """Return the names of all nodes."""
    return set(call("sinfo", "-h", "-N", "-a", "-o", "%N").split())


def release(ids: Iterable[str]) -> None:
    """Release jobs that SLURM holds."""
    for task in ids:
        call("scontrol", "release", task)


def throttle(array: str, at_once: int) -> None:
    """Set the number of tasks of an array that may run at once; running ones continue."""
    call("scontrol", "update", f"jobid={array}", f"arraytaskthrottle={at_once}")


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs and tasks of arrays; ended ones are no error."""
    for batch in _batches(list(ids), 500):
        call("scancel", "--quiet", *batch)


def call(program: str, *arguments: str) -> str:
    """Return the output of a program of SLURM, unaffected by the user's environment.

    Raises:
        ClusterError: the program is missing, does not answer in time, or fails.
    """
    check(program)
    command, plain = [program, *arguments], plain_environment()
    try:
        done = subprocess.run(
            command, env=plain, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{program}: no answer in {SLURM_TIMEOUT_S:.0f} s; the same command may work later"
        ) from None
    if done.returncode and "configuration source" in done.stderr:
        raise ClusterError(
            f"{program}: finds no cluster; is this a login node? SLURM_CONF names its slurm.conf"
        )
    if done.returncode:
        raise ClusterError(
            f"{program}: {' '.join(done.stderr.split()) or f'failed with {done.returncode}'}"
        )
    return done.stdout


def plain_environment() -> dict[str, str]:
    """Return this process's variables without those that change SLURM's defaults."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(DEFAULTS_PREFIXES)
    }


def check(*programs: str) -> None:
    """Raise ClusterError if a program of SLURM is not on the PATH."""
    for program in programs:
        if shutil.which(program) is None:
            raise ClusterError(
                f"{program}: not found; "
                "is this a login node of the cluster, with SLURM on the PATH?"
            )


def _parse_queue_line(line: str) -> Task:
    job, state, node, reason = line.split("|", 3)
    return Task(job, state, "" if reason == "None" else reason, node)


def _parse_accounting_line(job: str, state: str, node: str, exit_code: str) -> list[Task]:
    word = state.split()[0] if state.split() else ""  # "CANCELLED by 0"
    node = "" if node == "None assigned" else node
    return [Task(task, word, "", node, exit_code) for task in expand(job)]


def expand(job: str) -> list[str]:
    """Return the tasks of an id: `12_[3,5-6%2]` is 12_3, 12_5 and 12_6."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if match is None:
        return [job]
    indices: list[int] = []
    for item in match[2].split(","):
        span, _, step = item.partition(":")
        first, _, last = span.partition("-")
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{match[1]}_{index}" for index in indices]


def _batches(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[first : first + size] for first in range(0, len(items), size))
