"""Training of a sweep on this machine: a pool of workers, jobs of submitit's local executor."""

from __future__ import annotations

import contextlib
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
from isoflop.node import visible_gpus
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import RunSpec
from isoflop.process_info import list_children
from isoflop.runs.run_directory import TERMINAL_STATES, RunDirectory

OVERHEAD_FLOPS = 5e5
"""Overhead of a core for a token of a tiny model, in FLOPs; for order and remaining time."""

TIMEOUT_MIN = 60 * 24 * 365
"""Time limit of a job of submitit's local executor, by default 2 minutes."""

WORKERS_POLL_S = 0.5
STOP_TIMEOUT_S = 60.0
SIGNAL_INTERVAL_S = 1.0
STRAY_TIMEOUT_S = 30.0
MAX_WORKER_DEATHS = 2


@dataclass(frozen=True)
class Progress:
    """Progress of a sweep.

    Attributes:
        states: state of every run, by id.
        share: share of the work that is done.
        seconds_left: estimated remaining time; None if unknown.
    """

    states: dict[str, dict[str, Any]]
    share: float
    seconds_left: float | None

    def count(self, *states: str) -> int:
        """Return the number of runs in these states."""
        return sum(state["state"] in states for state in self.states.values())


@dataclass
class LocalPool:
    """Pool of workers that trains the remaining runs of a plan; `run()` yields its progress.

    Attributes:
        directory: directory of the sweep, made by `make_directory`.
        plan: the plan.
        workers: number of runs to train at once; one thread each on a CPU.
        on_stopping: called with the seconds that stopped runs have to save.
    """

    directory: Path
    plan: Plan
    workers: int
    on_stopping: Callable[[float], None] | None = None
    _jobs: dict[int, Any] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)
    _attempts: int = -1
    _failed_starts: int = 0

    @property
    def remaining(self) -> list[RunSpec]:
        """Return the runs that `run` would train, the longest first: neither done nor diverged."""
        longest_first = sorted(self.plan.runs, key=_work_flops, reverse=True)
        return [
            spec for spec in longest_first if self._state(spec)["state"] not in ("done", "diverged")
        ]

    def run(self) -> Generator[Progress]:
        """Start the workers and yield twice a second until all runs have ended.

        Closing the iterator, or an interruption, stops them at a step boundary, with a checkpoint;
        another interruption kills them.

        Raises:
            RunError: a run that another process holds, or workers that can't start.
        """
        self._wait_for_strays()
        remaining = self.remaining
        for spec in remaining:
            if (state := self._state(spec))["state"] != "pending":
                self._dir(spec).set_state("pending", state.get("reason", ""))
        write_order(self.directory, [spec.run_id for spec in remaining])
        start, before = time.monotonic(), self._progress(0.0, 0.0)
        try:
            self._start(len(remaining))
            while True:
                self._replace_dead()
                yield self._progress(time.monotonic() - start, before.share)
                if not self._jobs:
                    return
                time.sleep(WORKERS_POLL_S)
        finally:
            self._stop()

    def _dir(self, spec: RunSpec) -> RunDirectory:
        return RunDirectory(self.directory / spec.run_id)

    def _state(self, spec: RunSpec) -> dict[str, Any]:
        return self._dir(spec).state()

    def _wait_for_strays(self) -> None:
        """Wait for workers of a killed parent, which stop at their next step."""
        limit = time.monotonic() + STRAY_TIMEOUT_S
        while held := [spec.run_id for spec in self.remaining if self._dir(spec).is_leased()]:
            if time.monotonic() > limit:
                raise RunError(
                    f"{self.directory}: {held[0]} is being trained by another process; "
                    "wait, or stop it"
                )
            time.sleep(WORKERS_POLL_S)

    # Workers

    def _start(self, count: int) -> None:
        """Start up to `count` workers in free slots."""
        import submitit

        gpus = visible_gpus()
        free = [slot for slot in range(self.workers) if slot not in self._jobs]
        executor = submitit.LocalExecutor(
            self._submitit, python=f"{shlex.quote(sys.executable)} -P"
        )
        executor.update_parameters(timeout_min=TIMEOUT_MIN)
        for slot in free[:count]:
            names = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")
            environment = {name: os.environ.get(name) for name in names}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
            worker = Worker(str(self.directory), os.getpid(), environment)
            with _children_ignore(signal.SIGINT, signal.SIGHUP), _children_import_this_code():
                self._jobs[slot] = executor.submit(worker)

    @property
    def _submitit(self) -> Path:
        return self.directory / "workers" / "submitit"

    def _replace_dead(self) -> None:
        """Take back the runs of dead workers and start new workers for them."""
        ended = {slot: job for slot, job in self._jobs.items() if job.done()}
        if not ended:
            return
        for slot in ended:
            del self._jobs[slot]
        orphans = [spec for spec in self.plan.runs if self._is_orphan(spec)]
        for spec in orphans:
            self._count_death(spec)
        orphans = [spec for spec in orphans if self._is_orphan(spec)]
        if orphans:
            self._check_starts(next(reversed(ended.values())))
            self._start(len(orphans))

    def _is_orphan(self, spec: RunSpec) -> bool:
        return (
            self._state(spec)["state"] in ("running", "pending") and not self._dir(spec).is_leased()
        )

    def _count_death(self, spec: RunSpec) -> None:
        if self._state(spec)["state"] != "running":
            return
        self._deaths[spec.run_id] += 1
        gave_up = self._deaths[spec.run_id] >= MAX_WORKER_DEATHS
        reason = f"its worker died (killed, or out of memory; see {self._submitit})"
        self._dir(spec).set_state("failed" if gave_up else "pending", reason)

    def _check_starts(self, job: Any) -> None:
        """Raise RunError if workers repeatedly end before they take a run."""
        attempts = sum(self._state(spec).get("attempt", 0) for spec in self.plan.runs)
        self._failed_starts = self._failed_starts + 1 if attempts == self._attempts else 1
        self._attempts = attempts
        if self._failed_starts > MAX_WORKER_DEATHS:
            raise RunError(
                f"{self.directory}: workers end before they train anything; see {job.paths.stderr}"
            )

    def _stop(self) -> None:
        try:
            if self._alive and self.on_stopping:
                with contextlib.suppress(OSError):  # a terminal that was closed
                    self.on_stopping(STOP_TIMEOUT_S)
            self._ask_to_stop()
        except KeyboardInterrupt:
            self._kill()
            raise
        if not (self._alive or self._deaths or self._failed_starts > MAX_WORKER_DEATHS):
            shutil.rmtree(self._submitit, ignore_errors=True)

    @property
    def _alive(self) -> list[Any]:
        return [job for job in self._jobs.values() if not job.done()]

    def _ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk the signals stop the workers too
            write_order(self.directory, [])
        limit, last_signal = time.monotonic() + STOP_TIMEOUT_S, -math.inf
        while (alive := self._alive) and time.monotonic() < limit:
            # Repeated, as a starting worker misses a signal.
            if time.monotonic() - last_signal > SIGNAL_INTERVAL_S:
                last_signal = time.monotonic()
                for job in alive:  # the job passes it on; submitit's cancel() sends SIGINT
                    job._process.send_signal(signal.SIGTERM)
            time.sleep(0.1)

    def _kill(self) -> None:
        """Kill the workers, and with each the program that it started."""
        for job in self._alive:
            for process in (*list_children(job._process.pid), job._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    # Progress

    def _progress(self, seconds: float, share_before: float) -> Progress:
        states = {spec.run_id: self._state(spec) for spec in self.plan.runs}
        done_flops = sum(
            _work_flops(spec) * _share(states[spec.run_id], spec) for spec in self.plan.runs
        )
        share = done_flops / sum(map(_work_flops, self.plan.runs))
        speed = (share - share_before) / seconds if seconds > 0 else 0.0
        return Progress(states, share, (1 - share) / speed if speed > 0 else None)


def default_workers() -> int:
    """Return the number of GPUs, or without GPUs of the cores that this process may use."""
    return len(visible_gpus()) or len(os.sched_getaffinity(0))


def _work_flops(spec: RunSpec) -> float:
    return spec.tokens * (spec.shape.train_flops_per_token + OVERHEAD_FLOPS)


def _share(state: dict[str, Any], spec: RunSpec) -> float:
    return 1.0 if state["state"] in TERMINAL_STATES else min(1.0, state.get("step", 0) / spec.steps)


@contextlib.contextmanager
def _children_import_this_code() -> Iterator[None]:
    """Let child processes import this process's isoflop, whatever the working directory holds."""
    before, folder = os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _children_ignore(*signals: signal.Signals) -> Iterator[None]:
    """Let child processes ignore signals that a terminal sends to all; the pool stops them."""
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in signals]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
