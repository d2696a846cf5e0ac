"""Runs of several processes: the batches, schedule, counts and losses (up to rounding) of one."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from pandas.testing import assert_frame_equal
from support.slurm_bed import LONG
from support.tiny_studies import (
    exact,
    meet_at,
    start,
    tiny_plan,
    together,
    train_together,
    wait_for,
    write_corpus,
)

from isoflop.errors import RunError
from isoflop.files import replace_file
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker.attempt import attempt, read_peer_failure
from isoflop.launching.worker.calibration_job import FAILED_FILE, REQUEST_FILE, MeasureJob
from isoflop.runs.run_directory import RunDirectory
from isoflop.training import checkpoint, loop
from isoflop.training import distributed as module
from isoflop.training.distributed import Ranks, is_peer_loss, join_job, rendezvous_port
from isoflop.training.loop import Trainer

WARM_UP_STEPS = 30
"""Steps of the warm-up. At the full learning rate so small a model doubles a rounding difference
every few steps."""


def study(folder: Path, *overrides: str) -> tuple[RunDirectory, Path]:
    """Make a run of some 350 steps with a row each step; return it and the folder of runs."""
    folder.mkdir()
    options = ("widths=[8]", "train.batch_scale=4", "train.log_points=1000", *overrides)
    plan, root = tiny_plan(folder, *LONG, *options), folder / "runs"
    write_corpus(root, plan)
    return RunDirectory(make_directory(plan, root) / plan.runs[0].run_id), root


def trained(folder: Path, size: int) -> pd.DataFrame:
    """Train a run of some 100 steps with `size` processes; return its loss log."""
    options = ("budgets=[6e8]", "train.schedule.warmup=0.3", "train.lr_scale=0.03")
    run, root = study(folder, *options)
    train_together(run, root, size)
    return run.log()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    single, double = trained(tmp_path / "single", 1), trained(tmp_path / "double", 2)
    equal = ["step", "split", "kind", "tokens", "train_flops", "targets", "lr"]
    assert single[equal].equals(double[equal])
    first = single.eval(f"step <= {WARM_UP_STEPS} and split == 'train'")
    assert first.sum() >= WARM_UP_STEPS
    for column in ("loss", "grad_norm"):
        np.testing.assert_allclose(double[column][first], single[column][first], rtol=1e-5)
    last = single.eval("step == step.max() and split == 'heldout' and kind == 'all'")
    np.testing.assert_allclose(double["loss"][last], single["loss"][last], rtol=1e-4)


def _train_part(
    run: RunDirectory, rank: int, size: int, meeting: str, root: Path, until: int, late: bool
) -> None:
    """Train up to a step; with `late`, the newest checkpoint is not listed, as on a slow disk."""
    if late:
        list_paths = checkpoint._list_newest_first
        checkpoint._list_newest_first = lambda folder: list_paths(folder)[1:]
    trainer = Trainer(run, root, meet_at(meeting, rank, size))
    trainer.train(lambda: trainer.step >= until)
    os._exit(0)


@pytest.mark.slow
def test_all_processes_resume_from_the_checkpoint_of_the_first(tmp_path: Path) -> None:
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
    run: RunDirectory, rank: int, size: int, meeting: str, root: Path, source: str
) -> None:
    """Train with a process that reads until the other waits for it at a barrier.

    A wait in a sum would have a shorter limit.
    """
    ranks = meet_at(meeting, rank, size)
    owner, name, late = SLOW_READS[source]
    read, barrier, numbers = getattr(owner, name), Ranks.barrier, itertools.count(1)

    def counted(self: Ranks, timeout: datetime.timedelta | None = None) -> None:
        (run.path / f"{rank}-barrier-{next(numbers)}").touch()
        barrier(self, timeout)

    def slow(*arguments: object) -> object:
        if rank == late:
            count = len(list(run.path.glob(f"{late}-barrier-*")))
            wait_for((run.path / f"{1 - late}-barrier-{count + 1}").exists)
        return read(*arguments)

    Ranks.barrier = counted
    setattr(owner, name, slow)
    trainer = Trainer(run, root, ranks)
    assert trainer.step == 20
    assert trainer.train(lambda: True) == "pending"
    os._exit(0)


SLOW_READS = {
    "data": (loop, "Windows", 1),
    "the first's checkpoint": (loop, "load_checkpoint", 0),
    "another's checkpoint": (loop, "load_checkpoint_at", 1),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run until step 20; return its path, of which tests change a copy."""
    run, root = study(tmp_path_factory.mktemp("stopped") / "study")
    together(run, 2, _train_part, root, 20, False)
    return run.path


