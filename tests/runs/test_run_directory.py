"""Run directories: configuration, state, lease and loss log."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from support.tiny_studies import find_run

from isoflop.config.yaml_values import parse_yaml
from isoflop.errors import RunError
from isoflop.launching.records.sweep_directory import make_directory, run_config
from isoflop.planning.plan import Plan
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory


def rows(step: int, split: str = "train") -> list[dict[str, Any]]:
    common = dict.fromkeys(LOG_COLUMNS, 0.5) | {
        "step": step,
        "tokens": 10 * step,
        "split": split,
        "targets": 8,
    }
    return [
        common | {"kind": kind, "loss": step + share}
        for kind, share in (("all", 0.0), ("text", 0.25))
    ]


# Configuration


def test_a_directory_is_made_once(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run, config = find_run(root, plan), run_config(plan.sweep, plan.runs[0])
    before = (run.path / "config.yaml").stat().st_mtime_ns
    run.create(config)
    assert (run.path / "config.yaml").stat().st_mtime_ns == before
    assert run.config() == config
    assert run.run_id == plan.runs[0].run_id


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("run", "steps"), 7, "run"),
        (("run", "lr"), 1.0, "run"),
        (("identity", "shape", "width"), 16, "identity"),
        (("data",), "0123456789ab", "data"),
        (("metric", "kind"), "text", "metric"),
        (("precision",), "bf16", "precision"),
    ],
)
def test_an_edited_configuration_is_refused(
    study: tuple[Path, Plan], path: tuple[str, ...], value: object, name: str
) -> None:
    root, plan = study
    file = find_run(root, plan).path / "config.yaml"
    document = parent = yaml.safe_load(file.read_text())
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(
        RunError,
        match=f"config.yaml: its {name} is not the plan's; it was edited: restore it, or del",
    ):
        make_directory(plan, root)


@pytest.mark.parametrize(
    ("key", "value"), [("evals", 9), ("log_points", 3), ("checkpoint_minutes", 5.0)]
)
def test_intervals_of_logs_and_checkpoints_may_differ(
    study: tuple[Path, Plan], key: str, value: float
) -> None:
    root, plan = study
    file = find_run(root, plan).path / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {key: value}))
    make_directory(plan, root)


@pytest.mark.parametrize("text", ["08", "010", "0o17", "-.5", ".5e3", "1e5", "1:30", "yes", "0x10"])
def test_a_configuration_reads_the_same_by_yaml_1_1_and_1_2(
    study: tuple[Path, Plan], tmp_path: Path, text: str
) -> None:
    _, plan = study
    config = run_config(plan.sweep, plan.runs[0])
    config["metric"]["set"] = text
    (run := RunDirectory(tmp_path / "run")).create(config)
    assert run.config() == config
    assert parse_yaml((run.path / "config.yaml").read_text()) == config


def test_numbers_that_differ_in_their_last_bits_are_equal(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run, config = find_run(root, plan), run_config(plan.sweep, plan.runs[0])
    run.create(
        config
        | {"run": config["run"] | {"lr": config["run"]["lr"] * (1 + 2e-16), "sweep": "renamed"}}
    )


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"run: {", b"run: {}\n", b"\x00\x01", b"\xff\xfe\x00"]
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        RunError, match=r"config\.yaml: .*delete the run's directory to start it again"
    ):
        RunDirectory(tmp_path).config()


def test_a_full_disk_is_an_error_that_names_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a name, like write()

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as problem:
        RunDirectory(tmp_path / "run").create({"run": {}})
    assert problem.value.filename == str(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# State


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"state": "resting"}',
        '{"state": ["failed"]}',
        '{"state": null}',
        '{"state": "failed", "failures": "x"}',
        '{"state": "failed", "failures": null}',
        '{"state": "failed", "attempt": "two"}',
        '{"state": "failed", "reason": 7}',
        '{"state": "failed", "failed_on": "n1"}',
        '{"state": "failed", "failed_on": [["n1"]]}',
        '{"state": "running", "step": "5"}',
        '{"state": "running", "step": 5, "steps": [71]}',
        '{"state": "running", "tokens_per_second": "fast"}',
        '{"state": "running", "wall_s": null, "gpus": 1}',
        '{"state": "running", "gpus": "all"}',
        '{"state": "pending", "in_vain": {}}',
        '{"state": "pending", "starts_without_progress": {}}',
        '{"state": "pending", "node": 1}',
        '{"state": "pending", "job_id": 1}',
        '{"state": "diverged", "loss": "nan"}',
    ],
)
def test_without_a_readable_state_a_run_is_pending(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert RunDirectory(tmp_path).state() == {
        "state": "pending",
        "reason": "",
        "attempt": 0,
        "step": 0,
    }


@pytest.mark.parametrize(
    "stored",
    [
        {"state": "failed"},
        {
            "state": "running",
            "loss": None,
            "tokens_per_second": None,
            "job_id": None,
            "start_step": None,
        },
        {
            "state": "diverged",
            "loss": float("inf"),
            "other": [1],
            "failed_on": ["n1", "n1"],
            "failures": 2,
        },
    ],
)
def test_missing_fields_of_a_state_are_those_of_a_new_run(
    tmp_path: Path, stored: dict[str, Any]
) -> None:
    (tmp_path / "state.json").write_text(json.dumps(stored))
    assert RunDirectory(tmp_path).state() == {"reason": "", "attempt": 0, "step": 0, **stored}


def test_a_field_under_its_old_name_is_read_and_written_under_the_new(tmp_path: Path) -> None:
    file, run = tmp_path / "state.json", RunDirectory(tmp_path)
    file.write_text('{"state": "pending", "starts_without_progress": 0, "in_vain": 2}')
    assert run.state()["starts_without_progress"] == 2
    run.set_state("running")
    stored = json.loads(file.read_text())
    assert (stored["starts_without_progress"], "in_vain" in stored) == (2, False)


def test_other_fields_of_a_state_do_not_change(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_state("running", attempt=2, data_checksum="abc")
    run.set_state("failed", "no luck", step=5)
    state = run.state()
    assert state.pop("heartbeat") > 0
    assert state == {
        "state": "failed",
        "reason": "no luck",
        "attempt": 2,
        "step": 5,
        "data_checksum": "abc",
    }


def test_a_run_with_the_marker_is_done_whatever_its_state(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_state("running")
    (tmp_path / "DONE").touch()
    assert run.done
    assert run.state()["state"] == "done"


# Lease


HOLD = """
import sys
from pathlib import Path
from isoflop.runs.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lease() as lease:
    print(bool(lease), flush=True)
    sys.stdin.read()
