"""Program of a worker, started under a guard that ends all its processes with the worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from isoflop.errors import RunError
from isoflop.launching.worker import process_guard


@dataclass(frozen=True)
class Program:
    """A started program.

    Attributes:
        process: its guard, which ends with its exit code.
        stops: what the guard writes at a SIGTERM to the group.
    """

    process: subprocess.Popen[bytes]
    stops: IO[bytes]

    def was_stopped(self) -> bool:
        """Return whether somebody sent SIGTERM to the group of the ended program."""
        return bool(self.stops.read())


@contextlib.contextmanager
def start_program(
    command: list[str], output: IO[bytes], environment: Mapping[str, str]
) -> Iterator[Program]:
    """Start the program under its guard, in a process group with all that it starts.

    The group is killed when the block ends, and when this process does.

    Raises:
        RunError: a program that can't be started.
    """
    (report_end, report), (stops_end, stops) = os.pipe(), os.pipe()
    guard = [sys.executable, "-I", "-S", process_guard.__file__, str(report), str(stops)]
    with open(report_end, "rb") as report_file, open(stops_end, "rb") as stops_file:
        try:
            process = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                pass_fds=(report, stops),
            )
        finally:
            os.close(report)
            os.close(stops)
        try:
            if problem := report_file.read().decode():
                raise RunError(f"{command[0]}: can't be started ({problem}); see train.trainer")
            yield Program(process, stops_file)
        finally:
            with contextlib.suppress(ProcessLookupError):  # ends the program's own children too
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
