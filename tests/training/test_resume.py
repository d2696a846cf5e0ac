"""Interrupted runs: stops, kills and damage change no result; inputs that could are refused."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from support.tiny_studies import (
    ENDS,
    EVERY_STEP,
    SHORT,
    exact,
    final_weights,
    find_run,
    kill,
    start,
    tiny_plan,
    tiny_study,
    train_here,
    train_until_half_a_checkpoint,
    train_until_the_end,
    wait_for,
    write_corpus,
)

from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest
from isoflop.errors import DataError, RunError
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.checkpoint import load_checkpoint, save_checkpoint
from isoflop.training.loop import Trainer, train
from isoflop.training.weights import load_weights

STEPS = 22


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Plan]:
    """Return a root with a corpus and untrained runs, and the plan."""
    return tiny_study(tmp_path, *SHORT)


def train_to(run: RunDirectory, root: Path, step: int) -> None:
    """Train until a step, at which the run is stopped."""
    trainer = Trainer(run, root)
    assert trainer.train(lambda: trainer.step == step) == "pending"
    state = run.state()
    assert (state["state"], state["step"]) == ("pending", step)


def has_bytes(path: Path) -> bool:
    """Return whether a file has contents; it may be renamed at this moment."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size > 0
    return False


def assert_same_result(run: RunDirectory, other: RunDirectory) -> None:
    assert_frame_equal(exact(run), exact(other), check_exact=True)
    weights, other_weights = final_weights(run), final_weights(other)
    assert weights.keys() == other_weights.keys()
    assert all(weights[name].equal(other_weights[name]) for name in weights)


# Stopped, killed, resumed


@pytest.mark.parametrize("stops", [(1,), (3,), (21,), (2, 11, 12, 20), tuple(range(2, 22, 2))])
def test_a_stopped_run_has_the_result_of_an_undisturbed_one(
    study: tuple[Path, Plan], short_run: tuple[Path, Plan, RunDirectory], stops: tuple[int, ...]
) -> None:
    root, plan = study
    run = find_run(root, plan)
    for stop in stops:
        train_to(run, root, stop)
    assert train(run, root) == "done"
    assert_same_result(run, short_run[2])
    assert run.log()["wall_s"].is_monotonic_increasing


def test_rows_after_the_checkpoint_are_written_again(
    study: tuple[Path, Plan], short_run: tuple[Path, Plan, RunDirectory]
) -> None:
    """A process that was killed may have written rows that no checkpoint has."""
    root, plan = study
    run = find_run(root, plan)
    train_to(run, root, 10)
    last = run.log().iloc[-1].to_dict()
    run.append_log([{**last, "step": step, "loss": 99.0} for step in (11, 12)])
    assert train(run, root) == "done"
    assert_same_result(run, short_run[2])


def test_a_stop_after_the_last_step_is_the_end(study: tuple[Path, Plan]) -> None:
    root, plan = study
    trainer = Trainer(find_run(root, plan), root)
    assert trainer.train(lambda: trainer.step == STEPS) == "done"


@pytest.mark.slow
def test_a_killed_run_has_the_result_of_an_undisturbed_one(
    tmp_path: Path, whole_run: tuple[Path, Plan, RunDirectory]
) -> None:
    root, plan = tiny_study(tmp_path, EVERY_STEP)
    run, moments = find_run(root, plan), random.Random(0)
    list_files = run.checkpoints.glob

    def reached(step: int) -> bool:
        return any(path.stem >= f"step-{step:09d}" for path in run.checkpoints.glob("step-*.pt"))

    for step in (1, 9, 20, 31):
        process = start(train_here, run, root)
        wait_for(lambda step=step: reached(step))
        time.sleep(moments.uniform(0, 0.05))
        kill(process)
        assert process.exitcode == -signal.SIGKILL
        assert not run.done
    newest = max(int(path.stem.split("-")[1]) for path in run.checkpoints.glob("step-*.pt"))
    process = start(train_until_half_a_checkpoint, run, root, newest + 4)
    wait_for(
        lambda: any(
            path.name > f".step-{newest + 4:09d}" and has_bytes(path)
            for path in list_files(".*.tmp")
        )
    )
    kill(process)
    assert list(list_files(".*.tmp"))
    assert train(run, root) == "done"
    assert_same_result(run, whole_run[2])
    assert not list(list_files(".*.tmp"))


def reached_the_end(run: RunDirectory, moment: str) -> bool:
    weights = run.weights.exists()
    return {
        "half the weights": any(map(has_bytes, run.path.glob(".weights.pt.*.tmp"))),
        "no checksum": weights,
        "no marker": weights and run.weights.with_suffix(".sha256").exists(),
        "no state": run.done,
        "checkpoints": run.done and '"done"' in (run.path / "state.json").read_text(),
        "half the checkpoints": run.done and len(list(run.checkpoints.iterdir())) == 3,
    }[moment]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ENDS)
def test_a_run_that_is_killed_at_its_end_is_done_after_the_next_start(
    tmp_path: Path, short_run: tuple[Path, Plan, RunDirectory], moment: str
) -> None:
    root, plan = tiny_study(tmp_path, *SHORT, EVERY_STEP)
    run = find_run(root, plan)
    process = start(train_until_the_end, run, root, moment)
    wait_for(lambda: reached_the_end(run, moment))
    kill(process)
    assert any(run.checkpoints.glob("*.pt"))
    if run.done:
        make_directory(plan, root)
    else:
        with pytest.raises(RunError, match="this run is not done, so it has no final weights"):
            load_weights(run.path)
        assert train(run, root) == "done"
    assert_same_result(run, short_run[2])
    assert not run.checkpoints.exists()
    assert not list(run.path.rglob(".*"))


