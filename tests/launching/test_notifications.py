"""Notifications of a study by a command and by a URL, each event once."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from support.fake_study import SIMULATED, TIMED_OUT, Study, act_meanwhile, make_study
from support.tiny_studies import finish_alike, tiny_plan

from isoflop.config.profile import Gpu, Node, Profile
from isoflop.errors import BusyError, ClusterError, ConfigError
from isoflop.launching import notifications, supervisor
from isoflop.launching.control import cancel, list_runs, query_status
from isoflop.launching.notifications import Notifier
from isoflop.launching.queue.sweep_status import SweepStatus
from isoflop.launching.records.approvals import approve
from isoflop.launching.records.study_files import read_study_profile, write_study_profile
from isoflop.launching.records.submissions import read_submissions, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.supervisor import (
    Supervisor,
    add_supervisor,
    minimal_profile,
    notify_events,
    pause_seconds,
    supervise,
)
from isoflop.lease import take_lease

H100, NODE = Gpu(type="h100-sxm", per_node=8), Node(cpus=96, memory_gb=1000)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return make_study(tmp_path, monkeypatch)


@pytest.fixture
def hook_log(tmp_path: Path) -> Path:
    """Return the file that the hook writes."""
    return tmp_path / "hook_log.txt"


@pytest.fixture
def hooked(study: Study, hook_log: Path) -> Profile:
    """Return the study's profile with a hook that writes its arguments, one per line."""
    hook = hook_log.with_name("hook.sh")
    hook.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{hook_log}\n')
    hook.chmod(0o755)
    return dataclasses.replace(study.profile, notify=f"{hook} 'two words'")


def test_a_command_is_told_each_thing_once(study: Study, hooked: Profile, hook_log: Path) -> None:
    notifier = Notifier(study.directory)
    assert [notifier.send(hooked, "stuck", "a $(b) 'c'") for _ in range(2)] == [True, False]
    assert hook_log.read_text().splitlines() == [
        "two words",
        "stuck",
        str(study.directory),
        "a $(b) 'c'",
    ]
    assert not Notifier(study.directory).send(hooked, "stuck", "a $(b) 'c'")
    assert notifier.send(hooked, "stuck", "something else")
    assert not notifier.send(study.profile, "done", "all")


