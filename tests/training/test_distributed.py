"""Several processes train one run as one would: the same batches, schedule and counts, and losses up to rounding."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from pandas.testing import assert_frame_equal
from support.clusters import LONG
from support.studies import (
    exact,
    meet_at,
    tiny_plan,
    together,
    train_together,
    wait_for,
    write_corpus,
)

from isoflop.errors import RunError
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker.attempt import attempt, failure_of_another
from isoflop.launching.worker.calibration_job import FAILED, ORDER, MeasureJob
from isoflop.runs.run_directory import RunDirectory
from isoflop.training import checkpoint, loop
from isoflop.training import distributed as module
from isoflop.training.distributed import Ranks, is_end_of_another, join
from isoflop.training.loop import Trainer

FIRST = 30
"""Steps of the warm-up; at the full learning rate so small a model doubles a difference in rounding every few steps."""


def study(folder: Path) -> tuple[RunDirectory, Path]:
    """A run of some 350 steps, with a row each step, and the folder of runs."""
    folder.mkdir()
    plan = tiny_plan(folder, *LONG, "widths=[8]", "train.batch_scale=4", "train.log_points=1000")
    root = folder / "runs"
    write_corpus(root, plan)
    return RunDirectory(make_directory(plan, root) / plan.runs[0].run_id), root


def trained(folder: Path, size: int) -> pd.DataFrame:
    """The loss log of a run that so many processes have trained."""
    run, root = study(folder)
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


def _train_part(
    run: RunDirectory, rank: int, size: int, place: str, root: Path, until: int, late: bool
) -> None:
    """Trains on to a step; a node that sees files late has no list of the newest checkpoint yet."""
    if late:
        find = checkpoint._newest_first
        checkpoint._newest_first = lambda folder: find(folder)[1:]
    trainer = Trainer(run, root, meet_at(place, rank, size))
    trainer.train(lambda: trainer.step >= until)
    os._exit(0)


@pytest.mark.slow
def test_all_processes_go_on_from_the_checkpoint_that_the_first_finds(tmp_path: Path) -> None:
    calm, _ = study(tmp_path / "calm")
    together(calm, 2, _train_part, calm.path.parent.parent, 1000, False)
    run, root = study(tmp_path / "late")
    for until in (20, 40):
        together(run, 2, _train_part, root, until, False)
    assert run.checkpointed_step() == 40
    together(run, 2, _train_part, root, 1000, True)
    assert run.done
    assert_frame_equal(exact(run), exact(calm), check_exact=True)


def _train_slowly(
    run: RunDirectory, rank: int, size: int, place: str, root: Path, what: str
) -> None:
    """Trains where one process reads until the other waits for it elsewhere than in a sum, which has a limit."""
    ranks = meet_at(place, rank, size)
    owner, name, late = SLOW_READS[what]
    read, wait, waits = getattr(owner, name), Ranks.wait, itertools.count(1)

    def counted(self: Ranks) -> None:
        (run.path / f"{rank}-waits-{next(waits)}").touch()
        wait(self)

    def slow(*arguments: object) -> object:
        if rank == late:
            waited = len(list(run.path.glob(f"{late}-waits-*")))
            wait_for((run.path / f"{1 - late}-waits-{waited + 1}").exists)
        return read(*arguments)

    Ranks.wait = counted
    setattr(owner, name, slow)
    trainer = Trainer(run, root, ranks)
    assert trainer.step == 20
    assert trainer.train(lambda: True) == "pending"
    os._exit(0)


SLOW_READS = {
    "data": (loop, "Windows", 1),
    "the first's checkpoint": (loop, "load_checkpoint", 0),
    "another's checkpoint": (loop, "load_same", 1),
}


@pytest.mark.parametrize("what", SLOW_READS)
def test_processes_wait_for_one_that_reads_slowly(tmp_path: Path, what: str) -> None:
    run, root = study(tmp_path / "slow")
    together(run, 2, _train_part, root, 20, False)
    together(run, 2, _train_slowly, root, what)
    assert run.checkpointed_step() == 21


def _fail(self: Trainer) -> torch.Tensor:
    raise RunError("out of memory with one sequence")


def _fail_part(run: RunDirectory, rank: int, size: int, place: str) -> None:
    ranks = meet_at(place, rank, size)
    if rank == 1:
        os.environ["SLURMD_NODENAME"] = "n2"
        Trainer._update = _fail
    assert attempt(run, lambda: False, "7", ranks) == "failed"
    os._exit(0)


def test_a_run_that_fails_in_another_process_says_why_and_where(tmp_path: Path) -> None:
    """The first process only sees that the other is gone."""
    run, _ = study(tmp_path / "failing")
    together(run, 4, _fail_part)
    state, reason = run.state(), "in process 1 of 4: out of memory with one sequence"
    assert (state["state"], state["failed_on"], state["reason"]) == ("failed", ["n2"], reason)
    assert failure_of_another(run, 1) == (
        reason,
        "n2",
    )  # the others, which saw it go, have said nothing


def _fail_late_part(run: RunDirectory, rank: int, size: int, place: str) -> None:
    """The second process fails when the first is gone and the next attempt has begun."""
    ranks = meet_at(place, rank, size)

    def end(self: Trainer) -> torch.Tensor:
        if rank == 0:
            (run.path / "gone").touch()
            os._exit(0)
        wait_for((run.path / "begun").exists)
        return _fail(self)

    Trainer._update = end
    attempt(run, lambda: False, "7", ranks)
    os._exit(0)


def test_a_late_process_of_an_attempt_says_nothing_of_the_next(tmp_path: Path) -> None:
    run, _ = study(tmp_path / "late")

    def begin_another() -> None:
        wait_for((run.path / "gone").exists)
        run.set_state("running", attempt=2)
        (run.path / "begun").touch()

    other = threading.Thread(target=begin_another)
    other.start()
    together(run, 2, _fail_late_part)
    other.join()
    assert failure_of_another(run, 1) is not None
    assert failure_of_another(run, 2) is None


def _lose_part(run: RunDirectory, rank: int, size: int, place: str, job: bool) -> None:
    """The second process dies, as with its node, or where it is killed for memory."""
    ranks = meet_at(place, rank, size)
    if job:
        os.environ["SUBMITIT_EXECUTOR"] = "slurm"
    if rank == 1:
        Trainer._update = lambda self: os._exit(0)
    assert attempt(run, lambda: False, "7", ranks) == "failed"
    os._exit(0)


def test_of_a_process_that_died_slurm_knows_how(tmp_path: Path) -> None:
    """No failure is counted, and the node that is left is not to blame."""
    run, _ = study(tmp_path / "lost")
    together(run, 4, _lose_part, True)
    state = run.state()
    assert (state["state"], state["reason"]) == ("running", "")
    assert not {"failures", "failed_on"} & state.keys()
    assert failure_of_another(run, 1) is None
    assert not run.is_leased()


def test_outside_a_job_a_run_that_lost_a_process_has_failed(tmp_path: Path) -> None:
    run, _ = study(tmp_path / "lost")
    together(run, 2, _lose_part, False)
    assert run.state()["state"] == "failed"
    assert " by peer" in run.state()["reason"]


def _measure_part(run: RunDirectory, rank: int, size: int, place: str) -> None:
    module.join = lambda: meet_at(place, rank, size)
    if rank == 1:
        Trainer._update = _fail
    with pytest.raises(SystemExit):
        MeasureJob(str(run.path.parent))()
    os._exit(0)


def test_a_measurement_that_fails_in_another_process_says_why(tmp_path: Path) -> None:
    run, _ = study(tmp_path / "failing")
    (run.path.parent / ORDER).write_text(
        json.dumps({"runs": [run.run_id], "seconds": 1.0, "gpus": 0})
    )
    together(run, 4, _measure_part)
    assert (run.path / FAILED).read_text() == "RunError: out of memory with one sequence\n"


GONE = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711"
RESET = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:7: Connection reset by peer"
SLOW = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv"
NCCL_GONE = (
    "NCCL error: remote process exited or there was a network error\nncclRemoteError: A call failed"
)
NCCL_OWN = "NCCL error: invalid usage\nncclInvalidUsage: Duplicate GPU detected: rank 0 and rank 1 both on CUDA device"


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (RuntimeError(GONE), True),
        (RuntimeError(RESET), True),
        (RuntimeError(SLOW), False),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
        (dist.DistBackendError(NCCL_GONE), True),
        (dist.DistBackendError(NCCL_OWN), False),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (dist.DistStoreError("wait timeout after 7200000ms, keys: /isoflop/all/1"), False),
    ],
)
def test_what_only_says_that_another_is_gone_is_no_reason(error: Exception, gone: bool) -> None:
    assert is_end_of_another(error) == gone


# As a job


JOB = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_NODEID": "0",
}
LEFT = {
    "MASTER_PORT": "1",
    "MASTER_ADDR": "nowhere",
    "RANK": "7",
    "WORLD_SIZE": "9",
    "CUDA_VISIBLE_DEVICES": "4,5",
}
"""What a shell may hold that a study is submitted from, and what SLURM says of GPUs."""

EPHEMERAL = 32_768
"""The first of the ports that Linux gives to connections that name none."""


def free_job(restarts: int) -> tuple[str, int]:
    """A job's number and the port that it meets at, which no test beside this one has, and none had just before."""
    number = 100 * os.getpid()
    while True:
        number += 1
        drawn = random.Random(str(number)).randint(20_000, 60_000)  # as submitit draws it
        port = module.FIRST_PORT + (drawn + restarts) % module.PORTS
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("", port))
            if port < EPHEMERAL < drawn:
                return str(number), port


