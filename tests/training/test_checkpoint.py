"""Checkpoints: rotation, damage, partial writes, kills."""

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
from support.tiny_studies import (
    find_run,
    kill,
    save_checkpoints_repeatedly,
    start,
    tiny_study,
    wait_for,
)

from isoflop import files
from isoflop.errors import RunError
from isoflop.files import remove_abandoned
from isoflop.training import checkpoint
from isoflop.training.checkpoint import load_checkpoint, load_checkpoint_at, save_checkpoint
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
    """Remove the checksum, as if the process was killed between the file and its checksum."""
    path.with_suffix(".sha256").unlink()


def wrong_checksum(path: Path) -> None:
    path.with_suffix(".sha256").write_text("0" * 64 + "\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [cut, flip, lose_checksum, wrong_checksum, empty]


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") is None


def test_a_saved_checkpoint_is_loaded(tmp_path: Path) -> None:
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
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-000000002.pt")
    with caplog.at_level(logging.WARNING, logger="isoflop"):
        assert loaded(tmp_path)["step"] == 1
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == (
        f"step-000000002.pt in {tmp_path} is damaged or incomplete; "
        "the run resumes from step-000000001.pt"
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_does_not_count_among_the_last_two(
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
    ("saved", "subject"),
    [
        ((1,), "the only checkpoint, step-000000001.pt in {}, is"),
        ((1, 2), "all checkpoints, step-000000002.pt and step-000000001.pt in {}, are"),
    ],
)
def test_without_a_valid_checkpoint_the_run_restarts(
    tmp_path: Path, damage: Callable[[Path], None], saved: tuple[int, ...], subject: str
) -> None:
    save(tmp_path, *saved)
    for path in tmp_path.glob("*.pt"):
        damage(path)
    warnings: list[str] = []
    assert load_checkpoint(tmp_path, warnings.append) is None
    message = f"{subject.format(tmp_path)} damaged or incomplete; the run restarts from step 0"
    assert warnings == [message]
    assert not list(tmp_path.iterdir())
    assert load_checkpoint(tmp_path, warnings.append) is None
    assert len(warnings) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_moment_leaves_a_valid_checkpoint(tmp_path: Path, seed: int) -> None:
    writer = start(save_checkpoints_repeatedly, tmp_path)
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


def test_weights_moments_and_checkpoint_have_the_bytes_of_the_plan(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "widths=[24]", "budgets=[1e9]")
    run, shape = find_run(root, plan), plan.runs[0].shape
    stopped = iter([True])
    assert train(run, root, should_stop=lambda: next(stopped)) == "pending"  # after one step
    saved = loaded(run.checkpoints)
    weights = sum(weight.nbytes for weight in saved["model"].values())
    moments = [value for state in saved["optimizer"]["state"].values() for value in state.values()]
    sizes = [
        value.nbytes for value in moments if isinstance(value, torch.Tensor) and value.numel() > 1
    ]
    assert weights == shape.weight_bytes()
    assert sum(sizes) == shape.optimizer_bytes()
    (file,) = run.checkpoints.glob("*.pt")
    assert weights + sum(sizes) < file.stat().st_size <= shape.checkpoint_bytes


def test_an_unreadable_checkpoint_is_not_removed(
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


def test_a_checkpoint_of_another_process_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    assert load_checkpoint_at(tmp_path, 1)["weights"][0] == 1
    late = threading.Timer(0.2, lambda: save(tmp_path, 3))
    late.start()
    assert load_checkpoint_at(tmp_path, 3)["weights"][0] == 3
    late.join()
    monkeypatch.setattr(checkpoint, "VISIBILITY_TIMEOUT_S", 0.0)
    message = r"step-000000009.pt: not visible on \S+, although another node of this job has read"
    with pytest.raises(RunError, match=message):
        load_checkpoint_at(tmp_path, 9)
