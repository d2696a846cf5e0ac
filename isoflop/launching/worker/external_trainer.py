"""Trainer `command`: any program, with a command line from the plan and losses read from its file.

The command is split like a shell's, then `{name}` in each argument is replaced by a column of the
plan, a path, or a property of the job (see `planning.trainers`), so that no value reaches a shell.
The program writes a line (JSONL) or row (CSV) per loss: `step` and `loss`, optionally `split`
(default `train`) and `kind` (default `all`). To resume, it is started with the same command.

It is started once per node of a run, or `slurm.ntasks_per_node` times, with all GPUs that SLURM
gives that process; the first process writes the losses. All processes are stopped together, and
killed if one fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import MAX_MESSAGE_CHARACTERS, RunError
from isoflop.launching.worker.external_losses import (
    are_finite,
    complete_last_line,
    cut_torn_line,
    losses_file,
    read_rows,
    write_loss_log,
)
from isoflop.launching.worker.guarded_program import Program, start_program
from isoflop.node import is_job, visible_gpus
from isoflop.planning.trainers import fill_template
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.shapes import ModelShape

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

PROGRAM_POLL_S = 0.5
LATE_SIGNAL_S = 2.0
"""Longest delay of a signal to the worker after the end of the program that got it too."""

GRACE_S = 60.0
REPORT_S = 5.0
REPORT_TIME_FACTOR = 20
"""Minimum ratio of the interval between reports to the time that a report takes."""


def run_command(
    run: RunDirectory, template: str, should_stop: Callable[[], bool], ranks: Ranks | None = None
) -> State:
    """Run a study's program for a run until its end, or until `should_stop()` and SIGTERM.

    Args:
        run: the run.
        template: the command.
        should_stop: called twice a second.
        ranks: the processes of the job, if several; each starts the program.

    Returns:
        `done`, `diverged` (a loss that is not finite) or `pending` (stopped, to be restarted). A
        process that is not the first returns only `pending` if stopped, else `done`.

    Raises:
        RunError: the program failed, or ended without a final held-out loss.
        ConfigError: an unknown name in braces.
    """
    first = ranks is None or ranks.first
    values = template_values(run, ranks)
    command = fill_template(template, values)
    if first:
        cut_torn_line(losses_file(run))
    if ranks:
        ranks.barrier()  # the first process has now set the attempt and cut its losses
    size, own_rank = (ranks.size, ranks.rank) if ranks else (1, 0)
    outputs = [run.log_file(run.state().get("attempt", 0), rank) for rank in range(size)]
    outputs[own_rank].parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ISOFLOP_RUN_DIR": str(run.path)}
    if ranks:
        environment["MASTER_PORT"] = str(values["main_port"])  # the job's own is taken
    gpus = (int(os.environ.get("SLURM_NNODES") or 1) if is_job() else 1) * values["gpus_per_node"]
    reporter = _ProgressReporter(run, values, gpus) if first else None
    with outputs[own_rank].open("ab") as file, start_program(command, file, environment) as program:
        stopped, failed = _wait(program, reporter, should_stop, ranks)
    if reporter is None:
        return "pending" if stopped else "done"
    exit_code = program.process.returncode
    if exit_code == 0:
        complete_last_line(losses_file(run))
    rows = read_rows(run)
    run.set_state("running", **reporter.progress(rows))
    if not are_finite(rows):
        write_loss_log(run, rows)
        run.set_state("diverged", f"a loss in {losses_file(run).name} is not finite")
        return "diverged"
    if stopped:
        run.set_state("pending", "stopped; the program resumes when it is restarted")
        return "pending"
    for rank in failed:
        code = f" in process {rank} of {size}" if rank else f" with {exit_code}"
        raise RunError(
            f"{command[0]} failed{code}: {_last_message(outputs[rank])}; see {outputs[rank]}"
        )
    return _conclude(run, rows)


def _conclude(run: RunDirectory, rows: list[dict[str, Any]]) -> State:
    """Write the loss log of an ended program and set the run to done.

    Raises:
        RunError: the final held-out loss is missing.
    """
    split, kind, step = _final_loss(run)
    if (split, kind, step) not in _losses(rows):
        raise RunError(
            f"{losses_file(run)}: the program ended without a loss of split {split}, kind {kind}, "
            f"step {step}: {_explain_missing_loss(rows, split, kind, step)}"
        )
    write_loss_log(run, rows)
    run.mark_done()
    run.set_state("done")
    return "done"


def _final_loss(run: RunDirectory) -> tuple[str, str, int]:
    """Return split, kind and step of the loss without which a run is not done."""
    config = run.config()
    return config["metric"]["set"], config["metric"]["kind"], config["run"]["steps"]


def _losses(rows: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
    return {(row["split"], row["kind"], row["step"]) for row in rows}


def _ended_early(run: RunDirectory) -> bool:
    """Return whether the losses of a program that exited with 0 lack the final one."""
    complete_last_line(losses_file(run))
    try:
        return _final_loss(run) not in _losses(read_rows(run))
    except RunError:  # `run_command` raises it again
        return False


def _explain_missing_loss(rows: list[dict[str, Any]], split: str, kind: str, step: int) -> str:
    """Return the reason why the final loss is missing, and the fix."""
    if not rows:
        return "it wrote none there"
    splits = {row["split"] for row in rows}
    if split not in splits:
        return f"its splits are {', '.join(sorted(splits))}; write {split}, or set metric.set"
    kinds = {row["kind"] for row in rows if row["split"] == split}
    if kind not in kinds:
        names = ", ".join(sorted(kinds))
        return f"{split} losses are of kind {names}; write {kind}, or set metric.kind"
    last = max(row["step"] for row in rows if (row["split"], row["kind"]) == (split, kind))
    range_text = f"go up to step {last}"
    if last >= step:
        range_text = f"go on to step {last}, without one at {step}"
    return f"{split} losses {range_text}; the last must be at {step} (steps count from 1)"


def template_values(run: RunDirectory, ranks: Ranks | None = None) -> dict[str, Any]:
    """Return the values of names in braces: the run's plan, shape and paths, and job properties."""
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
        **_job_values(ranks),
    }


