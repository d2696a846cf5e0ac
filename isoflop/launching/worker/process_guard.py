"""Runs a program for a worker, and lets no process of it outlive the worker, however that ends.

    python keeper.py DESCRIPTOR PROGRAM WORD ...

It is started by its file, as the leader of a session, and imports nothing but the standard library. Its standard input
is a pipe that the worker holds open: when that ends, the whole group is killed. To DESCRIPTOR goes why the program
can't be started; it is closed once it has been. The keeper ends as the program does.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main(report: int, words: list[str]) -> int:
    if os.getpgrp() != os.getpid():
        os.setsid()
    # What stops the program is sent to its group: the keeper waits on. A handler, unlike SIG_IGN, is not inherited.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    libc, keeper = ctypes.CDLL(None), os.getpid()

    def end_with_keeper() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it ended in between
            os._exit(1)

    try:  # there is one thread so far, as a function before exec needs it
        program = subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=end_with_keeper)
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
        os.kill(keeper, -code)
    return code


def _watch() -> None:
    """Until the worker is gone."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
