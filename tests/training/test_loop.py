"""The training loop: what it logs, and that it learns."""

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
from support.studies import EXACT, exact, run_of, tiny_study, trained

from isoflop.data.order import Order
from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, Windows
from isoflop.data.vocabulary import Kind
from isoflop.errors import RunError
from isoflop.planning.plan import Plan
from isoflop.runs.collect import read_runs
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.training import devices, loop
from isoflop.training.loop import Trainer, train
from isoflop.training.loss import KINDS, by_kind
from isoflop.training.weights import load_weights

STEPS = 71


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
    assert log["tokens"].tolist() == [32 * step for step in log["step"]]
    assert np.isfinite(log["loss"]).all()
    assert log["wall_s"].is_monotonic_increasing
    assert log["mfu"].isna().to_numpy().all()  # no peak is known of a CPU
    speeds = log.loc[log["split"] == "train", ["tokens_per_second", "grad_norm"]]
    assert (speeds.to_numpy() > 0).all()


def test_targets_are_counted_by_kind(whole: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole
    folder = data_folder(root, plan.sweep.data)
    windows, kinds = Windows(folder, "train", 32), Manifest.read(folder).vocabulary.kinds
    order, log = Order(len(windows), 1, 0), run.log()
    for step in (3, 39, 69):
        targets = np.concatenate(
            [windows[order.batch(k)][:, 1:].ravel() for k in range(step - 3, step)]
        )
        row = log.loc[(log["split"] == "train") & (log["step"] == step)].set_index("kind")
        counts = np.bincount(kinds[targets], minlength=len(Kind))
        assert row["targets"].to_dict() == {
            "all": 96, "text": counts[Kind.TEXT], "semantic": counts[Kind.SEMANTIC], "acoustic": counts[Kind.ACOUSTIC]
        }  # fmt: skip
        others = row.loc[["text", "semantic", "acoustic"]]
        control = (
            row.loc["all", "targets"] * row.loc["all", "loss"]
            - (others["targets"] * others["loss"]).sum()
        )
        assert control / counts[Kind.CONTROL] > 0


def test_the_heldout_loss_is_that_of_the_final_weights(
    whole: tuple[Path, Plan, RunDirectory],
) -> None:
    root, plan, run = whole
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


def test_a_run_that_diverges_says_what_it_has_cost_and_how_to_mend_it(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "train.lr_scale=1e6", "train.optimizer.weight_decay=1e6")
    run, began = run_of(root, plan), time.monotonic()
    assert train(run, root) == "diverged"
    state = run.state()
    assert 0 < state["wall_s"] <= time.monotonic() - began
    assert state["wall_s"] >= run.log()["wall_s"].max()
    assert state["reason"].endswith("or lower train.lr_scale, which is another study (name=...)")


@pytest.mark.parametrize(
    ("stops", "said"),
    [
        (
            [50],
            "the only checkpoint, step-000000050.pt in {}, is damaged or not finished; the run began anew",
        ),
        (
            [20, 50],
            "step-000000050.pt in {}, is damaged or not finished; the run went back to step-000000020.pt",
        ),
    ],
)
def test_a_damaged_checkpoint_costs_no_bit_and_is_told(
    tmp_path: Path, whole: tuple[Path, Plan, RunDirectory], stops: list[int], said: str
) -> None:
    root, plan = tiny_study(tmp_path)
    run = run_of(root, plan)
    for stop in stops:
        trainer = Trainer(run, root)
        assert trainer.train(lambda trainer=trainer, stop=stop: trainer.step == stop) == "pending"
    newest = run.checkpoints / "step-000000050.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert train(run, root) == "done"
    assert run.state()["warning"] == said.format(run.checkpoints)
    assert_frame_equal(exact(run), exact(whole[2]), check_exact=True)
    assert read_runs(run.path.parent)["reason"].iloc[0] == said.format(run.checkpoints)


def test_state_and_files_of_a_run_that_is_done(whole: tuple[Path, Plan, RunDirectory]) -> None:
    root, plan, run = whole
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


def test_a_slow_disk_is_told_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take a hundredth of the time at most, after the first."""
    root, plan = tiny_study(tmp_path)
    reports, set_state, took = 0, RunDirectory.set_state, 0.02

    def slowly(run: RunDirectory, state: State, reason: str = "", **more: Any) -> None:
        nonlocal reports
        set_state(run, state, reason, **more)
        if state == "running" and "tokens_per_second" in more:
            reports += 1
            time.sleep(took)

    monkeypatch.setattr(RunDirectory, "set_state", slowly)
    monkeypatch.setattr(loop, "HEARTBEAT_S", 0.0)
    began = time.monotonic()
    train(run_of(root, plan), root)
    assert 1 <= reports <= 1 + (time.monotonic() - began) / (100 * took)


def test_parts_of_a_batch_give_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for tokens, micro in (
        (4096, 4),
        (96, 2),
        (32, 1),
    ):  # even parts: 96 tokens hold 3 sequences, of which 2 are taken
        monkeypatch.setattr(devices, "CPU_MICRO_TOKENS", tokens)
        root, plan = tiny_study(tmp_path / str(tokens), "train.batch_scale=4", "budgets=[4e8]")
        assert plan.runs[0].batch_size == 4
        trainer = Trainer(run_of(root, plan), root)
        assert trainer.micro == micro
        assert trainer.train(lambda: False) == "done"
        runs.append(trainer.run.log())
    for log in runs[1:]:
        assert_frame_equal(
            log[["step", "split", "kind", "targets"]], runs[0][["step", "split", "kind", "targets"]]
        )
        np.testing.assert_allclose(log["loss"][:8], runs[0]["loss"][:8], rtol=1e-5)
        np.testing.assert_allclose(
            log["loss"], runs[0]["loss"], rtol=0.1
        )  # steps amplify the last bits


def test_z_loss_holds_the_partition_function(
    whole: tuple[Path, Plan, RunDirectory], tmp_path: Path
) -> None:
    root, plan, with_z = trained(tmp_path, "train.z_loss=0.5")
    chosen = torch.from_numpy(
        Windows(data_folder(root, plan.sweep.data), "heldout", 32)[np.arange(8)]
    )[:, :-1]
    sizes = []
    for run in (whole[2], with_z):
        with torch.no_grad():
            sizes.append(float(load_weights(run.path)(chosen).logsumexp(-1).square().mean()))
    assert sizes[1] < 0.5 * sizes[0]
    assert plan.runs[0].run_id != whole[1].runs[0].run_id


# Loss


def test_losses_by_kind_in_closed_form() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    sums, counts = by_kind(
        losses, torch.tensor([Kind.CONTROL, Kind.TEXT, Kind.TEXT, Kind.SEMANTIC, 3, 3])
    )
    assert sums.tolist() == [63.0, 6.0, 8.0, 48.0]
    assert counts.tolist() == [6, 2, 1, 2]
    assert sums.dtype == counts.dtype == torch.float64


def test_losses_by_kind_are_plain_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = (
        torch.randn(300, 40, generator=generator),
        torch.randint(40, (300,), generator=generator),
    )
    kinds = torch.arange(40) % 4
    sums, counts = by_kind(F.cross_entropy(logits, targets, reduction="none"), kinds[targets])
    assert float(sums[0] / counts[0]) == pytest.approx(
        float(F.cross_entropy(logits, targets)), rel=1e-6
    )
    for kind in (1, 2, 3):
        mine = kinds[targets] == kind
        plain = F.cross_entropy(logits[mine], targets[mine])
        assert float(sums[kind] / counts[kind]) == pytest.approx(float(plain), rel=1e-6)


def test_columns_that_repeat_are_all_but_the_times() -> None:
    assert set(LOG_COLUMNS) - set(EXACT) == {"tokens_per_second", "mfu", "wall_s"}


# Out of memory


def with_memory_for(trainer: Trainer, sequences: int, *, backward: bool = True) -> None:
    """Fails as CUDA does where more sequences than that go through at once, once the first ones have gone.

    Without `backward` that many suffice only for measuring, and any number for training.
    """
    losses, seen = trainer._losses, []

    def short(windows_BS: torch.Tensor, *rest: float) -> tuple[torch.Tensor, ...]:
        seen.append(len(windows_BS))
        if len(windows_BS) > sequences and len(seen) > 1 and torch.is_grad_enabled() is backward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 35.31 GiB.")
        return losses(windows_BS, *rest)

    trainer._losses = short  # type: ignore[method-assign]


def test_where_memory_is_short_less_goes_through_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for name, micro in (("short", 4), ("small", 2)):
        root, plan = tiny_study(
            tmp_path / name, "train.batch_scale=8", "budgets=[1e9]", "widths=[8]"
        )
        trainer = Trainer(run_of(root, plan), root)
        assert trainer.order.batch_size == 8
        trainer.micro = micro
        trainer.most = 2 if name == "small" else trainer.most
        if name == "short":
            with_memory_for(trainer, 2)
        assert trainer.train(lambda: False) == "done"
        assert trainer.micro == 2
        runs.append(trainer.run)
    assert_frame_equal(runs[0].log()[EXACT], runs[1].log()[EXACT], check_exact=True)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["out of memory: from step 0 on 2 sequences go through at once"]


def test_where_memory_is_short_less_is_measured_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for name in ("short", "whole"):
        root, plan = tiny_study(tmp_path / name, "budgets=[2e8]", "widths=[8]")
        trainer = Trainer(run_of(root, plan), root)
        micro = trainer.micro
        if name == "short":
            with_memory_for(trainer, 3, backward=False)
        assert trainer.train(lambda: False) == "done"
        assert trainer.micro == micro
        runs.append(trainer.run.log()[EXACT])
    short, whole = (log.set_index(["step", "split", "kind"]) for log in runs)
    pd.testing.assert_frame_equal(short, whole, rtol=1e-6)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all("sequences go through at once" in line for line in said)
    assert said[-1].endswith(" on 2 sequences go through at once")


def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "train.batch_scale=8", "budgets=[1e9]", "widths=[8]")
    trainer = Trainer(run_of(root, plan), root)
    with_memory_for(trainer, 0)
    with pytest.raises(
        RunError, match=r"^out of memory with one sequence of 32 tokens at a time; .*larger GPU"
    ):
        trainer.train(lambda: False)
