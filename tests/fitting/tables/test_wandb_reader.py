"""Offline runs written by the wandb library."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.fitting import read_table
from isoflop.fitting.tables.sources import read_source

pytestmark = pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")

PROGRAM = """
import sys
import wandb

def write(folder, number, end, steps):
    model = {"params": 1e7 * (number + 1)}
    config = {"model": model, "budget": 6e16, "lr": 3e-4, "bad": float("nan")}
    names = {"project": "study", "id": f"run{number}", "name": "same name"}
    run = wandb.init(mode="offline", dir=folder, config=config, settings={"silent": True}, **names)
    for step in range(steps):
        run.log({"train": {"loss": 4.0 - 0.01 * step + number}, "tokens": (step + 1) * 1e7})
    run.log({"eval/loss": 3.0 + 0.1 * number})
    run.summary["best"] = 2.5
    if end != "none":
        run.finish(exit_code=int(end == "fail"))
    else:
        run.finish()

study, long = sys.argv[1:]
for number, end in enumerate(["finish", "fail", "finish", "none"]):
    write(study, number, end, 100)
write(long, 4, "finish", 1500)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder with two finished runs, a failed one and a killed one, and a folder with a
    long run.
    """
    study, long = (tmp_path_factory.mktemp(name) for name in ("offline", "long"))
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, study, long],
        cwd=study,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (killed,) = study.glob("wandb/offline-run-*-run3/run-run3.wandb")
    killed.write_bytes(killed.read_bytes()[:-100])
    return study, long


@pytest.fixture
def folder(folders: tuple[Path, Path]) -> Path:
    return folders[0]


def test_history_has_configuration_and_state(folder: Path):
    frame = read_source(folder / "wandb").frame
    assert len(frame) == 404
    states = frame.groupby("run")["state"].first().to_dict()
    assert states == {"run0": "finished", "run1": "failed", "run2": "finished", "run3": "crashed"}
    first = frame.groupby("run").get_group("run0")
    assert set(first["config.model.params"]) == {1e7}
    assert set(first["summary.best"]) == {2.5}
    np.testing.assert_allclose(
        [v for v in first["train.loss"] if v == v], 4.0 - 0.01 * np.arange(100)
    )
    assert first["_step"].tolist() == list(range(101))


def test_offline_runs_are_read(folder: Path):
    table = read_table(folder, loss="eval/loss")
    assert table.frame["run_id"].tolist() == ["run0", "run2"]
    np.testing.assert_allclose(table.array("loss"), [3.0, 3.2])
    assert table.array("params").tolist() == [1e7, 3e7]
    assert table.array("tokens").tolist() == [1e9, 1e9]
    assert {reason for _, reason in table.dropped} == {
        "state is failed, not done",
        "state is crashed, not done",
    }
    (file,) = folder.glob("wandb/*-run2/*.wandb")
    assert read_table(file, loss="train.loss").array("loss")[0] == pytest.approx(5.01, rel=1e-4)


def test_a_long_run_is_read_whole_and_a_damaged_run_to_its_damage(folders: tuple[Path, Path]):
    (file,) = folders[1].glob("wandb/*-run4/*.wandb")
    assert file.stat().st_size > 5 * 32768
    assert len(read_source(file).frame) == 1501
    data = bytearray(file.read_bytes())
    data[100_000] ^= 0xFF
    file.write_bytes(bytes(data))
    frame = read_source(file).frame
    assert 10 < len(frame) < 1501
    assert set(frame["state"]) == {"crashed"}


def test_other_files_are_refused(folder: Path, tmp_path: Path):
    (tmp_path / "run-x.wandb").write_bytes(b"not a run")
    with pytest.raises(FitError, match="is not a file of a W&B run"):
        read_table(tmp_path)
    (whole,) = folder.glob("wandb/*-run0/*.wandb")
    (tmp_path / "run-x.wandb").write_bytes(whole.read_bytes()[:7])
    with pytest.raises(FitError, match="none of the 1 W&B runs has a history"):
        read_table(tmp_path)


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb.proto.wandb_internal_pb2", None)
    with pytest.raises(
        FitError, match=r"reading W&B runs needs wandb .*: pip install 'isoflop\[wandb\]'"
    ):
        read_table(folder)
