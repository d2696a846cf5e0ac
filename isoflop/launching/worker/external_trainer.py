"""`trainer: command`: a study trained by any program; the plan fills in its command line, its losses are read back.

The command is split as a shell would, then `{name}` is replaced in each word by a column of the plan, a path, or what
the job has (see `planning.trainers`), so that no value ever reaches a shell. The program writes a line (JSONL) or row
(CSV) for each loss that it wants kept: `step` and `loss`, and where they are not those of training `split` (default
`train`) and `kind` (default `all`). It resumes by itself: it is started again with the same command.

It is started once on each node of a run, or as often as `slurm.ntasks_per_node` says, with all GPUs that SLURM gives
that process; the first writes the losses. All are stopped together, and killed where one of them fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from isoflop.errors import RunError
from isoflop.launching.worker import process_guard as keeper
from isoflop.launching.worker.attempt import log_file
from isoflop.launching.worker.external_losses import (
    are_finite,
    cut_torn_line,
    end_last_line,
    keep_rows,
    losses_file,
    read_rows,
)
from isoflop.node import is_job
from isoflop.planning.trainers import fill
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.shapes import ModelShape

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

POLL_S = 0.5
GRACE_S = 60.0
HEARTBEAT_S = 5.0
LAST_WORDS = 300


def run_command(
    run: RunDirectory, template: str, should_stop: Callable[[], bool], ranks: Ranks | None = None
) -> State:
    """Runs the program of a study for one run, to its end or until `should_stop()`, then as SIGTERM leaves it.

    Args:
        run: the run.
        template: the command.
        should_stop: asked twice a second.
        ranks: the processes of the job, where there are several; each starts the program.

    Returns:
        `done`, `diverged` (a loss that is not finite) or `pending` (stopped, to be started again); of a process that
        is not the first, no more than whether it was stopped.

    Raises:
        RunError: the program failed, or ended without a final held-out loss.
        ConfigError: a name in braces that is not known.
    """
    first = ranks is None or ranks.first
    values = values_of(run, ranks)
    words = fill(template, values)
    if first:
        cut_torn_line(losses_file(run))
    if ranks:
        ranks.wait()  # from here on the attempt that the first has begun is known, and its losses are whole
    size, mine = (ranks.size, ranks.rank) if ranks else (1, 0)
    outputs = [log_file(run, run.state().get("attempt", 0), rank) for rank in range(size)]
    outputs[mine].parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ISOFLOP_RUN_DIR": str(run.path)}
    if ranks:
        environment["MASTER_PORT"] = str(values["main_port"])  # the job's own is taken
    gpus = (int(os.environ.get("SLURM_NNODES") or 1) if is_job() else 1) * values["gpus_per_node"]
    pace = _Pace(run, values, gpus) if first else None
    with outputs[mine].open("ab") as file, _start(words, file, environment) as process:
        stopped, failed = _wait(process, pace, should_stop, ranks)
    if pace is None:
        return "pending" if stopped else "done"
    if process.returncode == 0:
        end_last_line(losses_file(run))
    rows = read_rows(run)
    run.set_state("running", **pace.progress(rows))
    if not are_finite(rows):
        keep_rows(run, rows)
        run.set_state("diverged", f"a loss in {losses_file(run).name} is not finite")
        return "diverged"
    if stopped:
        run.set_state("pending", "stopped; its program resumes by itself")
        return "pending"
    for rank in failed:
        code = f" in process {rank} of {size}" if rank else f" with {process.returncode}"
        raise RunError(
            f"{words[0]} failed{code}: {_last_words(outputs[rank])}; see {outputs[rank]}"
        )
    return _end(run, rows)


def _end(run: RunDirectory, rows: list[dict[str, Any]]) -> State:
    """Keeps the losses of a program that has ended, if they have the one that counts."""
    metric, steps = run.config()["metric"], run.config()["run"]["steps"]
    wanted = (metric["set"], metric["kind"], steps)
    if wanted not in {(row["split"], row["kind"], row["step"]) for row in rows}:
        raise RunError(
            f"{losses_file(run)}: the program ended without a loss of split {wanted[0]}, kind {wanted[1]}, "
            f"step {wanted[2]}: {_instead(rows, *wanted)}"
        )
    keep_rows(run, rows)
    run.mark_done()
    run.set_state("done")
    return "done"


def _instead(rows: list[dict[str, Any]], split: str, kind: str, step: int) -> str:
    """What there is in place of the loss that counts, and the mend."""
    if not rows:
        return "it wrote none there"
    splits = {row["split"] for row in rows}
    if split not in splits:
        return f"its splits are {', '.join(sorted(splits))}; write {split}, or set metric.set"
    kinds = {row["kind"] for row in rows if row["split"] == split}
    if kind not in kinds:
        return f"{split} losses are of kind {', '.join(sorted(kinds))}; write {kind}, or set metric.kind"
    last = max(row["step"] for row in rows if (row["split"], row["kind"]) == (split, kind))
    there = (
        f"go up to step {last}" if last < step else f"go on to step {last}, without one at {step}"
    )
    return f"{split} losses {there}; the last must be at {step} (steps count from 1)"


def values_of(run: RunDirectory, ranks: Ranks | None = None) -> dict[str, Any]:
    """What can stand in braces: the run's plan and shape, its paths, and what its job has."""
    config = run.config()
    shape = ModelShape(**config["identity"]["shape"])
    sizes = {
        name: getattr(shape, name)
        for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
    }
    plan = config["run"]
    return {
        **plan,
        **sizes,
        "vocab_size": shape.vocab_size,
        "seq_len": shape.seq_len,
        "tokens": plan["batch_size"] * shape.seq_len * plan["steps"],
        "params_total": shape.params_total,
        "run_dir": run.path,
        "data_dir": run.path.parent.parent / "data" / config["data"],
        "losses": losses_file(run),
        **_places(ranks),
    }