"""
"""Program that prints whether it has a run's lease, and holds it until its input ends."""


def test_a_lease_is_held_by_one_process_until_it_is_killed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.is_leased()
    command = [sys.executable, "-c", HOLD, tmp_path]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert run.is_leased()
    with run.lease() as lease:
        assert not lease
    assert (tmp_path / "lease").read_text().split()[1] == str(holder.pid)
    holder.kill()
    holder.communicate()
    assert not run.is_leased()
    with run.lease() as lease:
        assert lease
        assert (tmp_path / "lease").read_text().split()[1] == str(os.getpid())
    assert not run.is_leased()


# Loss log


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Draw the steps of consecutive parts, and the step of a cut."""
    steps = sorted(draw(st.sets(st.integers(1, 40), max_size=12)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(steps), max_size=len(steps)))
    parts, begin = [], 0
    for size in sizes:
        parts.append(steps[begin : begin + size])
        begin += size
    return parts, draw(st.integers(0, 42))


@given(logs(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_truncated_log_has_the_rows_up_to_a_step(
    log: tuple[list[list[int]], int], twice: bool
) -> None:
    parts, cut = log
    with TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        for steps in parts:
            run.append_log([row for step in steps for row in rows(step) + rows(step, "heldout")])
        whole = run.log()
        assert list(whole["step"]) == sorted(whole["step"])
        assert whole["loss"].tolist() == [
            step + share for steps in parts for step in steps for share in (0, 0.25) * 2
        ]
        run.truncate_log(cut)
        if twice:
            run.truncate_log(cut)
        remaining = whole.loc[whole["step"] <= cut].reset_index(drop=True)
        assert_frame_equal(run.log(), remaining, check_exact=True)
        run.append_log(rows(50))
        assert len(run.log()) == len(remaining) + 2


def test_an_interrupted_truncation_is_repeated(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_log([row for step in range(1, 9) for row in rows(step)])
    file = next((tmp_path / "loss").iterdir())
    content = file.read_bytes()
    run.truncate_log(5)
    file.write_bytes(
        content
    )  # killed after the new part was written, before the old one is removed
    run.truncate_log(5)
    assert run.log()["step"].tolist() == [step for step in range(1, 6) for _ in range(2)]


def test_an_empty_log_has_the_columns() -> None:
    with TemporaryDirectory() as folder:
        frame = RunDirectory(Path(folder)).log()
    assert list(frame.columns) == list(LOG_COLUMNS)
    assert len(frame) == 0


def test_incomplete_files_are_removed_and_never_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_log(rows(1))
    strays = [
        tmp_path / "loss" / ".000000002-000000002.parquet.77.tmp",
        tmp_path / "checkpoints" / ".step-1.pt.77.tmp",
    ]
    strays[1].parent.mkdir()
    for stray in strays:
        stray.write_bytes(b"half")
    assert len(run.log()) == 2
    run.remove_abandoned()
    assert not any(stray.exists() for stray in strays)
    assert len(run.log()) == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1 and then nothing", None])
def test_a_damaged_part_is_named(tmp_path: Path, damage: bytes | None) -> None:
    run = RunDirectory(tmp_path)
    run.append_log(rows(1))
    file = next((tmp_path / "loss").iterdir())
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(
        RunError, match=r"000000001-000000001\.parquet: damaged .* delete the run's directory"
    ):
        run.log()


@pytest.mark.parametrize(
    ("name", "age_s", "stays"),
    [
        (".state.json.77.tmp", 3600.0, False),
        (".state.json.77.tmp", 0.0, True),
        (".config.yaml.77.tmp", 3600.0, False),
        (".weights.pt.77.tmp", 0.0, False),
        ("notes.tmp", 3600.0, True),
    ],
)
def test_only_old_incomplete_files_of_other_processes_are_removed(
    tmp_path: Path, name: str, age_s: float, stays: bool
) -> None:
    stray = tmp_path / name
    stray.write_bytes(b"half")
    written = time.time() - age_s
    os.utime(stray, (written, written))
    RunDirectory(tmp_path).remove_abandoned()
    assert stray.exists() is stays
