"""A worker: a process that trains one run of a sweep after another, since starting torch costs more than a tiny run."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from isoflop.errors import IsoflopError
from isoflop.files import replace_file
from isoflop.runs import RunDirectory

ORDER_FILE = "workers/order.txt"
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
        return self._stop or not Path("/proc", str(self.parent)).exists()

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True

    def _run(self, run: RunDirectory, root: Path) -> bool:
        attempt = run.state().get("attempt", 0) + 1
        folder = run.path / "attempts" / str(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        run.set_state(
            "running", attempt=attempt, node=os.uname().nodename, job_id=os.environ.get("SUBMITIT_LOCAL_JOB_ID")
        )
        handler = logging.FileHandler(folder / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            return self._train(run, root)
        except Exception as error:
            log.error("%s", traceback.format_exc())
            reason = str(error) if isinstance(error, IsoflopError) else f"{type(error).__name__}: {error}"
            run.set_state("failed", " ".join(reason.split()))
            return True
        finally:
            log.removeHandler(handler)
            handler.close()

    def _train(self, run: RunDirectory, root: Path) -> bool:
        import torch

        from isoflop.training.loop import train

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        began = time.monotonic()
        state = train(run, root, self.should_stop)
        log.info("%s: %s after %.1f s", run.run_id, state, time.monotonic() - began)
        return state in SETTLED


def write_order(directory: Path, run_ids: list[str]) -> None:
    """The order in which workers take runs."""
    with replace_file(directory / ORDER_FILE) as temporary:
        temporary.write_text("\n".join(run_ids) + "\n")
