"""What a job of SLURM does with signals, and how it is started again.

Signals only set a flag, which the job asks for where it can stop; then submitit's own handler requeues it. The
sequence and its reasons are SLURM's: USR2 comes before a time limit and, on clusters that are set up for it, before a
preemption; TERM alone may be a preemption, a cancellation or the time limit, and only the queue can tell which.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from isoflop.errors import ClusterError
from isoflop.launching.slurm import client as slurm

KILLED = 143


@dataclass
class Job:
    """Something that submitit pickles, runs, and starts again as it was; `directory` is all that it holds."""

    directory: str
    _signals: set[int] = field(default_factory=set, repr=False, compare=False)
    _requeue: Any = field(default=None, repr=False, compare=False)

    def __call__(self) -> str:
        raise NotImplementedError

    def listen(self) -> None:
        """From now on signals set a flag; the handler that submitit has installed is kept for the end."""
        self._requeue = signal.getsignal(signal.SIGUSR2)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def must_stop(self) -> bool:
        """Whether a signal has come."""
        return bool(self._signals)

    def checkpoint(self) -> Any:
        """What submitit starts again: the same, since all that was reached is in the directory."""
        from submitit import JobEnvironment
        from submitit.core.utils import DelayedSubmission

        # A process that was killed while submitit wrote this leaves its half, and submitit writes over none.
        pickle = JobEnvironment().paths.submitted_pickle
        pickle.with_name(f"{pickle.name}.save_tmp").unlink(missing_ok=True)
        return DelayedSubmission(type(self)(self.directory))

    def stop(self) -> NoReturn:
        """Ends the job: it is requeued if it was preempted or is out of time, and is over if somebody cancelled it."""
        if self._must_go_on():
            self._requeue(signal.SIGUSR2, None)
        raise SystemExit(KILLED)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.add(number)

    def _must_go_on(self) -> bool:
        if signal.SIGUSR2 in self._signals:
            return True
        try:
            # Not by $SLURM_JOB_ID: that of an array's last task is the whole array's.
            return slurm.state_of(job_id()) in ("RUNNING", "SIGNALING")
        except ClusterError:
            return False


def job_id() -> str:
    """The id of the job or task that this process runs in, as the queue prints it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return (
        f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        if array
        else os.environ.get("SLURM_JOB_ID", "")
    )
