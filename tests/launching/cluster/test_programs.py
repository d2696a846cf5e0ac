"""External trainers on a real SLURM."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from support.slurm_bed import (
    TWO_NODES,
    WITHOUT_ACCOUNTING,
    Bed,
    find_worker,
    submitted,
)
from support.tiny_studies import wait_for

pytestmark = pytest.mark.slow

TOGETHER = """
import json, os, pathlib, signal, socket, sys, time
run, width, steps, losses, nodes, rank, address, port = sys.argv[1:]
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
if rank == "0":
    with socket.create_server((address, int(port))) as server:
        server.accept()
else:
    for _ in range(200):
        try:
            socket.create_connection((address, int(port))).close()
            break
        except OSError:
            time.sleep(0.05)
    else:
        sys.exit("nobody there")
said = pathlib.Path(run, "said")
with said.open("a") as file:
    print(rank, "of", nodes, file=file)
first = said.read_text().count(f"{rank} of") == 1
if width == "12" and rank == "1":
    sys.exit("no room on this node")
while (first or width == "12") and not stopped:
    time.sleep(0.05)
if stopped:
    with said.open("a") as file:
        print(rank, "stopped", file=file)
elif rank == "0":
    with open(losses, "a") as file:
        print(json.dumps({"step": int(steps), "loss": 5.25, "split": "heldout"}), file=file)
"""
"""Meets itself on the other node and waits for a stop; restarted, it ends.

In the second run it fails on one node."""


@WITHOUT_ACCOUNTING
def test_a_program_of_one_s_own_on_two_nodes(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TOGETHER)
    names = (
        "run_dir",
        "width",
        "steps",
        "losses",
        "nodes",
        "node_rank",
        "main_address",
        "main_port",
    )
    command = (
        f"{sys.executable} {tmp_path / 'program.py'} {' '.join(f'{{{name}}}' for name in names)}"
    )
    study = submitted(
        bed, tmp_path, f"train.trainer=command: {command}", options=TWO_NODES, retries=0
    )
    study.submit()
    good, bad = study.runs
    wait_for(
        lambda: (
            (good.path / "said").exists() and (good.path / "said").read_text().count("of 2") == 2
        ),
        300,
    )
    os.kill(find_worker(study, rank=1), signal.SIGUSR2)
    status = study.wait(lambda status: len(status.ids("done", "failed")) == 2)
    assert status.ids("done") == [good.run_id]
    output = (good.path / "said").read_text().splitlines()
    parts = [sorted(output[first : first + 2]) for first in range(0, len(output), 2)]
    assert parts == [["0 of 2", "1 of 2"], ["0 stopped", "1 stopped"], ["0 of 2", "1 of 2"]]
    assert good.state()["attempt"] == 2
    assert re.search(
        r"failed in process 1 of 2: no room on this node; see \S+/attempts/1/log-1\.txt",
        bad.state()["reason"],
    )


SAVES = """
import json, pathlib, signal, sys
run, steps, losses, rank = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
started = pathlib.Path(run, f"started-{rank}")
first = not started.exists()
started.touch()
while first:
    signal.pause()
if rank == "0":
    with open(losses, "a") as file:
        print(json.dumps({"step": int(steps), "loss": 5.25, "split": "heldout"}), file=file)
"""
"""Waits for a signal, at which it exits with 0; started again it ends."""


@pytest.mark.parametrize(
    ("bed", "options", "seeds", "ranks"),
    [
        pytest.param(True, ("max_jobs=6",), "[0, 1, 2]", 1, id="one process"),
        pytest.param(False, TWO_NODES, "[0]", 2, id="two nodes"),
    ],
    indirect=["bed"],
)
@pytest.mark.parametrize("how", ["scancel", "requeue", "preemption"])
def test_a_program_that_saves_at_slurm_s_signal_is_stopped_and_has_not_failed(
    bed: Bed, tmp_path: Path, options: tuple[str, ...], seeds: str, ranks: int, how: str
) -> None:
    """SLURM signals program and worker at the same moment, and nobody before."""
    (tmp_path / "program.py").write_text(SAVES)
    command = (
        f"{sys.executable} {tmp_path / 'program.py'} {{run_dir}} {{steps}} {{losses}} {{node_rank}}"
    )
    changes = (*options, "slurm.partition=scavenge") if how == "preemption" else options
    study = submitted(
        bed,
        tmp_path,
        f"train.trainer=command: {command}",
        f"seeds={seeds}",
        options=changes,
        retries=0,
    )
    study.submit()
    wait_for(lambda: all(len(list(run.path.glob("started-*"))) == ranks for run in study.runs), 300)
    jobs = [str(run.state()["job_id"]) for run in study.runs]
    if how == "scancel":
        bed.run("scancel", *jobs)
        status = study.wait(lambda status: not status.ids("running", "queued", "requeued"))
        assert {run.reason for run in status.runs.values()} == {"its job was cancelled"}
        assert len(status.ids("cancelled")) == len(jobs)
        assert len(study.submit().queued) == len(jobs)
    elif how == "requeue":
        bed.run("scontrol", "requeue", ",".join(jobs))
    else:
        full = ("-N4", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 3")
        bed.run("sbatch", "-p", "main", *full)
    study.finish()
    states = [run.state() for run in study.runs]
    assert [(state["attempt"], state.get("failures", 0)) for state in states] == [(2, 0)] * len(
        jobs
    )


SUMS = """
import json, os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
ranks = torch.ones(())
dist.all_reduce(ranks)
if dist.get_rank() == 0:
    with open(sys.argv[2], "a") as file:
        row = {"step": int(sys.argv[1]), "loss": ranks.item(), "split": "heldout"}
        print(json.dumps(row), file=file)
dist.destroy_process_group()  # else its threads may end the process with SIGABRT
"""


@WITHOUT_ACCOUNTING
def test_torchrun_on_two_nodes(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SUMS)
    command = (
        f"{sys.executable} -m torch.distributed.run --nnodes {{nodes}} --nproc-per-node 2 "
        f"--node-rank {{node_rank}} "
        f"--master-addr {{main_address}} --master-port {{main_port}} "
        f"{tmp_path / 'program.py'} {{steps}} {{losses}}"
    )
    study = submitted(bed, tmp_path, f"train.trainer=command: {command}", options=TWO_NODES)
    study.submit()
    study.finish()
    assert [run.log()["loss"].tolist() for run in study.runs] == [[4.0], [4.0]]
