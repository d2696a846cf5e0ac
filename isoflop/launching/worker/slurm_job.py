"""Job of SLURM that trains a run: restarted after preemptions and timeouts until it is done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from isoflop.launching.slurm.signals import Job, job_id
from isoflop.launching.worker.attempt import attempt, record_failure
from isoflop.lease import LEASE_TIMEOUT_S
from isoflop.runs.run_directory import TERMINAL_STATES, RunDirectory

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

LEASE_SETTLE_S = 0.5
LEASE_POLL_S = 1.0
MAX_STARTS_WITHOUT_PROGRESS = 10
FOLLOWER_TIMEOUT_S = 60.0


@dataclass
class RunJob(Job):
    """Job that submitit pickles: the directory of a run and nothing else."""

    def __call__(self) -> str:
        """Train the run and return its final state.

        Raises:
            SystemExit: the run failed, or the job must be requeued.
        """
        self.listen()
        ranks = _ranks(RunDirectory(Path(self.directory)).trainer)
        if ranks is not None and not ranks.first:
            self._follow(ranks)
        state = self._lead(ranks)
        if state == "failed":
            raise SystemExit(1)
        if state == "pending":
            self.stop()
        return state

    def _lead(self, ranks: Ranks | None) -> str:
        """Train and return the run's state, or `held` if another process holds its lease."""
        run, limit = RunDirectory(Path(self.directory)), time.monotonic() + 2 * LEASE_TIMEOUT_S
        while True:
            with run.lease(settle_s=LEASE_SETTLE_S) as lease:
                if lease:
                    return self._train(run, lease.check, ranks)
            if self.must_stop() or time.monotonic() > limit:
                _agree_to_train(ranks, False)
                return "pending" if self.must_stop() else "held"
            # The holder may be ending: SLURM restarts a run before its last process is gone.
            time.sleep(LEASE_POLL_S)

    def _follow(self, ranks: Ranks) -> NoReturn:
        """Train along as a process that is not the first, and exit once the first ends the job."""
        if not _agree_to_train(ranks, False):
            os._exit(0)
        state = attempt(RunDirectory(Path(self.directory)), self.must_stop, None, ranks)
        if state == "failed":
            os._exit(1)
        limit = time.monotonic() + FOLLOWER_TIMEOUT_S
        while (
            state == "pending" and signal.SIGTERM not in self._signals and time.monotonic() < limit
        ):
            time.sleep(0.05)
        os._exit(0)

    def _train(
        self, run: RunDirectory, check_lease: Callable[[], None], ranks: Ranks | None
    ) -> str:
        state = run.state()
        if state["state"] in TERMINAL_STATES and state["state"] != "failed":
            _agree_to_train(ranks, False)
            run.remove_checkpoints()
            return state["state"]
        step, furthest = run.resume_step(), state.get("start_step")
        has_progress = furthest is None or step > furthest
        starts = 0 if has_progress else state.get("starts_without_progress", 0) + 1
        step = max(step, furthest or 0)
        if starts >= MAX_STARTS_WITHOUT_PROGRESS:
            _agree_to_train(ranks, False)
            record_failure(
                run,
                f"started {starts} times without getting past step {step}: "
                "give a job more time (slurm.time), or save more often "
                "(train.checkpoint_minutes); then retry",
                "",
            )
            return "failed"

        def should_stop() -> bool:
            check_lease()
            return self.must_stop()

        _agree_to_train(ranks, True)
        return attempt(
            run, should_stop, job_id(), ranks, starts_without_progress=starts, start_step=step
        )


RunJob.__module__ = "isoflop.launching.job"
"""Module named in pickles: jobs import a study's code copy, which may have an older layout."""


def _ranks(trainer: str) -> Ranks | None:
    """Return the processes of this job that train together, or None for a single one."""
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return None
    if trainer == "simulated":
        if int(os.environ["SLURM_PROCID"]):
            os._exit(0)  # the first simulates alone
        return None
    from isoflop.training.distributed import join_job

    return join_job(on_gpus=trainer == "builtin")


def _agree_to_train(ranks: Ranks | None, go: bool) -> bool:
    """Return the first process's decision whether all processes train now."""
    return go if ranks is None else ranks.any(go)[0]
