"""Progress of a study: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from isoflop.reporting.terminal.console import duration, short

if TYPE_CHECKING:
    from isoflop.launching.local import Progress

QUIET_S = 30.0
"""Without a terminal, a line at least this often even when no run ends."""


class StudyProgress:
    """Shows a study on stderr; use it as a context manager."""

    def __init__(self, runs: dict[str, int]) -> None:
        """`runs`: the steps of every run by id."""
        self.runs = runs
        self.live: Any = None
        self._tasks: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._warned: dict[str, Any] = {}
        self._spoke = -QUIET_S
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

    def data(self, made: int, wanted: float) -> None:
        """Tokens of the corpus made so far."""
        if self.live is not None:
            self._bar(
                "corpus", "making the corpus", min(1.0, made / wanted), f"{short(made)} tokens"
            )
            if made >= wanted:
                self._drop("corpus")
        else:
            goal = (
                f" of {short(wanted)}" if made < wanted else ""
            )  # the last document goes beyond it
            self._say(f"corpus: {short(made)}{goal} tokens", throttle=made < wanted)

    def runs_at(self, progress: Progress) -> None:
        """The state of every run."""
        for run_id, state in progress.states.items():
            if (warning := state.get("warning")) != self._warned.get(run_id):
                self._warned[run_id] = warning
                if not self._first:
                    self._say(f"isoflop: warning: {run_id}: {warning}")
            if state["state"] in ("done", "failed", "diverged") and run_id not in self._ended:
                self._ended.add(run_id)
                self._end(run_id, state, progress)
            elif state["state"] == "running" and self.live is not None:
                loss = state.get("loss")
                self._bar(
                    run_id,
                    run_id,
                    state.get("step", 0) / self.runs[run_id],
                    f"loss {loss:.3f}" if loss else "",
                )
        self._first = False
        summary = f"{len(self._ended)} of {len(progress.states)} runs{_eta(progress.seconds_left)}"
        if self.live is not None:
            self._bar("all", "all runs", progress.share, summary)
        else:
            self._say(f"{progress.share:.0%} of the work, {summary}", throttle=True)

    def stopping(self, seconds: float) -> None:
        """Runs have been asked to stop."""
        self._say(f"stopping: runs have up to {duration(seconds)} to save; again to stop at once")

    def _end(self, run_id: str, state: dict[str, Any], progress: Progress) -> None:
        self._drop(run_id)
        if self._first and state["state"] == "done":
            return  # done by an earlier call
        what = f"{state['state']}: {state['reason']}" if state.get("reason") else state["state"]
        count = f"[{len(self._ended)}/{len(progress.states)}]"
        self._say(f"{count} {run_id} {what}{_loss(state)}{_eta(progress.seconds_left)}")

    def _say(self, line: str, throttle: bool = False) -> None:
        now = time.monotonic()
        if throttle and now - self._spoke < QUIET_S:
            return
        self._spoke = now
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _bar(self, key: str, title: str, share: float, note: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self.live.add_task(title, total=1.0, note=note)
        self.live.update(self._tasks[key], completed=share, note=note)

    def _drop(self, key: str) -> None:
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


def _loss(state: dict[str, Any]) -> str:
    """The last loss of a run that has ended, and on what it was."""
    loss = state.get("loss")
    if loss is None or not math.isfinite(loss):
        return ""
    kind = "training" if state.get("loss_split", "train") == "train" else "held-out"
    return f", {kind} loss {loss:.3f}"


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f", {duration(seconds)} left"