@pytest.mark.parametrize("damage", ["newest", "checksum"])
def test_a_damaged_checkpoint_costs_steps_but_changes_no_bit(
    study: tuple[Path, Plan], short_run: tuple[Path, Plan, RunDirectory], damage: str
) -> None:
    root, plan = study
    run = find_run(root, plan)
    train_to(run, root, 10)
    train_to(run, root, 14)
    newest = run.checkpoints / "step-000000014.pt"
    if damage == "newest":
        newest.write_bytes(newest.read_bytes()[:-9])
    else:
        newest.with_suffix(".sha256").unlink()
    assert Trainer(run, root).step == 10
    assert train(run, root) == "done"
    assert_same_result(run, short_run[2])


def test_without_its_checkpoints_a_run_restarts(
    study: tuple[Path, Plan], short_run: tuple[Path, Plan, RunDirectory]
) -> None:
    root, plan = study
    run = find_run(root, plan)
    train_to(run, root, 14)
    for path in run.checkpoints.iterdir():
        path.unlink()
    assert train(run, root) == "done"
    assert_same_result(run, short_run[2])


# Diverged


def spoil(run: RunDirectory) -> int:
    """Put a NaN into a weight of the newest checkpoint; return its step."""
    state = load_checkpoint(run.checkpoints)
    assert state is not None
    state["model"]["blocks.0.mlp.up.weight"][0, 0] = float("nan")
    save_checkpoint(run.checkpoints, state["step"], state)
    return state["step"]


@pytest.mark.parametrize("stop", [5, 21])
def test_a_loss_that_is_not_finite_ends_the_run(study: tuple[Path, Plan], stop: int) -> None:
    root, plan = study
    run = find_run(root, plan)
    train_to(run, root, stop)
    before = exact(run)
    assert spoil(run) == stop
    assert train(run, root) == "diverged"
    state = run.state()
    assert state["state"] == "diverged"
    assert state["reason"].startswith("the loss was not finite by step ")
    assert not run.done
    log = exact(run)
    assert_frame_equal(log.iloc[: len(before)], before, check_exact=True)
    assert max(int(path.stem.split("-")[1]) for path in run.checkpoints.glob("step-*.pt")) == stop


def test_a_learning_rate_that_explodes_diverges(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "train.lr_scale=1e6", "train.optimizer.weight_decay=1e6")
    run = find_run(root, plan)
    assert train(run, root) == "diverged"
    log = run.log()
    assert np.isfinite(log["loss"][:4]).all()
    assert not np.isfinite(log["loss"]).all()
    assert load_checkpoint(run.checkpoints) is None


# Refusals


def lose_part(run: RunDirectory) -> None:
    sorted((run.path / "loss").iterdir())[2].unlink()


def lose_heldout(run: RunDirectory) -> None:
    log = run.log()
    for file in (run.path / "loss").iterdir():
        file.unlink()
    run.append_log(log.loc[log["split"] == "train"].to_dict("records"))


def cut_part(run: RunDirectory) -> None:
    file = sorted((run.path / "loss").iterdir())[2]
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lose_part,
            "loss: no train rows for step 9, although the run is past it; restore them, or delete",
        ),
        (
            lose_heldout,
            "loss: no heldout rows for step 11, although the run is past it; restore them, or",
        ),
        (cut_part, r"000000009-000000009\.parquet: damaged"),
    ],
)
def test_an_incomplete_log_is_refused(
    tmp_path: Path, damage: Callable[[RunDirectory], None], message: str
) -> None:
    root, plan = tiny_study(tmp_path, *SHORT, EVERY_STEP)
    run = find_run(root, plan)
    train_to(run, root, 20)
    damage(run)
    with pytest.raises(RunError, match=message):
        train(run, root)


def test_other_data_under_a_run_is_refused(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run = find_run(root, plan)
    train_to(run, root, 5)
    write_corpus(root, plan, tokens=30_000)
    message = r"started with [0-9a-f]{12}; restore that data, or delete the run's directory"
    with pytest.raises(DataError, match=message):
        train(run, root)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (20, "the train split has no window of 64 tokens; raise data.tokens"),
        (None, "train-00001.bin: damaged"),
    ],
)
def test_a_corpus_that_is_too_small_or_damaged_is_refused(
    tmp_path: Path, tokens: int | None, message: str
) -> None:
    root, plan = tiny_study(tmp_path, "seq_len=64", "budgets=[4e8]")
    folder = write_corpus(root, plan, tokens)
    if tokens is None:
        shard = folder / "train-00001.bin"
        shard.write_bytes(shard.read_bytes()[:-2] + b"\x00\x00")
    with pytest.raises(DataError, match=message):
        train(find_run(root, plan), root)


def test_another_vocabulary_is_refused(tmp_path: Path, study: tuple[Path, Plan]) -> None:
    root, plan = study
    manifest = Manifest.read(data_folder(root, plan.sweep.data))
    vocabulary = type(manifest.vocabulary)(258, 256, 257, 8, 33)
    Manifest(vocabulary, manifest.shards, {}, {}).write(data_folder(root, plan.sweep.data))
    with pytest.raises(DataError, match="its vocabulary has 526 ids, the model 518"):
        train(find_run(root, plan), root)


def test_missing_data_is_reported_with_the_command_to_prepare_it(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    make_directory(plan, tmp_path)
    with pytest.raises(DataError, match=r"run `isoflop prepare SWEEP\.yaml` first"):
        train(find_run(tmp_path, plan), tmp_path)
