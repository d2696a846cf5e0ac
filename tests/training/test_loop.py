"""The training loop: what it logs, that it learns, and that nothing which stops it changes the result."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from pandas.testing import assert_frame_equal
from studies import (
    EVERY_STEP,
    EXACT,
    exact,
    kill,
    run_of,
    start,
    tiny_plan,
    tiny_study,
    train_here,
    train_until_half_a_checkpoint,
    wait_for,
    write_corpus,
)

from isoflop.data.order import Order
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, Windows
from isoflop.data.vocabulary import Kind
from isoflop.errors import DataError, RunError
from isoflop.planning.plan import Plan
from isoflop.runs import LOG_COLUMNS, RunDirectory
from isoflop.training import devices
from isoflop.training.checkpoint import load_checkpoint, save_checkpoint
from isoflop.training.loop import Trainer, train
from isoflop.training.loss import KINDS, by_kind
from isoflop.training.model import Decoder

STEPS = 71


def trained(folder: Path, *overrides: str) -> tuple[Path, Plan, RunDirectory]:
    root, plan = tiny_study(folder, *overrides)
    run = run_of(root, plan)
    assert train(run, root) == "done"
    return root, plan, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, RunDirectory]:
    """A run that nothing disturbed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each test, but this fixture is made before
    study = trained(tmp_path_factory.mktemp("whole"))
    torch.set_num_threads(before)
    return study


def train_to(run: RunDirectory, root: Path, step: int) -> None:
    """Trains until a step, as if asked to stop there."""
    trainer = Trainer(run, root)
    assert trainer.train(lambda: trainer.step == step) == "pending"
    state = run.state()
    assert (state["state"], state["step"]) == ("pending", step)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    state = load_checkpoint(run.checkpoints)
    assert state is not None
    assert state["step"] == STEPS
    return state["model"]


def assert_same_result(run: RunDirectory, other: RunDirectory) -> None:
    assert_frame_equal(exact(run), exact(other), check_exact=True)
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def steps_of(log: pd.DataFrame, split: str, kind: str) -> list[int]:
    return log.loc[(log["split"] == split) & (log["kind"] == kind), "step"].tolist()


# What is logged


def test_the_log_has_every_step_once(whole: tuple[Path, Plan, RunDirectory]) -> None:
    _, plan, run = whole
    log, spec = run.log(), plan.runs[0]
    assert {name: str(dtype) for name, dtype in log.dtypes.items()} == LOG_COLUMNS
    assert spec.steps == STEPS
    assert steps_of(log, "train", "all") == [*range(3, STEPS, 3), STEPS]
    for kind in KINDS:
        assert steps_of(log, "heldout", kind) == [36, STEPS]
        seen = steps_of(log, "train", kind)  # three windows need not hold every kind
        assert sorted(set(seen)) == seen
        assert set(seen) <= set(steps_of(log, "train", "all"))
    last = log.iloc[-1]
    assert (last["split"], last["step"]) == ("heldout", STEPS)
    assert last["tokens"] == spec.tokens
    assert last["train_flops"] == spec.train_flops
    assert (log["tokens"] == log["step"] * 32).all()
    assert np.isfinite(log["loss"]).all()
    assert log["wall_s"].is_monotonic_increasing
    assert log["mfu"].isna().all()  # no peak is known of a CPU
    speeds = log.loc[log["split"] == "train", ["tokens_per_second", "grad_norm"]]
    assert (speeds > 0).all(axis=None)