@pytest.mark.slow
@pytest.mark.parametrize("source", SLOW_READS)
def test_processes_wait_for_a_slow_read(tmp_path: Path, stopped: Path, source: str) -> None:
    root, stopped_root = tmp_path / "runs", stopped.parents[1]
    shutil.copytree(stopped_root, root)
    run = RunDirectory(root / stopped.relative_to(stopped_root))
    together(run, 2, _train_slowly, root, source)
    assert run.checkpointed_step() == 21


def _fail(self: Trainer) -> torch.Tensor:
    raise RunError("out of memory with one sequence")


def _fail_part(run: RunDirectory, rank: int, size: int, meeting: str) -> None:
    ranks = meet_at(meeting, rank, size)
    if rank == 1:
        os.environ["SLURMD_NODENAME"] = "n2"
        Trainer._update = _fail
    assert attempt(run, lambda: False, "7", ranks) == "failed"
    os._exit(0)


def test_a_failure_in_another_process_is_reported_with_reason_and_node(tmp_path: Path) -> None:
    """The error of the first process is only the loss of the other."""
    run, _ = study(tmp_path / "failing")
    together(run, 4, _fail_part)
    state, reason = run.state(), "in process 1 of 4: out of memory with one sequence"
    assert (state["state"], state["failed_on"], state["reason"]) == ("failed", ["n2"], reason)
    # The remaining processes, which lost their peer, have reported nothing.
    assert read_peer_failure(run, 1) == (reason, "n2")


def _fail_late_part(run: RunDirectory, rank: int, size: int, meeting: str) -> None:
    """Fail in the second process after the first is gone and the next attempt has begun."""
    ranks = meet_at(meeting, rank, size)

    def end(self: Trainer) -> torch.Tensor:
        if rank == 0:
            (run.path / "gone").touch()
            os._exit(0)
        wait_for((run.path / "begun").exists)
        return _fail(self)

    Trainer._update = end
    attempt(run, lambda: False, "7", ranks)
    os._exit(0)


def test_a_late_failure_of_an_attempt_does_not_count_for_the_next(tmp_path: Path) -> None:
    run, _ = study(tmp_path / "late")

    def begin_another() -> None:
        wait_for((run.path / "gone").exists)
        run.set_state("running", attempt=2)
        (run.path / "begun").touch()

    other = threading.Thread(target=begin_another)
    other.start()
    together(run, 2, _fail_late_part)
    other.join()
    assert read_peer_failure(run, 1) is not None
    assert read_peer_failure(run, 2) is None


def _lose_part(run: RunDirectory, rank: int, size: int, meeting: str, job: bool) -> None:
    """End the second process at once, as if its node died or it was killed for memory."""
    ranks = meet_at(meeting, rank, size)
    if job:
        os.environ["SUBMITIT_EXECUTOR"] = "slurm"
    if rank == 1:
        Trainer._update = lambda self: os._exit(0)
    assert attempt(run, lambda: False, "7", ranks) == "failed"
    os._exit(0)


@pytest.mark.slow
def test_the_reason_of_a_dead_process_is_left_to_slurm(tmp_path: Path) -> None:
    """No failure is counted, and the remaining node is not blamed."""
    run, _ = study(tmp_path / "lost")
    together(run, 4, _lose_part, True)
    state = run.state()
    assert (state["state"], state["reason"]) == ("running", "")
    assert not {"failures", "failed_on"} & state.keys()
    assert read_peer_failure(run, 1) is None
    assert not run.is_leased()


@pytest.mark.slow
def test_outside_a_job_the_loss_of_a_process_is_a_failure(tmp_path: Path) -> None:
    run, _ = study(tmp_path / "lost")
    together(run, 2, _lose_part, False)
    assert run.state()["state"] == "failed"
    assert " by peer" in run.state()["reason"]


