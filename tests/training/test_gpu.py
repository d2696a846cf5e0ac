"""Training on a GPU, with SODA's vocabulary: run by `make test-gpu` on a machine with a GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from support.tiny_studies import (
    exact,
    final_weights,
    start,
    tiny_plan,
    train_together,
    write_corpus,
)

from isoflop.config.identity import data_identity
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, write_shard
from isoflop.data.vocabulary import build_vocabulary
from isoflop.frames import Floats
from isoflop.launching.records.sweep_directory import run_config
from isoflop.planning.plan import plan
from isoflop.planning.sizing import USABLE_MEMORY_SHARE, estimate_memory_bytes
from isoflop.runs.run_directory import RunDirectory
from isoflop.training import devices
from isoflop.training.loop import Trainer
from isoflop.training.throughput import measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # as in test_compiled.py
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no NVIDIA GPU; on a machine with one: make test-gpu"
    ),
]

SWEEP = """\
schema: 1
name: gpu
recipe: soda
seq_len: 1024
budgets: [1.0e16]
widths: [256]
data: {codec: mimi, text_tokenizer: stanford-crfm/marin-tokenizer, mixture: {speech: 1.0}}
train: {evals: 2, log_points: 1000}
metric: {set: heldout, kind: all, tokens: 8192}
"""
STEPS, BATCH, DISTINCT_TOKENS = 60, 8, 500
LOSS_TOLERANCE = 0.003
"""Relative difference of losses between runs with sums in another order or precision."""


def study(folder: Path, *overrides: str) -> tuple[RunDirectory, Path]:
    """Make a short run of SODA's smallest model; return it and the folder of runs.

    Its data is drawn from a few random tokens, whose frequencies are learnt.
    """
    folder.mkdir(exist_ok=True)
    (folder / "gpu.yaml").write_text(SWEEP)
    made, root = plan(folder / "gpu.yaml", overrides), folder / "runs"
    data = made.sweep.data
    ids, generator = build_vocabulary(data.codec, data.text_tokenizer), np.random.default_rng(0)
    tokens = generator.integers(0, ids.size, DISTINCT_TOKENS)
    target = data_folder(root, data)
    shards = tuple(
        write_shard(target, split, split, [generator.choice(tokens, size)], 0.0, ids)
        for split, size in (("train", 1 << 18), ("heldout", 1 << 14))
    )
    Manifest(ids, shards, data_identity(data), {}).write(target)
    config = run_config(made.sweep, made.runs[0])
    config["run"].update(steps=STEPS, batch_size=BATCH)
    run = RunDirectory(root / made.sweep.name / made.runs[0].run_id)
    run.create(config)
    return run, root


def train_in(run: RunDirectory, root: Path, compiled: bool, *, kill_at: int | None = None) -> None:
    """Train in a child process; stop and resume at a third of `kill_at`, then kill at that step."""
    process = start(_train, run, root, compiled, kill_at)
    process.join()
    assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)


def _train(run: RunDirectory, root: Path, compiled: bool, kill_at: int | None) -> None:
    devices.MIN_COMPILED_FLOPS = 0.0 if compiled else float("inf")
    if kill_at is not None:
        trainer = Trainer(run, root)
        assert trainer.train(lambda: trainer.step == kill_at // 3) == "pending"
        resumed = Trainer(run, root)
        resumed.train(
            lambda: resumed.step == kill_at and os.kill(os.getpid(), signal.SIGKILL) is None
        )
    assert Trainer(run, root).train(lambda: False) == "done"


def training_losses(run: RunDirectory) -> Floats:
    """Return the training losses of every step."""
    return run.log().query("split == 'train' and kind == 'all'")["loss"].to_numpy()


def assert_close(losses: Floats, others: Floats) -> None:
    print("largest relative difference", np.abs(losses / others - 1).max())
    np.testing.assert_allclose(losses, others, rtol=LOSS_TOLERANCE)


EQUAL_COLUMNS = ["step", "split", "kind", "tokens", "targets", "lr"]
"""Columns of the loss log that do not depend on the order of sums."""


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_killed_run_has_the_losses_of_an_undisturbed_one(
    tmp_path: Path, deterministic: bool, compiled: bool
) -> None:
    override = f"train.deterministic={deterministic}"
    (whole, root), (killed, other_root) = (
        study(tmp_path / name, override) for name in ("whole", "killed")
    )
    train_in(whole, root, compiled)
    train_in(killed, other_root, compiled, kill_at=35)
    assert killed.checkpointed_step() == 11
    train_in(killed, other_root, compiled)
    assert_close(training_losses(killed), training_losses(whole))
    equal = exact(whole).columns if deterministic else EQUAL_COLUMNS
    assert_frame_equal(exact(whole).loc[:, equal], exact(killed).loc[:, equal], check_exact=True)
    if deterministic:
        expected, weights = final_weights(whole), final_weights(killed)
        assert all(expected[name].equal(weights[name]) for name in expected)


@pytest.mark.parametrize(("size", "nccl"), [(2, False), (2, True), (4, True), (8, True)])
def test_processes_train_as_one(tmp_path: Path, size: int, nccl: bool) -> None:
    """With gloo they share one GPU; with NCCL, as in a job, each has a GPU."""
    if nccl and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    (single, single_root), (parallel, parallel_root) = (
        study(tmp_path / name) for name in ("single", "parallel")
    )
    train_together(single, single_root, 1, nccl=nccl)
    train_together(parallel, parallel_root, size, nccl=nccl)
    assert_frame_equal(
        single.log().loc[:, EQUAL_COLUMNS], parallel.log().loc[:, EQUAL_COLUMNS], check_exact=True
    )
    assert_close(training_losses(parallel), training_losses(single))


def test_a_sweep_runs_on_the_gpu_of_this_machine(tmp_path: Path) -> None:
    tiny, root = tiny_plan(tmp_path), tmp_path / "runs"
    write_corpus(root, tiny)
    code = "import sys; from isoflop.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", str(tmp_path / "tiny.yaml")]
    environment = {**os.environ, "ISOFLOP_ROOT": str(root), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    runs = pd.read_parquet(root / "tiny" / "runs.parquet")
    print(done.stdout[-2000:], done.stderr[-2000:], runs.to_string())
    assert runs["state"].tolist() == ["done"] * len(tiny.runs)
    assert np.isfinite(runs["mfu"].to_numpy()).all()


def test_compilation_and_bf16_change_losses_little(tmp_path: Path) -> None:
    losses = []
    for name, compiled, precision in (
        ("fast", True, "bf16"),
        ("eager", False, "bf16"),
        ("exact", False, "fp32"),
    ):
        run, root = study(tmp_path / name, f"train.precision={precision}")
        train_in(run, root, compiled)
        losses.append(training_losses(run))
    fast, eager, reference = losses
    assert len(reference) == STEPS
    assert reference[-1] < reference[0] - 1
    assert_close(fast, reference)
    assert_close(eager, reference)


@pytest.mark.parametrize("width", [256, 768])
def test_a_model_takes_about_the_memory_of_the_plan(tmp_path: Path, width: int) -> None:
    run, root = study(tmp_path, "seq_len=4096", f"widths=[{width}]", "budgets=[9e18]")
    measured = measure(run, root, 0.5, gpus=1)
    assert measured.gpus == 1
    assert measured.mfu is not None
    assert 0.02 < measured.mfu < 0.7
    estimate = estimate_memory_bytes(measured.shape, measured.micro_batch, measured.checkpointing)
    assert 0.5 * estimate < measured.memory_bytes < estimate / USABLE_MEMORY_SHARE


def test_a_run_is_trained_without_a_compiler(tmp_path: Path) -> None:
    """One line of the log reports that there is no C compiler on the path."""
    run, root = study(tmp_path)
    code = (
        "import sys; from pathlib import Path; from support.tiny_studies import train_here; "
        "from isoflop.runs.run_directory import RunDirectory; "
        "train_here(RunDirectory(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    caches = {
        name: str(tmp_path / name) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    }
    environment = {
        **os.environ,
        **caches,
        "PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment.pop("CC", None)
    command = [sys.executable, "-c", code, str(run.path), str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run.done
    assert done.stderr.count("torch.compile does not work on this machine") == 1
