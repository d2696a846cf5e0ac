"""Signals to a job of SLURM, and its requeueing.

A signal only sets a flag. The job reads it wherever it can stop; then submitit's handler requeues
the job. USR2 precedes a time limit and, on clusters configured for it, a preemption. TERM alone may
be a preemption, a cancellation or the time limit: only the queue distinguishes them.
"""

from __future__ import annotations

import importlib
import os
import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from isoflop.errors import ClusterError
from isoflop.launching.slurm import client as slurm

KILLED_EXIT_CODE = 143
"""Exit code of a process that SIGTERM ended."""


@dataclass
class Job:
    """Callable that submitit pickles, runs and requeues; `directory` is its only state."""

    directory: str
    _signals: set[int] = field(default_factory=set, repr=False, compare=False)
    _requeue: Any = field(default=None, repr=False, compare=False)

    def __call__(self) -> str:
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Import the module that pickles name; otherwise submitit pickles the class by value."""
        importlib.import_module(type(self).__module__)
        return super().__reduce_ex__(protocol)

    def listen(self) -> None:
        """Let signals set a flag from now on; submitit's handler is saved for `stop`."""
        self._requeue = signal.getsignal(signal.SIGUSR2)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def must_stop(self) -> bool:
        """Return whether a signal has arrived."""
        return bool(self._signals)

    def checkpoint(self) -> Any:
        """Return the job for submitit to requeue; unchanged, as progress is in the directory."""
        from submitit import JobEnvironment
        from submitit.core.utils import DelayedSubmission

        # submitit does not overwrite the partial file of a process killed while writing it.
        pickle = JobEnvironment().paths.submitted_pickle
        pickle.with_name(f"{pickle.name}.save_tmp").unlink(missing_ok=True)
        return DelayedSubmission(type(self)(self.directory))

    def stop(self) -> NoReturn:
        """End the job: requeue it after a preemption or at its time limit, not if cancelled."""
        if self._must_requeue():
            self._requeue(signal.SIGUSR2, None)
        raise SystemExit(KILLED_EXIT_CODE)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.add(number)

    def _must_requeue(self) -> bool:
        if signal.SIGUSR2 in self._signals:
            return True
        try:
            # Not by $SLURM_JOB_ID: for an array's last task it is the id of the whole array.
            return slurm.query_state(job_id()) in ("RUNNING", "SIGNALING")
        except ClusterError:
            return False


def job_id() -> str:
    """Return the id of this process's job or task, as the queue prints it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return (
        f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        if array
        else os.environ.get("SLURM_JOB_ID", "")
    )
