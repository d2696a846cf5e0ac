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
from dataclasses import dataclass

from isoflop.errors import ClusterError

TIMEOUT_S = 30.0
DEFAULT_MAX_ARRAY_SIZE = 1001
ENDED_STATES = frozenset(
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
"""Final states of a job in the queue."""

ALLOCATED_STATES = frozenset(
    (
        "RUNNING",
        "COMPLETING",
        "CONFIGURING",
        "POWER_UP_NODE",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
    )
)
"""States of a job with allocated nodes."""

HELD_STATES = frozenset(("REQUEUE_HOLD", "SPECIAL_EXIT"))
"""States of a job that was requeued and held by a person."""

RESV_DEL_HOLD = "RESV_DEL_HOLD"
"""State of a job that SLURM holds after the end of its reservation; also a reason."""

WAITING_STATES = frozenset(("PENDING", "REQUEUED", "REQUEUE_FED", RESV_DEL_HOLD, *HELD_STATES))

INTERRUPTED_STATES = frozenset(
    ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", "REQUEUED")
)
"""States of ended jobs in accounting that are no failure of the run."""

LAUNCH_FAILED = "launch failed requeued held"
"""Reason of a job that SLURM holds because a node could not start it.

The node may still run the job's previous start.
"""

DEFAULTS_PREFIXES = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")
"""Prefixes of variables that change the programs' defaults; sbatch's override the script."""

PERMANENT_WAITS = {
    "PartitionTimeLimit": ("slurm.time", "is longer than the partition allows"),
    "PartitionNodeLimit": ("slurm.partition", "has fewer nodes than the run requests"),
    "PartitionConfig": (
        "slurm.partition",
        "can't provide the time, nodes, cores or memory that the run requests",
    ),
    "PartitionDown": ("slurm.partition", "is down"),
    "PartitionInactive": ("slurm.partition", "is inactive"),
    "BadConstraints": ("slurm.constraint", "matches no node"),
    "InvalidAccount": ("slurm.account", "is not valid"),
    "InvalidQOS": ("slurm.qos", "is not valid"),
    "AccountNotAllowed": ("slurm.account", "may not use the partition"),
    "QOSNotAllowed": ("slurm.qos", "may not be used here"),
    "DependencyNeverSatisfied": ("slurm.dependency", "will never be satisfied"),
    "JobHeldUser": ("", "held by its user; release it with `scontrol release`"),
    "JobHeldAdmin": ("", "held by an administrator of the cluster"),
    "JobHoldMaxRequeue": (
        "",
        "held after too many failed starts (MaxBatchRequeue); release it with `scontrol release`, "
        "or cancel it and submit again",
    ),
    RESV_DEL_HOLD: (
        "slurm.reservation",
        "has ended or was deleted; name another, or leave it out",
    ),
    "ReservationDeleted": (
        "slurm.reservation",
        "has ended or was deleted; name another, or leave it out",
    ),
    "ReservationInvalid": ("slurm.reservation", "is not valid; name another, or leave it out"),
    LAUNCH_FAILED: (
        "",
        "a node could not start it, and SLURM holds it; the next submission releases it",
    ),
    "job requeued in held state": (
        "",
        "stopped and held (scontrol requeuehold); release it with `scontrol release`",
    ),
}
"""Reasons for which a job can never start, with the profile's key to mend and its problem."""

JOB_LIMIT_REASONS = re.compile(r"(?:QOS|Assoc)\w*Max\w+PerJob\w*|QOSMin\w+|MaxMemPerLimit")
"""Reasons of jobs that request more, or less, than one job may have; they never start either."""

PASSING_REASONS = re.compile(
    r"(?:AccountingPolicy|BeginTime|BlockFreeAction|BlockMaxError|BurstBuffer\w+|Cleaning"
    r"|DeadLine|Dependency|FedJobLock|FrontEndDown|InactiveLimit|JobArrayTaskLimit"
    r"|JobLaunchFailure|Licenses|NodeDown|NonZeroExitCode|OutOfMemory|Power(?:NotAvail|Reserved)"
    r"|Priority|Prolog|RaisedSignal|ReqNodeNotAvail|Reservation|Resources|SchedDefer"
    r"|SystemFailure|TimeLimit|(?:Assoc|QOS)\w+|Max\w+PerAccount)(?!\w)"
    r"|Nodes required for job are "
)
"""Other reasons of a wait in SLURM 22.05 and 24.11; these are temporary."""

REFUSAL_KEYS = (
    ("maxwall", "slurm.time"),
    ("accounting/qos policy", "slurm.qos, slurm.account or the resources of a run"),
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
"""Parts of sbatch's messages, in lower case, and the profile's key to mend."""

TRANSIENT_ERRORS = (
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
"""Parts of sbatch's messages, in lower case, after which the same command may succeed later."""

SUBMIT_LIMIT = "job submit limit"


@dataclass(frozen=True)
class Task:
    """Job, or task of an array, as recorded by SLURM.

    Attributes:
        id: `<job>` or `<array>_<index>`.
        state: SLURM's state, such as RUNNING.
        reason: reason of the wait or end, if any.
        node: its node, or list of nodes.
        exit_code: `<code>:<signal>`, from accounting or the controller.
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""
    exit_code: str = ""

    @property
    def active(self) -> bool:
        """True unless the job has ended."""
        return self.state not in ENDED_STATES

    @property
    def waits(self) -> bool:
        """True if the job has no node; an unknown state never counts as running."""
        return self.active and self.state not in ALLOCATED_STATES

    @property
    def wait_reason(self) -> str:
        """Reason of a waiting job; an unknown state or reason is marked as such."""
        reason = self.reason.strip("()") or ("JobHeldUser" if self.state in HELD_STATES else "")
        if self.state == RESV_DEL_HOLD or self.state not in WAITING_STATES:
            reason = ", ".join(filter(None, (self.state, reason)))
        known = self.state in WAITING_STATES and (not reason or is_known_reason(reason))
        return reason if known else f"waiting: SLURM says {reason}"

    @property
    def refused(self) -> bool:
        """True for the record of a rejected job: it failed without ever having a node."""
        return self.state == "FAILED" and not self.node and self.reason != "NonZeroExitCode"


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


def find_permanent_wait(reason: str) -> tuple[str, str] | None:
    """Return the profile's key to mend and its problem if a job with this reason never starts."""
    for prefix, finding in PERMANENT_WAITS.items():
        if reason.startswith(prefix):
            return finding
    if JOB_LIMIT_REASONS.match(reason):
        return "slurm.time, slurm.qos or the resources of a run", "exceeds the limits of one job"
    return None


def is_known_reason(reason: str) -> bool:
    """Return whether isoflop knows SLURM's reason of a wait."""
    return find_permanent_wait(reason) is not None or PASSING_REASONS.match(reason) is not None


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


def find_profile_key(refusal: str) -> str | None:
    """Return the profile's key that sbatch's refusal concerns; None if unknown."""
    text = refusal.lower()
    if option := re.search(r"(?:invalid|for) --([a-z-]+)", text):
        return f"slurm.{option[1].replace('-', '_')}"
    return next((key for phrase, key in REFUSAL_KEYS if phrase in text), None)


def is_transient(refusal: str) -> bool:
    """Return whether sbatch's failure is temporary."""
    text = refusal.lower()
    return any(phrase in text for phrase in TRANSIENT_ERRORS)


def is_submit_limit(refusal: str) -> bool:
    """Return whether sbatch would accept fewer jobs, or the same ones after others have ended.

    SLURM's message is the same for any limit; its first word tells them apart.
    """
    limit = re.search(r"\b(?:Assoc|QOS)[A-Z]\w+", refusal)
    return SUBMIT_LIMIT in refusal and (limit is None or "Submit" in limit[0])


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
