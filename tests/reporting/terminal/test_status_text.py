"""Text and JSON of `isoflop status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.fake_study import Study, make_study

from isoflop.launching.records.submissions import Submission, submissions_folder
from isoflop.launching.status_table import read_status
from isoflop.launching.supervisor import add_supervisor
from isoflop.reporting.terminal.status_text import print_status, print_status_json


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = make_study(tmp_path, monkeypatch)
    made.queued()
    return made


@pytest.mark.parametrize(
    "odd",
    [
        {"loss": "none", "tokens_per_second": "fast", "wall_s": "long", "gpus": None},
        {
            "loss": float("nan"),
            "tokens_per_second": float("inf"),
            "wall_s": float("nan"),
            "gpus": 1,
        },
        {"loss": 10**400, "tokens_per_second": 1e-300, "wall_s": 10**400, "step": 10**400},
        {"loss": [], "tokens_per_second": -1, "attempt": "one", "step": "two", "steps": {}},
        {"step": -3, "steps": -1, "attempt": -7},
    ],
)
def test_odd_values_of_a_state_raise_no_error(
    study: Study, odd: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study.slurm.change(queue={"100_0": ["RUNNING", "n1", "None"]})
    state = {"state": "running", "reason": "", "attempt": 1, "step": 1, "steps": 4, **odd}
    (study.run(0).path / "state.json").write_text(json.dumps(state))
    status = read_status(study.directory, 2)
    print_status(status)
    assert "1 running" in capsys.readouterr().out
    print_status_json(status)
    document = json.loads(capsys.readouterr().out)["runs"][0]
    assert all(document[key] is None for key in ("loss", "seconds_left"))
    assert 0 <= document["progress"] <= 1


def test_jobs_of_runs_that_the_sweep_has_no_more_are_noted(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Submission("tiny-0", ("1e8-w98-s0-0123abcd", "1e8-w99-s0-0123abcd"), 0, 1.0, "90")
    gone.write(submissions_folder(study.directory))
    study.slurm.change(queue={f"90_{index}": ["PENDING", "", "Priority"] for index in range(2)})
    status = read_status(study.directory, 2)
    print_status(status)
    runs = ", ".join(gone.runs)
    note = f"2 runs are no longer in the sweep but still active: {runs}; `isoflop cancel "
    assert capsys.readouterr().err.startswith(f"isoflop: warning: {note}")
    print_status_json(status)
    document = json.loads(capsys.readouterr().out)
    assert [run["run_id"] for run in document["runs"]] == study.ids
    assert document["notes"][0].startswith(note)


def test_simulated_losses_are_marked(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.run(1).set_state("running", simulated=True)
    print_status(read_status(study.directory, 2))
    assert (
        "the losses of 1 runs are simulated (train.trainer): drawn from a law"
        in capsys.readouterr().err
    )


def test_a_supervisor_that_ended_before_the_study_is_reported(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    job = add_supervisor(study.profile, study.directory)
    print_status(read_status(study.directory, 2))
    assert "supervisor" not in capsys.readouterr().err
    queue = study.slurm.read()["queue"]
    study.slurm.change(queue={**queue, str(job): ["OUT_OF_MEMORY", "n1", "None"]})
    print_status(read_status(study.directory, 2))
    note = f"the supervisor, job {job}, has ended; `isoflop submit ... --supervise` queues another"
    assert note in capsys.readouterr().err
    study.slurm.change(
        queue={str(job): ["COMPLETED", "n1", "None"]}
    )  # as it does when nothing is left
    for number in range(3):
        study.run(number).set_state("diverged", "the loss was not finite")
    print_status(read_status(study.directory, 2))
    assert "supervisor" not in capsys.readouterr().err
