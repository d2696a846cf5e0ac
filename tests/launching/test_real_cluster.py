"""Studies on a true SLURM, with and without accounting: submitted, disturbed, and yet as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path

import pytest
from support.clusters import LONG, PROFILE, Bed, Submitted, open_bed, submitted
from support.studies import LONG_CHECKPOINTS, train_here, wait_for

from isoflop.cli import main
from isoflop.config.profile import load_profile
from isoflop.config.sweep_definition import to_yaml
from isoflop.errors import ClusterError, ConfigError
from isoflop.launching.calibrate import calibrate
from isoflop.launching.control import cancel, retry
from isoflop.launching.doctor import examine
from isoflop.launching.queue.arrays import Array
from isoflop.launching.queue.submit_array import SubmitLimitError, submit_array
from isoflop.launching.records.submissions import Submission
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.slurm import client as slurm
from isoflop.launching.supervisor import add_supervisor
from isoflop.launching.worker.attempt import attempt
from isoflop.planning.bill import with_bill
from isoflop.planning.calibration import read_calibration

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[True, False], ids=["accounting", "no-accounting"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with open_bed(
        tmp_path_factory.mktemp("bed") / "bed",
        17100 + 100 * request.param,
        accounting=request.param,
    ) as up:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = up.environment["SLURM_CONF"]
        yield up
        os.environ.pop("SLURM_CONF")
        if before:
            os.environ["SLURM_CONF"] = before


WITH = pytest.mark.parametrize("bed", [True], indirect=True, ids=["accounting"])
WITHOUT = pytest.mark.parametrize("bed", [False], indirect=True, ids=["no-accounting"])
"""For what accounting makes no difference to, so that the tests end in time."""


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


@pytest.mark.parametrize("partition", ["preempt", "scavenge"], ids=["with a signal", "at once"])
def test_preemption(bed: Bed, tmp_path: Path, undisturbed: Path, partition: str) -> None:
    study = submitted(bed, tmp_path, OFTEN, options=(f"slurm.partition={partition}",))
    study.submit()
    study.wait_for_step(100)
    bed.run(
        "sbatch",
        "-p",
        "main",
        "-N4",
        "--exclusive",
        "-t",
        "1",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    )
    study.wait(lambda picture: picture.ids("requeued"))
    study.finish()
    study.equals(undisturbed)
    assert all(run.state().get("failures", 0) == 0 for run in study.runs)


def test_a_killed_worker_is_a_failure_that_is_tried_again(
    study: Submitted, undisturbed: Path
) -> None:
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


# What looks after a study, and what can't run


@WITH
def test_a_supervisor_brings_a_study_to_its_end(
    bed: Bed, tmp_path: Path, undisturbed: Path
) -> None:
    told = tmp_path / "told.txt"
    hook = tmp_path / "hook.sh"
    hook.write_text(f'#!/bin/bash\necho "$1: $3" >> {told}\n')
    hook.chmod(0o755)
    study = submitted(bed, tmp_path, OFTEN, options=(f"notify={hook}",))
    study.submit()
    study.wait_for_step(100)
    os.kill(worker_of(study), signal.SIGKILL)
    study.wait(lambda picture: picture.ids("failed"))
    assert add_supervisor(study.profile, study.directory)
    assert add_supervisor(study.profile, study.directory) is None
    study.wait(lambda picture: len(picture.ids("done")) == 2, 180)
    study.equals(undisturbed)
    study.wait(lambda _: told.exists(), 180)
    assert told.read_text() == "done: all 2 runs are done\n"
    wait_for(lambda: not any(job.active for job in slurm.queue().values()), 30)
    assert (study.directory / "report.html").exists()


@WITH
def test_a_doctor_finds_nothing_wrong(bed: Bed, tmp_path: Path) -> None:
    checks = list(examine(load_profile(PROFILE, [f"root={tmp_path}"]), tmp_path))
    assert [check.name for check in checks if not check.fine] == []
    assert [check.name for check in checks][-4:] == ["job", "python", "requeue", "clock"]
    assert list(tmp_path.iterdir()) == []


@WITHOUT
@pytest.mark.parametrize(
    ("option", "name", "mend"),
    [
        (
            "slurm.partition=nope",
            "partition",
            "slurm.partition: take one of main, short, preempt, scavenge",
        ),
        ("slurm.time='99:00:00'", "partition", 'slurm.time: "01:00:00"'),
        (
            "slurm.cpus_per_task=999",
            "job",
            "slurm.partition can't give what the run asks for: time, nodes, cores",
        ),
        (
            "python=/nowhere/python",
            "job",
            "setup: lines that fail there; root: a folder that all nodes share",
        ),
    ],
)
def test_a_doctor_finds_what_is_wrong(
    bed: Bed, tmp_path: Path, option: str, name: str, mend: str
) -> None:
    checks = list(examine(load_profile(PROFILE, [f"root={tmp_path}", option]), tmp_path, wait_s=10))
    (wrong,) = [check for check in checks if not check.fine]
    assert wrong.name == name
    assert wrong.mend.startswith(mend)


@WITHOUT
def test_what_can_never_run_is_said_with_the_key_to_mend(
    bed: Bed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = submitted(bed, tmp_path, options=("slurm.partition=nope",))
    with pytest.raises(
        ConfigError, match=r"slurm.partition: sbatch refuses it: .*[Ii]nvalid partition"
    ):
        study.submit()
    assert not list(study.directory.glob("submissions/*.json"))
    late = submitted(bed, tmp_path, options=("slurm.time='99:00:00'",))
    (tmp_path / "late.yaml").write_text(to_yaml(late.profile))
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "submit",
                str(tmp_path / "tiny.yaml"),
                *LONG,
                "--cluster",
                str(tmp_path / "late.yaml"),
                "--yes",
            ]
        )
    assert stop.value.code in (0, None)
    says = "isoflop: warning: 2 runs wait for ever: PartitionTimeLimit: slurm.time is longer than the partition allows"
    assert any(line.startswith(says) for line in capsys.readouterr().err.splitlines())
    picture = late.wait(
        lambda picture: any("PartitionTimeLimit" in where.reason for where in picture.runs.values())
    )
    assert all(
        "slurm.time is longer than the partition allows" in where.reason
        for where in picture.runs.values()
    )
    cancel(late.directory, [])


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("slurm.mem=9000G", "slurm.mem or node.memory_gb"),
        ("slurm.gres='gpu:a100:1'", "slurm.gres, node or slurm.constraint"),
        ("slurm.gpus_per_node=64", "slurm.gpus_per_node, node or slurm.constraint"),
    ],
)
def test_a_run_that_no_node_can_take_is_refused(
    bed: Bed, tmp_path: Path, option: str, key: str
) -> None:
    """SLURM keeps a record of a job that failed, of the same name."""
    study = submitted(bed, tmp_path, options=(option,))
    with pytest.raises(
        ConfigError, match=f"^{key}: sbatch refuses it: .*node configuration is not available"
    ):
        study.submit()
    assert not list(study.directory.glob("submissions/*.json"))
    assert any(job.refused and job.reason == "BadConstraints" for job in slurm.queue().values())


@WITH
def test_a_limit_on_a_user_s_jobs_lets_the_first_in_and_the_rest_later(
    bed: Bed, tmp_path: Path
) -> None:
    conf = bed.folder / "etc" / "slurm.conf"
    before = conf.read_text()
    conf.write_text(before + "AccountingStorageEnforce=limits\n")
    try:
        for more in (
            ("add", "account", "ours"),
            ("add", "user", getuser(), "account=ours", "MaxSubmitJobs=1"),
        ):
            bed.run("sacctmgr", "-i", *more)
        bed("ctld-kill")
        bed("ctld-start")
        study = submitted(bed, tmp_path, options=("slurm.account=ours", "slurm.begin=now+1hour"))
        assert len(submit_first(study).runs) == 1
        with pytest.raises(
            SubmitLimitError,
            match="submit limit lets no more in: submit again when some have ended",
        ):
            submit_first(study)
        cancel(study.directory, [])
    finally:
        conf.write_text(before)
        bed("ctld-kill")
        bed("ctld-start")


def submit_first(study: Submitted) -> Submission:
    """Queues all runs, or as many as may be."""
    make_directory(study.plan, study.directory.parent)
    return submit_array(
        Array(study.plan.runs, 0, 1, 2), study.profile, study.directory, study.directory
    )


# Measured


@pytest.mark.parametrize(
    "options", [(), ("slurm.ntasks_per_node=2",)], ids=["alone", "two processes"]
)
def test_a_cluster_is_measured_and_plans_take_it(
    bed: Bed, tmp_path: Path, options: tuple[str, ...]
) -> None:
    study = submitted(bed, tmp_path, "train.batch_scale=2", options=options)
    root, lines = study.directory.parent, list[str]()
    calibration, file = calibrate(study.plan, study.profile, root, seconds=0.5, tell=lines.append)
    assert [one.shape.width for one in calibration.measurements] == [8, 12]
    assert [line.partition(" ")[0] for line in lines] == ["measuring", "queued", "measured"]
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.stem}.lease"}
    billed = with_bill(
        study.plan,
        study.profile,
        calibration=read_calibration(root, study.plan.sweep, study.profile),
    )
    assert {run.est_source for run in billed.runs} == {"measured"}


@WITHOUT
def test_what_can_not_be_measured_is_one_line(bed: Bed, tmp_path: Path) -> None:
    gpus = ("gpu={type: h100-sxm, per_node: 4}", "node={cpus: 16, memory_gb: 8}")
    study = submitted(bed, tmp_path, options=gpus)  # they are names only
    with pytest.raises(
        ClusterError, match=r"^width 8, batch \d+ on 1 GPU failed: .*asks for 1 GPUs, .* see 0; see"
    ):
        calibrate(
            with_bill(study.plan, study.profile), study.profile, tmp_path / "runs", seconds=0.5
        )
    late = submitted(bed, tmp_path, options=("slurm.partition=short", "slurm.nodes=40"))
    with pytest.raises(
        ClusterError, match=r"waits for ever: PartitionConfig: slurm\.partition can't give what"
    ):
        calibrate(late.plan, late.profile, tmp_path / "runs", seconds=0.5)
    busy = submitted(bed, tmp_path, options=("slurm.begin=now+1hour",))
    with pytest.raises(
        ClusterError, match=r"still waits after 3 s \(BeginTime\); wait longer with --wait S"
    ):
        calibrate(busy.plan, busy.profile, tmp_path / "runs", seconds=0.5, wait_s=3.0)
    assert not any(job.active for job in slurm.queue().values())


# Several processes


TWO = ("slurm.ntasks_per_node=2", "slurm.cpus_per_task=1", "slurm.mem_per_cpu=1500")
TWO_NODES = (
    "slurm.ntasks_per_node=1",
    "slurm.nodes=2",
    "slurm.cpus_per_task=1",
    "slurm.mem_per_cpu=1500",
)
FOUR = (
    "slurm.ntasks_per_node=2",
    "slurm.nodes=2",
    "slurm.cpus_per_task=1",
    "slurm.mem_per_cpu=1500",
)
EVEN = "train.batch_scale=4"
"""Batches that two and four processes share evenly."""


@WITHOUT
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
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" not in words or words[0].endswith(b"srun"):
                continue
            items = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        environment = dict(item.split(b"=", 1) for item in items if b"=" in item)
        array, task = (
            environment.get(b"SLURM_ARRAY_JOB_ID", b""),
            environment.get(b"SLURM_ARRAY_TASK_ID", b""),
        )
        if (
            f"{array.decode()}_{task.decode()}" == wanted
            and environment.get(b"SLURM_PROCID") == b"%d" % rank
        ):
            return int(folder.name)
    raise AssertionError(f"no process trains {wanted}")


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
"""Meets itself on the other node, and waits to be stopped; started again it ends. In the second run it fails on one."""


@WITHOUT
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
    words = (
        f"{sys.executable} {tmp_path / 'program.py'} {' '.join(f'{{{name}}}' for name in names)}"
    )
    study = submitted(
        bed, tmp_path, f"train.trainer=command: {words}", options=TWO_NODES, retries=0
    )
    study.submit()
    good, bad = study.runs
    wait_for(
        lambda: (
            (good.path / "said").exists() and (good.path / "said").read_text().count("of 2") == 2
        ),
        60,
    )
    os.kill(worker_of(study, rank=1), signal.SIGUSR2)
    picture = study.wait(lambda picture: len(picture.ids("done", "failed")) == 2)
    assert picture.ids("done") == [good.run_id]
    said = (good.path / "said").read_text().splitlines()
    parts = [sorted(said[first : first + 2]) for first in range(0, len(said), 2)]
    assert parts == [["0 of 2", "1 of 2"], ["0 stopped", "1 stopped"], ["0 of 2", "1 of 2"]]
    assert good.state()["attempt"] == 2
    assert re.search(
        r"failed in process 1 of 2: no room on this node; see \S+/attempts/1/log-1\.txt",
        bad.state()["reason"],
    )


SUMS = """
import json, os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
ranks = torch.ones(())
dist.all_reduce(ranks)
if dist.get_rank() == 0:
    with open(sys.argv[2], "a") as file:
        print(json.dumps({"step": int(sys.argv[1]), "loss": ranks.item(), "split": "heldout"}), file=file)
dist.destroy_process_group()  # else its threads may end the process with SIGABRT
"""


@WITHOUT
def test_torchrun_on_two_nodes(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SUMS)
    words = (
        f"{sys.executable} -m torch.distributed.run --nnodes {{nodes}} --nproc-per-node 2 --node-rank {{node_rank}} "
        f"--master-addr {{main_address}} --master-port {{main_port}} {tmp_path / 'program.py'} {{steps}} {{losses}}"
    )
    study = submitted(bed, tmp_path, f"train.trainer=command: {words}", options=TWO_NODES)
    study.submit()
    study.finish()
    assert [run.log()["loss"].tolist() for run in study.runs] == [[4.0], [4.0]]


@WITHOUT
def test_simulated_runs_on_two_nodes_are_drawn_once(bed: Bed, tmp_path: Path) -> None:
    calm = submitted(bed, tmp_path / "calm", "train.trainer=simulated: soda")
    make_directory(calm.plan, calm.directory.parent)
    assert [attempt(run, lambda: False, None) for run in calm.runs] == ["done", "done"]
    study = submitted(bed, tmp_path / "queued", "train.trainer=simulated: soda", options=TWO_NODES)
    study.submit()
    study.finish()
    study.equals(calm.directory)
