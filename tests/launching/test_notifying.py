"""Hooks: what is told of a study, by a command and by a URL, each thing once."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_study import Study, make_study

from isoflop.config.profile import Gpu, Node, Profile
from isoflop.launching.notifying import notify
from isoflop.launching.reconcile import Picture
from isoflop.launching.steering import look
from isoflop.launching.submission import submissions_folder
from isoflop.launching.submitting import keep_profile
from isoflop.launching.supervising import light, pause_s, supervise, tell
from isoflop.lease import take_lease

H100, NODE = Gpu(type="h100-sxm", per_node=8), Node(cpus=96, memory_gb=1000)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return make_study(tmp_path, monkeypatch)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where the hook writes."""
    return tmp_path / "told.txt"


@pytest.fixture
def hooked(study: Study, told: Path) -> Profile:
    """The study's profile with a command that keeps its words, one a line."""
    hook = told.with_name("hook.sh")
    hook.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{told}\n')
    hook.chmod(0o755)
    return dataclasses.replace(study.profile, notify=f"{hook} 'two words'")


def test_a_command_is_told_each_thing_once(study: Study, hooked: Profile, told: Path) -> None:
    assert [notify(hooked, study.directory, "stuck", "a $(b) 'c'") for _ in range(2)] == [True, False]
    assert told.read_text().splitlines() == ["two words", "stuck", str(study.directory), "a $(b) 'c'"]
    assert notify(hooked, study.directory, "stuck", "something else")
    assert not notify(study.profile, study.directory, "done", "all")


@pytest.mark.parametrize("hook", ["/bin/false", "/nowhere/hook", "http://127.0.0.1:9/", "'"])
def test_a_hook_that_fails_is_a_warning_and_is_tried_again(
    study: Study, hook: str, hooked: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = dataclasses.replace(study.profile, notify=hook)
    assert not notify(broken, study.directory, "done", "all")
    err = capsys.readouterr().err
    assert err.startswith("isoflop: warning: notify: ")
    assert err.count("\n") == 1
    assert notify(hooked, study.directory, "done", "all")


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """A URL, and the documents that were sent to it."""
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
    assert [notify(profile, study.directory, "failed", "r1 failed: why") for _ in range(2)] == [True, False]
    assert documents == [
        {"sweep": "tiny", "directory": str(study.directory), "event": "failed", "message": "r1 failed: why"}
    ]


# What a look tells


def events(told: Path) -> list[tuple[str, str]]:
    """Event and message of each call of the hook."""
    lines = told.read_text().splitlines() if told.exists() else []
    return [(lines[at + 1], lines[at + 3]) for at in range(0, len(lines), 4)]


def picture(study: Study, retries: int = 0) -> Picture:
    return look(study.directory, retries)


def test_what_failed_for_good_and_what_waits_for_ever(study: Study, hooked: Profile, told: Path) -> None:
    study.queued()
    tell(hooked, study.directory, picture(study))
    assert events(told) == []
    study.slurm.change(queue={"100_2": ["PENDING", "", "PartitionTimeLimit"]})
    study.run(0).set_state("failed", "no luck", failures=1)
    study.run(1).set_state("diverged", "not finite")
    tell(hooked, study.directory, picture(study, retries=2))
    first, second, third = study.ids
    waits = "waits for ever: PartitionTimeLimit: slurm.time is longer than the partition allows"
    assert events(told) == [("failed", f"{second} diverged: not finite"), ("stuck", f"{third} {waits}")]
    tell(hooked, study.directory, picture(study, retries=0))
    assert events(told)[2:] == [("failed", f"{first} failed: no luck")]


def test_the_end_is_told_once_all_are_done(study: Study, hooked: Profile, told: Path) -> None:
    study.queued()
    for number in range(3):
        assert events(told) == []
        (study.run(number).path / "DONE").touch()
        tell(hooked, study.directory, picture(study))
    tell(hooked, study.directory, picture(study))
    assert events(told) == [("done", "all 3 runs are done")]


def test_what_stops_a_supervisor_is_told(study: Study, hooked: Profile, told: Path) -> None:
    study.queued()
    keep_profile(hooked, study.directory)
    study.slurm.change(queue={})
    study.slurm.end([f"100_{index}" for index in range(3)], "NODE_FAIL")
    study.slurm.answer("sbatch", "sbatch: error: invalid partition specified: main", 20)
    assert supervise(study.directory) == "goes on"
    ((event, message),) = events(told)
    assert event == "stuck"
    assert message.startswith("slurm.partition: sbatch refuses it: ")


def test_a_look_that_comes_to_nothing_is_not_told_of(study: Study, hooked: Profile, told: Path) -> None:
    study.queued()
    keep_profile(hooked, study.directory)
    with take_lease(submissions_folder(study.directory) / "lease") as mine:
        assert mine
        assert supervise(study.directory) == "in vain"
    study.slurm.answer("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 20)
    assert supervise(study.directory) == "in vain"
    assert events(told) == []


def test_after_looks_in_vain_the_next_comes_soon() -> None:
    assert [pause_s(in_vain) for in_vain in range(7)] == [60.0, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


@pytest.mark.parametrize("killed", [False, True])
def test_a_report_that_fails_does_not_end_the_supervisor(
    study: Study, hooked: Profile, told: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()
    keep_profile(hooked, study.directory)
    study.slurm.change(queue={})
    for number in range(3):
        (study.run(number).path / "DONE").touch()
    if killed:
        python = told.with_name("python")
        python.write_text("#!/bin/sh\necho so far so good >&2\nkill -9 $$\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
    else:
        (study.directory / "plan.parquet").write_bytes(b"damaged")
    assert supervise(study.directory) == "over"
    (stuck, message), done = events(told)
    assert stuck == "stuck"
    assert message.startswith("no report: ended with -9: so far so good; " if killed else "no report: ended with 1: ")
    assert killed or "plan.parquet" in message
    assert done == ("done", "all 3 runs are done")


# What it asks for


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {}),
        ({"slurm": {"mem-per-gpu": "80G", "gres": "gpu:8", "partition": "gpu"}}, {"partition": "gpu", "mem": "1G"}),
        ({"slurm": {"exclusive": True}}, {}),
        ({"node": NODE}, {}),
        ({"gpu": H100, "node": NODE}, {"mem": "1G"}),
        ({"gpu": H100, "node": NODE, "supervisor": {"mem-per-cpu": "2G"}}, {"mem-per-cpu": "2G"}),
        ({"supervisor": {"partition": "cpu", "cpus_per_task": 2}}, {"partition": "cpu", "cpus_per_task": 2}),
    ],
)
def test_a_supervisor_asks_for_little(changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    asks = light(Profile(**{"name": "ours", "executor": "slurm", "root": "runs", **changes}))
    assert asks.gpu is None
    assert asks.slurm == {"cpus_per_task": 1, **wanted}
