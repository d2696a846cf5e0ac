"""Pickles of jobs, which name the same modules in every layout: jobs may import an older code."""

from __future__ import annotations

import base64
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.job_environment import _checkpoint
from submitit.core.utils import DelayedSubmission, JobPaths
from support.fake_study import make_study

from isoflop.launching.queue.submit_array import write_pickle
from isoflop.launching.records.submissions import read_submissions, submissions_folder
from isoflop.launching.slurm.signals import Job
from isoflop.launching.supervisor import Supervisor
from isoflop.launching.worker.calibration_job import MeasureJob
from isoflop.launching.worker.slurm_job import RunJob

JOBS: dict[type[Job], str] = {
    RunJob: "isoflop.launching.job",
    MeasureJob: "isoflop.launching.measuring",
    Supervisor: "isoflop.launching.supervising",
}

OLD = {
    RunJob: (
        "gAWV8wAAAAAAAACME3N1Ym1pdGl0LmNvcmUudXRpbHOUjBFEZWxheWVkU3VibWlzc2lvbpSTlCmBlH2U"
        "KIwIZnVuY3Rpb26UjBVpc29mbG9wLmxhdW5jaGluZy5qb2KUjAZSdW5Kb2KUk5QpgZR9lCiMCWRpcmVj"
        "dG9yeZSMDS9ydW5zL3RpbnkvcjGUjAhfc2lnbmFsc5SPlIwIX3JlcXVldWWUTnVijARhcmdzlCmMBmt3"
        "YXJnc5R9lIwHX3Jlc3VsdJROjAVfZG9uZZSJjAxfdGltZW91dF9taW6UTaAFjBJfdGltZW91dF9jb3Vu"
        "dGRvd26USgDKmjt1Yi4="
    ),
    MeasureJob: (
        "gAWV/QAAAAAAAACME3N1Ym1pdGl0LmNvcmUudXRpbHOUjBFEZWxheWVkU3VibWlzc2lvbpSTlCmBlH2U"
        "KIwIZnVuY3Rpb26UjBtpc29mbG9wLmxhdW5jaGluZy5tZWFzdXJpbmeUjApNZWFzdXJlSm9ilJOUKYGU"
        "fZQojAlkaXJlY3RvcnmUjA0vcnVucy90aW55L3IxlIwIX3NpZ25hbHOUj5SMCF9yZXF1ZXVllE51YowE"
        "YXJnc5QpjAZrd2FyZ3OUfZSMB19yZXN1bHSUTowFX2RvbmWUiYwMX3RpbWVvdXRfbWlulE2gBYwSX3Rp"
        "bWVvdXRfY291bnRkb3dulEoAypo7dWIu"
    ),
    Supervisor: (
        "gAWV/wAAAAAAAACME3N1Ym1pdGl0LmNvcmUudXRpbHOUjBFEZWxheWVkU3VibWlzc2lvbpSTlCmBlH2U"
        "KIwIZnVuY3Rpb26UjB1pc29mbG9wLmxhdW5jaGluZy5zdXBlcnZpc2luZ5SMClN1cGVydmlzb3KUk5Qp"
        "gZR9lCiMCWRpcmVjdG9yeZSMDS9ydW5zL3RpbnkvcjGUjAhfc2lnbmFsc5SPlIwIX3JlcXVldWWUTnVi"
        "jARhcmdzlCmMBmt3YXJnc5R9lIwHX3Jlc3VsdJROjAVfZG9uZZSJjAxfdGltZW91dF9taW6UTaAFjBJf"
        "dGltZW91dF9jb3VudGRvd26USgDKmjt1Yi4="
    ),
}
"""Files that the code of commit 29f18d5, before the move, wrote for `/runs/tiny/r1`."""


def pickled(job: Job, folder: Path) -> bytes:
    """Return the file that a task finds."""
    write_pickle(job, folder, "100_0")
    return (folder / "100_0_submitted.pkl").read_bytes()


def texts(stored: bytes) -> set[str]:
    """Return all text in a pickle: its module and class names, attribute names and values."""
    return {value for _, value, _ in pickletools.genops(stored) if isinstance(value, str)}


@pytest.mark.parametrize("kind", JOBS)
def test_a_pickle_from_before_the_move_loads(kind: type[Job]) -> None:
    delayed = pickle.loads(base64.b64decode(OLD[kind]))
    assert type(delayed.function) is kind
    assert delayed.function == kind("/runs/tiny/r1")
    assert vars(delayed.function) == vars(kind("/runs/tiny/r1"))


@pytest.mark.parametrize("kind", JOBS)
def test_a_pickle_of_today_names_the_same_modules_and_attributes(
    kind: type[Job], tmp_path: Path
) -> None:
    today, before = texts(pickled(kind("/runs/tiny/r1"), tmp_path)), base64.b64decode(OLD[kind])
    assert today == texts(before)
    assert {JOBS[kind], kind.__name__, "directory", "_signals", "_requeue"} <= today


@pytest.mark.parametrize("kind", JOBS)
def test_the_named_module_is_imported_where_a_process_pickles(
    kind: type[Job], tmp_path: Path
) -> None:
    """Elsewhere the suite may have imported it; by value, a pickle would hold the whole class."""
    home = {
        RunJob: "worker.slurm_job",
        MeasureJob: "worker.calibration_job",
        Supervisor: "supervisor",
    }
    code = (
        "import sys; from pathlib import Path; "
        "from isoflop.launching.queue.submit_array import write_pickle; "
        f"from isoflop.launching.{home[kind]} import {kind.__name__} as kind; "
        f"assert {JOBS[kind]!r} not in sys.modules; "
        "write_pickle(kind('/runs/tiny/r1'), Path(sys.argv[1]), '100_0')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    stored = (tmp_path / "100_0_submitted.pkl").read_bytes()
    assert texts(stored) == texts(base64.b64decode(OLD[kind]))


def test_what_submitit_writes_for_an_array_names_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path, monkeypatch)
    study.submit()
    (made,) = read_submissions(study.directory)
    files = sorted((submissions_folder(study.directory) / made.name).glob("*_submitted.pkl"))
    assert len(files) == len(study.ids)
    for file in files:
        assert {"isoflop.launching.job", "RunJob"} <= texts(file.read_bytes())
        assert not any("slurm_job" in text for text in texts(file.read_bytes()))


@pytest.mark.parametrize("kind", JOBS)
def test_what_a_job_leaves_for_its_next_start_names_them_too(
    kind: type[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = JobPaths(tmp_path, "7").submitted_pickle
    delayed = DelayedSubmission(kind("/runs/tiny/r1"))
    delayed.set_timeout(60, 5)
    delayed.dump(file)
    assert _checkpoint(delayed, file, 4) == ""
    assert texts(file.read_bytes()) == texts(base64.b64decode(OLD[kind]))