MEETS = """
import atexit, os
import torch.distributed as dist
from isoflop.training.distributed import join

atexit.register(lambda: print("left", not dist.is_initialized()))
ranks = join(on_gpus=False)
print(ranks.any(ranks.rank == 1), ranks.of_first(ranks.rank + 5), os.environ["CUDA_VISIBLE_DEVICES"])
"""


def test_the_processes_of_a_job_meet_and_leave_each_other() -> None:
    """Threads of gloo that are still there when Python ends may end it with SIGABRT, and its job has failed then."""
    job = {**os.environ, **JOB, "SLURM_JOB_ID": free_job(0)[0], **LEFT}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETS],
            env={**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert [process.communicate()[0].splitlines() for process in processes] == [
        ["[True] 5 4,5", "left True"]
    ] * 2
    assert [process.returncode for process in processes] == [0, 0]


FINDS_ITS_PORT_TAKEN = """
from isoflop.training import distributed as ranks

ranks.time.sleep = lambda _: (print("taken", flush=True), input())
print(ranks.join(on_gpus=False).size)
"""
"""Says that its port is taken, and tries again once it is told to."""


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_port_where_a_job_meets_is_tried_again_while_it_is_taken(restarts: int) -> None:
    """It is one that no connection has by chance, and another at every start."""
    number, port = free_job(restarts)
    job = {**os.environ, **JOB, "SLURM_JOB_ID": number, "SLURM_RESTART_COUNT": str(restarts)}
    with socket.socket() as taken:
        taken.bind(("", port))
        first, second = (
            subprocess.Popen(
                [sys.executable, "-c", FINDS_ITS_PORT_TAKEN],
                env={**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        )
        assert first.stdout is not None
        assert first.stdout.readline() == "taken\n"
    assert (first.communicate("\n")[0], second.communicate()[0]) == ("2\n", "2\n")


def test_a_shell_in_an_allocation_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**JOB, "SUBMITIT_EXECUTOR": "local", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert join() == Ranks()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_job_with_gpus_that_torch_does_not_see_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = study(tmp_path / "blind")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert attempt(run, lambda: False, "7") == "failed"
    assert run.state()["reason"].startswith("SLURM gave this job 4 GPUs on ")
