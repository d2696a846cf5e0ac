"""A sweep at one moment: where every run is, and what the user should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isoflop.errors import ClusterError
from isoflop.launching.slurm.client import LAUNCH_FAILED
from isoflop.runs.run_directory import State

MOST = 1e10
"""Of what is in a run's state, where somebody may have written any number, or none; in seconds 300 years."""


@dataclass(frozen=True)
class Where:
    """Where a run is.

    Attributes:
        state: as in `interface`: pending (not queued), queued, running, requeued, done, failed, diverged, cancelled.
        reason: why it waits, or how it ended.
        task: SLURM's id of its job, if it has one that is not over.
        node: where it runs, or ran last.
        stored: its `state.json`.
        again: whether the next submission queues it.
    """

    run_id: str
    state: State
    reason: str
    task: str | None
    node: str
    stored: Mapping[str, Any] = field(repr=False)
    again: bool = False

    def number(self, key: str) -> float | None:
        """What `state.json` keeps by a key, if it is a number that can be reckoned with."""
        return sound_number(self.stored.get(key))

    @property
    def share(self) -> float:
        """Of its steps, what is done by its last word."""
        step, steps = self.number("step"), self.number("steps")
        if self.state == "done":
            return 1.0
        return min(1.0, max(0.0, step / steps)) if step and steps else 0.0


@dataclass(frozen=True)
class Picture:
    """A sweep at one moment.

    Attributes:
        runs: by run id.
        notes: what the user should know, such as a queue that does not answer, a line each.
        silence: why SLURM did not answer, without which nothing may be queued; empty where it did.
        orphans: jobs that nobody needs: of a cancellation that broke off, and waiting ones of runs that are over or
            that have a newer job.
        active: jobs in the queue that are not over, by run, the oldest first; of runs that the sweep has no more too.
        unwatched: the job of a supervisor that has ended, by itself or not.
    """

    runs: dict[str, Where]
    notes: tuple[str, ...]
    silence: str = ""
    orphans: tuple[str, ...] = ()
    active: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unwatched: str | None = None

    @property
    def certain(self) -> bool:
        """Whether SLURM answered."""
        return not self.silence

    def check(self, nothing_was: str) -> None:
        """Raises ClusterError where SLURM did not answer, so that nobody knows what is queued already."""
        if not self.certain:
            raise ClusterError(f"{self.silence}; nothing was {nothing_was}, try again")

    @property
    def held(self) -> list[str]:
        """Jobs that SLURM holds since a node could not start them; the run is not to blame, and nobody meant it."""
        return [
            where.task
            for where in self.runs.values()
            if where.task and where.reason.startswith(LAUNCH_FAILED)
        ]

    def noting(self, note: str) -> Picture:
        """The picture with one more thing that the user should know."""
        return replace(self, notes=(*self.notes, note))

    def ids(self, *states: State) -> list[str]:
        return [run_id for run_id, where in self.runs.items() if where.state in states]


def sound_number(value: Any) -> float | None:
    """A number that can be reckoned with, where somebody may have written any, or none."""
    return value if isinstance(value, int | float) and -MOST < value < MOST else None
