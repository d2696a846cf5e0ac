"""Status of a submitted sweep as a table: progress, speed and cost of each run, and their sums."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.launching.control import query_status
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus, bounded_number
from isoflop.planning.plan import read_plan_rows

STATE_ORDER = (
    "running",
    "requeued",
    "queued",
    "pending",
    "failed",
    "diverged",
    "cancelled",
    "done",
)


@dataclass(frozen=True)
class RunRow:
    """Status and planned cost of one run.

    Attributes:
        status: state, progress and numbers of the run.
        tokens: training tokens of the whole run.
        train_flops: training FLOPs of the whole run.
        est_gpu_hours: estimated GPU-hours; None on CPUs or without an estimate.
    """

    status: RunStatus
    tokens: int
    train_flops: float
    est_gpu_hours: float | None

    @property
    def speed(self) -> float | None:
        """Tokens per second of a running run, else None."""
        speed = self.status.number("tokens_per_second")
        return speed if self.status.state == "running" and speed and speed > 0 else None

    @property
    def restarts(self) -> int:
        """Number of attempts after the first."""
        return max(0, int(self.status.number("attempt") or 0) - 1)

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds at the last speed of a running run, else None."""
        return (1 - self.status.progress) * self.tokens / self.speed if self.speed else None

    @property
    def flops_per_second(self) -> float:
        """Training FLOP/s of a running run, else 0."""
        return self.speed * self.train_flops / self.tokens if self.speed else 0.0

    def document(self) -> dict[str, Any]:
        """Return the run in `isoflop status --json`."""
        status = self.status
        return {
            "run_id": status.run_id,
            "state": status.state,
            "reason": status.reason,
            "progress": status.progress,
            "step": status.number("step") or 0,
            "steps": status.number("steps"),
            "loss": status.number("loss"),
            "tokens_per_second": status.number("tokens_per_second"),
            "restarts": self.restarts,
            "job_id": status.task or status.stored.get("job_id"),
            "node": status.node or None,
            "seconds_left": bounded_number(self.seconds_left),
        }


@dataclass(frozen=True)
class StatusTable:
    """A sweep at one moment: its runs in the order of the plan, and their sums.

    Attributes:
        directory: the sweep's directory.
        sweep: states of the runs, and notes.
        rows: a row per run.
    """

    directory: Path
    sweep: SweepStatus
    rows: tuple[RunRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs by state, in the order of the table."""
        counts = Counter(row.status.state for row in self.rows)
        return {state: counts[state] for state in STATE_ORDER if counts[state]}

    def totals(self) -> dict[str, Any]:
        """Return sums over the runs.

        GPU-hours include the time of every attempt up to its last checkpoint.
        """
        hours = [
            (row.status.number("gpus") or 0) * (row.status.number("wall_s") or 0.0) / 3600
            for row in self.rows
        ]
        planned = [row.est_gpu_hours for row in self.rows]
        remaining_flops = sum(
            (1 - row.status.progress) * row.train_flops
            for row in self.rows
            if row.status.state != "diverged"
        )
        speed = sum(row.flops_per_second for row in self.rows)
        return {
            "runs": len(self.rows),
            "states": self.counts,
            "progress": 1 - remaining_flops / sum(row.train_flops for row in self.rows),
            "gpu_hours": sum(hours),
            "planned_gpu_hours": None if None in planned else sum(filter(None, planned)),
            "seconds_left": bounded_number(remaining_flops / speed) if speed else None,
        }


def read_status(directory: Path, retries: int) -> StatusTable:
    """Read the status of a submitted sweep, as `reconcile` does.

    Args:
        directory: the sweep's directory.
        retries: number of retries of a failed run.
    """
    sweep = query_status(directory, retries)
    if simulated := sum(bool(run.stored.get("simulated")) for run in sweep.runs.values()):
        sweep = sweep.with_note(
            f"the losses of {simulated} runs are simulated (train.trainer): drawn from a law, "
            "not trained"
        )
    plan = read_plan_rows(directory, ["run_id", "tokens", "train_flops", "est_gpu_hours"])
    rows = tuple(
        RunRow(sweep.runs[row["run_id"]], row["tokens"], row["train_flops"], row["est_gpu_hours"])
        for row in plan
    )
    return StatusTable(directory, sweep, rows)
