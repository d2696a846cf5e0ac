"""Guard of a worker's program: no process of the program outlives the worker.

    python process_guard.py REPORT STOPS PROGRAM ARGUMENT ...

Started by its file, as the leader of a session; imports only the standard library. Its standard
input is a pipe that the worker holds open: when the pipe closes, the whole group is killed. If the
program can't be started, the reason is written to descriptor REPORT, which is closed after the
start. A byte in descriptor STOPS reports a SIGTERM to the group. The guard ends with the program's
exit code or signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main(report: int, stops: int, command: list[str]) -> int:
    """Run a program in this process group and return its exit code.

    Args:
        report: file descriptor for the reason of a failed start.
        stops: file descriptor for a byte at SIGTERM.
        command: the program and its arguments.
    """
    if os.getpgrp() != os.getpid():
        os.setsid()
    # The group's SIGTERM is for the program: the guard waits for its end. A handler, unlike
    # SIG_IGN, is not inherited.
    signal.signal(signal.SIGTERM, lambda number, frame: _report_stop(stops))
    libc, guard = ctypes.CDLL(None), os.getpid()

    def end_with_guard() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard ended in between
            os._exit(1)

    try:  # preexec_fn is safe: no thread has started yet
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_guard)
    except OSError as problem:
        os.write(report, (problem.strerror or str(problem)).encode())
        return 1
    os.close(report)
    threading.Thread(target=_watch, daemon=True).start()
    code = program.wait()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(guard, -code)
    return code


def _report_stop(stops: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the worker is gone
        os.write(stops, b"T")


def _watch() -> None:
    """Kill the group once the worker is gone."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
