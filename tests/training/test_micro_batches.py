"""Micro-batches: the same losses at any size, and their halving when memory runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from support.tiny_studies import EXACT, find_run, tiny_study

from isoflop.errors import RunError
from isoflop.training import devices
from isoflop.training.loop import Trainer


def test_micro_batches_give_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    # Equal micro-batches: 96 tokens have room for 3 sequences, of which 2 are taken.
    for tokens, micro_batch in ((4096, 4), (96, 2), (32, 1)):
        monkeypatch.setattr(devices, "CPU_MICRO_BATCH_TOKENS", tokens)
        root, plan = tiny_study(tmp_path / str(tokens), "train.batch_scale=4", "budgets=[1.13e8]")
        assert plan.runs[0].batch_size == 4
        trainer = Trainer(find_run(root, plan), root)
        assert trainer.micro_batches.size == micro_batch
        assert trainer.train(lambda: False) == "done"
        runs.append(trainer.run.log())
    equal = ["step", "split", "kind", "targets"]
    for log in runs[1:]:
        assert_frame_equal(log[equal], runs[0][equal])
        for column in ("loss", "grad_norm"):
            np.testing.assert_allclose(log[column][:8], runs[0][column][:8], rtol=1e-5)
        # Steps amplify the last bits.
        np.testing.assert_allclose(log["loss"], runs[0]["loss"], rtol=0.1)


# Out of memory


def limit_memory(trainer: Trainer, sequences: int, *, backward: bool = True) -> None:
    """Let the trainer run out of memory, as CUDA does, with micro-batches above `sequences`.

    The first micro-batch always fits. Without `backward` the limit is that of evaluation, and
    training has none.
    """
    losses, sizes = trainer.micro_batches.losses, []

    def limited_losses(windows_BS: torch.Tensor, *rest: float) -> tuple[torch.Tensor, ...]:
        sizes.append(len(windows_BS))
        if len(windows_BS) > sequences and len(sizes) > 1 and torch.is_grad_enabled() is backward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 35.31 GiB.")
        return losses(windows_BS, *rest)

    trainer.micro_batches.losses = limited_losses  # type: ignore[method-assign]


def list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_too_little_memory_halves_the_micro_batch_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for name, micro_batch in (("short", 4), ("small", 2)):
        root, plan = tiny_study(
            tmp_path / name, "train.batch_scale=8", "budgets=[2.25e8]", "widths=[8]"
        )
        trainer = Trainer(find_run(root, plan), root)
        assert trainer.order.batch_size == 8
        trainer.micro_batches.size = micro_batch
        if name == "small":
            trainer.micro_batches.max_size = 2
        else:
            limit_memory(trainer, 2)
        assert trainer.train(lambda: False) == "done"
        assert trainer.micro_batches.size == 2
        runs.append(trainer.run)
    assert_frame_equal(runs[0].log()[EXACT], runs[1].log()[EXACT], check_exact=True)
    assert list_warnings(caplog) == [
        "out of memory: from step 0 on a micro-batch has at most 2 sequences"
    ]


def test_too_little_memory_halves_the_micro_batch_of_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for name in ("short", "whole"):
        root, plan = tiny_study(tmp_path / name, "budgets=[2.97e7]", "widths=[8]")
        trainer = Trainer(find_run(root, plan), root)
        micro_batch = trainer.micro_batches.size
        if name == "short":
            limit_memory(trainer, 3, backward=False)
        assert trainer.train(lambda: False) == "done"
        assert trainer.micro_batches.size == micro_batch
        runs.append(trainer.run.log()[EXACT])
    short, whole = (log.set_index(["step", "split", "kind"]) for log in runs)
    pd.testing.assert_frame_equal(short, whole, rtol=1e-6)
    warnings = list_warnings(caplog)
    assert all("out of memory: from step " in warning for warning in warnings)
    assert warnings[-1].endswith(" on a micro-batch has at most 2 sequences")


def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "train.batch_scale=8", "budgets=[1e9]", "widths=[8]")
    trainer = Trainer(find_run(root, plan), root)
    limit_memory(trainer, 0)
    message = r"^out of memory with a micro-batch of one sequence of 32 tokens; .*larger GPU"
    with pytest.raises(RunError, match=message):
        trainer.train(lambda: False)
