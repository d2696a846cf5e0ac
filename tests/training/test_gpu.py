"""What holds on a GPU, at SODA's vocabulary: run by `make test-gpu` where there is one."""

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
from support.studies import exact, final_weights, start, tiny_plan, train_together, write_corpus

from isoflop.config.identity import data_identity
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, write_shard
from isoflop.data.vocabulary import vocabulary
from isoflop.launching.records.sweep_directory import run_config
from isoflop.planning.plan import plan
from isoflop.planning.sizing import MEMORY_SHARE, needed_bytes
from isoflop.runs.run_directory import RunDirectory
from isoflop.training import devices
from isoflop.training.loop import Trainer
from isoflop.training.throughput import measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # as in test_compiled.py
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no NVIDIA GPU; where there is one: make test-gpu"
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
STEPS, BATCH, WORDS = 60, 8, 500
NEAR = 0.003
"""Of a loss, between runs whose sums were taken in another order or precision."""


def study(folder: Path, *overrides: str) -> tuple[RunDirectory, Path]:
    """A short run of SODA's smallest model on a few random words, which are learnt, and the folder of runs."""
    folder.mkdir(exist_ok=True)
    (folder / "gpu.yaml").write_text(SWEEP)
    found, root = plan(folder / "gpu.yaml", overrides), folder / "runs"
    ids, generator = (
        vocabulary(found.sweep.data.codec, found.sweep.data.text_tokenizer),
        np.random.default_rng(0),
    )
    words = generator.integers(0, ids.size, WORDS)
    shards = tuple(
        write_shard(
            data_folder(root, found.sweep.data),
            split,
            split,
            [generator.choice(words, tokens)],
            0.0,
            ids,
        )
        for split, tokens in (("train", 1 << 18), ("heldout", 1 << 14))
    )
    Manifest(ids, shards, data_identity(found.sweep.data), {}).write(
        data_folder(root, found.sweep.data)
    )
    config = run_config(found.sweep, found.runs[0])
    config["run"].update(steps=STEPS, batch_size=BATCH)
    run = RunDirectory(root / found.sweep.name / found.runs[0].run_id)
    run.create(config)
    return run, root


def train_in(run: RunDirectory, root: Path, compiled: bool, *, kill_at: int | None = None) -> None:
    """Trains in a process of its own; one to be killed at a step is stopped before, at a third of it."""
    process = start(_train, run, root, compiled, kill_at)
    process.join()
    assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)


def _train(run: RunDirectory, root: Path, compiled: bool, kill_at: int | None) -> None:
    devices.COMPILED_FROM_FLOPS = 0.0 if compiled else float("inf")
    if kill_at is not None:
        trainer = Trainer(run, root)
        assert trainer.train(lambda: trainer.step == kill_at // 3) == "pending"
        again = Trainer(run, root)
        again.train(lambda: again.step == kill_at and os.kill(os.getpid(), signal.SIGKILL) is None)
    assert Trainer(run, root).train(lambda: False) == "done"


def losses_of(run: RunDirectory) -> np.ndarray:
    """Training losses of every step."""
    return run.log().query("split == 'train' and kind == 'all'")["loss"].to_numpy()


def assert_near(losses: np.ndarray, others: np.ndarray) -> None:
    print("largest relative difference", np.abs(losses / others - 1).max())
    np.testing.assert_allclose(losses, others, rtol=NEAR)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, deterministic: bool, compiled: bool
) -> None:
    how = f"train.deterministic={deterministic}"
    (whole, root), (killed, other_root) = (
        study(tmp_path / name, how) for name in ("whole", "killed")
    )
    train_in(whole, root, compiled)
    train_in(killed, other_root, compiled, kill_at=35)
    assert killed.checkpointed_step() == 11
    train_in(killed, other_root, compiled)
    assert_near(losses_of(killed), losses_of(whole))
    same = (
        exact(whole).columns
        if deterministic
        else ["step", "split", "kind", "tokens", "targets", "lr"]
    )
    assert_frame_equal(exact(whole).loc[:, same], exact(killed).loc[:, same], check_exact=True)
    if deterministic:
        ours, theirs = final_weights(whole), final_weights(killed)
        assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize(("size", "nccl"), [(2, False), (2, True), (4, True), (8, True)])
def test_processes_train_as_one(tmp_path: Path, size: int, nccl: bool) -> None:
    """By gloo on one GPU; by NCCL, as in a job, with one each."""
    if nccl and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    (one, one_root), (several, several_root) = (
        study(tmp_path / name) for name in ("one", "several")
    )
    train_together(one, one_root, 1, nccl=nccl)
    train_together(several, several_root, size, nccl=nccl)
    same = ["step", "split", "kind", "tokens", "targets", "lr"]
    assert_frame_equal(one.log().loc[:, same], several.log().loc[:, same], check_exact=True)
    assert_near(losses_of(several), losses_of(one))


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


def test_compiled_or_not_in_bf16_or_not_a_run_has_about_the_same_losses(tmp_path: Path) -> None:
    losses = []
    for name, compiled, precision in (
        ("fast", True, "bf16"),
        ("eager", False, "bf16"),
        ("exact", False, "fp32"),
    ):
        run, root = study(tmp_path / name, f"train.precision={precision}")
        train_in(run, root, compiled)
        losses.append(losses_of(run))
    fast, eager, exactly = losses
    assert len(exactly) == STEPS
    assert exactly[-1] < exactly[0] - 1
    assert_near(fast, exactly)
    assert_near(eager, exactly)


@pytest.mark.parametrize("width", [256, 768])
def test_a_model_takes_about_the_memory_that_the_plan_says(tmp_path: Path, width: int) -> None:
    run, root = study(tmp_path, "seq_len=4096", f"widths=[{width}]", "budgets=[9e18]")
    one = measure(run, root, 0.5, gpus=1)
    assert one.gpus == 1
    assert one.mfu is not None
    assert 0.02 < one.mfu < 0.7
    estimate = needed_bytes(one.shape, one.micro_batch, one.checkpointing)
    assert 0.5 * estimate < one.memory_bytes < estimate / MEMORY_SHARE


def test_where_torch_can_not_compile_a_run_is_trained_all_the_same(tmp_path: Path) -> None:
    """No C compiler on the path: one line says so."""
    run, root = study(tmp_path)
    code = (
        "import sys; from pathlib import Path; from studies import train_here; from isoflop.runs.run_directory import RunDirectory; "
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
    assert done.stderr.count("torch.compile does not work here") == 1