def _job_values(ranks: Ranks | None) -> dict[str, Any]:
    """Return the number and rank of nodes, GPUs per node, and a free address and port."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    if ranks:  # that of the first process; the job's own port is in use
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


def _wait(
    program: Program,
    reporter: _ProgressReporter | None,
    should_stop: Callable[[], bool],
    ranks: Ranks | None,
) -> tuple[bool, list[int]]:
    """Wait for the program in all ranks; return whether it was stopped, and the failed ranks.

    A failure in one rank ends the wait for the others. A diverged program is ended like a stopped
    one. A program that ended at a signal, whoever sent it, has not failed, whatever its exit code;
    with exit code 0 and its final loss it is done. The worker may get the program's signal a little
    later, or never.
    """
    process = program.process
    size, own_rank = (ranks.size, ranks.rank) if ranks else (1, 0)
    ended = ended_early = False
    while True:
        running, stop = process.poll() is None, should_stop()
        if not running and not ended:
            ended = True
            ended_early = (
                reporter is not None and not process.returncode and _ended_early(reporter.run)
            )
            if process.returncode or ended_early:
                stop = stop or program.was_stopped() or _signal_follows(should_stop)
        diverged = reporter is not None and reporter.diverged
        flags = [
            running,
            stop,
            diverged,
            ended_early,
            *(bool(process.returncode) and rank == own_rank for rank in range(size)),
        ]
        running, stop, diverged, early, *failed = ranks.any(*flags) if ranks else flags
        if (stop or diverged) and (running or any(failed)):
            with contextlib.suppress(ProcessLookupError):  # it may have ended in this rank
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return stop, []
        if not running or any(failed):
            return stop and early, [rank for rank, flag in enumerate(failed) if flag]
        if reporter:
            reporter.report()
        time.sleep(PROGRAM_POLL_S)


def _signal_follows(should_stop: Callable[[], bool]) -> bool:
    """Return whether this process must stop, at the latest after `LATE_SIGNAL_S`."""
    limit = time.monotonic() + LATE_SIGNAL_S
    while not (stop := should_stop()) and time.monotonic() < limit:
        time.sleep(PROGRAM_POLL_S / 10)
    return stop


class _ProgressReporter:
    """Reporter of a program's progress, speed and wall time, from its losses, to the run's state.

    Attributes:
        diverged: True after a loss that is not finite.
    """

    def __init__(self, run: RunDirectory, values: Mapping[str, Any], gpus: int) -> None:
        self.run = run
        self.constants = {"steps": values["steps"], "gpus": gpus}
        self.tokens_per_step = values["batch_size"] * values["seq_len"]
        self.earlier_s = run.state().get("wall_s") or 0.0
        self.start = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.next_report = self.start
        self.diverged = False

    def report(self) -> None:
        """Write the run's state if a report is due; long loss files are read less often."""
        start = time.monotonic()
        if start >= self.next_report:
            rows = read_rows(self.run)
            self.diverged = not are_finite(rows)
            self.run.set_state("running", **self.progress(rows))
            seconds = time.monotonic() - start
            self.next_report = start + max(REPORT_S, REPORT_TIME_FACTOR * seconds)

    def progress(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the entries of the run's state for these losses."""
        now = time.monotonic()
        entries = {**self.constants, "wall_s": self.earlier_s + now - self.start}
        train = [row for row in rows if row["split"] == "train"] or rows
        if not train:
            return entries
        step, loss, split = (train[-1][name] for name in ("step", "loss", "split"))
        first_step, first_time = self.first = self.first or (step, now)
        if step > first_step:
            tokens = (step - first_step) * self.tokens_per_step
            entries["tokens_per_second"] = tokens / (now - first_time)
        return {**entries, "step": step, "loss": loss, "loss_split": split}


def _last_message(output: Path) -> str:
    """Return the last line with a letter or digit: torchrun ends with a ruled line."""
    end = output.read_bytes()[-4 * MAX_MESSAGE_CHARACTERS :]
    lines = end.decode(errors="replace").strip().splitlines()
    messages = [line.strip() for line in lines if any(letter.isalnum() for letter in line)]
    return messages[-1][-MAX_MESSAGE_CHARACTERS:] if messages else "it wrote nothing"
