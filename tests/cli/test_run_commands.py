"""`isoflop run`, `prepare` and `report`: streams, exit codes and files."""

from __future__ import annotations

import dataclasses
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
from support import tiny_studies
from support.tiny_studies import (
    LAW,
    find_run,
    finish_alike,
    finish_all,
    tiny_plan,
    write_corpus,
    write_sweep,
)

from isoflop import studies as whole_study
from isoflop.data.codec import PocketCodec
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.runs.runs_table import read_runs

Output = tuple[int, str, str]


# isoflop run


def test_a_study_that_is_done_is_fitted_and_reported(
    isoflop: Callable[..., Output], root: Path, done_study: Path
) -> None:
    code, out, err = isoflop("run", "tiny.yaml", *LAW)
    assert code == 0
    assert "N*" in out
    assert err.splitlines()[0].startswith("tiny: 20 runs, ")
    assert re.search(r"^20 of 20 runs done in \d+ s$", err, re.MULTILINE)
    assert err.splitlines()[-1] == f"report: {root / 'tiny' / 'report.html'}"
    names = {path.name for path in done_study.iterdir()}
    assert {
        "sweep.yaml",
        "plan.parquet",
        "runs.parquet",
        "fit.json",
        "fit.npz",
        "report.html",
    } <= names
    assert json.loads((done_study / "fit.json").read_text())["recipe"] == "pocket"
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


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("the loss was not finite by step 9", " (log: {log})"),
        ("train failed with 3: no room; see {log}", ""),
    ],
)
def test_runs_that_did_not_end_are_named_with_their_log(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path, reason: str, message: str
) -> None:
    plan = tiny_plan(tmp_path)
    finish_alike(root, plan)
    run = find_run(root, plan, 1)
    (run.path / "DONE").unlink()
    log = run.path / "attempts" / "2" / "log.txt"
    run.set_state("diverged", reason.format(log=log), attempt=2)
    log.parent.mkdir(parents=True)
    log.touch()
    code, out, err = isoflop("run", "tiny.yaml")
    assert (code, out) == (1, "")
    assert f"{run.run_id} diverged: {reason}{message}".format(log=log) in err.splitlines()
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
            "train split has no window of 30000 tokens; raise data",
        ),
        (
            ["tiny.yaml", "metric.set=dev"],
            "metric.set: the pocket data have no split 'dev'; set metric.set=heldout",
        ),
        (
            ["tiny.yaml", "data.codec=mimi", "budgets=[1e11]"],
            "this version can prepare only the pocket corpus",
        ),
        (
            ["tiny.yaml", "data.tokens={}"],
            "data.tokens.pocket: missing; give the number of tokens to make",
        ),
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
        (
            lambda folder: (folder / "train-00001.bin").write_bytes(b"\x00" * 9),
            "train-00001.bin: damaged",
        ),
        (lambda folder: (folder / "heldout-00002.bin").unlink(), "heldout-00002.bin: missing"),
        (
            lambda folder: (folder / "manifest.json").write_text("{"),
            "manifest.json: not a readable manifest",
        ),
    ],
)
def test_damaged_data_is_found_before_any_run(
    isoflop: Callable[..., Output],
    root: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    says: str,
) -> None:
    damage(write_corpus(root, tiny_plan(tmp_path)))
    code, _, err = isoflop("run", "tiny.yaml")
    assert code == 2
    assert says in err.splitlines()[-1]
    assert "prepare again" in err.splitlines()[-1]
    assert not list(root.rglob("attempts"))


