"""A worker: a process that trains one run of a sweep after another, since starting torch costs more than a tiny run."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from isoflop.errors import IsoflopError
from isoflop.files import replace_file
from isoflop.runs import RunDirectory

ORDER_FILE = "workers/order.txt"
PARENT_S = 0.5
SETTLED = ("done", "failed", "diverged")
log = logging.getLogger("isoflop")


@dataclass
class Worker:
    """What submitit pickles: a directory and nothing else. Called in a job, it works through the sweep's order."""

    sweep: str
    parent: int

    def __call__(self) -> int:
        """Trains every run of the order that no other worker has; returns how many it ended."""
        self._stop = False
        self._parent_began, self._looked_at = _began(self.parent), 0.0
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._ask_to_stop)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        directory = Path(self.sweep)
        ended = 0
        for run_id in (directory / ORDER_FILE).read_text().split():
            if self.should_stop():
                break
            run = RunDirectory(directory / run_id)
            with run.lease() as mine:
                if mine and run.state()["state"] not in SETTLED:
                    ended += self._run(run, directory.parent)
        return ended

    def should_stop(self) -> bool:
        """After a signal, or when the process that started the workers is gone."""
        if not self._stop and time.monotonic() - self._looked_at > PARENT_S:
            self._looked_at = time.monotonic()
            self._stop = self._parent_began is None or _began(self.parent) != self._parent_began
        return self._stop

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True

    def _run(self, run: RunDirectory, root: Path) -> bool:
        attempt = run.state().get("attempt", 0) + 1
        job = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
        try:
            run.set_state("running", attempt=attempt, node=os.uname().nodename, job_id=job)
            with _log_in(log_file(run, attempt)):
                return self._train(run, root)
        except Exception as error:
            with suppress(OSError):  # on a full disk; whoever started the workers finds the run left
                run.set_state("failed", _reason(error))
            return True

    def _train(self, run: RunDirectory, root: Path) -> bool:
        import torch

        from isoflop.training.loop import train

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        began = time.monotonic()
        state = train(run, root, self.should_stop)
        log.info("%s: %s after %.1f s", run.run_id, state, time.monotonic() - began)
        return state in SETTLED


def log_file(run: RunDirectory, attempt: int) -> Path:
    """Where an attempt at a run writes what it does."""
    return run.path / "attempts" / str(attempt) / "log.txt"


@contextmanager
def _log_in(path: Path) -> Iterator[None]:
    """Sends messages, and the traceback of what ends the block, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.handleError = lambda record: None  # on a full disk there is nowhere to say so
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except Exception:
        log.error("%s", traceback.format_exc())
        raise
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    if isinstance(error, IsoflopError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"the disk is full ({error.filename}); make room, and the same command goes on from the last checkpoint"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _began(process: int) -> str | None:
    """When a process began, in the kernel's count: it tells it from a later one with its number. None if it ended."""
    try:
        state, *fields = Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def write_order(directory: Path, run_ids: list[str]) -> None:
    """The order in which workers take runs."""
    with replace_file(directory / ORDER_FILE) as temporary:
        temporary.write_text("\n".join(run_ids) + "\n")
