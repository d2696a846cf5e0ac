"""`isoflop submit`, `status`, `cancel`, `retry`, `logs` without a cluster: streams and codes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_studies import find_run, tiny_plan, write_sweep

from isoflop.config import load_sweep
from isoflop.config.sweep_file import to_yaml
from isoflop.launching.records import code_snapshot as snapshot
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker.attempt import attempt
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.training import loggers

Output = tuple[int, str, str]

PROFILE = """\
schema: 1
executor: slurm
gpu: {type: h100-sxm, per_node: 8}
node: {cpus: 96, memory_gb: 1000}
slurm: {partition: gpu, account: speech, time: "48:00:00", requeue: true}
setup: [module load cuda]
price_per_gpu_hour: 2
root: ROOT
"""

CPU = """\
schema: 1
executor: slurm
slurm: {partition: cpu}
root: ROOT
"""

SIMULATED = "train.trainer={simulated: soda}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of runs, in a working folder with sweeps and profiles, without SLURM."""
    root = tmp_path / "runs"
    write_sweep(tmp_path)
    for name, text in (("gpu", PROFILE), ("cpu", CPU)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("ROOT", str(root)))
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def made(root: Path, tmp_path: Path) -> tuple[Path, Plan]:
    """Return a sweep's directory that was never submitted, and its plan."""
    plan = tiny_plan(tmp_path, SIMULATED)
    return make_directory(plan, root), plan


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files and folders below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def error(err: str) -> str:
    """Return the single line of an error, the last of stderr."""
    *_, last = err.splitlines()
    assert err.count("isoflop: error: ") == 1
    assert last.startswith("isoflop: error: ")
    return last.removeprefix("isoflop: error: ")


# Submitting


