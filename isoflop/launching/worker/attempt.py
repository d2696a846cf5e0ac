"""One attempt at a run, in this process: its log, its state, and the reason where it fails."""

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
from isoflop.launching.records.code_snapshot import PACKAGE, commit_of, versions
from isoflop.lease import LeaseLostError
from isoflop.node import is_job, node_name
from isoflop.runs.run_directory import RunDirectory, State

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

log = logging.getLogger("isoflop")
FAILURE = "failure.json"
LATE_S = 3.0


def attempt(
    run: RunDirectory,
    should_stop: Callable[[], bool],
    job_id: str | None,
    ranks: Ranks | None = None,
    **more: Any,
) -> State:
    """Trains a run whose lease this process holds; returns the state in which it is left.

    Args:
        run: the run.
        should_stop: asked at every step boundary; it may raise `LeaseLostError`, and then nothing more is written.
        job_id: of the job that this process is.
        ranks: the processes that train the run together; the first writes, the others' words go to stderr. Where one
            finds in a job no more than that another is gone, the state stays as it was: SLURM knows how that ended.
        more: what `state.json` is to keep of this attempt.
    """
    if ranks is not None and not ranks.first:
        return _follow(run, should_stop, ranks)
    number = run.state().get("attempt", 0) + 1
    try:
        run.set_state("running", attempt=number, node=node_name(), job_id=job_id, **more)
        if ranks is not None:
            ranks.of_first(number)
        _write_provenance(log_file(run, number).with_name("provenance.json"), job_id)
        with _log_in(log_file(run, number)):
            return _train(run, should_stop, ranks)
    except LeaseLostError:
        return "pending"
    except Exception as error:
        reason, node = _reason(error), node_name()
        if ranks is not None and not isinstance(
            error, IsoflopError
        ):  # likely no more than the others' end
            found = _await_failure_of_another(run, number)
            if found is None and is_job() and _is_end_of_another(error):
                return "failed"
            reason, node = found or (reason, node)
        with suppress(OSError):  # on a full disk; whoever started this process finds the run left
            record_failure(run, reason, node)
        return "failed"


def _follow(run: RunDirectory, should_stop: Callable[[], bool], ranks: Ranks) -> State:
    """The part of a process that is not the first of its run."""
    number = 0
    try:
        number = ranks.of_first(number)  # once: later the state may be that of the next attempt
        return _train(run, should_stop, ranks)
    except Exception as error:
        traceback.print_exc()
        if _is_end_of_another(error) or failure_of_another(
            run, number
        ):  # what came first is the cause
            return "failed"
        words = f"in process {ranks.rank} of {ranks.size}: {_reason(error)}"
        with suppress(OSError), replace_file(log_file(run, number).with_name(FAILURE)) as temporary:
            temporary.write_text(json.dumps([words, node_name()]) + "\n")
        return "failed"


def _is_end_of_another(error: Exception) -> bool:
    from isoflop.training.distributed import is_end_of_another

    return is_end_of_another(error)


def failure_of_another(run: RunDirectory, attempt: int) -> tuple[str, str] | None:
    """Why a process that is not the first has failed, and on which node; None where none said so.

    The first only finds that it is gone, or is killed with it.
    """
    try:
        reason, node = json.loads(log_file(run, attempt).with_name(FAILURE).read_text())
    except (OSError, ValueError):
        return None
    return str(reason), str(node)


def _await_failure_of_another(run: RunDirectory, attempt: int) -> tuple[str, str] | None:
    """The same, which another node may see a little later."""
    limit = time.monotonic() + LATE_S
    while (found := failure_of_another(run, attempt)) is None and time.monotonic() < limit:
        time.sleep(0.2)
    return found


def record_failure(run: RunDirectory, reason: str, node: str) -> None:
    """Marks a run as failed; failures count as long as it gets no further than it ever got."""
    state, step = run.state(), run.reached()
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
    """What this attempt runs with: job, machine, GPUs, code and versions."""
    document = {
        "job_id": job_id,
        "node": node_name(),
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "began": time.time(),
        "python": platform.python_version(),
        "code": str(PACKAGE.parent),
        "commit": commit_of(),
        "versions": versions("submitit"),
    }
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def log_file(run: RunDirectory, attempt: int, rank: int = 0) -> Path:
    """Where an attempt at a run writes what it does, and a program of one's own what it prints in each process."""
    return run.path / "attempts" / str(attempt) / (f"log-{rank}.txt" if rank else "log.txt")


def _train(run: RunDirectory, should_stop: Callable[[], bool], ranks: Ranks | None) -> State:
    kind, argument = run.program()
    began = time.monotonic()
    if kind == "simulated":
        from isoflop.launching.worker.simulated_trainer import simulate

        state = simulate(run, argument)
    elif kind == "command":
        from isoflop.launching.worker.external_trainer import run_command

        state = run_command(run, argument, should_stop, ranks)
    else:
        state = _train_here(run, should_stop, ranks)
    log.info("%s: %s after %.1f s", run.run_id, state, time.monotonic() - began)
    return state


def _train_here(run: RunDirectory, should_stop: Callable[[], bool], ranks: Ranks | None) -> State:
    from isoflop.training.devices import check_gpus, use_one_core
    from isoflop.training.loop import train

    check_gpus()
    use_one_core()
    return train(run, run.path.parent.parent, should_stop, ranks)


@contextmanager
def _log_in(path: Path) -> Iterator[None]:
    """Sends messages, and the traceback of what ends the block, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.handleError = lambda record: None  # on a full disk there is nowhere to say so
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


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    if isinstance(error, IsoflopError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"the disk is full ({error.filename}); make room, and the same command goes on from the last checkpoint"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
