"""Event files written by tensorboard's own writers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, read_table, simulate_isoflop
from isoflop.fitting.tables.sources import read_source

pytest.importorskip("tensorboard")


def write(
    folder: Path,
    tags: dict[str, list[float]],
    hparams: dict[str, Any] | None = None,
    in_run_folder: bool = False,
) -> None:
    """Write a run with torch's SummaryWriter.

    The hyperparameters are in the run's folder or, as is torch's default, in a folder below it.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for tag, values in tags.items():
            for step, value in enumerate(values):
                writer.add_scalar(tag, value, step)
        if hparams is not None:
            name = "." if in_run_folder else None
            writer.add_hparams(hparams, {"hparam/best": 1.0}, run_name=name)


def write_tensors(folder: Path, tag: str, values: list[float]) -> None:
    """Write a run as TensorFlow 2 does: scalars as tensors of the scalars plugin."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
    from tensorboard.plugins.scalar.summary import scalar_pb  # pyright: ignore
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore

    writer = EventFileWriter(str(folder))
    for step, value in enumerate(values):
        writer.add_event(Event(step=step, summary=scalar_pb(tag, value)))
    writer.close()


def curve(level: float) -> list[float]:
    return list(level * np.linspace(1.1, 1.0, 100))


def tokens(total: float) -> list[float]:
    return list(np.linspace(0.01, 1.0, 100) * total)


@pytest.mark.parametrize("in_run_folder", [True, False])
def test_scalars_and_hyperparameters_are_read(tmp_path: Path, in_run_folder: bool):
    for run, params in (("a", 1e7), ("b/version_0", 2e7)):
        tags = {"train/loss": curve(params / 5e6), "tokens": tokens(1e9), "eval/loss": [3.0]}
        hparams = {"params": params, "budget": 6e16, "name": "x"}
        write(tmp_path / run, tags, hparams, in_run_folder)
    table = read_table(tmp_path, loss="train/loss")
    assert table.frame["run_id"].tolist() == ["a", "b/version_0"]
    assert table.array("params").tolist() == [1e7, 2e7]
    np.testing.assert_allclose(table.array("loss"), [2.0, 4.0], rtol=1e-4)
    np.testing.assert_allclose(table.array("tokens"), 1e9, rtol=1e-6)
    with pytest.raises(FitError, match="column 'loss' could be 'train/loss', 'eval/loss'"):
        read_table(tmp_path)


def test_hyperparameters_hold_for_folders_above_and_below_only(tmp_path: Path):
    write(tmp_path / "x", {"loss": curve(3.0)}, {"params": 1.0}, in_run_folder=True)
    for run in ("x/a", "y/b", "y/c"):
        write(tmp_path / run, {"loss": curve(3.0)})
    write(tmp_path / "y" / "b" / "made" / "later", {}, {"params": 3.0}, in_run_folder=True)
    params = read_source(tmp_path).frame.groupby("run")["params"].first()
    assert params.dropna().to_dict() == {"x": 1.0, "x/a": 1.0, "y/b": 3.0}
    assert set(params.index) == {"x", "x/a", "y/b", "y/c"}


def test_a_table_beside_adds_missing_columns(tmp_path: Path):
    for run in ("a", "b", "c"):
        write(tmp_path / "logs" / run, {"loss": curve(3.0)})
    (tmp_path / "logs" / "d").mkdir()
    write(tmp_path / "logs" / "d", {})
    beside = tmp_path / "runs.csv"
    beside.write_text("run,params,tokens,budget\na,1e7,1e9,6e16\nb,2e7,5e8,6e16\n")
    table = read_table(tmp_path / "logs", beside=beside)
    assert table.frame["run_id"].tolist() == ["a", "b"]
    assert table.array("tokens").tolist() == [1e9, 5e8]
    assert table.dropped == (("run d", "has no scalars"), ("run c", "not in the --beside table"))


def test_tensors_and_a_resumed_run_are_read(tmp_path: Path):
    write_tensors(tmp_path / "a", "loss", curve(3.0))
    (first,) = read_source(tmp_path).frame.groupby("run")
    np.testing.assert_allclose(first[1]["loss"], curve(3.0), rtol=1e-6)
    (old,) = (tmp_path / "a").iterdir()
    old.rename(old.with_name("events.out.tfevents.0000000001.first"))
    write_tensors(tmp_path / "a", "loss", [*curve(3.0), 2.5])
    frame = read_source(tmp_path).frame
    assert frame["step"].tolist() == list(range(101))


def test_damaged_and_empty_event_files_are_read_or_refused(tmp_path: Path):
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"\x00" * 50 + b"no events")
    with pytest.raises(FitError, match="the event files have no scalars"):
        read_table(tmp_path)
    write(
        tmp_path / "a",
        {"loss": curve(3.0)},
        {"params": 1e7, "tokens": 1e9, "budget": 6e16},
        in_run_folder=True,
    )
    (file, *_) = [f for f in (tmp_path / "a").iterdir() if f.stat().st_size > 2000]
    file.write_bytes(file.read_bytes()[:-30])
    assert len(read_source(tmp_path / "a").frame) >= 90


def test_event_files_give_the_law_of_their_study(tmp_path: Path):
    study = simulate_isoflop(points=5, budgets=(1e18, 1e19, 1e20), noise=0.0)
    for row in study.to_dict("records"):
        tags = {"loss": list(row["loss"] * np.linspace(1.2, 1.0, 10))}
        write(tmp_path / "logs" / row["run_id"], tags)
    study[["run_id", "params", "tokens", "budget"]].to_csv(tmp_path / "runs.csv", index=False)
    table = read_table(tmp_path / "logs", beside=tmp_path / "runs.csv")
    read, true = (fit_isoflop(runs, bootstrap=0, use="all") for runs in (table, study))
    pd.testing.assert_frame_equal(read.exponents, true.exponents, rtol=1e-4)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard.plugins.hparams.plugin_data_pb2", None)
    with pytest.raises(
        FitError, match=r"reading event files needs tensorboard .*'isoflop\[tensorboard\]'"
    ):
        read_table(tmp_path)


def test_a_folder_of_both_kinds_is_refused(tmp_path: Path):
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run-x.wandb").write_bytes(b"")
    with pytest.raises(
        FitError, match="has W&B runs and TensorBoard event files; name the folder of one of them"
    ):
        read_table(tmp_path)
