"""What SLURM says: the queue, accounting and limits, each from one call that may fail or hang.

A call that fails raises `ClusterError` and proves nothing about any job.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from isoflop.errors import ClusterError

TIMEOUT_S = 30.0
DEFAULT_MAX_ARRAY_SIZE = 1001
ENDED = frozenset(
    (
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "NODE_FAIL",
        "BOOT_FAIL",
        "DEADLINE",
        "REVOKED",
    )
)
"""States in which SLURM has nothing left to do for a job, once the queue shows it so."""

INTERRUPTED = frozenset(
    ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", "REQUEUED")
)
"""Last words of accounting that are not the run's fault."""

LAUNCH_FAILED = "launch failed requeued held"
"""Why SLURM holds a job of which a node could not start anything, such as one that still ran its last start."""

DEFAULTS_FROM = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")
"""Beginnings of variables that change what programs do: sbatch puts its own before what a script says."""

HOPELESS = {
    "PartitionTimeLimit": ("slurm.time", "is longer than the partition allows"),
    "PartitionNodeLimit": ("slurm.partition", "has fewer nodes than the run asks for"),
    "PartitionConfig": (
        "slurm.partition",
        "can't give what the run asks for: time, nodes, cores or memory",
    ),
    "PartitionDown": ("slurm.partition", "is down"),
    "PartitionInactive": ("slurm.partition", "is inactive"),
    "BadConstraints": ("slurm.constraint", "fits no node"),
    "InvalidAccount": ("slurm.account", "is not valid"),
    "InvalidQOS": ("slurm.qos", "is not valid"),
    "AccountNotAllowed": ("slurm.account", "may not use the partition"),
    "QOSNotAllowed": ("slurm.qos", "may not be used here"),
    "DependencyNeverSatisfied": ("slurm.dependency", "will never be satisfied"),
    "JobHeldUser": ("", "held by its user; release it with `scontrol release`"),
    "JobHeldAdmin": ("", "held by an administrator of the cluster"),
    LAUNCH_FAILED: (
        "",
        "a node could not start it, and SLURM holds it; the next submission releases it",
    ),
    "job requeued in held state": (
        "",
        "stopped and held (scontrol requeuehold); release it with `scontrol release`",
    ),
}
"""Reasons for which a job waits for ever: the profile's key to mend, and what is wrong with it."""

BEYOND_LIMITS = re.compile(r"(?:QOS|Assoc)\w*Max\w+PerJob\w*|QOSMin\w+|MaxMemPerLimit")
"""Reasons of jobs that ask for more, or less, than one job may; they wait for ever too."""

REFUSALS = (
    ("maxwall", "slurm.time"),
    ("accounting/qos policy", "slurm.qos, slurm.account or what a run asks for"),
    ("invalid partition", "slurm.partition"),
    ("invalid account", "slurm.account"),
    ("invalid qos", "slurm.qos"),
    ("invalid feature", "slurm.constraint"),
    ("invalid node name", "slurm.nodelist or slurm.exclude"),
    ("invalid wckey", "slurm.wckey"),
    ("memory specification", "slurm.mem or node.memory_gb"),
    ("time limit", "slurm.time"),
    ("node configuration is not available", "gpu.per_node, node or slurm.constraint"),
    ("generic resource", "gpu"),
    ("reservation", "slurm.reservation"),
    ("license", "slurm.licenses"),
    ("unrecognized option", "slurm"),
    ("invalid option", "slurm"),
    ("node count", "slurm.nodes"),
)
"""What sbatch says, in lower case, and the profile's key to mend."""

PASSING = (
    "socket timed out",
    "unable to contact slurm controller",
    "connection refused",
    "connection reset",
    "communication connection failure",
    "zero bytes were transmitted",
    "temporarily unable",
    "try again",
    "timed out",
    "backup controller in standby",
)
"""What sbatch says, in lower case, where the same command may succeed later."""

