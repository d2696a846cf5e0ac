"""`isoflop run`, `prepare` and `report`: streams, exit codes, and what they leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import studies
from studies import LAW, finish_alike, finish_all, run_of, tiny_plan, write_corpus, write_sweep

from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest
from isoflop.errors import RunError
from isoflop.launching import study as launching
from isoflop.launching.directory import make_directory
from isoflop.runs import read_runs

Output = tuple[int, str, str]


# isoflop run


def test_a_study_that_is_done_is_fitted_and_reported(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    finish_all(tiny_plan(tmp_path, *LAW), root)
    code, out, err = isoflop("run", "tiny.yaml", *LAW)
    assert code == 0
    assert "N*" in out
    assert err.splitlines()[0].startswith("tiny: 20 runs, ")
    assert re.search(r"^20 of 20 runs done in \d+ s$", err, re.MULTILINE)
    assert err.splitlines()[-1] == f"report: {root / 'tiny' / 'report.html'}"
    names = {path.name for path in (root / "tiny").iterdir()}
    assert {"sweep.yaml", "plan.parquet", "runs.parquet", "fit.json", "fit.npz", "report.html"} <= names
    assert json.loads((root / "tiny" / "fit.json").read_text())["recipe"] == "pocket"
    assert not root.joinpath("data").exists()  # nothing was left to train


def test_too_few_budgets_are_no_law_but_the_runs_are_kept(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path)
    finish_alike(root, plan)
    code, out, err = isoflop("run", "tiny.yaml")
    assert (code, out) == (2, "")
    assert "3 of 3 runs done" in err
    assert err.splitlines()[-1].startswith("isoflop: error: ")
    assert "0 of 1 budgets can be used, 3 are needed" in err.splitlines()[-1]
    assert read_runs(root / "tiny")["state"].tolist() == ["done"] * 3
    assert (root / "tiny" / "report.html").exists()


def test_runs_that_did_not_end_are_named_with_their_log(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path)
    finish_alike(root, plan)
    run = run_of(root, plan, 1)
    (run.path / "DONE").unlink()
    run.set_state("diverged", "the loss was not finite by step 9", attempt=2)
    log = run.path / "attempts" / "2" / "log.txt"
    log.parent.mkdir(parents=True)
    log.touch()
    code, out, err = isoflop("run", "tiny.yaml")
    assert (code, out) == (1, "")
    assert f"{run.run_id} diverged: the loss was not finite by step 9 (log: {log})" in err.splitlines()
    assert "2 of 3 runs done" in err
    assert "0 of 1 budgets can be used" in err
    assert "error" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.yaml"], "absent.yaml: no such file"),
        (["tiny.yaml", "seq_len=many"], "seq_len: expected a whole number, got 'many'"),
        (["tiny.yaml", "budget=[1e8]"], "budget: unknown key; did you mean budgets?"),
        (["tiny.yaml", "max_steps=2"], "no runs are left"),
        (["tiny.yaml", "name=data"], "holds the data of all sweeps; give the sweep another name"),
        (
            ["tiny.yaml", "seq_len=30000", "budgets=[1e13]"],
            "train split has not one window of 30000 tokens; raise data",
        ),
        (["tiny.yaml", "metric.set=dev"], "no split 'dev'; there are heldout, train"),
        (["tiny.yaml", "data.codec=mimi", "budgets=[1e11]"], "only the pocket corpus can be prepared by this version"),
        (["tiny.yaml", "data.tokens={}"], "data.tokens.pocket: missing; it says how many tokens to make"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_trained(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    write_corpus(root, tiny_plan(tmp_path))
    code, out, err = isoflop("run", *arguments)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("isoflop: error: ")
    assert "Traceback" not in err
    assert not list(root.rglob("attempts"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "train-00001.bin").write_bytes(b"\x00" * 9), "train-00001.bin: damaged"),
        (lambda folder: (folder / "heldout-00002.bin").unlink(), "heldout-00002.bin: missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not a readable manifest"),
    ],
)
def test_damaged_data_is_found_before_any_run(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(write_corpus(root, tiny_plan(tmp_path)))
    code, _, err = isoflop("run", "tiny.yaml")
    assert code == 2
    assert says in err.splitlines()[-1]
    assert "prepare again" in err.splitlines()[-1]
    assert not list(root.rglob("attempts"))


def test_the_directory_of_another_study_is_refused(isoflop: Callable[..., Output], root: Path, tmp_path: Path) -> None:
    make_directory(tiny_plan(tmp_path), root)
    code, _, err = isoflop("run", "tiny.yaml", "metric.kind=text")
    assert code == 2
    assert "made by another study: metric.kind was all, is text; give this one another name" in err.splitlines()[-1]


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_a_root_that_can_not_be_is_one_line(
    isoflop: Callable[..., Output], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("ISOFLOP_ROOT", "/dev/null/runs")
    code, _, err = isoflop(command, "tiny.yaml")
    assert code == 2
    assert err.splitlines()[-1].startswith("isoflop: error: /dev/null/runs")
    assert err.splitlines()[-1].endswith(": Not a directory")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with studies.small_disk(tmp_path, "4k") as disk:
        yield disk


def test_a_full_disk_is_one_line(
    isoflop: Callable[..., Output], full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_ROOT", str(full_disk))
    code, _, err = isoflop("run", "tiny.yaml")
    assert code == 2
    assert err.splitlines()[-1].endswith(": the disk is full")
    assert f"isoflop: error: {full_disk}" in err.splitlines()[-1]
    assert not list(full_disk.rglob("*.tmp"))


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--workers", "two"], ["--nonsense"]])
def test_bad_usage_is_exit_code_2(isoflop: Callable[..., Output], arguments: list[str]) -> None:
    assert isoflop("run", "tiny.yaml", *arguments)[0] == 2


def test_an_interruption_says_how_to_go_on(isoflop: Callable[..., Output], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "train_study", interrupted)
    code, out, err = isoflop("run", "tiny.yaml")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("stopped; every run keeps its last checkpoint: the same command goes on")


# isoflop prepare


def test_prepare_prints_the_folder(isoflop: Callable[..., Output], root: Path, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    write_corpus(root, plan)
    code, out, err = isoflop("prepare", "tiny.yaml")
    assert (code, out) == (0, f"{data_folder(root, plan.sweep.data)}\n")
    assert "vocabulary 518, checksum " in err


# isoflop report


def test_report_gathers_and_writes(isoflop: Callable[..., Output], root: Path, tmp_path: Path) -> None:
    directory = finish_all(tiny_plan(tmp_path, *LAW), root)
    code, out, err = isoflop("report", str(directory))
    assert (code, out, err) == (0, f"{directory / 'report.html'}\n", "")
    assert len(pd.read_parquet(directory / "runs.parquet")) == 20


def test_report_of_a_kept_result(isoflop: Callable[..., Output], root: Path, tmp_path: Path) -> None:
    directory, kept = finish_all(tiny_plan(tmp_path, *LAW), root), tmp_path / "kept"
    isoflop("report", str(directory))
    kept.mkdir()
    for name in ("sweep.yaml", "plan.parquet", "runs.parquet"):
        (kept / name).write_bytes((directory / name).read_bytes())
    code, out, _ = isoflop("report", str(kept))
    assert (code, out) == (0, f"{kept / 'report.html'}\n")
    assert (kept / "runs.parquet").read_bytes() == (directory / "runs.parquet").read_bytes()
    assert json.loads(isoflop("fit", str(kept), "--bootstrap", "0", "--json")[1])["data"]["rows"] == 20


def test_report_of_no_sweep_is_one_line(isoflop: Callable[..., Output], tmp_path: Path) -> None:
    code, out, err = isoflop("report", str(tmp_path / "absent"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no sweep's directory (it has no plan.parquet)" in err


def test_a_damaged_run_is_named(isoflop: Callable[..., Output], root: Path, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, *LAW)
    directory = finish_all(plan, root)
    part = next((run_of(root, plan).path / "loss").iterdir())
    part.write_bytes(b"damaged")
    for command in ("report", "fit"):
        code, _, err = isoflop(command, str(directory))
        assert code == 2
        assert f"isoflop: error: {part}: damaged" in err
        assert err.count("\n") == 1
    with pytest.raises(RunError):
        read_runs(directory)


# End to end


@pytest.mark.slow
def test_a_study_on_a_real_corpus_from_end_to_end(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    environment = {**os.environ, "ISOFLOP_ROOT": str(tmp_path / "runs")}
    command = [sys.executable, "-c", "from isoflop.cli import main; main()", "run", "tiny.yaml", "data.seed=3"]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 2, first.stderr
    lines = first.stderr.splitlines()
    assert lines[0] == "tiny: 3 runs, 3.01e8 training FLOPs"
    assert any(line.startswith("corpus: ") for line in lines)
    assert "3 of 3 runs done" in first.stderr
    assert lines[-1].endswith(
        "runs/tiny: no method can be fitted. "
        "isoflop: 0 of 1 budgets can be used, 3 are needed. 1e8: too_few (3 distinct sizes, 4 needed); "
        "joint: 1 budgets have two sizes or more, 3 are needed for a power law; "
        "parametric: 3 configurations can't fix a law of 5 parameters with an interval: 7 or more are needed"
    )
    assert "Traceback" not in first.stderr
    directory = tmp_path / "runs" / "tiny"
    runs = read_runs(directory)
    assert runs["state"].tolist() == ["done"] * 3
    assert runs.loc[:, ["loss", "loss_text", "loss_semantic", "loss_acoustic"]].notna().to_numpy().all()
    assert (runs["loss"] < np.log(518)).all()
    manifest = Manifest.read(next((tmp_path / "runs" / "data").iterdir()))
    assert {"python", "espeak-ng", "codec"} <= manifest.versions.keys()
    assert "<svg" in (directory / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*/state.json")}
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "corpus: " not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/state.json")} == before