def test_targets_are_counted_by_kind(whole: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole
    folder = data_folder(root, plan.sweep.data)
    windows, kinds = Windows(folder, "train", 32), Manifest.read(folder).vocabulary.kinds
    order, log = Order(len(windows), 1, 0), run.log()
    for step in (3, 39, 69):
        targets = np.concatenate([windows[order.batch(k)][:, 1:].ravel() for k in range(step - 3, step)])
        row = log.loc[(log["split"] == "train") & (log["step"] == step)].set_index("kind")
        counts = np.bincount(kinds[targets], minlength=len(Kind))
        assert row["targets"].to_dict() == {
            "all": 96, "text": counts[Kind.TEXT], "semantic": counts[Kind.SEMANTIC], "acoustic": counts[Kind.ACOUSTIC]
        }  # fmt: skip
        others = row.loc[["text", "semantic", "acoustic"]]
        control = row.loc["all", "targets"] * row.loc["all", "loss"] - (others["targets"] * others["loss"]).sum()
        assert control / counts[Kind.CONTROL] > 0


def test_the_heldout_loss_is_that_of_the_final_weights(whole: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole
    model = Decoder(plan.runs[0].shape)
    model.load_state_dict(weights(run))
    windows = Windows(data_folder(root, plan.sweep.data), "heldout", 32)
    chosen = torch.from_numpy(windows[np.arange(16) * len(windows) // 16])
    with torch.no_grad():
        loss = F.cross_entropy(model(chosen[:, :-1]).flatten(0, 1), chosen[:, 1:].flatten())
    log = run.log()
    logged = log.loc[(log["split"] == "heldout") & (log["kind"] == "all") & (log["step"] == STEPS), "loss"]
    assert logged.tolist() == pytest.approx([float(loss)], rel=1e-6)


def test_it_starts_at_ln_v_and_learns(tmp_path: Path) -> None:
    _, _, run = trained(tmp_path, "train.log_points=1000")
    log = run.log()
    losses = log.loc[(log["split"] == "train") & (log["kind"] == "all")].set_index("step")["loss"]
    assert losses[1] == pytest.approx(math.log(518), rel=1e-6)
    assert losses[STEPS] < 0.6 * math.log(518)
    assert steps_of(log, "train", "all") == [*range(1, STEPS + 1)]


def test_the_learning_rate_follows_the_schedule(whole: tuple[Path, Plan, RunDirectory]) -> None:
    _, plan, run = whole
    log, peak = run.log(), plan.runs[0].lr
    rates = log.loc[(log["split"] == "train") & (log["kind"] == "all")].set_index("step")["lr"]
    assert rates[3] == pytest.approx(peak * 2 / 7)  # 7 of 71 steps warm up, from 0
    assert rates[30] == rates[57] == peak
    assert rates[STEPS] == pytest.approx(peak * 1 / 14)  # 14 of 71 steps decay


def test_state_and_files_of_a_run_that_is_done(whole: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole
    state = run.state()
    assert (state["state"], state["step"], state["steps"], state["gpus"]) == ("done", STEPS, STEPS, 0)
    assert state["data_checksum"] == Manifest.read(data_folder(root, plan.sweep.data)).checksum
    assert run.done
    assert not [path for path in run.path.rglob(".*")]


def test_parts_of_a_batch_give_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for tokens in (4096, 96, 32):
        monkeypatch.setattr(devices, "CPU_MICRO_TOKENS", tokens)
        root, plan, run = trained(tmp_path / str(tokens), "train.batch_scale=4", "budgets=[4e8]")
        assert plan.runs[0].batch_size == 4
        assert Trainer(run, root).micro == min(4, tokens // 32)
        runs.append(run.log())
    for log in runs[1:]:
        assert_frame_equal(log[["step", "split", "kind", "targets"]], runs[0][["step", "split", "kind", "targets"]])
        np.testing.assert_allclose(log["loss"][:8], runs[0]["loss"][:8], rtol=1e-5)
        np.testing.assert_allclose(log["loss"], runs[0]["loss"], rtol=0.1)  # steps amplify the last bits


def test_z_loss_holds_the_partition_function(whole: tuple[Path, Plan, RunDirectory], tmp_path: Path) -> None:
    root, plan, with_z = trained(tmp_path, "train.z_loss=0.1")
    chosen = torch.from_numpy(Windows(data_folder(root, plan.sweep.data), "heldout", 32)[np.arange(8)])[:, :-1]
    sizes = []
    for run in (whole[2], with_z):
        model = Decoder(plan.runs[0].shape)
        model.load_state_dict(weights(run))
        with torch.no_grad():
            sizes.append(float(model(chosen).logsumexp(-1).square().mean()))
    assert sizes[1] < 0.5 * sizes[0]
    assert plan.runs[0].run_id != whole[1].runs[0].run_id


# Loss


def test_losses_by_kind_in_closed_form() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    sums, counts = by_kind(losses, torch.tensor([Kind.CONTROL, Kind.TEXT, Kind.TEXT, Kind.SEMANTIC, 3, 3]))
    assert sums.tolist() == [63.0, 6.0, 8.0, 48.0]
    assert counts.tolist() == [6, 2, 1, 2]
    assert sums.dtype == counts.dtype == torch.float64


def test_losses_by_kind_are_plain_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(300, 40, generator=generator), torch.randint(40, (300,), generator=generator)
    kinds = torch.arange(40) % 4
    sums, counts = by_kind(F.cross_entropy(logits, targets, reduction="none"), kinds[targets])
    assert float(sums[0] / counts[0]) == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-6)
    for kind in (1, 2, 3):
        mine = kinds[targets] == kind
        plain = F.cross_entropy(logits[mine], targets[mine])
        assert float(sums[kind] / counts[kind]) == pytest.approx(float(plain), rel=1e-6)


# Stopped, killed, resumed


@pytest.mark.parametrize("stops", [(1,), (3,), (70,), (2, 36, 37, 68), tuple(range(5, 71, 5))])
def test_a_run_that_stops_goes_on_as_if_it_had_not(
    study: tuple[Path, Plan], whole: tuple[Path, Plan, RunDirectory], stops: tuple[int, ...]
) -> None:
    root, plan = study
    run = run_of(root, plan)
    for stop in stops:
        train_to(run, root, stop)
    assert train(run, root) == "done"
    assert_same_result(run, whole[2])
    assert run.log()["wall_s"].is_monotonic_increasing


def test_a_stop_after_the_last_step_is_the_end(study: tuple[Path, Plan]) -> None:
    root, plan = study
    trainer = Trainer(run_of(root, plan), root)
    assert trainer.train(lambda: trainer.step == STEPS) == "done"


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[Path, Plan, RunDirectory]
) -> None:
    root, plan = tiny_study(tmp_path, EVERY_STEP)
    run, moments = run_of(root, plan), random.Random(0)
    strays = run.checkpoints.glob

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
    wait_for(lambda: any(path.name > f".step-{newest + 4:09d}" and path.stat().st_size for path in strays(".*.tmp")))
    kill(process)
    assert list(strays(".*.tmp"))
    assert train(run, root) == "done"
    assert_same_result(run, whole[2])
    assert not list(strays(".*.tmp"))


@pytest.mark.parametrize("damage", ["newest", "checksum"])
def test_a_damaged_checkpoint_costs_steps_but_no_bit(
    study: tuple[Path, Plan], whole: tuple[Path, Plan, RunDirectory], damage: str
) -> None:
    root, plan = study
    run = run_of(root, plan)
    train_to(run, root, 41)
    train_to(run, root, 50)
    newest = run.checkpoints / "step-000000050.pt"
    if damage == "newest":
        newest.write_bytes(newest.read_bytes()[:-9])
    else:
        newest.with_suffix(".sha256").unlink()
    assert Trainer(run, root).step == 41
    assert train(run, root) == "done"
    assert_same_result(run, whole[2])


def test_without_its_checkpoints_a_run_starts_again(
    study: tuple[Path, Plan], whole: tuple[Path, Plan, RunDirectory]
) -> None:
    root, plan = study
    run = run_of(root, plan)
    train_to(run, root, 50)
    for path in run.checkpoints.iterdir():
        path.unlink()
    assert train(run, root) == "done"
    assert_same_result(run, whole[2])


# Diverged


def spoil(run: RunDirectory, **more: Any) -> int:
    """Puts a weight that is no number into the newest checkpoint; its step."""
    state = load_checkpoint(run.checkpoints)
    assert state is not None
    state["model"]["blocks.0.mlp.up.weight"][0, 0] = float("nan")
    save_checkpoint(run.checkpoints, state["step"], state | more)
    return state["step"]


@pytest.mark.parametrize("stop", [10, 70])
def test_a_loss_that_is_not_finite_ends_the_run(study: tuple[Path, Plan], stop: int) -> None:
    root, plan = study
    run = run_of(root, plan)
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
    run = run_of(root, plan)
    assert train(run, root) == "diverged"
    log = run.log()
    assert np.isfinite(log["loss"][:4]).all()
    assert not np.isfinite(log["loss"]).all()
    assert load_checkpoint(run.checkpoints) is None


# What it refuses


def lose_part(run: RunDirectory) -> None:
    sorted((run.path / "loss").iterdir())[2].unlink()


def lose_heldout(run: RunDirectory) -> None:
    log = run.log()
    for part in (run.path / "loss").iterdir():
        part.unlink()
    run.append_log(log.loc[log["split"] == "train"].to_dict("records"))


def cut_part(run: RunDirectory) -> None:
    part = sorted((run.path / "loss").iterdir())[2]
    part.write_bytes(part.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lose_part, "loss: no train rows for step 9, which the run has passed; restore them, or delete"),
        (lose_heldout, "loss: no heldout rows for step 36, which the run has passed; restore them, or delete"),
        (cut_part, r"000000009-000000009\.parquet: damaged"),
    ],
)
def test_a_log_that_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[RunDirectory], None], says: str) -> None:
    root, plan = tiny_study(tmp_path, EVERY_STEP)
    run = run_of(root, plan)
    train_to(run, root, 40)
    damage(run)
    with pytest.raises(RunError, match=says):
        train(run, root)


