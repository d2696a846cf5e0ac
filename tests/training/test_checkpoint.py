"""Checkpoints: kept, damaged, half-written, killed."""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.studies import kill, run_of, save_for_ever, start, tiny_study, wait_for

from isoflop import files
from isoflop.errors import RunError
from isoflop.files import remove_abandoned
from isoflop.training import checkpoint
from isoflop.training.checkpoint import load_checkpoint, load_same, save_checkpoint
from isoflop.training.loop import train


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {"step": step, "weights": torch.full((100,), float(step))})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("step-*.pt"))


def loaded(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder)
    assert state is not None
    return state


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_checksum(path: Path) -> None:
    """As where a process was killed between the file and its checksum."""
    path.with_suffix(".sha256").unlink()


def wrong_checksum(path: Path) -> None:
    path.with_suffix(".sha256").write_text("0" * 64 + "\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [cut, flip, lose_checksum, wrong_checksum, empty]


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") is None


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 7)
    state = loaded(tmp_path)
    assert state["step"] == 7
    assert state["weights"].equal(torch.full((100,), 7.0))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 5, 90, 1000, 999_999_999)
    assert steps(tmp_path) == [1000, 999_999_999]
    assert len(list(tmp_path.iterdir())) == 4
    assert loaded(tmp_path)["step"] == 999_999_999


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_falls_back_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-000000002.pt")
    with caplog.at_level(logging.WARNING, logger="isoflop"):
        assert loaded(tmp_path)["step"] == 1
    assert len(caplog.messages) == 1
    said = f"step-000000002.pt in {tmp_path}, is damaged or not finished; the run went back to step-000000001.pt"
    assert caplog.messages[0] == said


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_none_of_the_two_that_are_kept(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-000000020.pt")
    assert loaded(tmp_path)["step"] == 10
    save(tmp_path, 15)
    assert steps(tmp_path) == [10, 15]
    save(tmp_path, 20)
    assert steps(tmp_path) == [15, 20]
    assert loaded(tmp_path)["weights"][0] == 20


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("saved", "which"),
    [
        ((1,), "the only checkpoint, step-000000001.pt in {}, is"),
        ((1, 2), "all checkpoints, step-000000002.pt and step-000000001.pt in {}, are"),
    ],
)
def test_where_all_are_damaged_there_is_none(
    tmp_path: Path, damage: Callable[[Path], None], saved: tuple[int, ...], which: str
) -> None:
    save(tmp_path, *saved)
    for path in tmp_path.glob("*.pt"):
        damage(path)
    said: list[str] = []
    assert load_checkpoint(tmp_path, said.append) is None
    assert said == [f"{which.format(tmp_path)} damaged or not finished; the run began anew"]
    assert not list(tmp_path.iterdir())
    assert load_checkpoint(tmp_path, said.append) is None
    assert len(said) == 1


@pytest.mark.parametrize("seed", range(6))
def test_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path, seed: int) -> None:
    writer = start(save_for_ever, tmp_path)
    wait_for(lambda: any(tmp_path.glob("*.sha256")))
    time.sleep(random.Random(seed).uniform(0, 0.05))
    kill(writer)
    state = loaded(tmp_path)
    assert state["weights"].equal(torch.full((20_000,), float(state["step"])))
    newest = max(steps(tmp_path))
    assert state["step"] in (newest, newest - 1)
    assert len(steps(tmp_path)) <= 3
    remove_abandoned(tmp_path)
    save(tmp_path, newest + 1)
    assert len(list(tmp_path.iterdir())) == 4


def test_weights_moments_and_checkpoint_have_the_bytes_that_a_plan_reckons_with(
    tmp_path: Path,
) -> None:
    root, plan = tiny_study(tmp_path, "widths=[24]", "budgets=[1e9]")
    run, shape = run_of(root, plan), plan.runs[0].shape
    stopped = iter([True])
    assert train(run, root, should_stop=lambda: next(stopped)) == "pending"  # after one step
    saved = loaded(run.checkpoints)
    weights = sum(weight.nbytes for weight in saved["model"].values())
    moments = [value for state in saved["optimizer"]["state"].values() for value in state.values()]
    many = [
        value.nbytes for value in moments if isinstance(value, torch.Tensor) and value.numel() > 1
    ]
    assert weights == shape.weight_bytes()
    assert sum(many) == shape.optimizer_bytes()
    (file,) = run.checkpoints.glob("*.pt")
    assert weights + sum(many) < file.stat().st_size <= shape.checkpoint_bytes


def test_what_can_not_be_read_for_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    before = sorted(tmp_path.iterdir())

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "_sha256", broken)
    with pytest.raises(OSError, match="Input/output error"):
        load_checkpoint(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_the_checkpoint_that_another_process_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    assert load_same(tmp_path, 1)["weights"][0] == 1
    late = threading.Timer(0.2, lambda: save(tmp_path, 3))
    late.start()
    assert load_same(tmp_path, 3)["weights"][0] == 3
    late.join()
    monkeypatch.setattr(checkpoint, "LATE_S", 0.0)
    with pytest.raises(
        RunError,
        match=r"step-000000009.pt: not seen on \S+, though another node of this job has read",
    ):
        load_same(tmp_path, 9)
