"""Submissions to a SLURM that refuses, hangs or loses answers: each run is queued at most once."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fake_study import BUSY, SIMULATED, TIMED_OUT, Study, make_study
from support.tiny_studies import small_disk, tiny_plan

from isoflop.cli import main
from isoflop.config.profile import Gpu, load_profile
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import BusyError, ClusterError, ConfigError, RunError
from isoflop.launching import submit as submitting
from isoflop.launching.control import cancel, query_status, retry
from isoflop.launching.queue import submit_array as queueing
from isoflop.launching.queue.arrays import Array
from isoflop.launching.queue.excluded_nodes import exclude_nodes, find_bad_nodes
from isoflop.launching.queue.submission_plan import plan_submission
from isoflop.launching.queue.submit_array import (
    SubmitLimitError,
    recover_submissions,
    sbatch_script,
)
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.launching.records.approvals import approve
from isoflop.launching.records.study_files import read_study_profile, write_study_profile
from isoflop.launching.records.submissions import Submission, read_submissions, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.worker.attempt import record_failure
from isoflop.runs.run_directory import RunDirectory, State

NO_NODE = "Batch job submission failed: Requested node configuration is not available"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return make_study(tmp_path, monkeypatch)


# Queued once


def test_a_study_is_one_array_with_a_task_a_run(study: Study) -> None:
    queued: list[Submission] = []
    done = study.submit(on_queued=queued.append)
    assert set(done.queued) == set(study.ids)
    assert done.counts() == {"new": 3}
    (made,) = read_submissions(study.directory)
    assert queued == [made]
    assert (made.job_id, sorted(made.runs), made.gpus, made.cancelled) == (
        "100",
        sorted(study.ids),
        0,
        (),
    )
    assert [made.task(run_id) for run_id in made.runs] == ["100_0", "100_1", "100_2"]
    assert list(study.slurm.read()["queue"]) == ["100_0", "100_1", "100_2"]
    assert study.slurm.read()["jobs"]["100"]["name"] == made.name
    assert study.has_pickles()


def test_submitted_twice_nothing_is_queued_twice(study: Study) -> None:
    study.submit()
    second = study.submit()
    assert (second.queued, second.counts()) == ((), {"queued": 3})
    assert len(study.slurm.calls("sbatch")) == len(read_submissions(study.directory)) == 1
    assert not list(
        study.directory.glob("*-*/lease")
    )  # thousands of leases would take longer than all else


def test_where_nothing_is_queued_no_run_is_made_or_read_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()

    def refuse(*arguments: object) -> None:
        raise AssertionError("thousands of them would be read at every query_status")

    monkeypatch.setattr(RunDirectory, "create", refuse)
    monkeypatch.setattr(RunDirectory, "config", refuse)
    assert study.submit().queued == ()


def test_a_new_run_alone_is_queued(study: Study) -> None:
    whole, study.plan = study.plan, tiny_plan(study.folder, SIMULATED, "widths=[8, 12]")
    study.submit()
    before, study.plan = study.ids, whole
    (new,) = set(study.ids) - set(before)
    assert plan_submission(study.plan, study.profile).queued == (new,)
    assert study.submit().queued == (new,)
    assert read_submissions(study.directory)[-1].task(new) == "101"
    assert study.submit().queued == ()
    assert study.has_pickles()


def test_a_run_that_the_plan_has_no_more_is_left(study: Study) -> None:
    study.queued()
    gone = study.ids[-1]
    study.plan = tiny_plan(study.folder, SIMULATED, "widths=[8, 12]")
    done = study.submit()
    assert done.queued == ()
    assert [where.run_id for where in done.removed] == [gone]


def test_a_run_that_was_edited_by_hand_is_one_line_and_nothing_is_queued(study: Study) -> None:
    study.prepare()
    config = study.run(1).path / "config.yaml"
    config.write_text(config.read_text().replace("  lr: ", "  lr: 1"))
    with pytest.raises(
        RunError, match=rf"^{config}: its run and identity is not the plan's; it was edited"
    ):
        study.submit()
    assert study.slurm.calls("sbatch") == []
    assert study.records() == []


def test_a_folder_that_can_only_be_read_is_one_line(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{study.slurm.folder}:/usr/bin:/bin:/usr/sbin:/sbin")
    with small_disk(study.folder, "1m") as disk:
        subprocess.run(["/bin/mount", "-o", "remount,ro", str(disk)], check=True)
        (study.folder / "ro.yaml").write_text(
            to_yaml(dataclasses.replace(study.profile, root=str(disk)))
        )
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "submit",
                    str(study.folder / "tiny.yaml"),
                    SIMULATED,
                    "--cluster",
                    str(study.folder / "ro.yaml"),
                    "--yes",
                ]
            )
    assert stop.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"isoflop: error: {disk}/\S+: Read-only file system", last)
    assert study.slurm.calls("sbatch") == []


def test_a_query_and_names_choose_together(study: Study) -> None:
    queued = study.submit(only="width >= 12", runs=study.ids[:2]).queued
    assert queued == (study.ids[1],)
    assert list(study.slurm.read()["queue"]) == ["100"]


def test_a_run_that_failed_is_pending_once_it_is_queued_again(study: Study) -> None:
    study.prepare()
    record_failure(study.run(0), "no luck", "n1")
    assert study.submit().counts() == {"retrying": 1, "new": 2}
    assert (study.run(0).state()["state"], study.run(0).state()["failures"]) == ("pending", 1)


def test_a_run_that_failed_once_more_before_the_call_was_through_has_failed(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.prepare()
    for _ in range(study.profile.retries):
        record_failure(study.run(0), "no luck", "n1")

    def fails_at_once(*arguments: Any) -> Submission:
        made = queueing.submit_array(*arguments)
        study.run(0).set_state("running", attempt=1, job_id=made.task(study.ids[0]))
        record_failure(study.run(0), "no luck again", "n1")
        study.slurm.end(study.slurm.read()["queue"], "FAILED", exit_code="1:0")
        return made

    monkeypatch.setattr(submitting, "submit_array", fails_at_once)
    study.submit(runs=study.ids[:1])
    where = query_status(study.directory, study.profile.retries).runs[study.ids[0]]
    assert (where.state, where.reason, where.retry) == ("failed", "no luck again", False)


def concurrent(jobs: dict[str, dict[str, Any]], weight: dict[str, int]) -> int:
    """Return the largest sum of concurrency limits of arrays that may run at the same time."""
    waits = {
        job: set(options["options"].get("dependency", "").split(":")[1:])
        for job, options in jobs.items()
    }
    for _ in waits:
        waits = {
            job: before.union(*(waits[other] for other in before)) for job, before in waits.items()
        }
    sets = [
        chosen for size in range(1, len(jobs) + 1) for chosen in itertools.combinations(jobs, size)
    ]
    free = [chosen for chosen in sets if not any(a in waits[b] for a in chosen for b in chosen)]
    return max(sum(weight[job] for job in chosen) for chosen in free)


@pytest.mark.parametrize(
    ("largest", "gpus", "limits"),
    [
        (1, (0, 0, 0), {"max_jobs": 2}),
        (2, (0, 0, 0), {"max_jobs": 1}),
        (1001, (0, 0, 0), {"max_jobs": 2}),
        (1001, (1, 8, 2), {"max_gpus": 8}),
        (1001, (1, 8, 2), {"max_gpus": 11, "max_jobs": 2}),
        (1001, (4, 4, 8), {"max_gpus": 8}),
        (1001, (1, 1, 8), {"max_gpus": 8, "max_jobs": 1}),
    ],
)
def test_arrays_together_keep_to_the_limits(
    study: Study, largest: int, gpus: tuple[int, ...], limits: dict[str, int]
) -> None:
    study.slurm.change(config=f"MaxArraySize = {largest}\n")
    hours = dict(zip(gpus, (9.0, 5.0, 1.0), strict=False))
    study.plan = dataclasses.replace(
        study.plan,
        runs=tuple(
            dataclasses.replace(
                run, gpus=count or None, nodes=1 if count else None, est_hours=hours[count]
            )
            for run, count in zip(study.plan.runs, gpus, strict=True)
        ),
    )
    gpu = Gpu(type="h100-sxm", per_node=8) if any(gpus) else None
    study.profile = dataclasses.replace(study.profile, gpu=gpu, **{"max_jobs": None, **limits})
    study.submit()
    jobs = study.slurm.read()["jobs"]
    arrays = {made.job_id: made for made in read_submissions(study.directory)}
    at_once = {
        job: int(options["options"].get("array", "%1").partition("%")[2])
        for job, options in jobs.items()
    }
    assert concurrent(jobs, at_once) <= limits.get("max_jobs", 99)
    weight = {job: at_once[job] * arrays[job].gpus for job in jobs}
    assert concurrent(jobs, weight) <= limits.get("max_gpus", 999)
    assert len(study.slurm.read()["queue"]) == 3


@pytest.mark.parametrize("known", [True, False], ids=["in the queue", "forgotten"])
def test_only_arrays_that_slurm_knows_are_waited_for(study: Study, known: bool) -> None:
    """A job that a restarted controller has forgotten may still train, and its id comes again.

    SLURM refuses a job that depends on its own id.
    """
    study.profile = dataclasses.replace(study.profile, max_jobs=1)
    study.submit(runs=study.ids[:1])
    with study.run(0).lease():
        study.run(0).set_state("running", attempt=1, job_id="100")
        if not known:
            study.slurm.change(queue={})
        study.submit()
    options = study.slurm.read()["jobs"]["101"]["options"]
    assert options.get("dependency") == ("afterany:100" if known else None)


# An sbatch that fails


def test_an_sbatch_that_fails_for_the_moment_is_called_again(study: Study) -> None:
    study.slurm.answer("sbatch", TIMED_OUT, times=2)
    study.submit_runs()
    assert len(study.slurm.calls("sbatch")) == 3
    assert list(study.slurm.read()["jobs"]) == ["100"]
    assert len(read_submissions(study.directory)) == 1
    assert study.has_pickles()


@pytest.mark.parametrize("queues", ["now", "later"])
@pytest.mark.parametrize("runs", [1, 3])
def test_an_array_that_was_queued_though_sbatch_failed_is_found_by_its_name(
    study: Study, queues: str, runs: int
) -> None:
    study.slurm.answer("sbatch", TIMED_OUT, queues=queues)
    study.plan = dataclasses.replace(study.plan, runs=study.plan.runs[:runs])
    study.submit_runs()
    assert len(study.slurm.calls("sbatch")) == 1
    (made,) = read_submissions(study.directory)
    assert made.job_id == "100"
    assert study.has_pickles()


def test_while_nobody_knows_whether_an_array_was_queued_it_is_not_queued_again_but_found_later(
    study: Study,
) -> None:
    study.slurm.answer("squeue", BUSY, times=99)
    study.slurm.answer("sbatch", TIMED_OUT, queues="now")
    with pytest.raises(ClusterError):
        study.submit_runs()
    assert len(study.slurm.calls("sbatch")) == 1
    study.slurm.change(answers={})
    assert study.submit().queued == ()
    assert len(study.slurm.calls("sbatch")) == 1
    assert study.has_pickles()


def test_a_cluster_that_keeps_failing_is_given_up(study: Study) -> None:
    study.slurm.answer("sbatch", TIMED_OUT, times=99)
    with pytest.raises(ClusterError) as problem:
        study.submit_runs()
    assert str(problem.value).startswith(
        "sbatch: Batch job submission failed: Socket timed out on send/recv operation"
    )
    assert len(study.slurm.calls("sbatch")) == 4
    study.slurm.change(answers={})
    assert set(study.submit().queued) == set(study.ids)
    assert len(study.records()) == 1


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (
            "Batch job submission failed: Invalid partition name specified",
            "slurm.partition: sbatch rejects the job: Batch",
        ),
        (
            "Batch job submission failed: Invalid account or account/partition combination "
            "specified",
            "slurm.account: ",
        ),
        ("Batch job submission failed: Invalid qos specification", "slurm.qos: "),
        (
            "Memory specification can not be satisfied\nsbatch: error: Batch job "
            "submission failed: Requested node "
            "configuration is not available",
            "slurm.mem or node.memory_gb: ",
        ),
        (
            "Batch job submission failed: Requested node configuration is not available",
            "gpu.per_node, node or ",
        ),
        ("Batch job submission failed: Invalid feature specification", "slurm.constraint: "),
        (
            "Batch job submission failed: Requested time limit is invalid (missing or "
            "exceeds some limit)",
            "slurm.time: ",
        ),
        ("Batch job submission failed: Access/permission denied", "sbatch rejects the job: "),
    ],
)
def test_a_refusal_is_one_line_with_the_key_and_leaves_nothing(
    study: Study, refusal: str, says: str
) -> None:
    study.slurm.answer("sbatch", f"sbatch: error: {refusal}")
    with pytest.raises(ConfigError) as problem:
        study.submit_runs()
    assert str(problem.value).startswith(says)
    assert str(problem.value).endswith(refusal.rpartition("sbatch: error: ")[2])
    assert "\n" not in str(problem.value)
    assert len(study.slurm.calls("sbatch")) == 1
    assert list(submissions_folder(study.directory).iterdir()) == []


@pytest.mark.parametrize(
    ("options", "refusal", "says"),
    [
        (
            {"mem": "9000G"},
            f"Memory specification can not be satisfied\nsbatch: error: {NO_NODE}",
            "slurm.mem or node",
        ),
        (
            {"gres": "gpu:a100:1"},
            NO_NODE,
            "slurm.gres, node or slurm.constraint: sbatch rejects the job: Batch job",
        ),
        ({"gpus-per-node": 64}, NO_NODE, "slurm.gpus_per_node, node or slurm.constraint: "),
        ({}, NO_NODE, "gpu.per_node, node or slurm.constraint: "),
    ],
)
def test_the_record_that_slurm_keeps_of_a_refused_job_is_no_job(
    study: Study, options: dict[str, Any], refusal: str, says: str
) -> None:
    study.profile = dataclasses.replace(study.profile, slurm=options)
    study.slurm.answer("sbatch", f"sbatch: error: {refusal}", queues="refused")
    with pytest.raises(ConfigError) as problem:
        study.submit_runs()
    assert str(problem.value).startswith(says)
    assert study.slurm.read()["queue"]["100_0"] == ["FAILED", "", "BadConstraints"]
    assert list(submissions_folder(study.directory).iterdir()) == []


def test_a_refusal_after_an_answer_that_was_lost_finds_what_was_queued(study: Study) -> None:
    study.slurm.answer("sbatch", TIMED_OUT, queues="later")
    study.slurm.answer(
        "sbatch", "sbatch: error: Batch job submission failed: Access/permission denied"
    )
    study.slurm.answer("squeue", BUSY)
    study.slurm.change(born=["COMPLETED", "n1", ""])
    assert study.submit_runs().job_id == "100"


@pytest.mark.parametrize(
    ("code", "out", "says"),
    [(3, "", r"no error message \(exit code 3\)"), (1, "no quota", "no quota")],
)
def test_an_sbatch_that_fails_without_words(study: Study, code: int, out: str, says: str) -> None:
    study.slurm.program("sbatch", f"echo '{out}'; exit {code}")
    with pytest.raises(ConfigError, match=f"^sbatch rejects the job: {says}$"):
        study.submit_runs()


@pytest.mark.parametrize(("limit", "queued", "calls"), [(5, 3, 1), (2, 1, 2), (1, 1, 2)])
def test_of_more_runs_than_may_be_submitted_the_first_are(
    study: Study, limit: int, queued: int, calls: int
) -> None:
    study.slurm.change(limit=limit)
    made = study.submit_runs()
    assert made.runs == tuple(study.ids[:queued])
    assert len(study.slurm.read()["queue"]) == queued
    assert len(study.slurm.calls("sbatch")) == calls
    assert read_submissions(study.directory) == [made]
    assert len(list(submissions_folder(study.directory).iterdir())) == 2
    assert study.has_pickles()


def test_where_not_one_more_run_may_be_submitted_it_is_said_at_once(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "PAUSES_S", (60.0,))
    study.slurm.change(limit=0)
    with pytest.raises(
        SubmitLimitError,
        match="limit reached: run `isoflop submit` again when jobs have finished, or use --sup",
    ):
        study.submit_runs()
    assert len(study.slurm.calls("sbatch")) == 2
    assert list(submissions_folder(study.directory).iterdir()) == []


@pytest.mark.parametrize(
    ("options", "time"),
    [({}, None), ({"time": "2:00:00"}, "2:00:00"), ({"time": "UNLIMITED"}, "UNLIMITED")],
)
def test_a_time_is_sent_where_the_profile_has_one(
    study: Study, options: dict[str, Any], time: str | None
) -> None:
    study.profile = dataclasses.replace(study.profile, slurm=options)
    made = study.submit_runs()
    sent = study.slurm.read()["jobs"]["100"]["options"]
    assert sent.get("time") == time
    script = sbatch_script(
        Array(study.plan.runs, 0, 1, 3), study.profile, study.directory, study.folder / "code"
    )
    lines = [
        line.removeprefix("#SBATCH --")
        for line in script.splitlines()
        if line.startswith("#SBATCH")
    ]
    assert {line.partition("=")[0] for line in lines} == sent.keys()
    for file in (submissions_folder(study.directory) / made.name).glob("*_submitted.pkl"):
        assert pickle.loads(file.read_bytes())._timeout_min == (120 if ":" in str(time) else 1440)


def test_an_unknown_option_is_named(study: Study) -> None:
    study.slurm.answer(
        "sbatch",
        "sbatch: unrecognized option '--foo=1'\nTry \"sbatch --help\" for more information",
    )
    with pytest.raises(
        ConfigError, match=r"^slurm.*: sbatch rejects the job: .*unrecognized option '--foo=1'"
    ):
        study.submit_runs()
    assert study.records() == []


@pytest.mark.parametrize("program", ["squeue", "sbatch", "srun"])
def test_without_slurm_nothing_is_queued_and_one_line_says_why(study: Study, program: str) -> None:
    study.slurm.remove(program)
    with pytest.raises(
        ClusterError, match=f"{program}: not found; is this a login node of the cluster"
    ):
        study.submit()
    assert study.records() == []


def test_a_queue_that_does_not_answer_is_found_before_anything_is_made(study: Study) -> None:
    study.slurm.answer("squeue", BUSY)
    with pytest.raises(
        ClusterError, match="squeue: slurm_load_jobs error: Unable to contact slurm controller"
    ):
        study.submit()
    assert not list(study.directory.glob("*/config.yaml"))
    assert study.slurm.calls("sbatch") == []


def test_sbatch_hears_nothing_but_the_script(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "SBATCH_ACCOUNT": "theirs",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_CONF": "/etc/s.conf",
        "SLURM_CLUSTERS": "a",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    study.submit_runs()
    (call,) = study.slurm.calls("sbatch")
    assert call["environment"] == {"SLURM_CONF": "/etc/s.conf", "SLURM_CLUSTERS": "a"}
    assert theirs.items() <= os.environ.items()


def test_sbatch_does_not_hear_of_the_job_that_submits(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_NODE": "1",
        "SBATCH_PARTITION": "theirs",
        "SLURM_CONF": "/etc/s.conf",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    study.submit_runs()
    (call,) = study.slurm.calls("sbatch")
    assert call["environment"] == {"SLURM_CONF": "/etc/s.conf"}
    assert environment.items() <= os.environ.items()


# Calls that were killed, and two at once


@pytest.mark.parametrize("sbatch_ran", [False, True])
def test_what_a_killed_call_left_is_finished_or_dropped(study: Study, sbatch_ran: bool) -> None:
    study.prepare()
    half = study.half_made()
    if sbatch_ran:
        queue = {f"100_{index}": ["PENDING", "", "Priority"] for index in range(3)}
        study.slurm.change(
            jobs={"100": {"name": half.name, "hidden": False}}, queue=queue, next=101
        )
    assert recover_submissions(study.directory) == (
        [dataclasses.replace(half, job_id="100")] if sbatch_ran else []
    )
    assert read_submissions(study.directory) == recover_submissions(study.directory)
    assert study.has_pickles()
    assert len(list(submissions_folder(study.directory).iterdir())) == 2 * sbatch_ran
    assert len(study.submit().queued) == (0 if sbatch_ran else 3)


def test_an_array_that_ended_before_its_id_was_written_down_is_known_to_accounting(
    study: Study,
) -> None:
    study.prepare()
    half = study.half_made()
    known = {f"100_{index}": ["COMPLETED", "n1", "0:0"] for index in range(3)}
    study.slurm.change(jobs={"100": {"name": half.name, "hidden": False}}, accounting=known)
    assert [made.job_id for made in recover_submissions(study.directory)] == ["100"]


def test_a_half_made_submission_that_slurm_refused_is_dropped(study: Study) -> None:
    study.prepare()
    half = study.half_made()
    refused = {f"100_{index}": ["FAILED", "", "BadConstraints"] for index in range(3)}
    study.slurm.change(jobs={"100": {"name": half.name, "hidden": False}}, queue=refused, next=101)
    assert recover_submissions(study.directory) == []


def test_what_is_half_made_stays_while_slurm_does_not_answer(study: Study) -> None:
    half = study.half_made()
    study.slurm.answer("squeue", BUSY)
    with pytest.raises(ClusterError):
        recover_submissions(study.directory)
    assert read_submissions(study.directory) == [half]


def test_a_record_that_another_call_drops_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = Submission("tiny-1", ("a", "b"), 8, 5.0, "100")
    for made in (submission, Submission("tiny-0", ("a", "b"), 8, 4.0)):
        made.write(submissions_folder(tmp_path))
    glob = Path.glob

    def found(folder: Path, pattern: str) -> list[Path]:
        paths = list(glob(folder, pattern))
        (folder / "tiny-0.json").unlink()
        return paths

    monkeypatch.setattr(Path, "glob", found)
    assert read_submissions(tmp_path) == [submission]


def test_a_record_of_another_version_has_keys_more_or_less(tmp_path: Path) -> None:
    made = Submission("tiny-1", ("a", "b"), 8, 5.0, "100", at_once=2, user=7)
    made.write(submissions_folder(tmp_path))
    (file,) = submissions_folder(tmp_path).glob("*.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "more": 1}))
    assert read_submissions(tmp_path) == [made]
    file.write_text(
        json.dumps({key: value for key, value in record.items() if key not in ("at_once", "user")})
    )
    assert read_submissions(tmp_path) == [dataclasses.replace(made, at_once=0, user=None)]


WHOLE = {"name": "x", "runs": ["a"], "gpus": 0, "submitted": 1.0, "job_id": "1", "cancelled": []}
OF_WRONG_TYPES = [
    json.dumps({**WHOLE, key: value})
    for key, value in (
        ("submitted", "x"),
        ("submitted", None),
        ("name", 3),
        ("runs", "abc"),
        ("runs", [1]),
        ("runs", {}),
        ("gpus", "8"),
        ("gpus", None),
        ("job_id", 7),
        ("cancelled", None),
        ("cancelled", [None]),
        ("at_once", "4"),
    )
]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '{"name": "x"}',
        '{"runs": 3, "cancelled": []}',
        "\xff",
        *OF_WRONG_TYPES,
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    Submission("tiny-1", ("a", "b"), 0, 5.0, "100").write(submissions_folder(tmp_path))
    (submissions_folder(tmp_path) / "tiny-bad.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        ConfigError,
        match=r"tiny-bad\.json: damaged; cancel its jobs \(squeue -n tiny-bad\) and dele",
    ):
        read_submissions(tmp_path)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lease in another process."""
    program = (
        "import sys; from pathlib import Path; from isoflop.lease import take_lease\n"
        "with take_lease(Path(sys.argv[1])) as lease: print(bool(lease), flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        yield
        process.stdin.close()


def test_two_at_once_are_refused(study: Study) -> None:
    study.queued()
    with held(submissions_folder(study.directory) / "lease"):
        for act in (
            study.submit,
            lambda: cancel(study.directory, []),
            lambda: retry(study.directory, []),
        ):
            with pytest.raises(
                BusyError, match=r"another isoflop command \(process \d+ on \S+\) is working here"
            ):
                act()
    assert study.slurm.read()["calls"] == []
    assert study.submit().queued == ()


# Nodes and profiles


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Queue six runs, of which three may fail while others progress."""
    return make_study(tmp_path, monkeypatch, "seeds=[0, 1]")


@pytest.mark.parametrize(
    ("failures", "works", "bad"),
    [
        ([["n1"], ["n1"], ["n1"]], ["n2"], "n1"),
        ([["n1", "n1"], ["n1"], ["n1"]], ["n2"], "n1"),
        ([["n1"], ["n1"], []], ["n2"], None),
        ([["n1"] * 9, [], []], ["n2"], None),
        ([["n1"], ["n1"], ["n1", "n2"]], ["n2"], None),
        ([["n1"], ["n1"], ["n1"]], [], None),  # it may be the program
        ([["n1"], ["n1"], ["n1"], ["n2"]], [], None),
        ([["n1"], ["n1"], ["n1"], ["n2"]], ["n2"], None),  # others get on where one failed too
        ([["n1"], ["n1"], ["n1"]], ["n2", "n1"], None),  # it works again
    ],
)
def test_a_node_on_which_three_runs_failed_while_others_get_on_is_left_out(
    large: Study, failures: list[list[str]], works: list[str], bad: str | None
) -> None:
    large.prepare()
    for number, nodes in enumerate(failures):
        large.run(number).set_state("pending", failed_on=nodes)
    for number, node in enumerate(works, start=len(failures)):
        large.run(number).set_state("done", node=node)
    assert find_bad_nodes(query_status(large.directory)) == ((bad,) if bad else ())
    assert plan_submission(large.plan, large.profile).bad_nodes == ((bad,) if bad else ())


def ran(
    run_id: str,
    state: State,
    node: str,
    heartbeat: float,
    failed_on: str | None = None,
    failed_time: float | None = None,
) -> RunStatus:
    stored = {"heartbeat": heartbeat, "failed_on": [failed_on] if failed_on else []}
    stored |= {} if failed_time is None else {"failed_time": failed_time}
    return RunStatus(run_id, state, "", None, node, stored)


def list_bad_nodes(*runs: RunStatus) -> tuple[str, ...]:
    return find_bad_nodes(SweepStatus({where.run_id: where for where in runs}, ()))


@pytest.mark.parametrize("failed_time", [100.0, None])
def test_a_node_on_which_those_that_failed_there_are_done_is_not_left_out(
    failed_time: float | None,
) -> None:
    mended = [ran(run_id, "done", "n1", 400.0, "n1", failed_time) for run_id in "abc"]
    assert list_bad_nodes(*mended, ran("d", "done", "n2", 50.0)) == ()


@pytest.mark.parametrize(("worked", "bad"), [(300.0, ()), (99.0, ("n1",))])
def test_a_failure_is_as_old_as_it_is_however_the_run_gets_on_elsewhere(
    worked: float, bad: tuple[str, ...]
) -> None:
    moved = [ran(run_id, "running", "n2", 400.0, "n1", 100.0) for run_id in "abc"]
    assert (
        list_bad_nodes(*moved, ran("d", "done", "n1", worked), ran("e", "done", "n3", 50.0)) == bad
    )


def test_a_node_works_again_though_those_that_failed_there_go_on_elsewhere(large: Study) -> None:
    large.prepare()
    for number in range(3):
        record_failure(large.run(number), "no luck", "n1")
    large.run(3).set_state("done", node="n2")
    assert find_bad_nodes(query_status(large.directory)) == ("n1",)
    large.run(4).set_state("done", node="n1")
    for number in range(3):
        large.run(number).set_state("done", node="n3")
    assert find_bad_nodes(query_status(large.directory)) == ()


def test_a_run_that_failed_on_a_node_does_not_speak_for_it_before_it_is_done_there() -> None:
    running = [ran(run_id, "running", "n1", 400.0, "n1", 100.0) for run_id in "abc"]
    assert list_bad_nodes(*running, ran("d", "done", "n2", 50.0)) == ("n1",)


def test_jobs_are_told_of_a_bad_node_and_the_kept_profile_is_not(large: Study) -> None:
    large.prepare()
    for number in range(3):
        record_failure(large.run(number), "no luck", "n1")
    large.run(3).set_state("done", node="n2")
    large.profile = dataclasses.replace(
        large.profile, slurm={**large.profile.slurm, "exclude": "n[7-8]"}
    )
    large.submit()
    assert large.slurm.read()["jobs"]["100"]["options"]["exclude"] == "n[7-8],n1"
    assert read_study_profile(large.directory).slurm["exclude"] == "n[7-8]"


def test_a_refusal_says_which_nodes_were_left_out_and_leaves_what_failed(large: Study) -> None:
    large.prepare()
    for number in range(3):
        record_failure(large.run(number), "no luck", "n1")
    large.run(3).set_state("done", node="n2")
    large.slurm.answer("sbatch", "sbatch: error: Requested node configuration is not available")
    with pytest.raises(
        ConfigError,
        match=r"excluded nodes, where runs failed and nowhere else: n1; `isoflop retry` uses",
    ):
        large.submit()
    assert [large.run(number).state()["state"] for number in range(3)] == ["failed"] * 3


def test_a_node_is_left_out_by_the_very_call_that_finds_the_deaths_on_it(large: Study) -> None:
    large.queued()
    for number in range(4):
        node = "n1" if number < 3 else "n2"
        large.run(number).set_state("running", attempt=1, job_id=f"100_{number}", node=node)
    large.run(3).set_state("done")
    large.slurm.end([f"100_{number}" for number in range(3)], "FAILED", node="n1", exit_code="0:9")
    done = large.submit()
    assert set(done.queued) == set(large.ids[:3])
    assert done.bad_nodes == ("n1",)
    assert large.slurm.read()["jobs"]["101"]["options"]["exclude"] == "n1"


@pytest.mark.parametrize(
    ("option", "nodes", "exclude"),
    [(None, [], None), (None, ["n1", "n2"], "n1,n2"), ("n3", ["n1"], "n3,n1"), ("n3", [], "n3")],
)
def test_nodes_are_left_out_beside_those_of_the_profile(
    study: Study, option: str | None, nodes: list[str], exclude: str | None
) -> None:
    options = {} if option is None else {"exclude": option}
    profile = exclude_nodes(dataclasses.replace(study.profile, slurm=options), nodes)
    assert profile.slurm.get("exclude") == exclude


def test_the_profile_of_the_last_submission_is_kept_as_it_was(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        RunError, match="tiny: no such directory; give that of a sweep, such as runs/soda"
    ):
        read_study_profile(study.directory)
    study.prepare()
    with pytest.raises(RunError, match="tiny: was never submitted; see `isoflop submit --help`"):
        read_study_profile(study.directory)
    monkeypatch.chdir(study.folder)
    file = study.folder / "ours.yaml"
    file.write_text(
        "executor: slurm\nroot: runs\n"
        "slurm: {comment: '\"a'' $(b): \\${c}', mem: 0, exclusive: true, time: '48:00:00'}\n"
        "setup: ['export A=\"\\${HOME}/a\"', 'module load x  # y']\n"
    )
    study.profile = load_profile(file)
    write_study_profile(study.profile, study.directory)
    assert read_study_profile(study.directory) == dataclasses.replace(
        study.profile, root=str(study.folder / "runs")
    )


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = Submission("tiny-1", ("a", "b"), 8, 5.0, "100", ("b",))
    made.write(submissions_folder(tmp_path))
    Submission("tiny-0", ("c",), 8, 4.0, "99").write(submissions_folder(tmp_path))
    older, newer = read_submissions(tmp_path)
    assert newer == made
    assert (older.name, older.task("c"), newer.task("b")) == ("tiny-0", "99", "100_1")
    assert dataclasses.replace(made, job_id=None).task("a") is None
    assert (
        json.loads((submissions_folder(tmp_path) / "tiny-1.json").read_text())["name"] == "tiny-1"
    )


# What sites and colleagues do


@pytest.mark.parametrize(
    ("output", "job_id"),
    [
        ("Submitted batch job 84", "84"),
        ("note: your job 83 is using 1 of 4 GPUs\nSubmitted batch job 84\n", "84"),
        ("Submitted batch job 84 on cluster gpu\njob 4000 core-hours left", "84"),
        ("job 4000 core-hours left", None),
        ("", None),
    ],
)
def test_only_sbatch_s_own_words_name_a_job(output: str, job_id: str | None) -> None:
    from submitit.core.utils import FailedSubmissionError

    read = queueing._executor_class()._get_job_id_from_submission_command
    if job_id is None:
        with pytest.raises(FailedSubmissionError, match="no job id in"):
            read(output)
    else:
        assert read(output) == read(output.encode()) == job_id


def test_another_user_can_only_look(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.queued()
    (made,) = read_submissions(study.directory)
    dataclasses.replace(made, user=os.geteuid() + 1).write(submissions_folder(study.directory))
    assert query_status(study.directory).queue_answered
    for act in (
        study.submit,
        lambda: cancel(study.directory, []),
        lambda: retry(study.directory, []),
    ):
        with pytest.raises(
            RunError,
            match=r"tiny: submitted by \S.*; only that user can submit, cancel or retry its runs",
        ):
            act()
    assert not [
        call for call in study.slurm.read()["calls"] if call["program"] in ("sbatch", "scancel")
    ]


def test_a_cancellation_that_can_not_be_written_down_cancels(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a common reason to cancel."""
    study.queued()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "submissions/tiny-1.json")

    monkeypatch.setattr(Submission, "write", full)
    with pytest.raises(
        RunError, match=r"3 jobs were cancelled, but this could not be recorded \(No space left"
    ):
        cancel(study.directory, [])
    assert not any(task.active for task in slurm.queue().values())


def test_what_is_agreed_to_is_not_forgotten_where_it_can_not_be_read(study: Study) -> None:
    study.queued()
    file = submissions_folder(study.directory) / "supervisor" / "approved.json"
    file.mkdir(parents=True)
    with pytest.raises(OSError, match="Is a directory"):
        approve(study.directory, study.ids)
