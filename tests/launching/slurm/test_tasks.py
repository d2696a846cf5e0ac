"""States of SLURM's jobs, and the reasons of their waits."""

from __future__ import annotations

import pytest

from isoflop.launching.queue.reconcile import explain, never_starts
from isoflop.launching.slurm.tasks import LAUNCH_FAILED, Task


@pytest.mark.parametrize(
    ("state", "reason", "says"),
    [
        ("PENDING", "", ""),
        ("PENDING", "Priority", "Priority"),
        ("PENDING", "(Priority)", "Priority"),
        ("PENDING", "JobHoldMaxRequeue", "JobHoldMaxRequeue"),
        (
            "PENDING",
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
        ),
        ("PENDING", "QOSMaxCpuRunMinsPerUserLimit", "QOSMaxCpuRunMinsPerUserLimit"),
        ("PENDING", "MaxGRESRunMinsPerAccount", "MaxGRESRunMinsPerAccount"),
        ("PENDING", "PrioritySwapped", "waiting: SLURM says PrioritySwapped"),
        ("PENDING", "Moon is full", "waiting: SLURM says Moon is full"),
        ("REQUEUED", "", ""),
        ("REQUEUED", "BeginTime", "BeginTime"),
        ("REQUEUE_HOLD", "", "JobHeldUser"),
        ("REQUEUE_HOLD", "job requeued in held state", "job requeued in held state"),
        ("SPECIAL_EXIT", "Moon is full", "waiting: SLURM says Moon is full"),
        (
            "RESV_DEL_HOLD",
            "Reservation r3 was deleted",
            "RESV_DEL_HOLD, Reservation r3 was deleted",
        ),
        ("RESV_DEL_HOLD", "", "RESV_DEL_HOLD"),
        ("EXPEDITING", "", "waiting: SLURM says EXPEDITING"),
        ("EXPEDITING", "Priority", "waiting: SLURM says EXPEDITING, Priority"),
    ],
)
def test_why_a_job_waits(state: str, reason: str, says: str) -> None:
    assert Task("12", state, reason).waits
    assert Task("12", state, reason).wait_reason == says


@pytest.mark.parametrize(
    "reason", ["job requeued in held state", "PartitionTimeLimit", LAUNCH_FAILED]
)
def test_a_permanent_wait_comes_with_its_mend(reason: str) -> None:
    assert never_starts(reason)
    assert explain(reason).startswith(f"{reason}: ")
