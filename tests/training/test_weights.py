"""Final weights: their contents, and runs whose weights can't be loaded."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny_studies import final_weights, find_run, tiny_study

from isoflop.errors import RunError
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.loop import train
from isoflop.training.weights import load_weights


@pytest.fixture
def copy(whole_run: tuple[Path, Plan, RunDirectory], tmp_path: Path) -> RunDirectory:
    """Return a copy of a run that is done, to damage."""
    return RunDirectory(shutil.copytree(whole_run[2].path, tmp_path / whole_run[2].run_id))


def test_only_the_final_weights_of_the_model_are_kept(
    whole_run: tuple[Path, Plan, RunDirectory],
) -> None:
    _, plan, run = whole_run
    assert not run.checkpoints.exists()
    size = plan.runs[0].shape.weight_bytes()
    assert size < run.weights.stat().st_size < size + 30_000


def test_they_are_complete_and_in_fp32(whole_run: tuple[Path, Plan, RunDirectory]) -> None:
    _, plan, run = whole_run
    model = load_weights(str(run.path))
    assert model.shape == plan.runs[0].shape
    assert sum(weight.numel() for weight in model.parameters()) == plan.runs[0].params_total
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training


def test_loading_leaves_the_random_state_unchanged(
    whole_run: tuple[Path, Plan, RunDirectory],
) -> None:
    before = torch.get_rng_state()
    load_weights(whole_run[2].path)
    assert torch.get_rng_state().equal(before)


def cut(run: RunDirectory) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:-1])


def lose_checksum(run: RunDirectory) -> None:
    run.weights.with_suffix(".sha256").unlink()


def lose(run: RunDirectory) -> None:
    run.weights.unlink()


def lose_marker(run: RunDirectory) -> None:
    (run.path / "DONE").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"weights\.pt: damaged; delete .* to train the run again"),
        (lose_checksum, r"weights\.pt: damaged; delete .* to train the run again"),
        (
            lose,
            r"weights\.pt: missing; only the builtin trainer keeps the final weights of its runs",
        ),
        (lose_marker, "this run is not done, so it has no final weights"),
    ],
)
def test_missing_or_damaged_weights_are_refused(
    copy: RunDirectory, damage: Callable[[RunDirectory], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(RunError, match=message):
        load_weights(copy.path)


def test_a_run_that_is_done_is_not_trained_again(copy: RunDirectory, tmp_path: Path) -> None:
    copy.checkpoints.mkdir()
    before = {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()}
    assert train(copy, tmp_path / "without data") == "done"
    assert {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()} == before
    assert not copy.checkpoints.exists()


@pytest.mark.parametrize("damage", [lose_checksum, lose_marker])
def test_checkpoints_stay_until_final_weights_replace_them(
    copy: RunDirectory, damage: Callable[[RunDirectory], None]
) -> None:
    copy.checkpoints.mkdir()
    damage(copy)
    copy.remove_checkpoints()
    assert copy.checkpoints.exists()


def test_a_full_disk_at_the_end_changes_no_bit(
    tmp_path: Path, whole_run: tuple[Path, Plan, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root, plan = tiny_study(tmp_path)
    run = find_run(root, plan)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left") as problem:
            train(run, root)
    assert problem.value.filename == str(run.weights)
    assert not run.done
    assert train(run, root) == "done"
    weights, expected = final_weights(run), final_weights(whole_run[2])
    assert all(weights[name].equal(expected[name]) for name in expected)
