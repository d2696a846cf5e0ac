"""Control of a submitted study: run prefixes, cancel, retry, logs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fake_study import BUSY, Study, make_study

from isoflop.errors import ClusterError, ConfigError, RunError
from isoflop.launching import control
from isoflop.launching.control import (
    READY_REASONS,
    cancel,
    count_never_starting,
    follow_log,
    match_runs,
    newest_log,
    query_status,
    retry,
)
from isoflop.launching.records.submissions import Submission, read_submissions, submissions_folder
from isoflop.launching.worker.attempt import record_failure


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return make_study(tmp_path, monkeypatch)


def test_runs_are_chosen_by_the_beginning_of_their_names(study: Study) -> None:
    study.prepare()
    first, second, third = study.ids
    assert match_runs(study.directory, []) == study.ids
    assert match_runs(study.directory, [second]) == [second]
    assert match_runs(study.directory, [second[:7]]) == [second]
    assert match_runs(study.directory, [third.rpartition("-")[2][:5]]) == [third]
    assert match_runs(study.directory, [third, first, third[:-1]]) == [third, first]


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        (
            "1e8",
            r"1e8: fits 3 runs \(1e8-w.*, 1e8-w.*, 1e8-w.*\) of .*tiny; give a longer "
            r"prefix of a name that `isoflop status`",
        ),
        ("1e8-w1", r"1e8-w1: fits 2 runs \("),
        ("2e8", "2e8: fits no run of .*tiny; give a longer prefix"),
        ("w8", "w8: fits no run"),
    ],
)
def test_a_beginning_that_fits_no_run_or_several_is_refused(
    study: Study, prefix: str, says: str
) -> None:
    study.prepare()
    with pytest.raises(RunError, match=says) as problem:
        match_runs(study.directory, [study.ids[0], prefix])
    assert "\n" not in str(problem.value)


def test_a_directory_of_no_sweep_is_refused(study: Study) -> None:
    with pytest.raises(
        RunError,
        match=r"no sweep's directory \(it has no plan.parquet\); use the directory",
    ):
        match_runs(study.folder, [])


def test_cancelled_runs_are_known_as_such_before_their_jobs_are_cancelled(study: Study) -> None:
    study.queued()
    study.slurm.answer(
        "scancel", "scancel: error: Kill job error: Unable to contact slurm controller"
    )
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        cancel(study.directory, [study.ids[1]])
    (made,) = read_submissions(study.directory)
    assert made.cancelled == (study.ids[1],)
    assert cancel(study.directory, [study.ids[1]]) == [study.ids[1]]
    (call,) = study.slurm.calls("scancel")[1:]
    assert call["arguments"] == ["--quiet", made.task(study.ids[1])]
    status = query_status(study.directory)
    assert [status.runs[run_id].state for run_id in study.ids] == ["queued", "cancelled", "queued"]
    assert status.runs[study.ids[1]].retry


def test_all_are_cancelled_once_and_may_go_on(study: Study) -> None:
    study.queued()
    assert cancel(study.directory, []) == study.ids
    assert cancel(study.directory, []) == []
    assert query_status(study.directory).ids("cancelled") == study.ids
    assert retry(study.directory, []) == study.ids
    assert set(study.submit().queued) == set(study.ids)
    assert query_status(study.directory).ids("queued") == study.ids


def older(study: Study, task: str, state: str = "RUNNING") -> Submission:
    """Record an earlier submission of the first run alone, whose job is still queued."""
    made = Submission("tiny-0", (study.ids[0],), 0, time.time() - 999, task)
    made.write(submissions_folder(study.directory))
    study.slurm.change(queue={**study.slurm.read()["queue"], task: [state, "n1", "None"]})
    return made


def cancelled(study: Study) -> list[str]:
    """Return the cancelled jobs, in order."""
    return [task for call in study.slurm.calls("scancel") for task in call["arguments"][1:]]


def test_every_job_of_a_cancelled_run_is_cancelled(study: Study) -> None:
    study.queued()
    older(study, "90")
    assert cancel(study.directory, [study.ids[0]]) == [study.ids[0]]
    assert cancelled(study) == ["90", "100_0"]
    assert all(study.ids[0] in made.cancelled for made in read_submissions(study.directory))


def test_a_run_whose_older_job_runs_on_is_running(study: Study) -> None:
    study.queued()
    older(study, "90")
    study.slurm.end(["100_0"], "CANCELLED")
    run = query_status(study.directory).runs[study.ids[0]]
    assert (run.state, run.task, run.retry) == ("running", "90", False)


def test_what_is_not_queued_now_is_cancelled_too(study: Study) -> None:
    """Queue a study with a failed run to retry, an interrupted run and a finished run."""
    study.queued()
    study.slurm.end([f"100_{index}" for index in range(3)], "NODE_FAIL")
    study.run(0).set_state("failed", "no luck", failures=1)
    (study.run(2).path / "DONE").touch()
    assert cancel(study.directory, []) == study.ids[:2]
    assert cancelled(study) == []
    status = query_status(study.directory, 2)
    assert status.ids("cancelled") == study.ids[:2]
    assert status.runs[study.ids[0]].reason == "by isoflop cancel; it had failed: no luck"
    assert query_status(study.directory, 0).runs[study.ids[0]].state == "failed"
    assert read_submissions(study.directory)[0].cancelled == tuple(study.ids[:2])


def test_a_study_that_runs_on_this_machine_has_no_job_to_cancel(study: Study) -> None:
    """The id of a local worker is its process id, which may equal the id of another job."""
    study.prepare()
    study.run(0).set_state("running", attempt=1, job_id="4711")
    with study.run(0).lease() as lease:
        assert lease
        for names in ([], [study.ids[0]]):
            with pytest.raises(
                RunError, match="tiny: was never submitted; stop `isoflop run` with Ctrl-C"
            ):
                cancel(study.directory, names)
        assert query_status(study.directory).runs[study.ids[0]].task is None
        Submission("tiny-0", (study.ids[1],), 0, time.time(), "90").write(
            submissions_folder(study.directory)
        )
        study.slurm.change(
            queue={"90": ["RUNNING", "n1", "None"], "4711": ["RUNNING", "n1", "None"]}
        )
        with pytest.raises(
            RunError, match=f"{study.ids[0]}: was never submitted, so there is nothing to cancel"
        ):
            cancel(study.directory, [study.ids[0]])
        assert cancel(study.directory, []) == [study.ids[1]]
    assert cancelled(study) == ["90"]


def test_a_cancellation_that_broke_off_goes_on_at_the_next_submission(study: Study) -> None:
    study.queued()
    first, second, _ = study.ids
    study.slurm.change(queue={**study.slurm.read()["queue"], "100_0": ["RUNNING", "n1", "None"]})
    study.slurm.answer(
        "scancel", "scancel: error: Kill job error: Unable to contact slurm controller"
    )
    with pytest.raises(ClusterError):
        cancel(study.directory, [first, second])
    status = query_status(study.directory)
    assert [
        (status.runs[run_id].state, status.runs[run_id].reason) for run_id in (first, second)
    ] == [
        ("running", "being cancelled; if this persists, run `isoflop cancel` again"),
        ("queued", "being cancelled; if this persists, run `isoflop cancel` again"),
    ]
    assert status.orphans == ("100_0", "100_1")
    study.submit(runs=(), cancelled=False)
    assert cancelled(study)[2:] == ["100_0", "100_1"]
    status = query_status(study.directory)
    assert status.ids("cancelled") == [first, second]
    assert status.orphans == ()


def dropped(study: Study) -> str:
    """Queue a run that is no longer in the sweep."""
    study.queued()
    gone = Submission("tiny-0", ("1e8-w99-s0-0123abcd",), 0, time.time() - 999, "90")
    gone.write(submissions_folder(study.directory))
    study.slurm.change(queue={**study.slurm.read()["queue"], "90": ["RUNNING", "n1", "None"]})
    return gone.runs[0]


def test_a_run_that_the_sweep_has_no_more_is_seen_and_can_be_cancelled(study: Study) -> None:
    run_id = dropped(study)
    status = query_status(study.directory)
    assert list(status.runs) == study.ids
    note = (
        f"1 run is no longer in the sweep but still active: {run_id}; `isoflop cancel "
        f"{study.directory} NAME` ends one"
    )
    assert status.notes == (note,)
    assert (
        match_runs(study.directory, ["1e8-w99"])
        == match_runs(study.directory, ["0123"])
        == [run_id]
    )
    assert match_runs(study.directory, []) == study.ids
    with pytest.raises(
        RunError, match=f"{run_id}: is no longer in the sweep, so there is nothing to retry"
    ):
        retry(study.directory, [run_id])
    assert cancel(study.directory, ["1e8-w99"]) == [run_id]
    assert cancelled(study) == ["90"]
    assert query_status(study.directory).notes == ()
    assert not (study.directory / run_id).exists()


def test_all_that_is_under_way_is_cancelled_where_nothing_is_named(study: Study) -> None:
    run_id = dropped(study)
    assert cancel(study.directory, []) == [*study.ids, run_id]
    assert sorted(cancelled(study)) == ["100_0", "100_1", "100_2", "90"]
    assert cancel(study.directory, []) == []


def test_the_log_of_a_run_that_the_sweep_has_no_more(study: Study) -> None:
    study.prepare()
    other = study.directory / "1e8-w99-s0-0123abcd"
    (other / "attempts" / "1").mkdir(parents=True)
    (other / "config.yaml").touch()
    (other / "state.json").write_text('{"state": "done", "attempt": 1}')
    (other / "attempts" / "1" / "log.txt").write_text("one\n")
    (run_id,) = match_runs(study.directory, ["1e8-w99"])
    assert list(follow_log(study.directory, run_id)) == [
        (other / "attempts" / "1" / "log.txt", "one\n")
    ]


def test_nothing_is_cancelled_while_the_queue_does_not_answer(study: Study) -> None:
    study.queued()
    study.slurm.answer("squeue", BUSY)
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        cancel(study.directory, [])
    assert study.slurm.calls("scancel") == []
    assert read_submissions(study.directory)[0].cancelled == ()


def test_a_run_that_failed_too_often_is_ready_again(study: Study) -> None:
    study.queued()
    tasks = {run_id: read_submissions(study.directory)[0].task(run_id) for run_id in study.ids}
    run = study.run(1)
    run.set_state("running", attempt=1, job_id=tasks[run.run_id], node="n1")
    for _ in range(5):
        record_failure(run, "no luck", "n1")
    study.slurm.end([tasks[run.run_id] or ""], "FAILED", exit_code="1:0")
    assert study.submit().queued == ()
    assert retry(study.directory, [run.run_id[:7]]) == [run.run_id]
    assert {name: run.state()[name] for name in ("state", "failures", "failed_on")} == {
        "state": "pending",
        "failures": 0,
        "failed_on": [],
    }
    assert query_status(study.directory).ids("pending") == [run.run_id]
    assert study.submit().queued == (run.run_id,)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_run_whose_job_ended_before_it_began_is_ready_again(study: Study, retries: int) -> None:
    study.profile = dataclasses.replace(study.profile, retries=retries)
    study.queued()
    study.slurm.end(study.slurm.read()["queue"], "FAILED", exit_code="1:0")
    assert query_status(study.directory).ids("failed") == study.ids
    assert retry(study.directory, []) == study.ids
    assert query_status(study.directory, retries).ids("pending") == study.ids
    assert set(study.submit().queued) == set(study.ids)


def test_nothing_is_made_ready_while_the_queue_does_not_answer(study: Study) -> None:
    study.queued()
    study.run(0).set_state("failed", "no luck", failures=9)
    study.slurm.answer("squeue", BUSY)
    with pytest.raises(
        ClusterError, match="Unable to contact slurm controller; nothing was queued, try again"
    ):
        retry(study.directory, [])
    assert (study.run(0).state()["state"], study.run(0).state()["failures"]) == ("failed", 9)


@pytest.mark.parametrize(
    ("named", "reason"),
    [(False, READY_REASONS[0]), (True, READY_REASONS[0]), (False, READY_REASONS[1])],
)
def test_what_a_retry_made_ready_and_could_not_queue_the_next_one_does(
    study: Study, named: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "READY_REASON", reason)
    study.queued()
    study.slurm.end(study.slurm.read()["queue"], "FAILED", exit_code="1:0")
    names = study.ids[:1] if named else []
    ready = retry(study.directory, names)
    study.slurm.answer(
        "sbatch", "sbatch: error: Batch job submission failed: Access/permission denied", 20
    )
    with pytest.raises(ConfigError, match="sbatch rejects the job"):
        study.submit(runs=ready)
    study.slurm.change(answers={})
    assert retry(study.directory, names) == ready == (names or study.ids)
    assert set(study.submit(runs=ready).queued) == set(ready)
    if not named:
        assert retry(study.directory, []) == []


@pytest.mark.parametrize("state", ["queued", "done", "diverged"])
def test_only_what_failed_or_was_cancelled_can_be_retried(study: Study, state: str) -> None:
    study.queued()
    if state == "done":
        (study.run(0).path / "DONE").touch()
    elif state == "diverged":
        study.run(0).set_state("diverged", "the loss was not finite")
    with pytest.raises(RunError, match=f"{study.ids[0]}: is {state}, so there is nothing to retry"):
        retry(study.directory, [study.ids[0]])
    assert retry(study.directory, []) == []


def test_the_newest_log_of_a_run(study: Study) -> None:
    study.queued()
    with pytest.raises(
        RunError, match=f"{study.ids[0]}: has written nothing yet; see `isoflop status "
    ):
        newest_log(study.directory, study.ids[0])
    (made,) = read_submissions(study.directory)
    errors = (
        submissions_folder(study.directory) / made.name / f"{made.task(study.ids[0])}_0_log.err"
    )
    errors.parent.mkdir()
    errors.touch()
    assert newest_log(study.directory, study.ids[0]) == errors
    study.run(0).set_state("running", attempt=2)
    log = study.run(0).path / "attempts" / "2" / "log.txt"
    log.parent.mkdir(parents=True)
    log.touch()
    assert newest_log(study.directory, study.ids[0]) == log


def test_a_log_is_followed_through_attempts_to_the_end(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()
    run = study.run(0)

    def writes(attempt: int, data: bytes) -> None:
        log = run.path / "attempts" / str(attempt) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(data)

    def begins(attempt: int) -> None:
        run.set_state("running", attempt=attempt)
        writes(attempt, b"")

    begins(1)
    events = [
        lambda: writes(1, "one \u00fc".encode()[:-1]),
        lambda: writes(1, "\u00fc\n".encode()[1:]),
        lambda: (writes(1, b"last\n"), begins(2)),
        lambda: writes(2, b"two\n"),
        lambda: (writes(2, b"end\n"), run.set_state("done")),
    ]
    monkeypatch.setattr(control, "STATUS_POLL_S", 0.0)
    monkeypatch.setattr(control.time, "sleep", lambda _: events.pop(0)())
    pieces = list(follow_log(study.directory, study.ids[0]))
    assert events == []
    written = {
        attempt: "".join(text for log, text in pieces if log.parent.name == attempt)
        for attempt in "12"
    }
    assert written == {"1": "one \u00fc\nlast\n", "2": "two\nend\n"}


@pytest.mark.parametrize("ends", ["cancelled", "released"])
def test_a_log_is_followed_no_longer_than_somebody_may_write_it(
    study: Study, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()
    run = study.run(0)
    run.set_state("running", attempt=1)
    (log := run.path / "attempts" / "1" / "log.txt").parent.mkdir(parents=True)
    log.touch()
    clock, ended = 0.0, False

    def sleep(seconds: float) -> None:
        nonlocal clock, ended
        clock += seconds
        if not ended and clock > 20:
            ended = True
            with log.open("a") as file:
                file.write("last\n")
            if ends == "cancelled":
                study.slurm.end(["100_0"], "CANCELLED")
            else:
                holder.__exit__(None, None, None)

    monkeypatch.setattr(control, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock))
    if ends == "released":  # a worker of this machine
        study.slurm.change(queue={})
        holder = run.lease()
        holder.__enter__()
    assert "".join(text for _, text in follow_log(study.directory, run.run_id)) == "last\n"
    assert 20 < clock < 27
    assert len(study.slurm.calls("squeue")) <= 6


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["Priority", "Resources", "Dependency"], {}),
        (
            ["PartitionTimeLimit"] * 3,
            {"PartitionTimeLimit: slurm.time is longer than the partition allows": 3},
        ),
        (
            ["Priority", "JobHeldUser", "None"],
            {"JobHeldUser: held by its user; release it with `scontrol release`": 1},
        ),
    ],
)
def test_what_was_queued_and_can_never_run_is_known_at_once(
    study: Study, reasons: list[str], expected: dict[str, int]
) -> None:
    study.queued()
    study.slurm.change(
        queue={f"100_{index}": ["PENDING", "", reason] for index, reason in enumerate(reasons)}
    )
    assert count_never_starting(study.directory, 0.0) == expected


def test_slurm_is_given_a_moment_to_look_at_what_was_queued(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()
    study.slurm.change(queue={f"100_{index}": ["PENDING", "", "None"] for index in range(3)})
    later = {f"100_{index}": ["PENDING", "", "PartitionConfig"] for index in range(3)}
    monkeypatch.setattr(control.time, "sleep", lambda _: study.slurm.change(queue=later))
    assert list(count_never_starting(study.directory, 60.0).values()) == [3]