def _measure_part(run: RunDirectory, rank: int, size: int, meeting: str) -> None:
    module.join_job = lambda: meet_at(meeting, rank, size)
    if rank == 1:
        Trainer._update = _fail
    with pytest.raises(SystemExit):
        MeasureJob(str(run.path.parent))()
    os._exit(0)


def test_a_failed_measurement_in_another_process_is_reported_with_its_reason(
    tmp_path: Path,
) -> None:
    run, _ = study(tmp_path / "failing")
    (run.path.parent / REQUEST_FILE).write_text(
        json.dumps({"runs": [run.run_id], "seconds": 1.0, "gpus": 0})
    )
    together(run, 4, _measure_part)
    assert (run.path / FAILED_FILE).read_text() == "RunError: out of memory with one sequence\n"


TCP = "[/pytorch/third_party/gloo/gloo/transport/tcp"
GLOO_CLOSED = f"{TCP}/pair.cc:547] Connection closed by peer [10.0.0.2]:4711"
GLOO_RESET = f"{TCP}/pair.cc:537] Read error [10.0.0.2]:7: Connection reset by peer"
GLOO_TIMEOUT = f"{TCP}/unbound_buffer.cc:78] Timed out waiting 600000ms for recv"
NCCL_REMOTE = (
    "NCCL error: remote process exited or there was a network error\nncclRemoteError: A call failed"
)
NCCL_LOCAL = (
    "NCCL error: invalid usage\n"
    "ncclInvalidUsage: Duplicate GPU detected: rank 0 and rank 1 both on CUDA device"
)


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (RuntimeError(GLOO_CLOSED), True),
        (RuntimeError(GLOO_RESET), True),
        (RuntimeError(GLOO_TIMEOUT), False),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
        (dist.DistBackendError(NCCL_REMOTE), True),
        (dist.DistBackendError(NCCL_LOCAL), False),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (dist.DistStoreError("wait timeout after 7200000ms, keys: /isoflop/all/1"), False),
    ],
)
def test_errors_about_a_lost_peer_are_recognised(error: Exception, is_loss: bool) -> None:
    assert is_peer_loss(error) == is_loss


# As a job


JOB = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_NODEID": "0",
}
SHELL = {
    "MASTER_PORT": "1",
    "MASTER_ADDR": "nowhere",
    "RANK": "7",
    "WORLD_SIZE": "9",
    "CUDA_VISIBLE_DEVICES": "4,5",
}
"""Variables of the shell from which a study is submitted, and SLURM's variable of GPUs."""

FIRST_EPHEMERAL_PORT = 32_768
"""First of the ports that Linux gives to connections that request none."""


def free_job(restarts: int) -> tuple[str, int]:
    """Return the number of a job and its rendezvous port, which no other recent test uses."""
    for number in itertools.count(100 * os.getpid()):
        port = rendezvous_port(number, restarts)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("", port))
            return str(number), port
    raise AssertionError


