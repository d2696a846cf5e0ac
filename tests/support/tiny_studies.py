"""Tiny studies for tests: a sweep, a corpus in the real format, run directories, and processes
that tests may kill."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from isoflop.config.identity import data_identity
from isoflop.data.documents import ORDERS, Utterance, encode_document
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, write_shard
from isoflop.data.vocabulary import build_vocabulary
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.planning.plan import Plan, plan
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from isoflop.training.distributed import Ranks

EXACT = list(LOG_COLUMNS)[:-3]
"""Columns of the loss log that repeat bit for bit."""

SWEEP = """\
schema: 1
name: tiny
recipe: pocket
seq_len: 32
budgets: [1.0e8]
widths: [8, 12, 16]
data: {codec: pocket, text_tokenizer: bytes, mixture: {pocket: 1.0}, tokens: {pocket: 4.0e4}}
train: {evals: 2, log_points: 20, checkpoint_minutes: 10}
metric: {set: heldout, kind: all, tokens: 512}
"""
"""Three runs of 71, 39 and 28 steps."""

SHORT = ("budgets=[3.1e7]", "widths=[8, 12]", "train.log_points=7", "data.tokens.pocket=1e4")
"""Overrides for runs of 22 and 12 steps; the first has training rows every 3 steps."""

FREQUENT_CHECKPOINTS = "train.checkpoint_minutes=0.01"
"""Override for a checkpoint about every 0.6 s."""

EVERY_STEP = "train.checkpoint_minutes=1e-6"
"""Override for a checkpoint after every step."""


def write_sweep(folder: Path) -> Path:
    """Write the sweep to a file of its name; return the file."""
    file = folder / "tiny.yaml"
    file.write_text(SWEEP)
    return file


def tiny_plan(folder: Path, *overrides: str) -> Plan:
    return plan(write_sweep(folder), overrides)


def write_corpus(root: Path, study: Plan, tokens: int | None = None) -> Path:
    """Write shards for a study's data specification; return their folder.

    Documents have few different tokens, so that a tiny model learns much.
    """
    folder, ids = data_folder(root, study.sweep.data), build_vocabulary("pocket", "bytes")
    generator = np.random.default_rng(0)
    total = int(study.sweep.data.tokens["pocket"]) if tokens is None else tokens
    shards = []
    for split, size in (("train", total // 2), ("train", total - total // 2), ("heldout", 2000)):
        documents = []
        while sum(map(len, documents)) < size:
            text = generator.choice(np.frombuffer(b"abcd", np.uint8), size=6)
            codes = np.tile(generator.integers(0, 3, size=(4, 1)), 8)
            order = ORDERS[len(documents) % 2]
            documents.append(
                encode_document([Utterance(text, codes)], order, study.sweep.data.composition, ids)
            )
        name = f"{split}-{len(shards):05d}"
        shards.append(write_shard(folder, name, split, documents or [np.empty(0)], 1.0, ids))
    Manifest(ids, tuple(shards), data_identity(study.sweep.data), {}).write(folder)
    return folder


def tiny_study(folder: Path, *overrides: str) -> tuple[Path, Plan]:
    """Write a study's corpus and untrained run directories; return the root and the plan."""
    folder.mkdir(exist_ok=True)
    study, root = tiny_plan(folder, *overrides), folder / "runs"
    write_corpus(root, study)
    make_directory(study, root)
    return root, study


def find_run(root: Path, study: Plan, number: int = 0) -> RunDirectory:
    return RunDirectory(root / study.sweep.name / study.runs[number].run_id)


def exact(run: RunDirectory) -> pd.DataFrame:
    """Return the columns of a run's loss log that repeat bit for bit."""
    return run.log().loc[:, EXACT]


def final_weights(run: RunDirectory) -> dict[str, Any]:
    """Return the weights of a done run, by name."""
    from isoflop.training.weights import load_weights

    return load_weights(run.path).state_dict()


def trained(folder: Path, *overrides: str) -> tuple[Path, Plan, RunDirectory]:
    """Train the first run of a tiny study; return the root, the plan and the run."""
    from isoflop.training.loop import train

    root, study = tiny_study(folder, *overrides)
    run = find_run(root, study)
    assert train(run, root) == "done"
    return root, study, run


# Done runs

LAW = ("budgets=[4e8, 1e9, 3e9, 1e10]", "widths=[8, 12, 16, 24, 32]")
"""Overrides for four profiles of five widths."""


def finish(run: RunDirectory, steps: int, loss: float) -> None:
    """Write the files of a done run."""
    common = dict.fromkeys(LOG_COLUMNS, 2.0) | {"step": steps, "targets": 64}
    kinds = {"all": 1.0, "text": 0.8, "semantic": 1.1, "acoustic": 1.2}
    rows = [{"kind": kind, "loss": loss * factor} for kind, factor in kinds.items()]
    run.append_log(
        [common | {"split": split} | row for split in ("train", "heldout") for row in rows]
    )
    run.set_state("done", attempt=1, step=steps)
    (run.path / "DONE").touch()


def finish_alike(root: Path, plan: Plan) -> None:
    """End every run with the same loss."""
    make_directory(plan, root)
    for number, spec in enumerate(plan.runs):
        finish(find_run(root, plan, number), spec.steps, 3.0)


