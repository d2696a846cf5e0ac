"""Parsed output of SLURM's programs; programs that are missing, fail or hang."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_slurm import FakeSlurm

from isoflop.errors import ClusterError
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.client import (
    _parse_accounting_line,
    _parse_queue_line,
    expand,
)
from isoflop.launching.slurm.tasks import Task

indices = st.sets(st.integers(0, 10**6), min_size=1, max_size=20).map(sorted)
fields = st.text(
    st.characters(exclude_characters="|\n\r", exclude_categories=["C", "Z"]), max_size=20
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    made = FakeSlurm.make(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(made.folder))
    return made


# Ids


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[3]", ["12_3"]),
        ("12_[3,5-6%2]", ["12_3", "12_5", "12_6"]),
        ("12_[0-6:3]", ["12_0", "12_3", "12_6"]),
        ("12_[0-1,8-9:1%4]", ["12_0", "12_1", "12_8", "12_9"]),
        ("12_[0-99,...]", ["12_[0-99,...]"]),
        ("12+0", ["12+0"]),
        ("12.batch", ["12.batch"]),
        ("", [""]),
    ],
)
def test_the_tasks_that_an_id_stands_for(job: str, tasks: list[str]) -> None:
    assert expand(job) == tasks


@given(st.integers(1, 10**9), indices, st.integers(0, 100))
def test_every_list_of_tasks_is_read_as_it_was_meant(
    array: int, tasks: list[int], at_once: int
) -> None:
    spans: list[list[int]] = []
    for task in tasks:
        if spans and spans[-1][-1] == task - 1:
            spans[-1].append(task)
        else:
            spans.append([task])
    text = ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
    limit = f"%{at_once}" if at_once else ""
    assert expand(f"{array}_[{text}{limit}]") == [f"{array}_{task}" for task in tasks]


# Lines


@pytest.mark.parametrize(
    ("line", "task", "active", "waits"),
    [
        ("12|PENDING||Priority", Task("12", "PENDING", "Priority"), True, True),
        ("12_3|RUNNING|n1|None", Task("12_3", "RUNNING", "", "n1"), True, False),
        ("12_3|COMPLETING|n[1-2]|None", Task("12_3", "COMPLETING", "", "n[1-2]"), True, False),
        (
            "12_3|FAILED|n1|NonZeroExitCode",
            Task("12_3", "FAILED", "NonZeroExitCode", "n1"),
            False,
            False,
        ),
        ("12_3|PREEMPTED|n1|None", Task("12_3", "PREEMPTED", "", "n1"), False, False),
        (
            "12|PENDING||(Nodes required for job are DOWN | DRAINED)",
            Task("12", "PENDING", "(Nodes required for job are DOWN | DRAINED)"),
            True,
            True,
        ),
        ("12_3|SUSPENDED|n1|None", Task("12_3", "SUSPENDED", "", "n1"), True, False),
        ("12_3|STAGE_OUT|n1|None", Task("12_3", "STAGE_OUT", "", "n1"), True, False),
        ("12|REQUEUE_HOLD||None", Task("12", "REQUEUE_HOLD"), True, True),
        ("12|RESV_DEL_HOLD||None", Task("12", "RESV_DEL_HOLD"), True, True),
        ("12|EXPEDITING|n1|None", Task("12", "EXPEDITING", "", "n1"), True, True),
    ],
)
def test_a_line_of_the_queue(line: str, task: Task, active: bool, waits: bool) -> None:
    parsed = _parse_queue_line(line)
    assert parsed == task
    assert (parsed.active, parsed.waits) == (active, waits)


@given(fields, fields, fields, fields.filter(lambda reason: reason != "None"))
def test_every_field_of_the_queue_is_kept(job: str, state: str, node: str, reason: str) -> None:
    assert _parse_queue_line(f"{job}|{state}|{node}|{reason}") == Task(job, state, reason, node)


@pytest.mark.parametrize(
    ("line", "tasks"),
    [
        ("12_3|COMPLETED|n1|0:0", [Task("12_3", "COMPLETED", "", "n1", "0:0")]),
        ("12|CANCELLED by 1001|n1|0:15", [Task("12", "CANCELLED", "", "n1", "0:15")]),
        (
            "12_[3-4]|PENDING|None assigned|0:0",
            [Task("12_3", "PENDING", exit_code="0:0"), Task("12_4", "PENDING", exit_code="0:0")],
        ),
        ("12|||", [Task("12", "")]),
    ],
)
def test_a_line_of_accounting(line: str, tasks: list[Task]) -> None:
    assert _parse_accounting_line(*line.split("|")) == tasks


def test_the_queue_and_accounting_by_id(cluster: FakeSlurm) -> None:
    cluster.program("squeue", "printf '12_0|RUNNING|n1|None\\n12_1|PENDING||JobArrayTaskLimit\\n'")
    cluster.program(
        "sacct",
        "printf 'a banner\\n12_0|FAILED|n1|1:0\\n12_[1-2]|CANCELLED by 0|None assigned|0:0\\n'",
    )
    assert {task: job.state for task, job in slurm.queue().items()} == {
        "12_0": "RUNNING",
        "12_1": "PENDING",
    }
    known = slurm.accounting(["12"])
    assert {task: job.state for task, job in known.items()} == dict(
        zip(["12_0", "12_1", "12_2"], ["FAILED", "CANCELLED", "CANCELLED"], strict=True)
    )


def test_accounting_is_not_asked_about_nothing(cluster: FakeSlurm) -> None:
    assert slurm.accounting([]) == {}
    assert cluster.calls("sacct") == []


# Calls


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "squeue: failed with 3"),
        (
            "printf 'slurm_load_jobs error:\\n  Unable to contact\\n' >&2; exit 1",
            "squeue: slurm_load_jobs error: Unable to contact",
        ),
        (
            "echo 'squeue: fatal: Could not establish a configuration source' >&2; exit 1",
            "squeue: finds no cluster; is this a login node? SLURM_CONF names its slurm.conf",
        ),
    ],
)
def test_a_program_that_fails_is_one_line(cluster: FakeSlurm, script: str, says: str) -> None:
    cluster.program("squeue", script)
    with pytest.raises(ClusterError) as problem:
        slurm.queue()
    assert str(problem.value) == says


def test_what_the_user_has_set_changes_no_answer(
    cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = (
        "SQUEUE_PARTITION",
        "SQUEUE_USERS",
        "SACCT_FORMAT",
        "SCANCEL_STATE",
        "SCONTROL_ALL",
        "SBATCH_ACCOUNT",
    )
    for name in (*theirs, "SLURM_CONF", "LOGNAME", "USER"):
        monkeypatch.setenv(name, "nobody")
    for program in ("squeue", "sacct", "scancel", "scontrol"):
        cluster.program(program, 'echo "$0 $*" >&2; /usr/bin/env >&2; exit 1')
    calls = (
        slurm.queue,
        lambda: slurm.accounting(["1"]),
        lambda: slurm.cancel(["1"]),
        lambda: slurm.release(["1"]),
    )
    errors = ""
    for call in calls:
        with pytest.raises(ClusterError) as problem:
            call()
        errors += str(problem.value)
    assert errors.count("SLURM_CONF=nobody") == 4
    assert not [name for name in theirs if name in errors]
    assert f" -a -t all -u {os.geteuid()} " in errors


def test_a_program_that_is_missing(cluster: FakeSlurm) -> None:
    cluster.remove("squeue")
    with pytest.raises(
        ClusterError,
        match="squeue: not found; is this a login node of the cluster, with SLURM on the",
    ):
        slurm.queue()


def test_a_program_that_hangs_is_left(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SLURM_TIMEOUT_S", 0.2)
    cluster.program("squeue", "/bin/sleep 20")  # with a child that keeps its output open
    before = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"squeue: no answer in .* s; the same command may work later"
    ):
        slurm.queue()
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (
            "Configuration data as of 2026\n"
            "MaxArraySize            = 1001\nMaxJobCount             = 10000\n",
            1001,
        ),
        ("MaxArraySize=40001\n", 40001),
        ("MaxArraySize            = 0\n", 1),
        ("", 1001),
    ],
)
def test_the_largest_array(cluster: FakeSlurm, config: str, size: int) -> None:
    cluster.change(config=config)
    assert slurm.max_array_size() == size


def test_the_largest_array_by_default(cluster: FakeSlurm) -> None:
    cluster.answer("scontrol", "slurm_load_ctl_conf error: Unable to contact slurm controller")
    assert slurm.max_array_size() == 1001


@pytest.mark.parametrize(
    ("queue", "accounting", "job_id"),
    [
        ({"100_0": ["RUNNING", "n1", ""], "100_1": ["PENDING", "", ""]}, {}, "100"),
        ({"100": ["CANCELLED", "", ""]}, {}, "100"),
        ({}, {"100_0": ["FAILED", "n1", "1:0"]}, "100"),
        ({"100_0": ["FAILED", "n1", "NonZeroExitCode"]}, {}, "100"),
        ({"100_0": ["FAILED", "", "BadConstraints"]}, {}, None),
        ({}, {"100_0": ["FAILED", "None assigned", "1:0"]}, None),
        ({}, {"100_0": ["CANCELLED by 0", "None assigned", "0:0"]}, "100"),
        ({}, {"100_[0-4]": ["PENDING", "", "0:0"]}, "100"),
        ({"101": ["RUNNING", "n1", ""]}, {}, None),
        ({}, {}, None),
        ({}, None, None),
    ],
)
def test_a_job_is_found_by_name(
    cluster: FakeSlurm,
    queue: dict[str, list[str]],
    accounting: dict[str, list[str]] | None,
    job_id: str | None,
) -> None:
    jobs = {"100": {"name": "tiny-1", "hidden": False}, "101": {"name": "tiny-10", "hidden": False}}
    cluster.change(jobs=jobs, queue=queue, accounting=accounting)
    assert slurm.find_job_id("tiny-1") == job_id


@pytest.mark.parametrize(
    ("state", "job_id"),
    [("PENDING", "100"), ("COMPLETING", "100"), ("COMPLETED", None), ("FAILED", None)],
)
def test_a_job_that_has_ended_is_not_found_among_the_active(
    cluster: FakeSlurm, state: str, job_id: str | None
) -> None:
    known = {"100": ["RUNNING", "n1", "0:0"]}  # accounting may keep this forever
    cluster.change(
        jobs={"100": {"name": "a", "hidden": False}},
        queue={"100": [state, "n1", ""]},
        accounting=known,
    )
    assert slurm.find_job_id("a", active=True) == job_id
    cluster.change(queue={})
    assert slurm.find_job_id("a", active=True) is None


def test_a_queue_that_does_not_answer_says_nothing_about_a_name(cluster: FakeSlurm) -> None:
    cluster.answer("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(ClusterError):
        slurm.find_job_id("tiny-1")


def test_thousands_are_cancelled_in_a_few_calls(cluster: FakeSlurm) -> None:
    slurm.cancel(f"100_{index}" for index in range(1201))
    cancelled = [
        task for call in cluster.calls("scancel") for task in call["arguments"] if task != "--quiet"
    ]
    assert cancelled == [f"100_{index}" for index in range(1201)]
    assert len(cluster.calls("scancel")) == 3
    slurm.cancel([])
    assert len(cluster.calls("scancel")) == 3
