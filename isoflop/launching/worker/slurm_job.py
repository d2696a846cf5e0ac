"""A run as a job of SLURM: started, preempted, timed out, started again, until it is done."""

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
from isoflop.lease import STALE_S
from isoflop.runs.run_directory import SETTLED, RunDirectory

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

SETTLE_S = 0.5
MOST_STARTS_IN_VAIN = 10
FOLLOW_S = 60.0


@dataclass
class RunJob(Job):
    """What submitit pickles: the directory of a run, and nothing else."""

    def __call__(self) -> str:
        """Trains the run; returns the state it ends in, or leaves by SystemExit where the job must go on or failed."""
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
        """The state in which this attempt leaves the run; `held` where another process has it."""
        run, limit = RunDirectory(Path(self.directory)), time.monotonic() + 2 * STALE_S
        while True:
            with run.lease(settle_s=SETTLE_S) as lease:
                if lease:
                    return self._train(run, lease.check, ranks)
            if self.must_stop() or time.monotonic() > limit:
                _begin(ranks, False)
                return "pending" if self.must_stop() else "held"
            time.sleep(
                1.0
            )  # what held it may be dying: SLURM starts a run again before its last process is gone

    def _follow(self, ranks: Ranks) -> NoReturn:
        """The part of a process that is not the first: it trains along, and ends when the first has ended the job."""
        if not _begin(ranks, False):
            os._exit(0)
        state = attempt(RunDirectory(Path(self.directory)), self.must_stop, None, ranks)
        if state == "failed":
            os._exit(1)
        limit = time.monotonic() + FOLLOW_S
        while (
            state == "pending" and signal.SIGTERM not in self._signals and time.monotonic() < limit
        ):
            time.sleep(0.05)
        os._exit(0)

    def _train(
        self, run: RunDirectory, check_lease: Callable[[], None], ranks: Ranks | None
    ) -> str:
        state = run.state()
        if state["state"] in SETTLED and state["state"] != "failed":
            _begin(ranks, False)
            run.remove_checkpoints()
            return state["state"]
        step, furthest = run.reached(), state.get("start_step")
        in_vain = state.get("in_vain", 0) + 1 if furthest is not None and step <= furthest else 0
        step = max(step, furthest or 0)
        if in_vain >= MOST_STARTS_IN_VAIN:
            _begin(ranks, False)
            record_failure(
                run,
                f"started {in_vain} times without getting past step {step}: give a job more time (slurm.time), "
                "or save more often (train.checkpoint_minutes); then retry",
                "",
            )
            return "failed"

        def should_stop() -> bool:
            check_lease()
            return self.must_stop()

        _begin(ranks, True)
        return attempt(run, should_stop, job_id(), ranks, in_vain=in_vain, start_step=step)


def _ranks(trainer: str) -> Ranks | None:
    """The processes of this job that train together, where there are several."""
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return None
    if trainer == "simulated":
        if int(os.environ["SLURM_PROCID"]):
            os._exit(0)  # the first draws the losses alone
        return None
    from isoflop.training.distributed import join

    return join(on_gpus=trainer == "builtin")


def _begin(ranks: Ranks | None, go: bool) -> bool:
    """What the first process has decided: whether all of them train now."""
    return go if ranks is None else ranks.any(go)[0]