SUBMIT_LIMIT = "job submit limit"


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, as SLURM knows it: `id` is `<job>` or `<array>_<index>`."""

    id: str
    state: str
    reason: str = ""
    node: str = ""
    exit_code: str = ""

    @property
    def active(self) -> bool:
        return self.state not in ENDED

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"

    @property
    def refused(self) -> bool:
        """Whether it is what SLURM keeps of a job that it refused: one that failed, and never had a node to run on."""
        return self.state == "FAILED" and not self.node and self.reason != "NonZeroExitCode"


def queue(users: Iterable[int] = ()) -> dict[str, Task]:
    """Every job of this user, and of others by number, that the controller knows, ended ones too for some minutes, by
    id. One call of squeue.
    """
    return {task.id: task for task in _in_queue("-r", users=users)}


def named(name: str, *, active: bool = False) -> str | None:
    """The id of the job or array of this name, as the controller or, where it is kept, accounting knows it.

    What SLURM keeps of jobs that it refused does not count.

    Args:
        name: of the job.
        active: whether one that has ended does not count either.

    Raises:
        ClusterError: the controller does not answer.
    """
    found = [task for task in _in_queue("-n", name) if task.active or not (active or task.refused)]
    if not found and not active:
        with suppress(ClusterError):
            found = [
                task
                for task in _in_accounting("--name", name, "-S", "now-30days")
                if not task.refused
            ]
    return found[0].id.partition("_")[0] if found else None


def _in_queue(*chosen: str, users: Iterable[int] = ()) -> list[Task]:
    """Jobs of users, by the number that the controller knows too; those in hidden partitions are among them."""
    whose = ",".join(map(str, sorted({os.geteuid(), *users})))
    output = call("squeue", "-h", "-a", "-t", "all", "-u", whose, *chosen, "-o", "%i|%T|%N|%r")
    return [_queued(line) for line in output.splitlines() if line.count("|") >= 3]


def accounting(job_ids: Iterable[str]) -> dict[str, Task]:
    """What accounting knows of jobs and arrays, by id of the task. One call of sacct.

    Raises:
        ClusterError: there is no accounting, or it does not answer.
    """
    ids = ",".join(job_ids)
    if not ids:
        return {}
    return {task.id: task for task in _in_accounting("-j", ids)}


def _in_accounting(*chosen: str) -> list[Task]:
    output = call("sacct", "-n", "-X", "-P", *chosen, "-o", "JobID,State,NodeList,ExitCode")
    return [
        task
        for line in output.splitlines()
        if line.count("|") == 3
        for task in _accounted(*line.split("|"))
    ]


def max_array_size() -> int:
    """One more than the highest index of an array, by the controller's configuration."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    except ClusterError:
        found = None
    return max(1, int(found[1])) if found else DEFAULT_MAX_ARRAY_SIZE


def state_of(job_id: str) -> str:
    """The state of one job as the controller knows it; empty where it is gone."""
    return call("squeue", "-h", "-a", "-j", job_id, "-o", "%T").strip()


def why_in_vain(reason: str) -> tuple[str, str] | None:
    """The profile's key to mend and what is wrong with it, where a job with this reason waits for ever."""
    for hopeless, found in HOPELESS.items():
        if reason.startswith(hopeless):
            return found
    if BEYOND_LIMITS.match(reason):
        return "slurm.time, slurm.qos or what a run asks for", "is beyond what one job may have"
    return None


def nodes() -> set[str]:
    """The names of all nodes."""
    return set(call("sinfo", "-h", "-N", "-a", "-o", "%N").split())


def release(ids: Iterable[str]) -> None:
    """Lets go of jobs that SLURM holds."""
    for task in ids:
        call("scontrol", "release", task)


def throttle(array: str, at_once: int) -> None:
    """Changes how many tasks of an array may run at once; what runs already goes on."""
    call("scontrol", "update", f"jobid={array}", f"arraytaskthrottle={at_once}")


def cancel(ids: Iterable[str]) -> None:
    """Cancels jobs and tasks of arrays; those that have ended are no error."""
    for batch in _batches(list(ids), 500):
        call("scancel", "--quiet", *batch)


def call(program: str, *arguments: str) -> str:
    """What a program of SLURM prints, without what the user's environment would change of that.

    Raises:
        ClusterError: it is not there, does not answer in time, or fails.
    """
    check(program)
    command, plain = [program, *arguments], plain_environment()
    try:
        done = subprocess.run(
            command, env=plain, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{program}: no answer in {TIMEOUT_S:.0f} s; the same command may work later"
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
    """This process's variables without those that would change what programs of SLURM do."""
    return {name: value for name, value in os.environ.items() if not name.startswith(DEFAULTS_FROM)}


def check(*programs: str) -> None:
    """Raises ClusterError where a program of SLURM is not on the PATH."""
    for program in programs:
        if shutil.which(program) is None:
            raise ClusterError(
                f"{program}: not found; is this a login node of the cluster, with SLURM on the PATH?"
            )


def key_to_mend(refusal: str) -> str | None:
    """The profile's key that sbatch's refusal is about."""
    text = refusal.lower()
    if option := re.search(r"(?:invalid|for) --([a-z-]+)", text):
        return f"slurm.{option[1].replace('-', '_')}"
    return next((key for words, key in REFUSALS if words in text), None)


def may_pass(refusal: str) -> bool:
    """Whether sbatch's failure is one of the moment."""
    text = refusal.lower()
    return any(words in text for words in PASSING)


def is_submit_limit(refusal: str) -> bool:
    """Whether sbatch would take fewer jobs, or these once others have ended: SLURM has the same words for any limit."""
    limit = re.search(r"\b(?:Assoc|QOS)[A-Z]\w+", refusal)
    return SUBMIT_LIMIT in refusal and (limit is None or "Submit" in limit[0])


def _queued(line: str) -> Task:
    job, state, node, reason = line.split("|", 3)
    return Task(job, state, "" if reason == "None" else reason, node)


def _accounted(job: str, state: str, node: str, exit_code: str) -> list[Task]:
    word = state.split()[0] if state.split() else ""  # "CANCELLED by 0"
    node = "" if node == "None assigned" else node
    return [Task(task, word, "", node, exit_code) for task in expand(job)]


def expand(job: str) -> list[str]:
    """The tasks that an id stands for: `12_[3,5-6%2]` is 12_3, 12_5 and 12_6."""
    found = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if found is None:
        return [job]
    indices: list[int] = []
    for part in found[2].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{found[1]}_{index}" for index in indices]


def _batches(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[first : first + size] for first in range(0, len(items), size))
