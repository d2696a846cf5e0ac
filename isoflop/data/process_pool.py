"""Jobs in fresh processes, for reproducible results of libraries that keep state between calls."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any, Generic, TypeVar

from isoflop.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
_END = object()


def in_fresh_processes(
    function: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Generator[Result]:
    """Yield `function(job)` of every job, in order; each runs in a new process.

    A process has one thread for linear algebra. `jobs` may be infinite: only a few more jobs are
    started than results are taken. Closing the generator kills running jobs; so does the death of
    this process, whatever its cause. Exceptions of the function are raised unchanged.

    Raises:
        DataError: a process was killed, e.g. because memory ran out.
    """
    pending: Iterator[Any] = iter(jobs)
    tasks: deque[_Task[Result]] = deque()
    try:
        while True:
            running = [task for task in tasks if task.running]
            if (
                len(running) < processes
                and len(tasks) < 2 * processes
                and (job := next(pending, _END)) is not _END
            ):
                tasks.append(_Task(function, job))
            elif not tasks:
                return
            elif not tasks[0].running:
                yield tasks.popleft().result()
            else:
                ready = wait([task.receiver for task in running])
                for task in running:
                    if task.receiver in ready:
                        task.receive()
    finally:
        for task in tasks:
            task.end()


class _Task(Generic[Result]):
    """A job running in its process."""

    def __init__(self, function: Callable[[Any], Result], job: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(sender, function, job), daemon=True)
        with _one_thread_each():
            self.process.start()
        sender.close()
        self.running = True
        self._outcome: tuple[Any, Exception | None] = None, None

    def receive(self) -> None:
        """Receive the outcome of the process, or its death."""
        try:
            self._outcome = self.receiver.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            message = f"a process that prepares data died (exit code {code})"
            fix = "memory ran out or it was killed; prepare again"
            self._outcome = None, DataError(f"{message}: {fix}")
        self.end()

    def result(self) -> Result:
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.receiver.close()
        self.running = False


def _work(sender: Connection, function: Callable[[Any], Any], job: Any) -> None:
    # Ctrl-C reaches the whole process group; the parent ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = function(job), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        outcome = None, error
    sender.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Give processes that start inside one thread for linear algebra.

    Sums, and so codes, then do not depend on the number of cores.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
