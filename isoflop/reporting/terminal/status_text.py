"""Text and JSON of the status of a submitted sweep."""

from __future__ import annotations

import json

from isoflop.launching.status_table import STATE_ORDER, RunRow, StatusTable
from isoflop.reporting.terminal.console import print_table, warn
from isoflop.text import (
    clock_text,
    count_text,
    duration_text,
    gpu_hours_text,
    hours_text,
    percent_text,
)


def print_status_json(table: StatusTable) -> None:
    """Print the document of `isoflop status --json`."""
    document = {
        "schema": 1,
        "sweep": table.directory.name,
        "runs": [row.document() for row in table.rows],
        "totals": table.totals(),
        "notes": list(table.sweep.notes),
    }
    print(json.dumps(document, indent=2, allow_nan=False))


def print_status(table: StatusTable) -> None:
    """Print a line per run, running ones first, and totals."""
    for note in table.sweep.notes:
        warn(note)
    ranked = sorted(table.rows, key=lambda row: STATE_ORDER.index(row.status.state))
    headers = ["run", "state", "done", "loss", "tokens/s", "restarts", "node", "left", "reason"]
    print_table(headers, [_cells(row) for row in ranked], text=["run", "state", "node", "reason"])
    totals, counts = table.totals(), table.counts
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"\n{len(table.rows):,} runs: {states}")
    planned = totals["planned_gpu_hours"]
    if totals["gpu_hours"] or planned:
        goal = f" of {hours_text(planned)} planned" if planned else ""
        print(f"{gpu_hours_text(totals['gpu_hours'])} used{goal}")
    seconds, until = totals["seconds_left"], ""
    if seconds:
        until = f", {duration_text(seconds)} left at this speed, until {clock_text(seconds)}"
    print(f"{percent_text(totals['progress'], 2)} of the work{until}")
    if waiting := sum(row.status.retry for row in table.rows):
        print(f"{waiting} runs are not queued and can resume: `isoflop submit` queues them")


def _cells(row: RunRow) -> list[str]:
    loss = row.status.number("loss")
    return [
        row.status.run_id,
        row.status.state,
        percent_text(row.status.progress, 2),
        "" if loss is None else f"{loss:.3f}",
        "" if row.speed is None else count_text(row.speed),
        str(row.restarts or ""),
        row.status.node,
        "" if row.seconds_left is None else duration_text(row.seconds_left),
        row.status.reason,
    ]