def test_other_data_under_a_run_is_refused(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run = run_of(root, plan)
    train_to(run, root, 5)
    write_corpus(root, plan, tokens=30_000)
    with pytest.raises(DataError, match=r"began with [0-9a-f]{12}; restore that data, or delete the run's directory"):
        train(run, root)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [(20, "the train split has not one window of 64 tokens; raise data.tokens"), (None, "train-00001.bin: damaged")],
)
def test_a_corpus_that_is_too_small_or_damaged_is_refused(tmp_path: Path, tokens: int | None, says: str) -> None:
    root, plan = tiny_study(tmp_path, "seq_len=64")
    folder = write_corpus(root, plan, tokens)
    if tokens is None:
        shard = folder / "train-00001.bin"
        shard.write_bytes(shard.read_bytes()[:-2] + b"\x00\x00")
    with pytest.raises(DataError, match=says):
        train(run_of(root, plan), root)


def test_another_vocabulary_is_refused(tmp_path: Path, study: tuple[Path, Plan]) -> None:
    root, plan = study
    manifest = Manifest.read(data_folder(root, plan.sweep.data))
    vocabulary = type(manifest.vocabulary)(258, 256, 257, 8, 33)
    Manifest(vocabulary, manifest.shards, {}, {}).write(data_folder(root, plan.sweep.data))
    with pytest.raises(DataError, match="its vocabulary has 526 ids, the model 518"):
        train(run_of(root, plan), root)


def test_without_data_the_mend_is_a_command(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    from isoflop.launching.directory import make_directory

    make_directory(plan, tmp_path)
    with pytest.raises(DataError, match=r"run `isoflop prepare SWEEP\.yaml` first"):
        train(run_of(tmp_path, plan), tmp_path)


def test_columns_that_repeat_are_all_but_the_times() -> None:
    assert set(LOG_COLUMNS) - set(EXACT) == {"tokens_per_second", "mfu", "wall_s"}
