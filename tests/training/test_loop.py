"""The training loop: the loss log, and learning."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from pandas.testing import assert_frame_equal
from support.tiny_studies import EXACT, exact, find_run, tiny_study, trained

from isoflop.data.order import SampleOrder
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, Windows
from isoflop.data.vocabulary import TokenKind
from isoflop.planning.plan import Plan
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.runs.runs_table import read_runs
from isoflop.training import loop
from isoflop.training.loop import Trainer, train
from isoflop.training.loss import LOSS_KINDS, sum_by_kind
from isoflop.training.weights import load_weights

STEPS = 71


def list_steps(log: pd.DataFrame, split: str, kind: str) -> list[int]:
    return log.loc[(log["split"] == split) & (log["kind"] == kind), "step"].tolist()


# Loss log


def test_the_log_has_every_step_once(whole_run: tuple[Path, Plan, RunDirectory]) -> None:
    _, plan, run = whole_run
    log, spec = run.log(), plan.runs[0]
    assert {name: str(dtype) for name, dtype in log.dtypes.items()} == LOG_COLUMNS
    assert spec.steps == STEPS
    assert list_steps(log, "train", "all") == [*range(3, STEPS, 3), STEPS]
    for kind in LOSS_KINDS:
        assert list_steps(log, "heldout", kind) == [36, STEPS]
        steps = list_steps(log, "train", kind)  # three windows need not hold every kind
        assert sorted(set(steps)) == steps
        assert set(steps) <= set(list_steps(log, "train", "all"))
    last = log.iloc[-1]
    assert (last["split"], last["step"]) == ("heldout", STEPS)
    assert last["tokens"] == spec.tokens
    assert last["train_flops"] == spec.train_flops
    assert log["tokens"].tolist() == [32 * step for step in log["step"]]
    assert np.isfinite(log["loss"]).all()
    assert log["wall_s"].is_monotonic_increasing
    assert log["mfu"].isna().to_numpy().all()  # the peak of a CPU is not known
    speeds = log.loc[log["split"] == "train", ["tokens_per_second", "grad_norm"]]
    assert (speeds.to_numpy() > 0).all()


def test_targets_are_counted_by_kind(whole_run: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole_run
    folder = data_folder(root, plan.sweep.data)
    windows, kinds = Windows(folder, "train", 32), Manifest.read(folder).vocabulary.kinds
    order, log = SampleOrder(len(windows), 1, 0), run.log()
    for step in (3, 39, 69):
        targets = np.concatenate(
            [windows[order.batch(k)][:, 1:].ravel() for k in range(step - 3, step)]
        )
        row = log.loc[(log["split"] == "train") & (log["step"] == step)].set_index("kind")
        counts = np.bincount(kinds[targets], minlength=len(TokenKind))
        assert row["targets"].to_dict() == {
            "all": 96,
            "text": counts[TokenKind.TEXT],
            "semantic": counts[TokenKind.SEMANTIC],
            "acoustic": counts[TokenKind.ACOUSTIC],
        }
        others = row.loc[["text", "semantic", "acoustic"]]
        control = (
            row.loc["all", "targets"] * row.loc["all", "loss"]
            - (others["targets"] * others["loss"]).sum()
        )
        assert control / counts[TokenKind.CONTROL] > 0


def test_the_heldout_loss_is_that_of_the_final_weights(
    whole_run: tuple[Path, Plan, RunDirectory],
) -> None:
    root, plan, run = whole_run
    model = load_weights(run.path)
    windows = Windows(data_folder(root, plan.sweep.data), "heldout", 32)
    chosen = torch.from_numpy(windows[np.arange(16) * len(windows) // 16])
    with torch.no_grad():
        loss = F.cross_entropy(model(chosen[:, :-1]).flatten(0, 1), chosen[:, 1:].flatten())
    log = run.log()
    logged = log.loc[
        (log["split"] == "heldout") & (log["kind"] == "all") & (log["step"] == STEPS), "loss"
    ]
    assert logged.tolist() == pytest.approx([float(loss)], rel=1e-6)


def test_the_loss_starts_at_ln_v_and_falls(tmp_path: Path) -> None:
    _, _, run = trained(tmp_path, "train.log_points=1000")
    log = run.log()
    losses = log.loc[(log["split"] == "train") & (log["kind"] == "all")].set_index("step")["loss"]
    assert losses[1] == pytest.approx(math.log(518), rel=1e-6)
    assert losses[STEPS] < 0.6 * math.log(518)
    assert list_steps(log, "train", "all") == [*range(1, STEPS + 1)]


def test_the_learning_rate_follows_the_schedule(whole_run: tuple[Path, Plan, RunDirectory]) -> None:
    _, plan, run = whole_run
    log, peak = run.log(), plan.runs[0].lr
    rates = log.loc[(log["split"] == "train") & (log["kind"] == "all")].set_index("step")["lr"]
    assert rates[3] == pytest.approx(peak * 2 / 7)  # 7 of 71 steps warm up, from 0
    assert rates[30] == rates[57] == peak
    assert rates[STEPS] == pytest.approx(peak * 1 / 14)  # 14 of 71 steps decay


def test_mfu_is_the_share_of_the_peak_that_went_into_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device: 2e9)
    _, plan, run = trained(tmp_path)
    log, spec = run.log(), plan.runs[0]
    rows = log.loc[log["split"] == "train"]
    np.testing.assert_allclose(
        rows["mfu"], rows["tokens_per_second"] * (spec.train_flops / spec.tokens) / 2e9
    )
    assert log.loc[log["split"] == "heldout", "mfu"].isna().all()
    assert read_runs(run.path.parent)["mfu"].iloc[0] == rows["mfu"].median()


def test_a_diverged_run_has_its_cost_and_a_remedy_in_its_state(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "train.lr_scale=1e6", "train.optimizer.weight_decay=1e6")
    run, start = find_run(root, plan), time.monotonic()
    assert train(run, root) == "diverged"
    state = run.state()
    assert 0 < state["wall_s"] <= time.monotonic() - start
    assert state["wall_s"] >= run.log()["wall_s"].max()
    assert state["reason"].endswith("or lower train.lr_scale in another study (name=...)")


@pytest.mark.parametrize(
    ("stops", "warning"),
    [
        (
            [50],
            "the only checkpoint, step-000000050.pt in {}, is damaged or incomplete; "
            "the run restarts from step 0",
        ),
        (
            [20, 50],
            "step-000000050.pt in {} is damaged or incomplete; "
            "the run resumes from step-000000020.pt",
        ),
    ],
)
def test_a_damaged_checkpoint_changes_no_bit_and_is_reported(
    tmp_path: Path, whole_run: tuple[Path, Plan, RunDirectory], stops: list[int], warning: str
) -> None:
    root, plan = tiny_study(tmp_path)
    run = find_run(root, plan)
    for stop in stops:
        trainer = Trainer(run, root)
        assert trainer.train(lambda trainer=trainer, stop=stop: trainer.step == stop) == "pending"
    newest = run.checkpoints / "step-000000050.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert train(run, root) == "done"
    assert run.state()["warning"] == warning.format(run.checkpoints)
    assert_frame_equal(exact(run), exact(whole_run[2]), check_exact=True)
    assert read_runs(run.path.parent)["reason"].iloc[0] == warning.format(run.checkpoints)


def test_state_and_files_of_a_run_that_is_done(whole_run: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole_run
    state = run.state()
    assert (state["state"], state["step"], state["steps"], state["gpus"]) == (
        "done",
        STEPS,
        STEPS,
        0,
    )
    assert state["data_checksum"] == Manifest.read(data_folder(root, plan.sweep.data)).checksum
    assert run.done
    assert not list(run.path.rglob(".*"))


def test_reports_to_a_slow_disk_are_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take a hundredth of the time at most, after the first."""
    root, plan = tiny_study(tmp_path)
    reports, set_state, duration = 0, RunDirectory.set_state, 0.02

    def set_state_slowly(run: RunDirectory, state: State, reason: str = "", **fields: Any) -> None:
        nonlocal reports
        set_state(run, state, reason, **fields)
        if state == "running" and "tokens_per_second" in fields:
            reports += 1
            time.sleep(duration)

    monkeypatch.setattr(RunDirectory, "set_state", set_state_slowly)
    monkeypatch.setattr(loop, "STATE_WRITE_S", 0.0)
    start = time.monotonic()
    train(find_run(root, plan), root)
    assert 1 <= reports <= 1 + (time.monotonic() - start) / (100 * duration)