def _places(ranks: Ranks | None) -> dict[str, Any]:
    from isoflop.launching.local import visible_gpus

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    if ranks:  # the first's; that which the processes themselves have met at is taken
        import torch

        port = int(ranks.gather(torch.tensor(port))[0])
    return {
        "nodes": ranks.size if ranks else 1,
        "node_rank": ranks.rank if ranks else 0,
        "gpus_per_node": int(
            (is_job() and os.environ.get("SLURM_GPUS_ON_NODE")) or len(visible_gpus())
        ),
        "main_address": os.environ["MASTER_ADDR"] if ranks else "localhost",
        "main_port": port,
    }


@contextlib.contextmanager
def _start(
    words: list[str], output: IO[bytes], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The program's keeper, in a process group with all that it starts; the group is gone when the block ends, and
    when this process does.

    Raises:
        RunError: a program that can't be started.
    """
    reads, writes = os.pipe()
    command = [sys.executable, "-I", "-S", keeper.__file__, str(writes), *words]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True,
            pass_fds=(writes,),
        )  # fmt: skip
    finally:
        os.close(writes)
    try:
        with open(reads, "rb") as report:
            if problem := report.read().decode():
                raise RunError(f"{words[0]}: can't be started ({problem}); see train.trainer")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # whatever it has started itself ends with it
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _wait(
    process: subprocess.Popen[bytes],
    pace: _Pace | None,
    should_stop: Callable[[], bool],
    ranks: Ranks | None,
) -> tuple[bool, list[int]]:
    """Waits for the program in all processes of the job; whether it was asked to stop, and in which of them it failed.

    Where it has failed in one, the others are not waited for. One that has diverged is ended, as a stop would.
    """
    size, mine = (ranks.size, ranks.rank) if ranks else (1, 0)
    while True:
        running, stop = process.poll() is None, should_stop()
        if process.returncode == -signal.SIGTERM and not stop:
            time.sleep(POLL_S)  # what SLURM sends to all processes reaches some before others
            stop = should_stop()
        diverged = pace is not None and pace.diverged
        flags = [
            running,
            stop,
            diverged,
            *(bool(process.returncode) and rank == mine for rank in range(size)),
        ]
        running, stop, diverged, *failed = ranks.any(*flags) if ranks else flags
        # One that doesn't listen to SIGTERM dies of it, and has not failed.
        if (stop or diverged) and (running or any(failed)):
            with contextlib.suppress(ProcessLookupError):  # where it has ended in this one
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return stop, []
        if not running or any(failed):
            return False, [rank for rank, one in enumerate(failed) if one]
        if pace:
            pace.tell()
        time.sleep(POLL_S)


class _Pace:
    """How far a program is and how fast, told from its losses now and then, and the time that it has had so far.

    Attributes:
        diverged: whether a loss that is not finite was seen.
    """

    def __init__(self, run: RunDirectory, values: Mapping[str, Any], gpus: int) -> None:
        self.run = run
        self.known = {"steps": values["steps"], "gpus": gpus}
        self.tokens_per_step = values["batch_size"] * values["seq_len"]
        self.earlier_s = run.state().get("wall_s") or 0.0
        self.began = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.due = self.began
        self.diverged = False

    def tell(self) -> None:
        """Writes the run's state, unless it was written just now; long losses less often."""
        began = time.monotonic()
        if began >= self.due:
            rows = read_rows(self.run)
            self.diverged = not are_finite(rows)
            self.run.set_state("running", **self.progress(rows))
            took = time.monotonic() - began
            self.due = began + max(HEARTBEAT_S, 20 * took)

    def progress(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the state is to say."""
        now = time.monotonic()
        told = {**self.known, "wall_s": self.earlier_s + now - self.began}
        train = [row for row in rows if row["split"] == "train"] or rows
        if not train:
            return told
        step, loss, split = (train[-1][name] for name in ("step", "loss", "split"))
        first_step, first_seen = self.first = self.first or (step, now)
        if step > first_step:
            told["tokens_per_second"] = (
                (step - first_step) * self.tokens_per_step / (now - first_seen)
            )
        return {**told, "step": step, "loss": loss, "loss_split": split}


def _last_words(output: Path) -> str:
    """The last line that says something; torchrun ends with a rule."""
    lines = output.read_bytes()[-4 * LAST_WORDS :].decode(errors="replace").strip().splitlines()
    said = [line.strip() for line in lines if any(letter.isalnum() for letter in line)]
    return said[-1][-LAST_WORDS:] if said else "it wrote nothing"