def process_variables(job: str, rank: int) -> dict[str, str]:
    return JOB | {"SLURM_JOB_ID": job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def test_jobs_beside_each_other_have_ports_of_their_own() -> None:
    starts = [(job, restarts) for job in range(4_000_000, 4_001_500) for restarts in range(8)]
    ports = {rendezvous_port(*start) for start in starts}
    assert len(ports) == len(starts)
    assert min(ports) >= 20_000
    assert max(ports) < FIRST_EPHEMERAL_PORT


def _join_after_refusal(job: str, rank: int, refused: Path, answer: Path) -> None:
    os.environ |= process_variables(job, rank)
    ranks = join_job(on_gpus=False)
    wait_for(refused.exists)
    answer.write_text(str(ranks.any(ranks.rank == 1)))
    dist.destroy_process_group()


def _join_another_job(job: str, refused: Path) -> None:
    os.environ |= process_variables(job, 1)
    module.PORT_TIMEOUT_S = 0.2
    with pytest.raises(dist.DistNetworkError) as refusal:
        join_job(on_gpus=False)
    with replace_file(refused) as temporary:
        temporary.write_text(str(refusal.value))


def test_a_process_of_another_job_at_the_same_port_is_refused(tmp_path: Path) -> None:
    """It takes no part in the first job's training, however their ports came to be equal."""
    number, port = free_job(0)
    others = str(int(number) + module.PORT_COUNT // module.PORTS_PER_JOB)
    assert rendezvous_port(int(others), 0) == port
    refused, answers = tmp_path / "refused", [tmp_path / "0", tmp_path / "1"]
    foreign = start(_join_another_job, others, refused)
    own = [
        start(_join_after_refusal, number, rank, refused, answer)
        for rank, answer in enumerate(answers)
    ]
    for process in (foreign, *own):
        process.join()
    assert refused.read_text() == f"localhost:{port} serves another job"
    assert [answer.read_text() for answer in answers] == ["[True]", "[True]"]


MEETS = """
import atexit, os
import torch.distributed as dist
from isoflop.training.distributed import join_job

atexit.register(lambda: print("left", not dist.is_initialized()))
ranks = join_job(on_gpus=False)
devices = os.environ["CUDA_VISIBLE_DEVICES"]
print(ranks.any(ranks.rank == 1), ranks.broadcast(ranks.rank + 5), devices)
"""


def _meet(job: str, answer: Path) -> None:
    os.environ |= SHELL | process_variables(job, 1)
    ranks = join_job(on_gpus=False)
    answer.write_text(f"{ranks.any(ranks.rank == 1)} {ranks.broadcast(ranks.rank + 5)}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_processes_of_a_job_meet_and_leave_each_other(tmp_path: Path) -> None:
    """Threads of gloo that outlive Python may end it with SIGABRT, and its job then fails."""
    job, _ = free_job(0)
    second = start(_meet, job, tmp_path / "second")
    first = subprocess.run(
        [sys.executable, "-c", MEETS],
        env=os.environ | SHELL | process_variables(job, 0),
        stdout=subprocess.PIPE,
        text=True,
    )
    second.join()
    assert first.stdout.splitlines() == ["[True] 5 4,5", "left True"]
    assert (tmp_path / "second").read_text() == "[True] 5"
    assert (first.returncode, second.exitcode) == (0, 0)


def _join_alone(job: str, answer: Path) -> None:
    os.environ |= process_variables(job, 0)
    module.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=1)
    start = time.monotonic()
    with pytest.raises(dist.DistStoreError):
        join_job(on_gpus=False)
    answer.write_text(str(time.monotonic() - start < 30))


def test_a_process_does_not_wait_long_for_one_that_never_starts(tmp_path: Path) -> None:
    job, _ = free_job(0)
    process = start(_join_alone, job, tmp_path / "answer")
    process.join()
    assert (tmp_path / "answer").read_text() == "True"


def _join_when_released(job: str, rank: int, restarts: int, folder: Path) -> None:
    """Join a job; if its port is taken, create `taken`, and retry after `released` exists."""

    def pause(_seconds: float) -> None:
        (folder / "taken").touch()
        wait_for((folder / "released").exists)

    os.environ |= process_variables(job, rank) | {"SLURM_RESTART_COUNT": str(restarts)}
    module.time = SimpleNamespace(monotonic=time.monotonic, sleep=pause)  # type: ignore[assignment]
    (folder / f"size-{rank}").write_text(str(join_job(on_gpus=False).size))
    dist.destroy_process_group()


def test_the_rendezvous_port_of_a_job_is_retried_while_it_is_taken(tmp_path: Path) -> None:
    """No connection has it by chance, and it changes at every start."""
    number, port = free_job(restarts=1)
    with socket.socket() as taken:
        taken.bind(("", port))
        processes = [start(_join_when_released, number, rank, 1, tmp_path) for rank in range(2)]
        wait_for((tmp_path / "taken").exists)
    (tmp_path / "released").touch()
    for process in processes:
        process.join()
    assert [(tmp_path / f"size-{rank}").read_text() for rank in range(2)] == ["2", "2"]


def test_a_shell_in_an_allocation_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**JOB, "SUBMITIT_EXECUTOR": "local", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert join_job() == Ranks()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_job_with_gpus_that_torch_does_not_find_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = study(tmp_path / "blind")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert attempt(run, lambda: False, "7") == "failed"
    assert run.state()["reason"].startswith("SLURM gave this job 4 GPUs on ")
