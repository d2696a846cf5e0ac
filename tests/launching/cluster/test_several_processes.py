"""Runs of several processes on a real SLURM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.slurm_bed import (
    TWO_NODES,
    WITHOUT_ACCOUNTING,
    Bed,
    find_worker,
    submitted,
)
from support.tiny_studies import FREQUENT_CHECKPOINTS as OFTEN
from support.tiny_studies import train_together, wait_for

from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker.attempt import attempt

pytestmark = pytest.mark.slow

TWO = ("slurm.ntasks_per_node=2", "slurm.cpus_per_task=1", "slurm.mem_per_cpu=1500")

FOUR = (
    "slurm.ntasks_per_node=2",
    "slurm.nodes=2",
    "slurm.cpus_per_task=1",
    "slurm.mem_per_cpu=1500",
)

EVEN, ONE_RUN = "train.batch_scale=4", "widths=[8]"
"""Batches that two and four processes share evenly, and a study of one run."""


@WITHOUT_ACCOUNTING
@pytest.mark.parametrize(
    ("options", "size"),
    [
        pytest.param(TWO, 2, id="1x2", marks=pytest.mark.long),
        pytest.param(TWO_NODES, 2, id="2x1", marks=pytest.mark.long),
        pytest.param(FOUR, 4, id="2x2"),
    ],
)
def test_several_processes_stopped_and_killed_equal_undisturbed_ones(
    bed: Bed, tmp_path: Path, options: tuple[str, ...], size: int
) -> None:
    undisturbed = submitted(bed, tmp_path / "undisturbed", OFTEN, EVEN, ONE_RUN)
    make_directory(undisturbed.plan, undisturbed.directory.parent)
    train_together(undisturbed.runs[0], undisturbed.directory.parent, size)

    study = submitted(bed, tmp_path / "disturbed", OFTEN, EVEN, ONE_RUN, options=options)
    study.submit()
    study.wait_for_step(40)
    os.kill(find_worker(study, rank=1), signal.SIGUSR2)
    wait_for(lambda: study.runs[0].state()["attempt"] == 2, 300)
    step = study.runs[0].checkpointed_step()
    study.wait_for_step(step + 40)
    os.kill(find_worker(study, rank=1), signal.SIGKILL)
    study.finish(resubmit=True)
    study.equals(undisturbed.directory)
    assert study.runs[0].state()["attempt"] >= 3


@WITHOUT_ACCOUNTING
def test_simulated_runs_on_two_nodes_are_drawn_once(bed: Bed, tmp_path: Path) -> None:
    calm = submitted(bed, tmp_path / "calm", "train.trainer=simulated: soda")
    make_directory(calm.plan, calm.directory.parent)
    assert [attempt(run, lambda: False, None) for run in calm.runs] == ["done", "done"]
    study = submitted(bed, tmp_path / "queued", "train.trainer=simulated: soda", options=TWO_NODES)
    study.submit()
    study.finish()
    study.equals(calm.directory)
