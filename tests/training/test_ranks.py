"""Several processes train one run as one would: the same batches, schedule and counts, and losses up to rounding."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from clusters import LONG
from studies import tiny_plan, train_together, write_corpus

from isoflop.launching.directory import make_directory
from isoflop.runs import RunDirectory

FIRST = 30
"""Steps of the warm-up; at the full learning rate so small a model doubles a difference in rounding every few steps."""


def trained(folder: Path, size: int) -> pd.DataFrame:
    """The loss log of a run of some 350 steps that so many processes have trained, with a row each step."""
    folder.mkdir()
    plan = tiny_plan(folder, *LONG, "widths=[8]", "train.batch_scale=4", "train.log_points=1000")
    root = folder / "runs"
    write_corpus(root, plan)
    run = RunDirectory(make_directory(plan, root) / plan.runs[0].run_id)
    train_together(run, root, size)
    return run.log()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "one", 1), trained(tmp_path / "two", 2)
    same = ["step", "split", "kind", "tokens", "train_flops", "targets", "lr"]
    assert one[same].equals(two[same])
    first = one.eval(f"step <= {FIRST} and split == 'train'")
    assert first.sum() >= FIRST
    for column in ("loss", "grad_norm"):
        np.testing.assert_allclose(two[column][first], one[column][first], rtol=1e-5)
    last = one.eval("step == step.max() and split == 'heldout' and kind == 'all'")
    np.testing.assert_allclose(two["loss"][last], one["loss"][last], rtol=0.01)


MEETS = """
import atexit, os, sys, types
import submitit, torch.distributed as dist
from isoflop.training.ranks import join

atexit.register(lambda: print("left", not dist.is_initialized()))
found = types.SimpleNamespace(rank=int(os.environ["RANK"]), world_size=2, local_rank=0)
submitit.helpers.TorchDistributedEnvironment = lambda: types.SimpleNamespace(export=lambda: found)
print(join(on_gpus=False).any(found.rank == 1))
"""


def test_a_process_leaves_the_others_before_it_ends() -> None:
    """Threads of gloo that are still there when Python ends may end it with SIGABRT, and its job has failed then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    job = {**os.environ, **meeting, "SLURM_NTASKS": "2", "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", MEETS]
    processes = [
        subprocess.Popen(command, env={**job, "SLURM_PROCID": rank, "RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    assert [process.communicate()[0].split("\n")[:2] for process in processes] == [["[True]", "left True"]] * 2
    assert [process.returncode for process in processes] == [0, 0]