def test_z_loss_holds_the_partition_function(
    whole_run: tuple[Path, Plan, RunDirectory], tmp_path: Path
) -> None:
    root, plan, with_z = trained(tmp_path, "train.z_loss=0.5")
    chosen = torch.from_numpy(
        Windows(data_folder(root, plan.sweep.data), "heldout", 32)[np.arange(8)]
    )[:, :-1]
    sizes = []
    for run in (whole_run[2], with_z):
        with torch.no_grad():
            sizes.append(float(load_weights(run.path)(chosen).logsumexp(-1).square().mean()))
    assert sizes[1] < 0.5 * sizes[0]
    assert plan.runs[0].run_id != whole_run[1].runs[0].run_id


# Loss


def test_losses_by_kind_in_closed_form() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    sums, counts = sum_by_kind(
        losses,
        torch.tensor([TokenKind.CONTROL, TokenKind.TEXT, TokenKind.TEXT, TokenKind.SEMANTIC, 3, 3]),
    )
    assert sums.tolist() == [63.0, 6.0, 8.0, 48.0]
    assert counts.tolist() == [6, 2, 1, 2]
    assert sums.dtype == counts.dtype == torch.float64


def test_losses_by_kind_are_plain_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 40, generator=generator)
    targets = torch.randint(40, (300,), generator=generator)
    kinds = torch.arange(40) % 4
    losses = F.cross_entropy(logits, targets, reduction="none")
    sums, counts = sum_by_kind(losses, kinds[targets])
    assert float(sums[0] / counts[0]) == pytest.approx(
        float(F.cross_entropy(logits, targets)), rel=1e-6
    )
    for kind in (1, 2, 3):
        mask = kinds[targets] == kind
        plain = F.cross_entropy(logits[mask], targets[mask])
        assert float(sums[kind] / counts[kind]) == pytest.approx(float(plain), rel=1e-6)


def test_columns_that_repeat_are_all_but_the_times() -> None:
    assert set(LOG_COLUMNS) - set(EXACT) == {"tokens_per_second", "mfu", "wall_s"}
