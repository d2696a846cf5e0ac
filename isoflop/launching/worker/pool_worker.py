"""A worker: a process that trains one run of a sweep after another, since starting torch costs more than a tiny run."""

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
from isoflop.process_info import began
from isoflop.runs.run_directory import SETTLED, RunDirectory

ORDER_FILE = "workers/order.txt"
PARENT_S = 0.5


@dataclass
class Worker:
    """What submitit pickles: words and nothing else. Called in a job, it works through the sweep's order.

    Attributes:
        sweep: its directory.
        parent: the process that started the workers.
        environment: variables that runs have, None for one that is not set: submitit sets some that are for itself.
    """

    sweep: str
    parent: int
    environment: Mapping[str, str | None] = field(default_factory=dict[str, str | None])

    def __call__(self) -> int:
        """Trains every run of the order that no other worker has; returns how many it ended."""
        self._stop = False
        for name, value in self.environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._parent_began, self._looked_at = began(self.parent), 0.0
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._ask_to_stop)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        directory = Path(self.sweep)
        ended = 0
        for run_id in read_order(directory):
            # A run that another worker has just let go, as all are to stop, or as their parent is gone, is not taken.
            self._looked_at = 0.0
            if self.should_stop() or run_id not in read_order(directory):
                break
            run = RunDirectory(directory / run_id)
            with run.lease() as mine:
                if mine and run.state()["state"] not in SETTLED:
                    ended += self._train(run, mine) in SETTLED
        return ended

    def _train(self, run: RunDirectory, lease: Lease) -> str:
        def should_stop() -> bool:
            lease.check()
            return self.should_stop()

        return attempt(run, should_stop, os.environ.get("SUBMITIT_LOCAL_JOB_ID"))

    def should_stop(self) -> bool:
        """After a signal, or when the process that started the workers is gone."""
        if not self._stop and time.monotonic() - self._looked_at > PARENT_S:
            self._looked_at = time.monotonic()
            self._stop = self._parent_began is None or began(self.parent) != self._parent_began
        return self._stop

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True


def read_order(directory: Path) -> list[str]:
    """The runs that workers take, in order; none once they are to stop."""
    return (directory / ORDER_FILE).read_text().split()


def write_order(directory: Path, run_ids: list[str]) -> None:
    """Sets the runs that workers take, and their order."""
    with replace_file(directory / ORDER_FILE) as temporary:
        temporary.write_text("\n".join(run_ids) + "\n")
