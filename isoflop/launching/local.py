"""A sweep on this machine: a pool of workers, each a job of submitit's local executor."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.launching.worker.pool_worker import Worker, write_order
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import RunSpec
from isoflop.process_info import children_of
from isoflop.runs.run_directory import SETTLED, RunDirectory

OVERHEAD_FLOPS = 5e5  # a token of a tiny model costs a core about as long as this many more FLOPs; for order and ETA
TIMEOUT_MIN = 60 * 24 * 365  # submitit's local executor ends a job after 2 minutes by default
POLL_S = 0.5
STOP_S = 60.0
ASK_AGAIN_S = 1.0
STRAYS_S = 30.0
MOST_DEATHS = 2


@dataclass(frozen=True)
class Progress:
    """Where a sweep is: state of every run by id, and the share of the work that is done."""

    states: dict[str, dict[str, Any]]
    share: float
    seconds_left: float | None

    def count(self, *states: str) -> int:
        return sum(state["state"] in states for state in self.states.values())


@dataclass
class LocalPool:
    """Trains what is left of a plan; iterate over `run()` for its progress.

    Attributes:
        directory: of the sweep, made by `make_directory`.
        workers: how many runs train at once; one thread each on a CPU.
        on_stopping: told how many seconds runs have to save, where some are to be stopped.
    """

    directory: Path
    plan: Plan
    workers: int
    on_stopping: Callable[[float], None] | None = None
    _jobs: dict[int, Any] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)
    _attempts: int = -1
    _in_vain: int = 0

    @property
    def left(self) -> list[RunSpec]:
        """What `run` would train, the longest first: not what is done or has diverged."""
        longest_first = sorted(self.plan.runs, key=_work, reverse=True)
        return [
            spec for spec in longest_first if self._state(spec)["state"] not in ("done", "diverged")
        ]

    def run(self) -> Generator[Progress]:
        """Starts the workers and yields twice a second until all runs have ended.

        Closing the iterator, or an interruption, stops them at a step boundary, with a checkpoint; another interruption
        kills them.

        Raises:
            RunError: a run that another process holds, or workers that can't even start.
        """
        self._wait_for_strays()
        left = self.left
        for spec in left:
            if (state := self._state(spec))["state"] != "pending":
                self._dir(spec).set_state("pending", state.get("reason", ""))
        write_order(self.directory, [spec.run_id for spec in left])
        began, before = time.monotonic(), self._progress(0.0, 0.0)
        try:
            self._start(len(left))
            while True:
                self._replace_dead()
                yield self._progress(time.monotonic() - began, before.share)
                if not self._jobs:
                    return
                time.sleep(POLL_S)
        finally:
            self._stop()

    def _dir(self, spec: RunSpec) -> RunDirectory:
        return RunDirectory(self.directory / spec.run_id)

    def _state(self, spec: RunSpec) -> dict[str, Any]:
        return self._dir(spec).state()

    def _wait_for_strays(self) -> None:
        """Workers whose parent was killed stop by themselves, at their next step."""
        limit = time.monotonic() + STRAYS_S
        while held := [spec.run_id for spec in self.left if self._dir(spec).is_leased()]:
            if time.monotonic() > limit:
                raise RunError(
                    f"{self.directory}: {held[0]} is being trained by another process; wait, or stop it"
                )
            time.sleep(POLL_S)

    # Workers

    def _start(self, wanted: int) -> None:
        """Starts up to `wanted` workers in the places that are free."""
        import submitit

        gpus = visible_gpus()
        free = [place for place in range(self.workers) if place not in self._jobs]
        executor = submitit.LocalExecutor(
            self._submitit, python=f"{shlex.quote(sys.executable)} -P"
        )
        executor.update_parameters(timeout_min=TIMEOUT_MIN)
        for place in free[:wanted]:
            ours = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
            if gpus:
                ours["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
            with _children_ignore(signal.SIGINT, signal.SIGHUP), _children_import_this_code():
                self._jobs[place] = executor.submit(Worker(str(self.directory), os.getpid(), ours))

    @property
    def _submitit(self) -> Path:
        return self.directory / "workers" / "submitit"

    def _replace_dead(self) -> None:
        """Takes the runs of workers that died back, and starts others for what is left."""
        ended = {place: job for place, job in self._jobs.items() if job.done()}
        if not ended:
            return
        for place in ended:
            del self._jobs[place]
        orphans = [spec for spec in self.plan.runs if self._is_orphan(spec)]
        for spec in orphans:
            self._count_death(spec)
        orphans = [spec for spec in orphans if self._is_orphan(spec)]
        if orphans:
            self._check_it_helps(next(reversed(ended.values())))
            self._start(len(orphans))

    def _is_orphan(self, spec: RunSpec) -> bool:
        return (
            self._state(spec)["state"] in ("running", "pending") and not self._dir(spec).is_leased()
        )

    def _count_death(self, spec: RunSpec) -> None:
        if self._state(spec)["state"] != "running":
            return
        self._deaths[spec.run_id] += 1
        gave_up = self._deaths[spec.run_id] >= MOST_DEATHS
        reason = f"its worker died (killed, or out of memory; see {self._submitit})"
        self._dir(spec).set_state("failed" if gave_up else "pending", reason)

    def _check_it_helps(self, job: Any) -> None:
        """Stops where workers end again and again before they take a run."""
        attempts = sum(self._state(spec).get("attempt", 0) for spec in self.plan.runs)
        self._in_vain = self._in_vain + 1 if attempts == self._attempts else 1
        self._attempts = attempts
        if self._in_vain > MOST_DEATHS:
            raise RunError(
                f"{self.directory}: workers end before they train anything; see {job.paths.stderr}"
            )

    def _stop(self) -> None:
        try:
            if self._alive and self.on_stopping:
                with contextlib.suppress(OSError):  # a terminal that was closed
                    self.on_stopping(STOP_S)
            self._ask_to_stop()
        except KeyboardInterrupt:
            self._kill()
            raise
        if not (self._alive or self._deaths or self._in_vain > MOST_DEATHS):
            shutil.rmtree(self._submitit, ignore_errors=True)

    @property
    def _alive(self) -> list[Any]:
        return [job for job in self._jobs.values() if not job.done()]

    def _ask_to_stop(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # on a full disk: the signals say it too, one worker after the other
            write_order(self.directory, [])
        limit, asked = time.monotonic() + STOP_S, -math.inf
        while (alive := self._alive) and time.monotonic() < limit:
            if time.monotonic() - asked > ASK_AGAIN_S:  # a worker that is starting misses a signal
                asked = time.monotonic()
                for job in alive:
                    job._process.send_signal(
                        signal.SIGTERM
                    )  # passed on to the worker; submitit's cancel() is a SIGINT
            time.sleep(0.1)

    def _kill(self) -> None:
        """Ends the workers, and with each the program that it has started."""
        for job in self._alive:
            for process in (*children_of(job._process.pid), job._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    # Progress

    def _progress(self, seconds: float, share_before: float) -> Progress:
        states = {spec.run_id: self._state(spec) for spec in self.plan.runs}
        done = sum(_work(spec) * _share(states[spec.run_id], spec) for spec in self.plan.runs)
        share = done / sum(map(_work, self.plan.runs))
        speed = (share - share_before) / seconds if seconds > 0 else 0.0
        return Progress(states, share, (1 - share) / speed if speed > 0 else None)


def default_workers() -> int:
    """A worker for each GPU, else for each core this process may use."""
    return len(visible_gpus()) or len(os.sched_getaffinity(0))


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [
            str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))
        ]
    return list(itertools.takewhile(_names_gpu, map(str.strip, visible.split(","))))


def _names_gpu(entry: str) -> bool:
    """Whether CUDA takes an entry for a GPU; it reads no further than the first that is none."""
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))


def _work(spec: RunSpec) -> float:
    return spec.tokens * (spec.shape.train_flops_per_token + OVERHEAD_FLOPS)


def _share(state: dict[str, Any], spec: RunSpec) -> float:
    return 1.0 if state["state"] in SETTLED else min(1.0, state.get("step", 0) / spec.steps)


@contextlib.contextmanager
def _children_import_this_code() -> Iterator[None]:
    """Processes started inside import isoflop from where this one has it, whatever lies in the working directory."""
    before, here = os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{before}" if before else here
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _children_ignore(*signals: signal.Signals) -> Iterator[None]:
    """Processes started inside don't get what a terminal sends to all; they are asked to stop in order."""
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in signals]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