@pytest.mark.parametrize(("profile", "refused"), [("cpu", True), ("elsewhere", False)])
def test_a_logger_that_is_not_installed_is_refused_unless_another_python_may_have_it(
    isoflop: Callable[..., Output],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    refused: bool,
) -> None:
    Path("elsewhere.yaml").write_text(
        CPU.replace("ROOT", str(root)) + "python: apptainer exec image.sif python\n"
    )
    monkeypatch.setitem(loggers.MIN_VERSIONS, "wandb", (999, 0))
    code, out, err = isoflop(
        "submit",
        "tiny.yaml",
        SIMULATED,
        "train.loggers=[wandb]",
        "--cluster",
        f"{profile}.yaml",
        "--dry-run",
    )
    if refused:
        assert (code, out) == (2, "")
        assert error(err).startswith("train.loggers: wandb is too old; leave it out, or run: ")
    else:
        assert "train.loggers" not in err
    assert not root.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--cluster", "local"],
            "local: executor: is local; on this machine use `isoflop run soda`",
        ),
        (
            ["--cluster", "h100"],
            "h100 (shipped): slurm.account: has no value yet (???); put yours in its place",
        ),
        (["--cluster", "h1000"], "h1000: no such file; did you mean h100, of the shipped ones: "),
        (["--cluster", "wrong.yaml"], "wrong.yaml: max_gpu: unknown key; did you mean max_gpus?"),
        (
            ["--cluster", "gpu.yaml", "seq_lne=3"],
            "soda (shipped), override seq_lne=3: seq_lne: unknown key; did you",
        ),
        (["--cluster", "gpu.yaml", "--only", "budget >"], "--only 'budget >': "),
        (
            ["--cluster", "gpu.yaml", "--only", "width > 5e4"],
            "--only 'width > 5e4': selects none of the 64 runs",
        ),
        (["--cluster", "gpu.yaml", "--only", "@__import__"], "--only: a query has no @; "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    isoflop: Callable[..., Output], root: Path, arguments: list[str], says: str
) -> None:
    Path("wrong.yaml").write_text(PROFILE.replace("ROOT", str(root)) + "max_gpu: 8\n")
    code, out, err = isoflop("submit", "soda", "--yes", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert error(err).startswith(says)
    assert not root.exists()


def test_a_study_above_its_cap_is_refused_before_anything_is_written(
    isoflop: Callable[..., Output], root: Path
) -> None:
    code, out, err = isoflop(
        "submit", "soda", "--cluster", "gpu.yaml", "--yes", "--max-gpu-hours", "10"
    )
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert re.match(
        r"the runs to queue need about \d,\d{3} GPU-hours, --max-gpu-hours allows 10; ",
        error(err),
    )
    assert not root.exists()
    code, out, _ = isoflop(
        "submit", "soda", "--cluster", "gpu.yaml", "--dry-run", "--max-gpu-hours", "1e5"
    )
    assert (code, out[:2]) == (0, "# ")


def test_a_dry_run_shows_the_scripts_and_changes_nothing(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    before = files(tmp_path)
    code, out, err = isoflop("submit", "soda", "--cluster", "gpu.yaml", "--dry-run")
    assert code == 0
    scripts = out.split("#!/bin/bash\n")[1:]
    assert (
        sum(
            int(line.split()[1])
            for line in out.splitlines()
            if line.startswith("# ") and " runs: " in line
        )
        == 64
    )
    for script in scripts:
        assert {"#SBATCH --partition=gpu", "#SBATCH --account=speech", "module load cuda"} <= set(
            script.splitlines()
        )
        assert f"{root / 'soda' / 'submissions'}" in script
    assert "64 new" in err
    assert "GPU-hours on gpu" in err
    assert "error" not in err
    assert files(tmp_path) == before


def test_only_what_is_chosen_would_be_queued(isoflop: Callable[..., Output]) -> None:
    code, out, err = isoflop(
        "submit", "soda", "--cluster", "gpu.yaml", "--dry-run", "--only", "budget <= 3e18"
    )
    assert code == 0
    runs = [line for line in out.splitlines() if line.startswith("# ") and " runs: " in line]
    assert 0 < sum(int(line.split()[1]) for line in runs) < 20
    assert all("3e18-" in line for line in runs)
    assert "not chosen" in err
    statuses = {line.partition(": ")[0]: line for line in err.splitlines()}
    assert "3e18-" in statuses["critical"]
    assert "1.8e20-" not in statuses["critical"]
    hours = float(re.findall(r"cost: ([\d.,]+) GPU-hours", err)[0].replace(",", ""))
    assert (
        hours
        < float(re.findall(r"the whole study takes ([\d,]+) GPU-hours", err)[0].replace(",", ""))
        / 20
    )


def test_a_dry_run_says_which_arrays_wait_for_others(isoflop: Callable[..., Output]) -> None:
    Path("few.yaml").write_text(Path("gpu.yaml").read_text() + "max_gpus: 16\n")
    code, out, _ = isoflop(
        "submit", "soda", "--cluster", "few.yaml", "--dry-run", "--order", "budget"
    )
    waits = re.findall(
        r"^# array (\d+), starts after these arrays have ended: ([\d, ]+)$", out, re.MULTILINE
    )
    assert code == 0
    assert waits
    assert all(
        int(number) > int(other) >= 1 for number, others in waits for other in others.split(", ")
    )


def test_files_from_pipes_are_read_as_often_as_needed(isoflop: Callable[..., Output]) -> None:
    pipes = []
    for text in (to_yaml(load_sweep("soda")), Path("gpu.yaml").read_text()):
        reads, writes = os.pipe()
        os.write(writes, text.encode())
        os.close(writes)
        pipes.append(f"/dev/fd/{reads}")
    code, out, err = isoflop("submit", pipes[0], "name=soda", "--cluster", pipes[1], "--dry-run")
    assert (code, out[:2]) == (0, "# "), err


def test_who_can_not_be_asked_has_to_say_yes(isoflop: Callable[..., Output], root: Path) -> None:
    code, out, err = isoflop("submit", "tiny.yaml", "--cluster", "cpu.yaml")
    assert (code, out) == (2, "")
    assert (
        error(err)
        == "cannot ask for confirmation: stdin is not a terminal; add --yes to queue, or "
        "--dry-run to see the cost estimate"
    )
    assert not root.exists()


def test_without_slurm_nothing_is_made(isoflop: Callable[..., Output], root: Path) -> None:
    code, out, err = isoflop("submit", "tiny.yaml", SIMULATED, "--cluster", "cpu.yaml", "--yes")
    assert (code, out) == (4, "")
    assert (
        error(err)
        == "squeue: not found; is this a login node of the cluster, with SLURM on the PATH?"
    )
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["lease"]
    code, _, err = isoflop("status", str(root / "tiny"))
    assert (code, error(err)) == (
        2,
        f"{root / 'tiny'}: was never submitted; see `isoflop submit --help`",
    )


def test_what_is_done_is_not_queued_again_and_needs_no_slurm(
    isoflop: Callable[..., Output], made: tuple[Path, Plan]
) -> None:
    directory, plan = made
    for spec in plan.runs:
        attempt(RunDirectory(directory / spec.run_id), lambda: False, None)
    before = files(directory)
    code, out, err = isoflop("submit", "tiny.yaml", SIMULATED, "--cluster", "cpu.yaml")
    assert (code, out) == (0, f"{directory}\n")
    assert "3 done" in err
    assert files(directory) == before


def test_who_adds_runs_hears_that_the_study_s_code_is_another(
    isoflop: Callable[..., Output],
    made: tuple[Path, Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, _ = made
    (package := tmp_path / "package").mkdir()
    (package / "code.py").write_text("a = 1\n")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    command = ("submit", "tiny.yaml", SIMULATED, "--cluster", "cpu.yaml", "--dry-run")
    snapshot.snapshot_code(directory)
    assert "study's code" not in isoflop(*command)[2]
    (package / "code.py").write_text("a = 2\n")
    lines = isoflop(*command)[2].splitlines()
    assert [
        line
        for line in lines
        if line.startswith("isoflop: warning: new and queued runs use the study's code, ")
    ]
    assert "study's code" not in isoflop(*command, "--new-code")[2]


def test_runs_that_are_added_or_left_are_said_first(
    isoflop: Callable[..., Output], made: tuple[Path, Plan]
) -> None:
    directory, plan = made
    attempt(RunDirectory(directory / plan.runs[0].run_id), lambda: False, None)
    command = ("submit", "tiny.yaml", SIMULATED, "--cluster", "cpu.yaml", "--dry-run")
    code, _, err = isoflop(*command, "widths=[12, 16, 20]")
    note = "1 existing runs are no longer in the sweep; they were not changed"
    warning = f"isoflop: warning: {note}: {plan.runs[0].run_id} (done)"
    assert code == 0
    assert f"{directory}: 3 new" in err.splitlines()
    assert warning in err.splitlines()
    _, _, err = isoflop(*command, "widths=[8, 12, 16, 20]")
    assert f"{directory}: 1 done, 3 new" in err.splitlines()
    assert "any more" not in err


def test_a_run_directory_that_was_half_made_is_no_run(
    isoflop: Callable[..., Output], made: tuple[Path, Plan]
) -> None:
    directory, plan = made
    expected = isoflop("submit", "tiny.yaml", SIMULATED, "--cluster", "cpu.yaml", "--dry-run")
    shutil.copytree(
        directory / plan.runs[0].run_id, directory / f".{plan.runs[0].run_id}.x1y2z3.tmp"
    )
    assert (
        isoflop("submit", "tiny.yaml", SIMULATED, "--cluster", "cpu.yaml", "--dry-run") == expected
    )


def test_the_directory_of_another_study_is_refused(
    isoflop: Callable[..., Output], made: tuple[Path, Plan]
) -> None:
    code, _, err = isoflop(
        "submit", "tiny.yaml", SIMULATED, "seq_len=64", "--cluster", "cpu.yaml", "--yes"
    )
    assert code == 2
    assert "made by another study: seq_len was 32, is 64" in error(err)


def test_a_law_that_is_not_known_is_refused_by_the_dry_run_too(
    isoflop: Callable[..., Output], root: Path
) -> None:
    code, out, err = isoflop(
        "submit",
        "tiny.yaml",
        "train.trainer=simulated: sodda",
        "--cluster",
        "cpu.yaml",
        "--dry-run",
    )
    assert (code, out) == (2, "")
    assert error(err).startswith("tiny.yaml: train.trainer: simulated: 'sodda' is no known law")
    assert not root.exists()


# Looking and steering


@pytest.mark.parametrize("command", ["status", "cancel", "retry"])
def test_a_folder_that_is_no_sweep(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path, command: str
) -> None:
    for folder in (tmp_path, root / "absent"):
        before = files(tmp_path)
        code, out, err = isoflop(command, str(folder))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert error(err).startswith(f"{folder}: ")
        assert files(tmp_path) == before
    code, _, err = isoflop("logs", str(root / "absent"), "1e8")
    assert (code, err.count("\n")) == (2, 1)
    assert error(err).startswith(
        f"{root / 'absent'}: no sweep's directory (it has no plan.parquet)"
    )


@pytest.mark.parametrize("command", ["status", "retry"])
def test_a_sweep_that_was_never_submitted(
    isoflop: Callable[..., Output], made: tuple[Path, Plan], command: str
) -> None:
    directory, _ = made
    code, out, err = isoflop(command, str(directory))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert error(err) == f"{directory}: was never submitted; see `isoflop submit --help`"


def test_logs_are_those_of_the_newest_attempt(
    isoflop: Callable[..., Output], made: tuple[Path, Plan], root: Path
) -> None:
    directory, plan = made
    run = find_run(root, plan)
    code, _, err = isoflop("logs", str(directory), run.run_id)
    assert (code, error(err)) == (
        2,
        f"{run.run_id}: has written nothing yet; `isoflop run` of its sweep trains it",
    )
    for _ in range(2):
        attempt(run, lambda: False, None)
    for name in (run.run_id, run.run_id[:6], run.run_id.rpartition("-")[2][:4]):
        code, out, err = isoflop("logs", str(directory), name)
        assert (code, err) == (0, f"{run.log_file(2)}\n")
        assert out == run.log_file(2).read_text()
        assert f"{run.run_id}: done after" in out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("9e9-w8", "9e9-w8: fits no run of "),
        ("1e8-", "1e8-: fits 3 runs (1e8-w8-"),
        ("", ": fits 3 "),
    ],
)
def test_a_run_that_is_not_known(
    isoflop: Callable[..., Output], made: tuple[Path, Plan], name: str, says: str
) -> None:
    directory, _ = made
    for command in ("logs", "cancel"):
        code, out, err = isoflop(command, str(directory), name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert error(err).startswith(says)


def test_status_of_a_sweep_without_its_cluster(
    isoflop: Callable[..., Output], made: tuple[Path, Plan]
) -> None:
    directory, plan = made
    (directory / "cluster.yaml").write_text(CPU.replace("ROOT", str(directory.parent)))
    done, diverged, _ = (RunDirectory(directory / spec.run_id) for spec in plan.runs)
    attempt(done, lambda: False, None)
    code, out, err = isoflop("status", str(directory))
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("isoflop: warning: the losses of 1 runs are simulated (train.trainer): ")
    assert "3 runs: 2 pending, 1 done" in out.splitlines()
    diverged.set_state("diverged", "a loss is not finite", step=3, loss=float("nan"))
    code, out, _ = isoflop("status", str(directory), "--json")
    document = json.loads(out)
    assert code == 1
    assert [(run["state"], run["loss"] is None) for run in document["runs"]] == [
        ("done", False),
        ("diverged", True),
        ("pending", True),
    ]
    assert document["totals"]["states"] == {"pending": 1, "diverged": 1, "done": 1}
