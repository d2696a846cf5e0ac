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
from typing import TYPE_CHECKING, Any, NoReturn

from isoflop.errors import ClusterError
from isoflop.launching import slurm
from isoflop.launching.attempt import attempt, record_failure
from isoflop.lease import STALE_S
from isoflop.runs import SETTLED, RunDirectory

if TYPE_CHECKING:
    from isoflop.training.ranks import Ranks

SETTLE_S = 0.5
MOST_STARTS_IN_VAIN = 10
FOLLOW_S = 60.0
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
        ranks = _ranks()
        if ranks is not None and not ranks.first:
            self._follow(ranks)
        state = self._lead(ranks)
        if state == "failed":
            raise SystemExit(1)
        if state in SETTLED:
            return state
        if self._must_go_on():
            requeue(signal.SIGUSR2, None)
        raise SystemExit(KILLED)

    def _lead(self, ranks: Ranks | None) -> str:
        """The state in which this attempt leaves the run; `pending` where another process has it."""
        run, limit = RunDirectory(Path(self.run)), time.monotonic() + 2 * STALE_S
        while True:
            with run.lease(settle_s=SETTLE_S) as lease:
                if lease:
                    return self._train(run, lease.check, ranks)
            if self._signals or time.monotonic() > limit:
                _begin(ranks, False)
                return "pending"
            time.sleep(1.0)  # what held it may be dying: SLURM starts a run again before its last process is gone

    def _follow(self, ranks: Ranks) -> NoReturn:
        """The part of a process that is not the first: it trains along, and ends when the first has ended the job."""
        if not _begin(ranks, False):
            os._exit(0)
        state = attempt(RunDirectory(Path(self.run)), lambda: bool(self._signals), None, ranks)
        if state == "failed":
            os._exit(1)
        limit = time.monotonic() + FOLLOW_S
        while state == "pending" and signal.SIGTERM not in self._signals and time.monotonic() < limit:
            time.sleep(0.05)
        os._exit(0)

    def checkpoint(self) -> Any:
        """What submitit starts again: the same, since all that was reached is in the run's directory."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(RunJob(self.run))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.add(number)

    def _train(self, run: RunDirectory, check_lease: Callable[[], None], ranks: Ranks | None) -> str:
        state = run.state()
        if state["state"] in SETTLED and state["state"] != "failed":
            _begin(ranks, False)
            return state["state"]
        step = run.checkpointed_step()
        in_vain = state.get("in_vain", 0) + 1 if state.get("start_step") == step else 0
        if in_vain >= MOST_STARTS_IN_VAIN:
            _begin(ranks, False)
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

        _begin(ranks, True)
        return attempt(run, should_stop, job_id(), ranks, in_vain=in_vain, start_step=step)

    def _must_go_on(self) -> bool:
        """Whether the job is to be requeued: it was preempted or is out of time, and nobody cancelled it."""
        if signal.SIGUSR2 in self._signals:
            return True
        try:
            # Not by $SLURM_JOB_ID: that of an array's last task is the whole array's.
            return slurm.state_of(job_id()) in ("RUNNING", "SIGNALING")
        except ClusterError:
            return False


def _ranks() -> Ranks | None:
    """The processes of this job, where there are several."""
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return None
    from isoflop.training.ranks import join

    return join()


def _begin(ranks: Ranks | None, go: bool) -> bool:
    """What the first process has decided: whether all of them train now."""
    return go if ranks is None else ranks.any(go)[0]


def job_id() -> str:
    """The id of the job or task that this process runs in, as the queue prints it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
