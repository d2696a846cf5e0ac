"""Jobs and tasks of arrays, as recorded by SLURM: their states, and the reasons of their waits."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
"""Reasons for which a job can never start, with the profile's key to fix and its problem."""

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
    def known_to_wait(self) -> bool:
        """True in a state that is known to be without a node."""
        return self.state in WAITING_STATES

    @property
    def wait_reason(self) -> str:
        """Reason of a waiting job; an unknown state or reason is marked as such."""
        reason = self.reason.strip("()") or ("JobHeldUser" if self.state in HELD_STATES else "")
        if self.state == RESV_DEL_HOLD or not self.known_to_wait:
            reason = ", ".join(filter(None, (self.state, reason)))
        known = self.known_to_wait and (not reason or is_known_reason(reason))
        return reason if known else f"waiting: SLURM says {reason}"

    @property
    def refused(self) -> bool:
        """True for the record of a rejected job: it failed without ever having a node."""
        return self.state == "FAILED" and not self.node and self.reason != "NonZeroExitCode"


def find_permanent_wait(reason: str) -> tuple[str, str] | None:
    """Return the profile's key to fix and its problem if a job with this reason never starts."""
    for prefix, finding in PERMANENT_WAITS.items():
        if reason.startswith(prefix):
            return finding
    if JOB_LIMIT_REASONS.match(reason):
        return "slurm.time, slurm.qos or the resources of a run", "exceeds the limits of one job"
    return None


def is_known_reason(reason: str) -> bool:
    """Return whether isoflop knows SLURM's reason of a wait."""
    return find_permanent_wait(reason) is not None or PASSING_REASONS.match(reason) is not None
