"""Where a submitted sweep is, for a terminal and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.launching.control import look
from isoflop.launching.queue.sweep_status import Picture, Where, sound_number
from isoflop.planning.plan import plan_rows
from isoflop.reporting.terminal.console import clock, duration, print_table, short, warn

ORDER = ("running", "requeued", "queued", "pending", "failed", "diverged", "cancelled", "done")


@dataclass(frozen=True)
class Row:
    """One run: where it is, how far, and how fast."""

    where: Where
    tokens: int
    train_flops: float
    est_gpu_hours: float | None

    @property
    def speed(self) -> float | None:
        """Tokens a second, while it runs."""
        speed = self.where.number("tokens_per_second")
        return speed if self.where.state == "running" and speed and speed > 0 else None

    @property
    def restarts(self) -> int:
        return max(0, int(self.where.number("attempt") or 0) - 1)

    @property
    def seconds_left(self) -> float | None:
        """At its last speed, while it runs."""
        return (1 - self.where.share) * self.tokens / self.speed if self.speed else None

    @property
    def flops_per_second(self) -> float:
        return self.speed * self.train_flops / self.tokens if self.speed else 0.0

    def document(self) -> dict[str, Any]:
        """The run in `isoflop status --json`."""
        where, stored = self.where, self.where.stored
        return {
            "run_id": where.run_id,
            "state": where.state,
            "reason": where.reason,
            "progress": self.where.share,
            "step": self.where.number("step") or 0,
            "steps": self.where.number("steps"),
            "loss": self.where.number("loss"),
            "tokens_per_second": self.where.number("tokens_per_second"),
            "restarts": self.restarts,
            "job_id": where.task or stored.get("job_id"),
            "node": where.node or None,
            "seconds_left": sound_number(self.seconds_left),
        }


@dataclass(frozen=True)
class Status:
    """A sweep at one moment: its runs in the order of the plan, and their sums."""

    directory: Path
    picture: Picture
    rows: tuple[Row, ...]

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(row.where.state for row in self.rows)
        return {state: found[state] for state in ORDER if found[state]}

    def totals(self) -> dict[str, Any]:
        """Sums over the runs; GPU-hours count every attempt's time up to its last checkpoint."""
        hours = [
            (row.where.number("gpus") or 0) * (row.where.number("wall_s") or 0.0) / 3600
            for row in self.rows
        ]
        planned = [row.est_gpu_hours for row in self.rows]
        left = sum(
            (1 - row.where.share) * row.train_flops
            for row in self.rows
            if row.where.state != "diverged"
        )
        speed = sum(row.flops_per_second for row in self.rows)
        return {
            "runs": len(self.rows),
            "states": self.counts,
            "progress": 1 - left / sum(row.train_flops for row in self.rows),
            "gpu_hours": sum(hours),
            "planned_gpu_hours": None
            if any(hours is None for hours in planned)
            else sum(filter(None, planned)),
            "seconds_left": sound_number(left / speed) if speed else None,
        }


def read_status(directory: Path, retries: int) -> Status:
    """Looks at a submitted sweep, as `reconcile` does."""
    picture = look(directory, retries)
    if drawn := sum(bool(where.stored.get("simulated")) for where in picture.runs.values()):
        note = f"the losses of {drawn} runs are simulated (train.trainer): drawn from a law, not trained"
        picture = picture.noting(note)
    plan = plan_rows(directory, ["run_id", "tokens", "train_flops", "est_gpu_hours"])
    rows = tuple(
        Row(picture.runs[row["run_id"]], row["tokens"], row["train_flops"], row["est_gpu_hours"])
        for row in plan
    )
    return Status(directory, picture, rows)


def print_status_json(status: Status) -> None:
    """The document of `isoflop status --json`."""
    document = {
        "schema": 1,
        "sweep": status.directory.name,
        "runs": [row.document() for row in status.rows],
        "totals": status.totals(),
        "notes": list(status.picture.notes),
    }
    print(json.dumps(document, indent=2, allow_nan=False))


def print_status(status: Status) -> None:
    """A line a run, what is under way first, and totals."""
    for note in status.picture.notes:
        warn(note)
    ranked = sorted(status.rows, key=lambda row: ORDER.index(row.where.state))
    headers = ["run", "state", "done", "loss", "tokens/s", "restarts", "node", "left", "why"]
    print_table(headers, [_cells(row) for row in ranked], text=["run", "state", "node", "why"])
    totals = status.totals()
    print(
        f"\n{len(status.rows):,} runs: {', '.join(f'{count} {state}' for state, count in status.counts.items())}"
    )
    planned = totals["planned_gpu_hours"]
    if totals["gpu_hours"] or planned:
        print(
            f"{totals['gpu_hours']:,.1f} GPU-hours used"
            + (f" of {planned:,.1f} planned" if planned else "")
        )
    left = totals["seconds_left"]
    until = f", {duration(left)} left at this speed, until {clock(left)}" if left else ""
    print(f"{totals['progress']:.0%} of the work{until}")
    if again := sum(row.where.again for row in status.rows):
        print(f"{again} runs are not queued and can go on: `isoflop submit` queues them again")


def _cells(row: Row) -> list[str]:
    loss = row.where.number("loss")
    return [
        row.where.run_id,
        row.where.state,
        f"{row.where.share:.0%}",
        "" if loss is None else f"{loss:.3f}",
        "" if row.speed is None else short(row.speed),
        str(row.restarts or ""),
        row.where.node,
        "" if row.seconds_left is None else duration(row.seconds_left),
        row.where.reason,
    ]
