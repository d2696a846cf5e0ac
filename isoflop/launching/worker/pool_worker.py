"""Worker: a process that trains runs of a sweep in turn, as torch starts slower than a tiny run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from isoflop.files import replace_file
from isoflop.launching.worker.attempt import attempt
from isoflop.lease import Lease
from isoflop.process_info import start_time
from isoflop.runs.run_directory import TERMINAL_STATES, RunDirectory

RUN_ORDER_FILE = "workers/order.txt"
PARENT_CHECK_S = 0.5


@dataclass
class Worker:
    """Job that submitit pickles, of plain values only; called, it trains the sweep's order.

    Attributes:
        sweep: directory of the sweep.
        parent: id of the process that started the workers.
        environment: environment variables of runs, None for unset ones; submitit sets some for
            itself.
    """

    sweep: str
    parent: int
    environment: Mapping[str, str | None] = field(default_factory=dict[str, str | None])

    def __call__(self) -> int:
        """Train the runs of the order that no other worker holds; return how many ended."""
        self._stop = False
        for name, value in self.environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._parent_start, self._last_check = start_time(self.parent), 0.0
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._handle_signal)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        directory = Path(self.sweep)
        ended = 0
        for run_id in read_order(directory):
            # Check now: another worker may have released this run because all must stop.
            self._last_check = 0.0
            if self.should_stop() or run_id not in read_order(directory):
                break
            run = RunDirectory(directory / run_id)
            with run.lease() as lease:
                if lease and run.state()["state"] not in TERMINAL_STATES:
                    ended += self._train(run, lease) in TERMINAL_STATES
        return ended

    def _train(self, run: RunDirectory, lease: Lease) -> str:
        def should_stop() -> bool:
            lease.check()
            return self.should_stop()

        return attempt(run, should_stop, os.environ.get("SUBMITIT_LOCAL_JOB_ID"))

    def should_stop(self) -> bool:
        """Return whether a signal came or the process that started the workers is gone."""
        if not self._stop and time.monotonic() - self._last_check > PARENT_CHECK_S:
            self._last_check = time.monotonic()
            start = self._parent_start
            self._stop = start is None or start_time(self.parent) != start
        return self._stop

    def _handle_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True


def read_order(directory: Path) -> list[str]:
    """Return the runs for workers, in order; none once they must stop."""
    return (directory / RUN_ORDER_FILE).read_text().split()


def write_order(directory: Path, run_ids: list[str]) -> None:
    """Write the runs for workers, in order."""
    with replace_file(directory / RUN_ORDER_FILE) as temporary:
        temporary.write_text("\n".join(run_ids) + "\n")