@pytest.mark.parametrize("hook", ["/bin/false", "/nowhere/hook", "http://127.0.0.1:9/", "'"])
def test_a_hook_that_fails_is_a_warning_and_is_tried_again(
    study: Study, hook: str, hooked: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, notifier = dataclasses.replace(study.profile, notify=hook), Notifier(study.directory)
    assert not notifier.send(broken, "done", "all")
    assert notifier.pending == [("done", "all")]
    err = capsys.readouterr().err
    assert err.startswith("isoflop: warning: notify: ")
    assert err.count("\n") == 1
    assert notifier.send(hooked, "done", "all")


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """Return a URL, and the documents sent to it."""
    documents: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            documents.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/hook", documents
        http.shutdown()
        thread.join()


def test_a_url_gets_a_document(study: Study, server: tuple[str, list[Any]]) -> None:
    url, documents = server
    profile = dataclasses.replace(study.profile, notify=url)
    assert [
        Notifier(study.directory).send(profile, "failed", "r1 failed: why") for _ in range(2)
    ] == [True, False]
    assert documents == [
        {
            "sweep": "tiny",
            "directory": str(study.directory),
            "event": "failed",
            "message": "r1 failed: why",
        }
    ]


GARBAGE = {
    "no status": b"garbage\r\n\r\n",
    "no number": b"HTTP/1.1 what\r\n\r\n",
}


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Return a maker of URLs that answer with given bytes."""
    servers = []

    def serve(answer: bytes) -> str:
        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                self.connection.recv(65536)
                self.wfile.write(answer)

        servers.append(made := TCPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.server_address[1]}/"

    yield serve
    for made in servers:
        made.shutdown()
        made.server_close()


@pytest.mark.parametrize("answer", [*GARBAGE.values(), None], ids=[*GARBAGE, "no url"])
def test_a_url_that_answers_garbage_is_a_hook_that_fails(
    study: Study,
    answer: bytes | None,
    answering: Callable[[bytes], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "http://no such host/\x7f" if answer is None else answering(answer)
    assert not Notifier(study.directory).send(
        dataclasses.replace(study.profile, notify=url), "done", "all"
    )
    assert capsys.readouterr().err.startswith("isoflop: warning: notify: ")


@pytest.fixture
def hanging(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Return the study's profile with a hook that hangs, after a line in `calls.txt`."""
    monkeypatch.setattr(notifications, "NOTIFY_TIMEOUT_S", 0.3)
    hook = tmp_path / "hangs.sh"
    hook.write_text(f"#!/bin/sh\necho x >>{tmp_path}/calls.txt\nexec /bin/sleep 60\n")
    hook.chmod(0o755)
    return dataclasses.replace(study.profile, notify=str(hook))


def calls(tmp_path: Path) -> int:
    return (tmp_path / "calls.txt").read_text().count("x")


def test_a_hook_that_hangs_is_called_once_a_look(
    study: Study, hanging: Profile, tmp_path: Path
) -> None:
    notifier = Notifier(study.directory)
    for looks in range(1, 4):
        notifier.begin()
        for number in range(3):
            assert not notifier.send(hanging, "failed", f"r{number}")
        assert calls(tmp_path) == looks
        assert len(notifier.pending) == 3


def test_what_could_not_be_told_is_tried_again_ever_later(
    study: Study, tmp_path: Path, hooked: Profile, hook_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "fails.sh"
    hook.write_text(f"#!/bin/sh\necho x >>{tmp_path}/calls.txt\nexit 1\n")
    hook.chmod(0o755)
    failing, notifier, clock, tries = (
        dataclasses.replace(study.profile, notify=str(hook)),
        Notifier(study.directory),
        0.0,
        [],
    )
    monkeypatch.setattr(notifications, "time", SimpleNamespace(monotonic=lambda: clock))
    for minute in range(200):
        clock, before = 60.0 * minute, len(tries) and calls(tmp_path)
        notifier.begin()
        assert not notifier.send(failing, "done", "all")
        if calls(tmp_path) > before:
            tries.append(minute)
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    hook.write_text(Path(hooked.notify.split()[0]).read_text() if hooked.notify else "")
    notifier.retry()
    assert events(hook_log) == []
    clock = 1e9
    notifier.retry()
    assert hook_log.read_text().splitlines() == ["done", str(study.directory), "all"]
    assert notifier.pending == []


def test_nothing_more_is_told_by_a_supervisor_that_must_stop(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    stop = False
    notifier = Notifier(study.directory, lambda: stop)
    assert notifier.send(hooked, "failed", "r0")
    stop = True
    assert not notifier.send(hooked, "failed", "r1")
    assert events(hook_log) == [("failed", "r0")]
    assert notifier.pending == [("failed", "r1")]


def test_what_was_told_and_can_not_be_kept_is_told_once(
    study: Study, hooked: Profile, hook_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(notifications, "replace_file", full)
    notifier = Notifier(study.directory)
    assert [notifier.send(hooked, "stuck", "full") for _ in range(2)] == [True, False]
    assert events(hook_log) == [("stuck", "full")]


# What a look tells


def events(hook_log: Path) -> list[tuple[str, str]]:
    """Return event and message of each call of the hook."""
    lines = hook_log.read_text().splitlines() if hook_log.exists() else []
    return [(lines[at + 1], lines[at + 3]) for at in range(0, len(lines), 4)]


def status(study: Study, retries: int = 0) -> SweepStatus:
    return query_status(study.directory, retries)


def test_what_failed_for_good_and_what_waits_for_ever(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    study.queued()
    notify_events(Notifier(study.directory), hooked, status(study))
    assert events(hook_log) == []
    study.slurm.change(queue={"100_2": ["PENDING", "", "PartitionTimeLimit"]})
    study.run(0).set_state("failed", "no luck", failures=1)
    study.run(1).set_state("diverged", "not finite")
    notify_events(Notifier(study.directory), hooked, status(study, retries=2))
    first, second, third = study.ids
    waits = "can never start: PartitionTimeLimit: slurm.time is longer than the partition allows"
    assert events(hook_log) == [
        ("failed", f"{second} diverged: not finite"),
        ("stuck", f"{third} {waits}"),
    ]
    notify_events(Notifier(study.directory), hooked, status(study, retries=0))
    assert events(hook_log)[2:] == [("failed", f"{first} failed: no luck")]


def test_the_end_is_told_once_all_are_done(study: Study, hooked: Profile, hook_log: Path) -> None:
    study.queued()
    for number in range(3):
        assert events(hook_log) == []
        (study.run(number).path / "DONE").touch()
        notify_events(Notifier(study.directory), hooked, status(study))
    notify_events(Notifier(study.directory), hooked, status(study))
    assert events(hook_log) == [("done", "all 3 runs are done")]


def test_what_stops_a_supervisor_is_told(study: Study, hooked: Profile, hook_log: Path) -> None:
    study.queued()
    write_study_profile(hooked, study.directory)
    study.slurm.change(queue={})
    study.slurm.end([f"100_{index}" for index in range(3)], "NODE_FAIL")
    study.slurm.answer("sbatch", "sbatch: error: invalid partition specified: main", 20)
    assert supervise(study.directory) == "pending"
    ((event, message),) = events(hook_log)
    assert event == "stuck"
    assert message.startswith("slurm.partition: sbatch rejects the job: ")


def test_a_failed_cycle_sends_no_event(study: Study, hooked: Profile, hook_log: Path) -> None:
    study.queued()
    write_study_profile(hooked, study.directory)
    with take_lease(submissions_folder(study.directory) / "lease") as lease:
        assert lease
        assert supervise(study.directory) == "failed"
    study.slurm.answer("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 20)
    assert supervise(study.directory) == "failed"
    assert events(hook_log) == []


def test_after_failed_cycles_the_next_comes_soon() -> None:
    assert [pause_seconds(failures) for failures in range(7)] == [
        60.0,
        5.0,
        10.0,
        20.0,
        40.0,
        60.0,
        60.0,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_report_that_fails_does_not_end_the_supervisor(
    study: Study, hooked: Profile, hook_log: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()
    write_study_profile(hooked, study.directory)
    study.slurm.change(queue={})
    for number in range(3):
        (study.run(number).path / "DONE").touch()
    if killed:
        python = hook_log.with_name("python")
        python.write_text("#!/bin/sh\necho so far so good >&2\nkill -9 $$\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
    else:
        (study.directory / "report.html").mkdir()
    assert supervise(study.directory) == "finished"
    (stuck, message), done = events(hook_log)
    assert stuck == "stuck"
    assert message.startswith(
        "no report: ended with -9: so far so good; " if killed else "no report: ended with 2: "
    )
    assert killed or "the report can't be written" in message
    assert done == ("done", "all 3 runs are done")


@pytest.mark.slow
def test_a_study_that_no_law_fits_is_reported_and_nobody_is_called(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    study.queued()
    write_study_profile(hooked, study.directory)
    study.slurm.change(queue={})
    finish_alike(study.directory.parent, study.plan)
    assert supervise(study.directory) == "finished"
    assert events(hook_log) == [("done", "all 3 runs are done")]
    assert (study.directory / "report.html").is_file()
    assert (study.directory / "runs.parquet").is_file()
    assert not (study.directory / "fit.json").exists()


# What it queues, and when it is through


def over(study: Study, numbers: Iterable[int]) -> None:
    for number in numbers:
        (study.run(number).path / "DONE").touch()


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the fits and the report at the end, which take seconds."""
    monkeypatch.setattr(supervisor, "write_report", lambda *_: None)


@pytest.mark.usefixtures("unreported")
def test_nothing_is_queued_that_nobody_has_submitted(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    study.profile = hooked
    first, second, third = study.ids
    study.submit(runs=[first, second])
    assert supervise(study.directory) == "pending"
    study.slurm.end(study.slurm.read()["queue"], "NODE_FAIL")
    assert supervise(study.directory) == "pending"
    jobs = [run_id for made in read_submissions(study.directory) for run_id in made.runs]
    assert sorted(jobs) == sorted([first, second] * 2)
    study.slurm.change(queue={})
    over(study, [0, 1])
    assert supervise(study.directory) == "finished"
    assert len(read_submissions(study.directory)) == 2
    assert events(hook_log) == [
        ("done", "2 of 2 submitted runs are done; 1 more of the sweep were never submitted")
    ]
    assert query_status(study.directory).runs[third].state == "pending"


def test_what_the_cluster_had_no_room_for_is_queued_later(study: Study) -> None:
    first, second, _ = study.ids
    study.submit(runs=[first])
    approve(study.directory, [first, second])
    assert supervise(study.directory) == "pending"
    assert [made.runs for made in read_submissions(study.directory)] == [(first,), (second,)]


LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)"
)


def test_while_the_cluster_takes_no_more_it_is_told_what_failed(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    study.profile = dataclasses.replace(hooked, retries=0)
    study.submit(runs=study.ids[:1])
    approve(study.directory, study.ids)
    study.slurm.change(queue={})
    study.run(0).set_state("failed", "no luck", failures=1)
    study.slurm.answer("sbatch", LIMIT, 20)
    assert supervise(study.directory) == "pending"
    assert events(hook_log) == [("failed", f"{study.ids[0]} failed: no luck")]


@pytest.mark.usefixtures("unreported")
def test_the_end_is_told_of_a_study_that_is_not_done_whole(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    study.queued()
    write_study_profile(dataclasses.replace(hooked, retries=0), study.directory)
    study.slurm.change(queue={})
    over(study, [0, 1])
    study.run(2).set_state("failed", "no luck", failures=1)
    assert supervise(study.directory) == "finished"
    assert events(hook_log) == [
        ("failed", f"{study.ids[2]} failed: no luck"),
        ("done", "2 of 3 submitted runs are done, 1 failed"),
    ]


@pytest.mark.usefixtures("unreported")
def test_what_was_cancelled_is_not_queued_again_by_a_supervisor(
    study: Study, hooked: Profile, hook_log: Path
) -> None:
    """Prepare a waiting run, a failed run with a retry left and an interrupted run."""
    study.queued()
    write_study_profile(hooked, study.directory)
    study.slurm.change(queue={"100_0": ["PENDING", "", "Priority"]})
    study.run(1).set_state("failed", "no luck", failures=1)
    study.slurm.end(["100_2"], "NODE_FAIL")
    assert query_status(study.directory, 2).runs[study.ids[2]].retry
    assert cancel(study.directory, []) == study.ids
    assert supervise(study.directory) == "finished"
    assert events(hook_log) == [("done", "0 of 3 submitted runs are done, 3 cancelled")]
    assert study.slurm.calls("sbatch") == []
    assert set(study.submit().queued) == set(study.ids)


@pytest.mark.usefixtures("unreported")
def test_what_was_cancelled_before_there_was_room_for_it_is_not_queued(study: Study) -> None:
    first, second, third = study.ids
    study.submit(runs=[first])
    approve(study.directory, study.ids)
    assert cancel(study.directory, [second]) == [second]
    assert supervise(study.directory) == "pending"
    assert [made.runs for made in read_submissions(study.directory)] == [(first,), (third,)]


def test_a_look_that_had_to_wait_takes_the_sweep_and_the_profile_of_now(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.submit()
    bigger = tiny_plan(study.folder, SIMULATED, "budgets=[1.0e8, 2.0e8]")

    def extend() -> None:
        study.plan, study.profile = bigger, dataclasses.replace(study.profile, retries=7)
        study.submit()

    act_meanwhile(study, monkeypatch, extend)
    assert supervise(study.directory) == "pending"
    assert len(list_runs(study.directory)) == len(bigger.runs) > 3
    assert read_study_profile(study.directory).retries == 7


@pytest.mark.usefixtures("unreported")
def test_a_look_that_had_to_wait_queues_nothing_that_was_cancelled_meanwhile(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run was never queued, so only the approvals show that it was approved."""
    study.submit(runs=study.ids[:1])
    approve(study.directory, study.ids)
    act_meanwhile(study, monkeypatch, lambda: cancel(study.directory, []))
    assert supervise(study.directory) == "finished"
    assert [made.runs for made in read_submissions(study.directory)] == [(study.ids[0],)]


# What does not end it


def test_a_look_that_fails_is_told_once_and_others_follow(
    study: Study,
    hooked: Profile,
    hook_log: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "state.json")

    study.queued()
    write_study_profile(hooked, study.directory)
    with monkeypatch.context() as patch:
        patch.setattr(supervisor, "submit", full)
        assert [supervise(study.directory) for _ in range(2)] == ["failed"] * 2
        with open("/dev/full", "w") as nowhere:
            patch.setattr(sys, "stderr", nowhere)
            assert supervise(study.directory) == "failed"
            with contextlib.suppress(OSError):
                nowhere.close()
    assert "Traceback" in capsys.readouterr().err
    assert events(hook_log) == [
        (
            "stuck",
            "a cycle failed and will be repeated: OSError: [Errno 28] No space left on "
            "device: 'state.json'",
        )
    ]
    assert supervise(study.directory) == "pending"


@pytest.mark.parametrize("file", ["cluster.yaml", "sweep.yaml"])
def test_a_definition_that_is_edited_badly_does_not_end_it(
    study: Study, hooked: Profile, hook_log: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study.queued()
    write_study_profile(hooked, study.directory)
    before = (study.directory / file).read_text()
    (study.directory / file).write_text("name: [")
    assert supervise(study.directory) == "pending"
    assert file in capsys.readouterr().err
    assert [event for event, _ in events(hook_log)] == ["stuck"] * (file == "sweep.yaml")
    (study.directory / file).write_text(before)
    assert supervise(study.directory) == "pending"


def test_a_supervisor_tries_to_tell_the_end_before_it_ends(
    study: Study, hooked: Profile, hook_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = hook_log.with_name("hook.sh")
    works = hook.read_text()
    hook.write_text("#!/bin/sh\nexit 1\n")

    def ends(_: Path, notifier: Notifier) -> str:
        notifier.send(hooked, "done", "all")
        hook.write_text(works)
        return "finished"

    monkeypatch.setattr(supervisor, "supervise", ends)
    monkeypatch.setattr(supervisor, "FIRST_CYCLE_RETRY_S", 0.0)
    monkeypatch.setattr(notifications, "NOTIFY_RETRY_S", 0.0)
    monkeypatch.setattr(Supervisor, "listen", lambda _: None)
    assert Supervisor(str(study.directory))() == "finished"
    assert events(hook_log) == [("done", "all")]


# Its own job


def job_file(study: Study) -> Path:
    return submissions_folder(study.directory) / "supervisor" / "job.json"


def read_pickle(study: Study, job_id: str | None) -> Path:
    return job_file(study).with_name(f"{job_id}_submitted.pkl")


def names(study: Study) -> list[str]:
    return [job["name"] for job in study.slurm.read()["jobs"].values()]


def test_a_study_has_one_supervisor_under_a_name_used_once(study: Study) -> None:
    study.prepare()
    first = add_supervisor(study.profile, study.directory)
    assert first
    assert add_supervisor(study.profile, study.directory) is None
    study.slurm.end([first], "COMPLETED")
    second = add_supervisor(study.profile, study.directory)
    assert second not in (None, first)
    assert len(set(names(study))) == 2
    assert all(name.startswith("tiny-supervisor-") for name in names(study))


@pytest.mark.parametrize("queued", [True, False])
def test_a_call_that_was_killed_around_sbatch_leaves_one_supervisor(
    study: Study, queued: bool
) -> None:
    study.prepare()
    first = add_supervisor(study.profile, study.directory)
    record = json.loads(job_file(study).read_text())
    assert record["job_id"] == first
    job_file(study).write_text(json.dumps({**record, "job_id": None}))
    if not queued:
        study.slurm.change(queue={}, jobs={})
    read_pickle(study, first).unlink()
    assert (add_supervisor(study.profile, study.directory) is None) == queued
    (job,) = [job for job in slurm.queue().values() if job.active]
    assert read_pickle(study, job.id).exists()


@pytest.mark.parametrize("wrapper", [False, True])
def test_a_supervisor_finds_what_it_is_to_do_where_sbatch_did_not_say_its_id(
    study: Study, wrapper: bool
) -> None:
    study.prepare()
    if wrapper:
        (study.slurm.folder / "sbatch").rename(study.slurm.folder / "theirs")
        study.slurm.program(
            "sbatch",
            f"{study.slurm.folder / 'theirs'} \"$@\" >/dev/null && echo 'one job is queued'",
        )
    else:
        study.slurm.answer("sbatch", TIMED_OUT, queues="now")
    job_id = add_supervisor(study.profile, study.directory)
    assert pickle.loads(read_pickle(study, job_id).read_bytes()).function == Supervisor(
        str(study.directory)
    )


def test_an_older_supervisor_that_has_ended_is_not_taken_for_one_that_could_not_be_queued(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.prepare()
    first = add_supervisor(study.profile, study.directory)
    study.slurm.change(queue={first: ["COMPLETED", "n1", "None"]})
    study.slurm.answer("sbatch", TIMED_OUT, 20)
    with pytest.raises(ClusterError, match="Socket timed out"):
        add_supervisor(study.profile, study.directory)
    study.slurm.change(answers={})
    assert add_supervisor(study.profile, study.directory)


def test_what_is_refused_leaves_nothing(study: Study) -> None:
    study.prepare()
    study.slurm.answer("sbatch", "sbatch: error: invalid partition specified: main", 20)
    with pytest.raises(ConfigError, match="sbatch rejects the job"):
        add_supervisor(study.profile, study.directory)
    assert not job_file(study).exists()


def test_two_calls_at_once_queue_one_supervisor(study: Study) -> None:
    study.prepare()
    with take_lease(submissions_folder(study.directory) / "lease") as lease:
        assert lease
        with pytest.raises(
            BusyError, match=r"another isoflop command \(process \d+ on \S+\) is working here"
        ):
            add_supervisor(study.profile, study.directory)


# What it asks for


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        (
            {"slurm": {"mem-per-gpu": "80G", "gres": "gpu:8", "partition": "gpu"}},
            {"partition": "gpu", "mem": "1G"},
        ),
        ({"slurm": {"exclusive": True}}, {}),
        ({"node": NODE}, {}),
        ({"gpu": H100, "node": NODE}, {"mem": "1G"}),
        ({"gpu": H100, "node": NODE, "supervisor": {"mem-per-cpu": "2G"}}, {"mem-per-cpu": "2G"}),
        (
            {"supervisor": {"partition": "cpu", "cpus_per_task": 2}},
            {"partition": "cpu", "cpus_per_task": 2},
        ),
    ],
)
def test_a_supervisor_asks_for_little(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    asks = minimal_profile(
        Profile(**{"name": "ours", "executor": "slurm", "root": "runs", **changes})
    )
    assert asks.gpu is None
    assert asks.slurm == {"cpus_per_task": 1, **expected}
