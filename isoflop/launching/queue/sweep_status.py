"""Status of a sweep: the state of every run, and messages for the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isoflop.errors import ClusterError
from isoflop.launching.slurm.tasks import LAUNCH_FAILED
from isoflop.runs.run_directory import State

MAX_STATE_NUMBER = 1e10
"""Bound for numbers in a run's state, a file that anybody can edit; in seconds 300 years."""


@dataclass(frozen=True)
class RunStatus:
    """State of one run.

    Attributes:
        run_id: name of the run's directory.
        state: pending (not queued), queued, running, requeued, done, failed, diverged or cancelled.
        reason: reason of the wait or of the end.
        task: SLURM's id of the run's unfinished job, if any.
        node: current or last node.
        stored: content of `state.json`.
        retry: True if the next submission queues the run.
    """

    run_id: str
    state: State
    reason: str
    task: str | None
    node: str
    stored: Mapping[str, Any] = field(repr=False)
    retry: bool = False

    def number(self, key: str) -> float | None:
        """Return a number from `state.json`; None if it is missing, no number or out of bounds."""
        return bounded_number(self.stored.get(key))

    @property
    def progress(self) -> float:
        """Fraction of steps completed at the last heartbeat."""
        step, steps = self.number("step"), self.number("steps")
        if self.state == "done":
            return 1.0
        return min(1.0, max(0.0, step / steps)) if step and steps else 0.0


@dataclass(frozen=True)
class SweepStatus:
    """States of all runs of a sweep at one time.

    Attributes:
        runs: status by run id.
        notes: messages for the user, one line each, such as a queue that does not respond.
        queue_error: error of a failed queue query, after which nothing may be queued; else empty.
        orphans: superfluous jobs: those of an interrupted cancellation, and waiting jobs of runs
            that have ended or have a newer job.
        active: unfinished jobs in the queue by run, the oldest first; also of runs that are no
            longer in the sweep.
        ended_supervisor: job of a supervisor that has ended, for any reason.
    """

    runs: dict[str, RunStatus]
    notes: tuple[str, ...]
    queue_error: str = ""
    orphans: tuple[str, ...] = ()
    active: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ended_supervisor: str | None = None

    @property
    def queue_answered(self) -> bool:
        """True if SLURM answered the query of the queue."""
        return not self.queue_error

    def check(self, nothing_was: str) -> None:
        """Raise an error if the queue is unknown: jobs might be queued twice.

        Args:
            nothing_was: participle for the message, such as `queued`.

        Raises:
            ClusterError: SLURM did not answer.
        """
        if not self.queue_answered:
            raise ClusterError(f"{self.queue_error}; nothing was {nothing_was}, try again")

    @property
    def held(self) -> list[str]:
        """Jobs that SLURM holds after a node could not start them; no fault of run or user."""
        return [
            run.task
            for run in self.runs.values()
            if run.task and run.reason.startswith(LAUNCH_FAILED)
        ]

    def with_note(self, note: str) -> SweepStatus:
        """Return a copy with one more message for the user."""
        return replace(self, notes=(*self.notes, note))

    def ids(self, *states: State) -> list[str]:
        """Return the ids of runs in any of these states."""
        return [run_id for run_id, run in self.runs.items() if run.state in states]


def bounded_number(value: Any) -> float | None:
    """Return a value read from a file if it is a number within bounds, else None."""
    if isinstance(value, int | float) and -MAX_STATE_NUMBER < value < MAX_STATE_NUMBER:
        return value
    return None
