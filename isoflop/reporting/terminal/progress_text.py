"""Progress of a study: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from isoflop.text import count_text, duration_text, percent_text

if TYPE_CHECKING:
    from isoflop.launching.local import Progress

MIN_SECONDS_BETWEEN_LINES = 30.0
"""Without a terminal, progress lines between ends of runs are at least this far apart."""


class StudyProgress:
    """Progress of a study on stderr, as a context manager."""

    def __init__(self, runs: dict[str, int]) -> None:
        """Prepare the display.

        Args:
            runs: number of steps by run id.
        """
        self.runs = runs
        self.live: Any = None
        self._tasks: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._warned: dict[str, Any] = {}
        self._last_line = -MIN_SECONDS_BETWEEN_LINES
        self._first = True

    def __enter__(self) -> StudyProgress:
        if sys.stderr.isatty():
            self.live = _bars()
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def show_data(self, made: int, goal: float) -> None:
        """Show the number of tokens of the corpus so far."""
        if self.live is not None:
            share = min(1.0, made / goal)
            self._show_bar("corpus", "making the corpus", share, f"{count_text(made)} tokens")
            if made >= goal:
                self._remove_bar("corpus")
        else:
            # The last document exceeds the goal.
            total = f" of {count_text(goal)}" if made < goal else ""
            self._print(f"corpus: {count_text(made)}{total} tokens", throttle=made < goal)

    def show_runs(self, progress: Progress) -> None:
        """Show the state of every run, and report new warnings and ends."""
        for run_id, state in progress.states.items():
            if (warning := state.get("warning")) != self._warned.get(run_id):
                self._warned[run_id] = warning
                if not self._first:
                    self._print(f"isoflop: warning: {run_id}: {warning}")
            if state["state"] in ("done", "failed", "diverged") and run_id not in self._ended:
                self._ended.add(run_id)
                self._show_end(run_id, state, progress)
            elif state["state"] == "running" and self.live is not None:
                loss = state.get("loss")
                note = f"loss {loss:.3f}" if loss else ""
                self._show_bar(run_id, run_id, state.get("step", 0) / self.runs[run_id], note)
        self._first = False
        summary = f"{len(self._ended)} of {len(progress.states)} runs{_eta(progress.seconds_left)}"
        if self.live is not None:
            self._show_bar("all", "all runs", progress.share, summary)
        else:
            self._print(f"{percent_text(progress.share, 2)} of the work, {summary}", throttle=True)

    def show_stopping(self, seconds: float) -> None:
        """Report the time that runs have to save and stop."""
        limit = duration_text(seconds)
        self._print(f"stopping: runs have up to {limit} to save; interrupt again to stop at once")

    def _show_end(self, run_id: str, state: dict[str, Any], progress: Progress) -> None:
        self._remove_bar(run_id)
        if self._first and state["state"] == "done":
            return  # done by an earlier call
        end = f"{state['state']}: {state['reason']}" if state.get("reason") else state["state"]
        count = f"[{len(self._ended)}/{len(progress.states)}]"
        self._print(f"{count} {run_id} {end}{_loss_text(state)}{_eta(progress.seconds_left)}")

    def _print(self, line: str, throttle: bool = False) -> None:
        now = time.monotonic()
        if throttle and now - self._last_line < MIN_SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _show_bar(self, key: str, title: str, share: float, note: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self.live.add_task(title, total=1.0, note=note)
        self.live.update(self._tasks[key], completed=share, note=note)

    def _remove_bar(self, key: str) -> None:
        if key in self._tasks:
            self.live.remove_task(self._tasks.pop(key))


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _loss_text(state: dict[str, Any]) -> str:
    """Return the last loss of an ended run with its split, or nothing."""
    loss = state.get("loss")
    if loss is None or not math.isfinite(loss):
        return ""
    kind = "training" if state.get("loss_split", "train") == "train" else "held-out"
    return f", {kind} loss {loss:.3f}"


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f", {duration_text(seconds)} left"
