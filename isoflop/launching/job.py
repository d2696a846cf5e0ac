"""A run as a job of SLURM: started, preempted, timed out, started again, until it is done.

Signals only set a flag. The trainer asks for it at each step boundary, saves and stops; then submitit's own handler
requeues the job. The sequence and its reasons are SLURM's: USR2 comes before a time limit and, on clusters that are set
up for it, before a preemption; TERM alone may be a preemption, a cancellation or the time limit, and only the queue can
tell which.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from isoflop.errors import ClusterError
from isoflop.launching import slurm
from isoflop.launching.attempt import attempt, record_failure
from isoflop.lease import STALE_S
from isoflop.runs import SETTLED, RunDirectory

SETTLE_S = 0.5
MOST_STARTS_IN_VAIN = 10
KILLED = 143


@dataclass
class RunJob:
    """What submitit pickles: the directory of a run, and nothing else."""

    run: str
    _signals: set[int] = field(default_factory=set, repr=False)

    def __call__(self) -> str:
        """Trains the run; returns the state it ends in, or leaves by SystemExit where the job must go on or failed."""
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's handler
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)
        run = RunDirectory(Path(self.run))
        limit = time.monotonic() + 2 * STALE_S
        while True:
            with run.lease(settle_s=SETTLE_S) as lease:
                if lease:
                    state = self._train(run, lease.check)
                    break
            if self._signals or time.monotonic() > limit:
                state = "pending"
                break
            time.sleep(1.0)  # what held it may be dying: SLURM starts a run again before its last process is gone
        if state == "failed":
            raise SystemExit(1)
        if state in SETTLED:
            return state
        if self._must_go_on():
            requeue(signal.SIGUSR2, None)
        raise SystemExit(KILLED)

    def checkpoint(self) -> Any:
        """What submitit starts again: the same, since all that was reached is in the run's directory."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(RunJob(self.run))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.add(number)

    def _train(self, run: RunDirectory, check_lease: Callable[[], None]) -> str:
        """The state in which this attempt leaves the run."""
        state = run.state()
        if state["state"] in SETTLED and state["state"] != "failed":
            return state["state"]
        step = run.checkpointed_step()
        in_vain = state.get("in_vain", 0) + 1 if state.get("start_step") == step else 0
        if in_vain >= MOST_STARTS_IN_VAIN:
            record_failure(
                run,
                f"started {in_vain} times without getting past step {step}: give a job more time (slurm.time), "
                "or lower train.checkpoint_minutes; then retry",
                "",
            )
            return "failed"

        def should_stop() -> bool:
            check_lease()
            return bool(self._signals)

        return attempt(run, should_stop, job_id(), in_vain=in_vain, start_step=step)

    def _must_go_on(self) -> bool:
        """Whether the job is to be requeued: it was preempted or is out of time, and nobody cancelled it."""
        if signal.SIGUSR2 in self._signals:
            return True
        try:
            return slurm.state_of(os.environ["SLURM_JOB_ID"]) in ("RUNNING", "SIGNALING")
        except (ClusterError, KeyError):
            return False


def job_id() -> str:
    """The id of the job or task that this process runs in, as the queue prints it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
