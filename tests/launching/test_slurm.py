"""Studies on a true SLURM, with and without accounting: submitted, disturbed, and yet as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Bed, Submitted, open_bed, submitted
from studies import LONG_CHECKPOINTS, train_here, wait_for

from isoflop.launching.directory import make_directory
from isoflop.launching.steering import cancel, retry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[True, False], ids=["accounting", "no-accounting"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with open_bed(tmp_path_factory.mktemp("bed") / "bed", 17100 + 100 * request.param, accounting=request.param) as up:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = up.environment["SLURM_CONF"]
        yield up
        os.environ.pop("SLURM_CONF")
        if before:
            os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bed: Bed) -> Path:
    """The same study, trained in this process."""
    study = submitted(bed, tmp_path_factory.mktemp("undisturbed"), OFTEN)
    make_directory(study.plan, study.directory.parent)
    for run in study.runs:
        train_here(run, study.directory.parent)
    return study.directory


OFTEN = LONG_CHECKPOINTS


@pytest.fixture
def study(bed: Bed, tmp_path: Path) -> Submitted:
    return submitted(bed, tmp_path, OFTEN)


def test_a_study_is_queued_once_and_ends(study: Submitted, undisturbed: Path) -> None:
    first = study.submit()
    assert len(first.queued) == 2
    assert study.submit().queued == ()
    study.finish()
    study.equals(undisturbed)
    assert study.submit().queued == ()


def test_preemption_with_a_signal(bed: Bed, tmp_path: Path, undisturbed: Path) -> None:
    study = submitted(bed, tmp_path, OFTEN, options=("slurm.partition=preempt",))
    study.submit()
    study.wait_for_step(100)
    bed.run("sbatch", "-p", "main", "-N4", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 3")
    study.wait(lambda picture: picture.ids("requeued"))
    study.finish()
    study.equals(undisturbed)
    assert all(run.state().get("failures", 0) == 0 for run in study.runs)


def test_preemption_at_once(bed: Bed, tmp_path: Path, undisturbed: Path) -> None:
    study = submitted(bed, tmp_path, OFTEN, options=("slurm.partition=scavenge",))
    study.submit()
    study.wait_for_step(100)
    bed.run("sbatch", "-p", "main", "-N4", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 3")
    study.wait(lambda picture: picture.ids("requeued"))
    study.finish()
    study.equals(undisturbed)


def test_a_killed_worker_is_a_failure_that_is_tried_again(study: Submitted, undisturbed: Path) -> None:
    study.submit()
    study.wait_for_step(100)
    os.kill(worker_of(study), signal.SIGKILL)
    picture = study.wait(lambda picture: picture.ids("failed"))
    (failed,) = picture.ids("failed")
    assert "died" in picture.runs[failed].reason
    assert picture.runs[failed].again
    study.finish(resubmit=True)
    study.equals(undisturbed)


def test_a_node_that_dies(study: Submitted, undisturbed: Path) -> None:
    study.submit()
    study.wait_for_step(100)
    node = study.runs[0].state()["node"]
    study.bed("node-kill", node)
    study.wait(lambda picture: picture.ids("requeued", "running") and not study.runs[0].is_leased())
    study.bed("node-start", node)
    study.finish(resubmit=True)
    study.equals(undisturbed)


def test_a_controller_that_forgets_the_newest_jobs(study: Submitted, undisturbed: Path) -> None:
    study.bed("ctld-mark")
    study.submit()
    study.bed("ctld-forget")
    study.finish(resubmit=True)
    study.equals(undisturbed)


def test_cancel_and_go_on(study: Submitted, undisturbed: Path) -> None:
    study.submit()
    study.wait_for_step(100)
    assert len(cancel(study.directory, [])) == 2
    study.wait(lambda picture: len(picture.ids("cancelled")) == 2)
    assert len(retry(study.directory, [])) == 2
    study.submit()
    study.finish()
    study.equals(undisturbed)


# Several processes


TWO = ("slurm.ntasks_per_node=2", "slurm.cpus_per_task=1", "slurm.mem_per_cpu=1500")
TWO_NODES = ("slurm.ntasks_per_node=1", "slurm.nodes=2", "slurm.cpus_per_task=1", "slurm.mem_per_cpu=1500")
FOUR = ("slurm.ntasks_per_node=2", "slurm.nodes=2", "slurm.cpus_per_task=1", "slurm.mem_per_cpu=1500")
EVEN = "train.batch_scale=4"
"""Batches that two and four processes share evenly."""


@pytest.mark.parametrize("options", [TWO, TWO_NODES, FOUR], ids=["1x2", "2x1", "2x2"])
def test_several_processes_stopped_and_killed_equal_undisturbed_ones(
    bed: Bed, tmp_path: Path, options: tuple[str, ...]
) -> None:
    calm = submitted(bed, tmp_path / "calm", OFTEN, EVEN, options=options)
    calm.submit()
    calm.finish()
    assert all(run.state()["attempt"] == 1 for run in calm.runs)

    study = submitted(bed, tmp_path / "disturbed", OFTEN, EVEN, options=options)
    study.submit()
    study.wait_for_step(40)
    os.kill(worker_of(study, rank=1), signal.SIGUSR2)
    wait_for(lambda: study.runs[0].state()["attempt"] == 2, 60)
    step = study.runs[0].checkpointed_step()
    study.wait_for_step(step + 40)
    os.kill(worker_of(study, rank=1), signal.SIGKILL)
    study.finish(resubmit=True)
    study.equals(calm.directory)
    assert study.runs[0].state()["attempt"] >= 3


def worker_of(study: Submitted, number: int = 0, rank: int = 0) -> int:
    """The process that trains a run, as this machine numbers it."""
    wanted = study.runs[number].state()["job_id"]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"submitit.core._submit" not in (folder / "cmdline").read_bytes():
                continue
            items = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        environment = dict(item.split(b"=", 1) for item in items if b"=" in item)
        array, task = environment.get(b"SLURM_ARRAY_JOB_ID", b""), environment.get(b"SLURM_ARRAY_TASK_ID", b"")
        if f"{array.decode()}_{task.decode()}" == wanted and environment.get(b"SLURM_PROCID") == b"%d" % rank:
            return int(folder.name)
    raise AssertionError(f"no process trains {wanted}")
