"""Checks of a profile against a fake SLURM; checks with real jobs are in `cluster/`."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support.fake_study import Study, make_study

from isoflop.launching import doctor
from isoflop.launching.doctor import Check, check_cluster

PARTITIONS = """\
PartitionName=main Default=YES MaxTime=1-00:00:00 State=UP TotalNodes=4
PartitionName=short Default=NO MaxTime=00:02:00 State=UP TotalNodes=2
PartitionName=down Default=NO MaxTime=UNLIMITED State=DOWN TotalNodes=1
PartitionName=open Default=NO MaxTime=UNLIMITED State=UP TotalNodes=1
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = make_study(tmp_path, monkeypatch)
    monkeypatch.setattr(doctor, "PROBE_POLL_S", 0.01)
    monkeypatch.setattr(doctor, "PROBE_SETTLE_S", 0.01)
    made.slurm.change(config=PARTITIONS)
    return made


def found(study: Study, options: dict[str, Any], wait_s: float = 0.05) -> dict[str, Check]:
    profile = dataclasses.replace(study.profile, slurm=options)
    return {check.name: check for check in check_cluster(profile, study.folder / "runs", wait_s)}


@pytest.mark.parametrize(
    ("options", "says", "mend"),
    [
        ({}, "main, 4 nodes, up to 1-00:00:00 a job", None),
        ({"partition": "short"}, "short, 2 nodes, up to 00:02:00 a job", None),
        (
            {"partition": "main,short"},
            "main, 4 nodes, up to 1-00:00:00 a job; short, 2 nodes, up to 00:02:00",
            None,
        ),
        (
            {"partition": "main,short", "time": "10:00"},
            "main, 4 nodes, up to 1-00:00:00 a job; short allows 00",
            None,
        ),
        ({"partition": "down,main"}, "down is DOWN; main, 4 nodes", None),
        (
            {"partition": "main,nope"},
            "'nope' does not exist",
            "slurm.partition: take one of main, short, down, open",
        ),
        ({"partition": "down"}, "down is DOWN", "slurm.partition: another one"),
        (
            {"time": "2-00:00:00"},
            "main allows 1-00:00:00, slurm.time asks for 2-",
            'slurm.time: "1-00:00:00"',
        ),
        (
            {"time": "UNLIMITED"},
            "main allows 1-00:00:00, slurm.time asks for UNLIMITED",
            'slurm.time: "1-00:00:00"',
        ),
        ({"partition": "open", "time": "UNLIMITED"}, "open, 1 nodes, up to UNLIMITED a job", None),
    ],
)
def test_a_partition_that_takes_the_jobs(
    study: Study, options: dict[str, Any], says: str, mend: str | None
) -> None:
    checks = found(study, options)
    assert checks["partition"].result.startswith(says)
    assert checks["partition"].passed == (mend is None)
    assert mend is None or checks["partition"].fix == mend
    assert ("job" in checks) == (mend is None)


def test_a_controller_that_falls_silent_is_no_missing_partition(study: Study) -> None:
    study.slurm.program(
        "scontrol", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    )
    check = found(study, {})["partition"]
    assert (check.passed, check.result) == (
        False,
        "scontrol: slurm_load_partitions: Unable to contact slurm controller",
    )


@pytest.mark.parametrize(
    ("reason", "mend"),
    [
        ("PartitionTimeLimit", "slurm.time is longer than the partition allows"),
        (
            "job requeued in held state",
            "stopped and held (scontrol requeuehold); release it with `scontrol release`",
        ),
    ],
)
def test_a_job_that_waits_for_ever_is_not_waited_for(study: Study, reason: str, mend: str) -> None:
    study.slurm.change(born=["PENDING", "", reason])
    before = time.monotonic()
    check = found(study, {}, 60)["job"]
    assert time.monotonic() - before < 30
    assert (check.passed, check.result, check.fix) == (False, f"can never start: {reason}", mend)
    assert study.slurm.read()["queue"]["100"][0] == "CANCELLED"


@pytest.mark.parametrize(
    ("born", "says"),
    [
        (["PENDING", "", "Priority"], r"still waits after 0 s \(Priority\)"),
        (["RUNNING", "n3", ""], "still runs on n3 after 0 s"),
        (["FAILED", "n3", "NonZeroExitCode"], "ended without an answer: it wrote nothing"),
    ],
)
def test_a_job_that_does_not_answer(study: Study, born: list[str], says: str) -> None:
    study.slurm.change(born=born)
    check = found(study, {})["job"]
    assert not check.passed
    assert re.fullmatch(says, check.result)
    assert list((study.folder / "runs").iterdir()) == []


def test_a_job_that_died_is_quoted_and_no_folder_named_that_is_gone(study: Study) -> None:
    study.slurm.change(born=["FAILED", "n3", "NonZeroExitCode"])
    inner = (study.slurm.folder / "sbatch").read_text().removeprefix("#!/bin/sh\n")
    study.slurm.program(
        "sbatch", f'echo "no such\n interpreter" > "${{1%/*}}/100_0_log.err"\n{inner}'
    )
    check = found(study, {})["job"]
    assert check.result == "ended without an answer: no such interpreter"
    assert ".doctor" not in check.result + check.fix