def test_the_directory_of_another_study_is_refused(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    make_directory(tiny_plan(tmp_path), root)
    code, _, err = isoflop("run", "tiny.yaml", "metric.kind=text")
    assert code == 2
    assert (
        "made by another study: metric.kind was all, is text; give this one another name"
        in err.splitlines()[-1]
    )


@pytest.mark.parametrize("command", ["run", "prepare"])
@pytest.mark.parametrize(
    ("blocked", "says"),
    [
        ("/dev/null/runs", "Not a directory"),
        ("/proc", "No such file or directory"),
        ("r" * 300, "File name too long"),
    ],
)
def test_a_root_that_can_not_be_is_one_line(
    isoflop: Callable[..., Output],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    blocked: str,
    says: str,
) -> None:
    monkeypatch.setenv("ISOFLOP_ROOT", blocked)
    code, _, err = isoflop(command, "tiny.yaml")
    assert code == 2
    assert err.splitlines()[-1].startswith("isoflop: error: ")
    assert blocked in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith(f": {says}")


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_a_file_in_the_place_of_the_data_is_one_line(
    isoflop: Callable[..., Output], root: Path, command: str
) -> None:
    root.mkdir()
    (root / "data").touch()
    code, _, err = isoflop(command, "tiny.yaml")
    assert (code, err.splitlines()[-1]) == (2, f"isoflop: error: {root / 'data'}: File exists")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with tiny_studies.small_disk(tmp_path, "4k") as disk:
        yield disk


@pytest.mark.slow
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


def test_an_interruption_says_how_to_go_on(
    isoflop: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_study, "train_study", interrupted)
    code, out, err = isoflop("run", "tiny.yaml")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith(
        "stopped; every run keeps its last checkpoint, from which the same command resumes"
    )


# isoflop prepare


@pytest.fixture
def corpus(root: Path, tmp_path: Path) -> Path:
    """Return a corpus with the codec of its manifest."""
    plan = tiny_plan(tmp_path)
    folder = write_corpus(root, plan)
    codec = PocketCodec(np.zeros((8, 32, 128), np.float32), np.zeros(128, np.float32))
    codec.save(folder / "codec.npz")
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, versions={"codec": codec.checksum}).write(folder)
    assert folder == data_folder(root, plan.sweep.data)
    return folder


def test_prepare_prints_the_folder(isoflop: Callable[..., Output], corpus: Path) -> None:
    code, out, err = isoflop("prepare", "tiny.yaml")
    assert (code, out) == (0, f"{corpus}\n")
    assert "vocabulary 518, checksum " in err


