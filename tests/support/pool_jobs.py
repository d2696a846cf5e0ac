"""Jobs for fresh processes, which start faster without pytest."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def number_and_process(number: int) -> tuple[int, int]:
    time.sleep(0.2 * (number == 0))  # the first ends last
    return number, os.getpid()


def threads(_job: None) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def fail(job: Exception) -> None:
    raise job


def die(_job: None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_and_write(path: Path) -> None:
    path.with_suffix(".started").touch()
    time.sleep(1.5)
    path.touch()
