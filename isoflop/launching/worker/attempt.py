"""Attempt at a run in this process: its log, its state, and the reason of a failure."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import IsoflopError
from isoflop.files import replace_file
from isoflop.launching.records.code_snapshot import PACKAGE, find_commit, versions
from isoflop.lease import LeaseLostError
from isoflop.node import is_job, node_name
from isoflop.runs.run_directory import RunDirectory, State

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

log = logging.getLogger("isoflop")
FAILURE_FILE = "failure.json"
PEER_FAILURE_TIMEOUT_S = 3.0


def attempt(
    run: RunDirectory,
    should_stop: Callable[[], bool],
    job_id: str | None,
    ranks: Ranks | None = None,
    **more: Any,
) -> State:
    """Train a run whose lease this process holds and return its final state.

    Args:
        run: the run.
        should_stop: called at every step boundary. If it raises `LeaseLostError`, nothing more is
            written.
        job_id: id of this process's job.
        ranks: the processes that train the run together. The first writes; the others log to
            stderr. If all that fails in a job is the connection to a lost process, the stored
            state is not changed: SLURM has the reason.
        more: further entries of `state.json` for this attempt.
    """
    if ranks is not None and not ranks.first:
        return _follow(run, should_stop, ranks)
    number = run.state().get("attempt", 0) + 1
    try:
        run.set_state("running", attempt=number, node=node_name(), job_id=job_id, **more)
        if ranks is not None:
            ranks.broadcast(number)
        _write_provenance(run.log_file(number).with_name("provenance.json"), job_id)
        with _log_in(run.log_file(number)):
            return _train(run, should_stop, ranks)
    except LeaseLostError:
        return "pending"
    except Exception as error:
        reason, node = _failure_reason(error), node_name()
        if ranks is not None and not isinstance(error, IsoflopError):
            # Probably only a consequence of another process's failure.
            peer_failure = _await_peer_failure(run, number)
            if peer_failure is None and is_job() and _is_peer_loss(error):
                return "failed"
            reason, node = peer_failure or (reason, node)
        with suppress(OSError):  # on a full disk; the parent process finds the run unfinished
            record_failure(run, reason, node)
        return "failed"


def _follow(run: RunDirectory, should_stop: Callable[[], bool], ranks: Ranks) -> State:
    """Train along as a process that is not the first of its run, and return its final state."""
    number = 0
    try:
        number = ranks.broadcast(number)  # once: later the state may be that of the next attempt
        return _train(run, should_stop, ranks)
    except Exception as error:
        traceback.print_exc()
        # Only the first failure is the cause of the others.
        if _is_peer_loss(error) or read_peer_failure(run, number):
            return "failed"
        reason = f"in process {ranks.rank} of {ranks.size}: {_failure_reason(error)}"
        with (
            suppress(OSError),
            replace_file(run.log_file(number).with_name(FAILURE_FILE)) as temporary,
        ):
            temporary.write_text(json.dumps([reason, node_name()]) + "\n")
        return "failed"


def _is_peer_loss(error: Exception) -> bool:
    from isoflop.training.distributed import is_peer_loss

    return is_peer_loss(error)


def read_peer_failure(run: RunDirectory, attempt: int) -> tuple[str, str] | None:
    """Return reason and node of a failure recorded by a process that is not the first, or None.

    The first process itself only loses the connection, or is killed too.
    """
    try:
        reason, node = json.loads(run.log_file(attempt).with_name(FAILURE_FILE).read_text())
    except (OSError, ValueError):
        return None
    return str(reason), str(node)


def _await_peer_failure(run: RunDirectory, attempt: int) -> tuple[str, str] | None:
    """Return the failure of another process, which a shared file system may show late."""
    limit = time.monotonic() + PEER_FAILURE_TIMEOUT_S
    while (failure := read_peer_failure(run, attempt)) is None and time.monotonic() < limit:
        time.sleep(0.2)
    return failure


def record_failure(run: RunDirectory, reason: str, node: str) -> None:
    """Set a run to failed.

    Failures count from 1 again once a run gets past its furthest step.
    """
    state, step = run.state(), run.resume_step()
    furthest = state.get("failed_at", -1)
    failures = state.get("failures", 0) + 1 if step <= furthest else 1
    failed_on = [*state.get("failed_on", ()), *([node] if node else [])]
    run.set_state(
        "failed",
        reason,
        failures=failures,
        failed_at=max(step, furthest),
        failed_on=failed_on,
        failed_time=time.time(),
    )


def _write_provenance(path: Path, job_id: str | None) -> None:
    """Write the attempt's environment: job, node, GPUs, code and versions."""
    document = {
        "job_id": job_id,
        "node": node_name(),
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "began": time.time(),
        "python": platform.python_version(),
        "code": str(PACKAGE.parent),
        "commit": find_commit(),
        "versions": versions("submitit"),
    }
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def _train(run: RunDirectory, should_stop: Callable[[], bool], ranks: Ranks | None) -> State:
    kind, argument = run.program()
    start = time.monotonic()
    if kind == "simulated":
        from isoflop.launching.worker.simulated_trainer import simulate

        state = simulate(run, argument)
    elif kind == "command":
        from isoflop.launching.worker.external_trainer import run_command

        state = run_command(run, argument, should_stop, ranks)
    else:
        state = _train_builtin(run, should_stop, ranks)
    log.info("%s: %s after %.1f s", run.run_id, state, time.monotonic() - start)
    return state


def _train_builtin(
    run: RunDirectory, should_stop: Callable[[], bool], ranks: Ranks | None
) -> State:
    from isoflop.training.devices import check_gpus, use_one_core
    from isoflop.training.loop import train

    check_gpus()
    use_one_core()
    return train(run, run.path.parent.parent, should_stop, ranks)


@contextmanager
def _log_in(path: Path) -> Iterator[None]:
    """Log to a file, including the traceback of an exception that ends the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.handleError = lambda record: None  # on a full disk nothing can be logged
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except Exception:
        log.error("%s", traceback.format_exc())
        raise
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def _failure_reason(error: Exception) -> str:
    """Return the reason of a failure in one line."""
    if isinstance(error, IsoflopError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = (
            f"the disk is full ({error.filename}); make room, then the same command resumes from "
            "the last checkpoint"
        )
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
