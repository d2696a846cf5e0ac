"""Supervisor, doctor, refused and impossible jobs, submit limits on a real SLURM."""

from __future__ import annotations

import os
import signal
from getpass import getuser
from pathlib import Path

import pytest
from support.slurm_bed import (
    LONG,
    PROFILE,
    WITH_ACCOUNTING,
    WITHOUT_ACCOUNTING,
    Bed,
    Submitted,
    find_worker,
    submitted,
)
from support.tiny_studies import FREQUENT_CHECKPOINTS as OFTEN
from support.tiny_studies import wait_for

from isoflop.cli import main
from isoflop.config.profile import load_profile
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import ConfigError
from isoflop.launching.control import cancel
from isoflop.launching.doctor import check_cluster
from isoflop.launching.queue.arrays import Array
from isoflop.launching.queue.submit_array import SubmitLimitError, submit_array
from isoflop.launching.records.submissions import Submission
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.slurm import client as slurm
from isoflop.launching.supervisor import add_supervisor

pytestmark = pytest.mark.slow


@WITH_ACCOUNTING
def test_a_supervisor_brings_a_study_to_its_end(
    bed: Bed, tmp_path: Path, undisturbed: Path
) -> None:
    hook_log = tmp_path / "told.txt"
    hook = tmp_path / "hook.sh"
    hook.write_text(f'#!/bin/bash\necho "$1: $3" >> {hook_log}\n')
    hook.chmod(0o755)
    study = submitted(bed, tmp_path, OFTEN, options=(f"notify={hook}",))
    study.submit()
    study.wait_for_step(100)
    os.kill(find_worker(study), signal.SIGKILL)
    study.wait(lambda status: status.ids("failed"))
    assert add_supervisor(study.profile, study.directory)
    assert add_supervisor(study.profile, study.directory) is None
    study.wait(lambda status: len(status.ids("done")) == 2, 300)
    study.equals(undisturbed)
    study.wait(lambda _: hook_log.exists(), 300)
    assert hook_log.read_text() == "done: all 2 runs are done\n"
    wait_for(lambda: not any(job.active for job in slurm.queue().values()), 30)
    assert (study.directory / "report.html").exists()


@WITH_ACCOUNTING
def test_a_doctor_finds_nothing_wrong(bed: Bed, tmp_path: Path) -> None:
    checks = list(check_cluster(load_profile(PROFILE, [f"root={tmp_path}"]), tmp_path))
    assert [check.name for check in checks if not check.passed] == []
    assert [check.name for check in checks][-4:] == ["job", "python", "requeue", "clock"]
    assert list(tmp_path.iterdir()) == []


@WITHOUT_ACCOUNTING
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
            "slurm.partition can't provide the time, nodes, cores or memory",
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
    checks = list(
        check_cluster(load_profile(PROFILE, [f"root={tmp_path}", option]), tmp_path, wait_s=10)
    )
    (wrong,) = [check for check in checks if not check.passed]
    assert wrong.name == name
    assert wrong.fix.startswith(mend)


@WITHOUT_ACCOUNTING
def test_what_can_never_run_is_said_with_the_key_to_mend(
    bed: Bed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = submitted(bed, tmp_path, options=("slurm.partition=nope",))
    with pytest.raises(
        ConfigError, match=r"slurm.partition: sbatch rejects the job: .*[Ii]nvalid partition"
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
    says = (
        "isoflop: warning: 2 queued jobs can never start: PartitionTimeLimit: "
        "slurm.time is longer than the partition allows"
    )
    assert any(line.startswith(says) for line in capsys.readouterr().err.splitlines())
    status = late.wait(
        lambda status: any("PartitionTimeLimit" in run.reason for run in status.runs.values())
    )
    assert all(
        "slurm.time is longer than the partition allows" in run.reason
        for run in status.runs.values()
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
        ConfigError, match=f"^{key}: sbatch rejects the job: .*node configuration is not available"
    ):
        study.submit()
    assert not list(study.directory.glob("submissions/*.json"))
    assert any(job.refused and job.reason == "BadConstraints" for job in slurm.queue().values())


@WITH_ACCOUNTING
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
            match="job submit limit reached: run `isoflop submit` again when jobs have finished",
        ):
            submit_first(study)
        cancel(study.directory, [])
    finally:
        conf.write_text(before)
        bed("ctld-kill")
        bed("ctld-start")


def submit_first(study: Submitted) -> Submission:
    """Queue all runs, or as many as the limit allows."""
    make_directory(study.plan, study.directory.parent)
    return submit_array(
        Array(study.plan.runs, 0, 1, 2), study.profile, study.directory, study.directory
    )
