"""Studies on a real SLURM, disturbed, and yet with the losses of undisturbed ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.slurm_bed import (
    LONG_WITH_ACCOUNTING,
    LONG_WITHOUT_ACCOUNTING,
    Bed,
    Submitted,
    find_worker,
    submitted,
)
from support.tiny_studies import FREQUENT_CHECKPOINTS as OFTEN

from isoflop.launching.control import cancel, retry

pytestmark = pytest.mark.slow


@LONG_WITH_ACCOUNTING
def test_a_study_is_queued_once_and_ends(study: Submitted, undisturbed: Path) -> None:
    first = study.submit()
    assert len(first.queued) == 2
    assert study.submit().queued == ()
    study.finish()
    study.equals(undisturbed)
    assert study.submit().queued == ()


@LONG_WITHOUT_ACCOUNTING
@pytest.mark.parametrize(
    "partition",
    [
        pytest.param("preempt", id="with a signal"),
        pytest.param("scavenge", id="at once", marks=pytest.mark.long),
    ],
)
def test_preemption(bed: Bed, tmp_path: Path, undisturbed: Path, partition: str) -> None:
    study = submitted(bed, tmp_path, OFTEN, options=(f"slurm.partition={partition}",))
    study.submit()
    study.wait_for_step(100)
    bed.run(
        "sbatch",
        "-p",
        "main",
        "-N4",
        "--exclusive",
        "-t",
        "1",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    )
    study.wait(lambda status: status.ids("requeued"))
    study.finish()
    study.equals(undisturbed)
    assert all(run.state().get("failures", 0) == 0 for run in study.runs)


@LONG_WITH_ACCOUNTING
def test_a_killed_worker_is_a_failure_that_is_tried_again(
    study: Submitted, undisturbed: Path
) -> None:
    study.submit()
    study.wait_for_step(100)
    os.kill(find_worker(study), signal.SIGKILL)
    status = study.wait(lambda status: status.ids("failed"))
    (failed,) = status.ids("failed")
    assert "died" in status.runs[failed].reason
    assert status.runs[failed].retry
    study.finish(resubmit=True)
    study.equals(undisturbed)


@LONG_WITH_ACCOUNTING
def test_a_node_that_dies(study: Submitted, undisturbed: Path) -> None:
    study.submit()
    study.wait_for_step(100)
    node = study.runs[0].state()["node"]
    study.bed("node-kill", node)
    study.wait(lambda status: status.ids("requeued", "running") and not study.runs[0].is_leased())
    study.bed("node-start", node)
    study.finish(resubmit=True)
    study.equals(undisturbed)


@LONG_WITH_ACCOUNTING
def test_a_controller_that_forgets_the_newest_jobs(study: Submitted, undisturbed: Path) -> None:
    study.bed("ctld-mark")
    study.submit()
    study.bed("ctld-forget")
    study.finish(resubmit=True)
    study.equals(undisturbed)


@LONG_WITH_ACCOUNTING
def test_cancel_and_go_on(study: Submitted, undisturbed: Path) -> None:
    study.submit()
    study.wait_for_step(100)
    assert len(cancel(study.directory, [])) == 2
    study.wait(lambda status: len(status.ids("cancelled")) == 2)
    assert len(retry(study.directory, [])) == 2
    study.submit()
    study.finish()
    study.equals(undisturbed)