def flip_a_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: flip_a_byte(folder / "train-00001.bin"), "train-00001.bin: damaged"),
        (lambda folder: flip_a_byte(folder / "heldout-00002.bin"), "heldout-00002.bin: damaged"),
        (lambda folder: (folder / "train-00000.bin").unlink(), "train-00000.bin: missing"),
        (lambda folder: (folder / "codec.npz").unlink(), "codec.npz: not a readable codec"),
    ],
)
def test_prepare_finds_what_was_damaged(
    isoflop: Callable[..., Output], corpus: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(corpus)
    code, out, err = isoflop("prepare", "tiny.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(f"isoflop: error: {corpus}/{says}")
    assert err.endswith("prepare again\n")
    assert err.count("\n") == 1


# isoflop report


def test_report_gathers_and_writes(isoflop: Callable[..., Output], done_study: Path) -> None:
    code, out, err = isoflop("report", str(done_study))
    assert (code, out, err) == (0, f"{done_study / 'report.html'}\n", "")
    assert len(pd.read_parquet(done_study / "runs.parquet")) == 20


@pytest.mark.slow
def test_report_of_a_kept_result(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    directory, copy = finish_all(tiny_plan(tmp_path, *LAW), root), tmp_path / "kept"
    isoflop("report", str(directory))
    copy.mkdir()
    for name in ("sweep.yaml", "plan.parquet", "runs.parquet"):
        (copy / name).write_bytes((directory / name).read_bytes())
    code, out, _ = isoflop("report", str(copy))
    assert (code, out) == (0, f"{copy / 'report.html'}\n")
    assert (copy / "runs.parquet").read_bytes() == (directory / "runs.parquet").read_bytes()
    assert (
        json.loads(isoflop("fit", str(copy), "--bootstrap", "0", "--json")[1])["data"]["rows"] == 20
    )


def test_report_of_no_sweep_is_one_line(isoflop: Callable[..., Output], tmp_path: Path) -> None:
    code, out, err = isoflop("report", str(tmp_path / "absent"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no sweep's directory (it has no plan.parquet)" in err


@pytest.mark.slow
def test_a_damaged_run_is_named_and_the_others_are_fitted(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tiny_plan(tmp_path, *LAW)
    directory = finish_all(plan, root)
    loss_file = next((find_run(root, plan).path / "loss").iterdir())
    loss_file.write_bytes(b"damaged")
    for command in (
        ["report", str(directory)],
        ["fit", str(directory)],
        ["run", "tiny.yaml", *LAW],
    ):
        caplog.clear()
        code, _, err = isoflop(*command)
        assert (code, "Traceback" in err) == (int(command[0] == "run"), False)
        assert [message.partition(" (")[0] for message in caplog.messages] == [
            f"{loss_file}: damaged"
        ]
    name = find_run(root, plan).run_id
    assert any(
        line.startswith(f"{name} failed: {loss_file}: damaged (") for line in err.splitlines()
    )
    assert "19 of 20 runs done" in err
    fits = json.loads((directory / "fit.json").read_text())
    assert (fits["data"]["rows"], name in fits["data"]["run_ids"]) == (19, False)
    assert f"{loss_file}: damaged" in (directory / "report.html").read_text()
    assert find_run(root, plan).state()["state"] == "done"


@pytest.mark.slow
def test_a_refused_fit_leaves_none_to_predict_from(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    directory = finish_all(tiny_plan(tmp_path, *LAW), root)
    fewer = ("budgets=[4e8]", "widths=[8, 12]")
    assert isoflop("run", "tiny.yaml", *LAW)[0] == 0
    assert isoflop("predict", str(directory), "--flops", "1e11")[0] == 0
    assert isoflop("run", "tiny.yaml", *fewer)[0] == 2
    assert {"fit.json", "fit.npz"}.isdisjoint(path.name for path in directory.iterdir())
    assert "fit.json: no such file" in isoflop("predict", str(directory), "--flops", "1e11")[2]
    isoflop("plan", "tiny.yaml")
    make_directory(tiny_plan(tmp_path, *LAW), root)
    own_rows = [
        "fit",
        str(directory),
        "--bootstrap",
        "0",
        "--method",
        "isoflop",
        "--output",
        str(directory),
    ]
    assert isoflop(*own_rows)[0] == 0
    assert isoflop("run", "tiny.yaml", *fewer)[0] == 2
    assert (directory / "fit.json").exists()  # a person's own


def damage_a_log(directory: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    loss_file = next(directory.glob("*/loss/*.parquet"))
    edit(pd.read_parquet(loss_file)).to_parquet(loss_file)


def edit_the_plan(directory: Path) -> None:
    file = directory / "plan.parquet"
    pd.read_parquet(file).drop(columns="run_id").to_parquet(file)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda directory: damage_a_log(
                directory, lambda log: log.drop(columns=["wall_s", "mfu"])
            ),
            "no column mfu",
        ),
        (
            lambda directory: damage_a_log(directory, lambda log: log.drop(columns="step")),
            "no column step",
        ),
        (
            lambda directory: damage_a_log(directory, lambda log: log.assign(loss="x")),
            "its column loss holds",
        ),
        (edit_the_plan, "plan.parquet: damaged (no column run_id)"),
        (
            lambda directory: (directory / "fit.json").write_text('{"fits": 3}'),
            "fits: expected a list of fits",
        ),
        (
            lambda directory: (directory / "fit.json").write_text('{"fits": [3]}'),
            "fits: expected a list of fits",
        ),
    ],
)
def test_files_that_were_edited_by_hand_are_named(
    isoflop: Callable[..., Output],
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    edit: Callable[[Path], object],
    says: str,
) -> None:
    finish_alike(root, tiny_plan(tmp_path))
    edit(root / "tiny")
    code, _, err = isoflop("report", str(root / "tiny"))
    assert code == 2
    assert says in err + caplog.text
    assert err.startswith("isoflop: error: ")
    assert err.count("\n") == 1


# End to end


@pytest.mark.long
def test_a_study_on_a_real_corpus_from_end_to_end(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    environment = {**os.environ, "ISOFLOP_ROOT": str(tmp_path / "runs")}
    command = [
        sys.executable,
        "-c",
        "from isoflop.cli import main; main()",
        "run",
        "tiny.yaml",
        "data.seed=3",
    ]
    first = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert first.returncode == 2, first.stderr
    lines = first.stderr.splitlines()
    assert lines[0] == "tiny: 3 runs, 3.01e8 training FLOPs"
    assert any(line.startswith("corpus: ") for line in lines)
    assert "3 of 3 runs done" in first.stderr
    assert lines[-1].endswith(
        "runs/tiny: no method can be fitted. "
        "isoflop: 0 of 1 budgets can be used, 3 are needed. 1e8: too_few (3 distinct "
        "sizes, 4 needed); "
        "joint: 1 budgets have two sizes or more, 3 are needed for a power law; "
        "parametric: 3 configurations can't determine a law of 5 parameters with an "
        "interval: 7 or more are needed"
    )
    assert "Traceback" not in first.stderr
    directory = tmp_path / "runs" / "tiny"
    runs = read_runs(directory)
    assert runs["state"].tolist() == ["done"] * 3
    assert (
        runs.loc[:, ["loss", "loss_text", "loss_semantic", "loss_acoustic"]]
        .notna()
        .to_numpy()
        .all()
    )
    assert (runs["loss"] < np.log(518)).all()
    manifest = Manifest.read(next((tmp_path / "runs" / "data").iterdir()))
    assert {"python", "espeak-ng", "codec"} <= manifest.versions.keys()
    assert "<svg" in (directory / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*/state.json")}
    second = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert "corpus: " not in second.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/state.json")} == before