def finish_all(plan: Plan, root: Path) -> Path:
    """End every run with a loss of a law whose optimum is near width 16; return the directory."""
    directory = make_directory(plan, root)
    best = next(run.params_total for run in plan.runs if run.budget == 4e8 and run.width == 16)
    for number, spec in enumerate(plan.runs):
        distance = np.log(spec.params_total) - np.log(best) - 0.1 * np.log(spec.budget / 4e8)
        loss = float(5 - 0.1 * np.log10(spec.budget) + 0.1 * distance**2)
        finish(find_run(root, plan, number), spec.steps, loss)
    return directory


# Processes that tests may kill


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Call a function of a module in a new process, quickly: torch is already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isoflop.training.loop", "pandas", "support.tiny_studies"])
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    """End a process with SIGKILL."""
    process.kill()
    process.join()


def wait_for(happened: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return the first true value of a condition; fail after `seconds`."""
    limit = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.002)
    return value


def train_here(run: RunDirectory, root: Path) -> None:
    """Train a run as a worker does."""
    import torch

    from isoflop.training.loop import train

    torch.set_num_threads(1)
    with run.lease() as lease:
        assert lease
        train(run, root)


def train_together(run: RunDirectory, root: Path, size: int, *, nccl: bool = False) -> None:
    """Train a run with several processes; `nccl` gives each a GPU."""
    together(run, size, _train_rank, root, nccl)


def together(run: RunDirectory, size: int, target: Callable[..., Any], *arguments: Any) -> None:
    """Call `target(run, rank, size, meeting, ...)` in `size` processes; they use `meet_at`."""
    meeting = str(run.path / f"meeting-{uuid.uuid4().hex[:8]}")
    processes = [start(target, run, rank, size, meeting, *arguments) for rank in range(size)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size


def meet_at(meeting: str, rank: int, size: int, nccl: bool = False) -> Ranks:
    """Connect the processes of this machine that train a run together, by a file."""
    import torch
    import torch.distributed as dist

    from isoflop.training.distributed import connect

    torch.set_num_threads(1)
    store = dist.FileStore(meeting, size)  # pyright: ignore[reportPrivateImportUsage]
    return connect(store, rank, size, rank, nccl=nccl)


def _train_rank(
    run: RunDirectory, rank: int, size: int, meeting: str, root: Path, nccl: bool
) -> None:
    import torch.distributed as dist

    from isoflop.training.loop import train

    assert train(run, root, ranks=meet_at(meeting, rank, size, nccl)) == "done"
    dist.destroy_process_group()


def hold_lease(run: RunDirectory) -> None:
    with run.lease() as lease:
        assert lease
        (run.path / "held").touch()
        time.sleep(600)


def train_until_half_a_checkpoint(run: RunDirectory, root: Path, step: int) -> None:
    """Train, and hang in the middle of writing the first checkpoint from a step on."""
    _save_half(lambda state: state["step"] >= step)
    train_here(run, root)


def _save_half(is_chosen: Callable[[dict[str, Any]], bool]) -> None:
    """Make torch write half of a chosen file and hang."""
    import io

    import torch

    save = torch.save

    def half(state: dict[str, Any], file: Any) -> None:
        if not is_chosen(state):
            save(state, file)
            return
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        time.sleep(600)

    torch.save = half


ENDS = (
    "half the weights",
    "no checksum",
    "no marker",
    "no state",
    "checkpoints",
    "half the checkpoints",
)
"""Moments at the end of a run, by the missing file or the checkpoints not yet removed."""


def train_until_the_end(run: RunDirectory, root: Path, moment: str) -> None:
    """Train, and hang at one of the moments of `ENDS`."""
    from isoflop import files
    from isoflop.training import loop

    def hang(*_: Any, **__: Any) -> None:
        time.sleep(600)

    def hang_without_checksum(path: Path) -> Path:
        if path.name == "weights.pt":
            hang()
        return path.with_suffix(".sha256")

    def hang_in_the_middle(self: RunDirectory) -> None:
        next(self.checkpoints.iterdir()).unlink()
        hang()

    def hang_when_done(trainer: Any, state: str, *_: Any, **__: Any) -> None:
        if state == "done":
            hang()

    if moment == "half the weights":
        _save_half(lambda state: "step" not in state)
    elif moment == "no checksum":
        files.checksum_file = hang_without_checksum
    elif moment == "no marker":
        RunDirectory.mark_done = hang
    elif moment == "no state":
        loop.Trainer._set_state = hang_when_done  # type: ignore[method-assign]
    else:
        RunDirectory.remove_checkpoints = hang if moment == "checkpoints" else hang_in_the_middle
    train_here(run, root)


def save_checkpoints_repeatedly(folder: Path) -> None:
    """Write one checkpoint after another, each with its step in every weight."""
    import torch

    from isoflop.training.checkpoint import save_checkpoint

    for step in range(1, 10**9):
        save_checkpoint(folder, step, {"step": step, "weights": torch.full((20_000,), float(step))})


# Workers


def work_here(directory: Path, parent: int) -> None:
    """Work through a sweep's order, as a job does."""
    from isoflop.launching.worker.pool_worker import Worker

    Worker(str(directory), parent)()


def hold_a_worker(directory: Path) -> None:
    """Start a worker whose parent is this process and which outlives it; then hang."""
    parent = os.getpid()
    if os.fork() == 0:
        work_here(directory, parent)
        os._exit(0)
    time.sleep(600)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk in `folder`; skip the test if that is impossible.

    `size` has the format of mount's tmpfs option.
    """
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
