"""A sweep on this machine: a pool of workers, each a job of submitit's local executor."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.launching.worker import SETTLED, Worker, write_order
from isoflop.planning.plan import Plan
from isoflop.planning.runspec import RunSpec
from isoflop.runs import RunDirectory

OVERHEAD_FLOPS = 5e5  # a token of a tiny model costs a core about as long as this many more FLOPs; for order and ETA
TIMEOUT_MIN = 60 * 24 * 365  # submitit's local executor ends a job after 2 minutes by default
STOP_S = 60
POLL_S = 0.5
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
    """

    directory: Path
    plan: Plan
    workers: int
    _jobs: list[Any] = field(default_factory=list)
    _deaths: dict[str, int] = field(default_factory=dict)

    def run(self) -> Iterator[Progress]:
        """Starts the workers and yields twice a second until all runs have ended.

        An interruption stops them at a step boundary, with a checkpoint.

        Raises:
            RunError: another `isoflop run` is at work in this directory.
        """
        waiting = [spec for spec in self._longest_first() if not self._dir(spec).done]
        if held := [spec.run_id for spec in waiting if self._dir(spec).is_leased()]:
            raise RunError(f"{self.directory}: {held[0]} is being trained by another process; stop it, or wait for it")
        for spec in waiting:
            if (state := self._dir(spec).state())["state"] in ("running", "failed"):
                self._dir(spec).set_state("pending", state.get("reason", ""))
        left = [spec for spec in waiting if self._dir(spec).state()["state"] not in SETTLED]
        write_order(self.directory, [spec.run_id for spec in left])
        began, work_before = time.monotonic(), self._work_done()
        with _children_ignore_interrupts():
            self._jobs = [self._start() for _ in range(min(self.workers, len(left)))]
        try:
            while True:
                alive = self._replace_dead()
                yield self._progress(time.monotonic() - began, work_before)
                if not alive:
                    return
                time.sleep(POLL_S)
        finally:
            self._stop()

    def _longest_first(self) -> list[RunSpec]:
        return sorted(self.plan.runs, key=_work, reverse=True)

    def _dir(self, spec: RunSpec) -> RunDirectory:
        return RunDirectory(self.directory / spec.run_id)

    def _start(self) -> Any:
        import submitit

        executor = submitit.LocalExecutor(self.directory / "workers" / "submitit")
        gpus = min(1, _gpus())
        executor.update_parameters(
            timeout_min=TIMEOUT_MIN,
            gpus_per_node=gpus,
            visible_gpus=[len(self._jobs) % _gpus()] if gpus else (),
        )
        return executor.submit(Worker(str(self.directory), os.getpid()))

    def _replace_dead(self) -> bool:
        """Marks the runs of workers that died, and starts others for what is left; whether any worker is alive."""
        alive = [job for job in self._jobs if not job.done()]
        if len(alive) < len(self._jobs):
            self._jobs = alive
            orphans = [spec for spec in self.plan.runs if self._is_orphan(spec)]
            for spec in orphans:
                self._count_death(spec)
            if orphans and len(alive) < self.workers:
                with _children_ignore_interrupts():
                    self._jobs.append(self._start())
        return bool(self._jobs)

    def _is_orphan(self, spec: RunSpec) -> bool:
        run = self._dir(spec)
        return run.state()["state"] in ("running", "pending") and not run.done and not run.is_leased()

    def _count_death(self, spec: RunSpec) -> None:
        run = self._dir(spec)
        if run.state()["state"] != "running":
            return
        deaths = self._deaths[spec.run_id] = self._deaths.get(spec.run_id, 0) + 1
        reason = "its worker died (killed, or out of memory)"
        run.set_state("failed" if deaths >= MOST_DEATHS else "pending", reason)

    def _stop(self) -> None:
        for job in self._jobs:
            if not job.done():
                job._process.send_signal(signal.SIGTERM)  # submitit's controller passes it on; its cancel() is a SIGINT
        limit = time.monotonic() + STOP_S
        while any(not job.done() for job in self._jobs) and time.monotonic() < limit:
            time.sleep(0.1)
        if all(job.done() for job in self._jobs):
            shutil.rmtree(self.directory / "workers" / "submitit", ignore_errors=True)

    # Progress

    def _work_done(self) -> float:
        return sum(_work(spec) * _share(self._dir(spec), spec) for spec in self.plan.runs)

    def _progress(self, seconds: float, work_before: float) -> Progress:
        states = {spec.run_id: self._dir(spec).state() for spec in self.plan.runs}
        total = sum(map(_work, self.plan.runs))
        done = self._work_done()
        speed = (done - work_before) / seconds if seconds > 0 else 0.0
        return Progress(states, done / total, (total - done) / speed if speed > 0 else None)


def default_workers() -> int:
    """A worker for each GPU, else for each core this process may use."""
    return _gpus() or len(os.sched_getaffinity(0))


def _gpus() -> int:
    """NVIDIA GPUs of this machine, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([number for number in visible.split(",") if number.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _work(spec: RunSpec) -> float:
    return spec.tokens * (spec.shape.train_flops_per_token + OVERHEAD_FLOPS)


def _share(run: RunDirectory, spec: RunSpec) -> float:
    state = run.state()
    return 1.0 if state["state"] in SETTLED else min(1.0, state.get("step", 0) / spec.steps)


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started inside don't get Ctrl-C from the terminal; they are asked to stop in order."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
