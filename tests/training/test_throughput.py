"""Speed and memory of a few steps: of the very trainer, without a trace in the run's directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from support.studies import run_of, tiny_study

from isoflop.errors import RunError
from isoflop.training import loop
from isoflop.training import throughput as measuring
from isoflop.training.throughput import PARTS, WARM_UP, measure


def test_a_run_is_measured_and_leaves_no_log(tmp_path: Path) -> None:
    root, study = tiny_study(tmp_path)
    run, before = run_of(root, study), time.time()
    found = measure(run, root, 0.05)
    spec = study.runs[0]
    assert (found.shape, found.batch_size, found.gpus) == (spec.shape, spec.batch_size, 0)
    assert (found.mfu, found.checkpointing) == (None, False)
    assert before <= found.measured <= time.time()
    assert found.tokens_per_second > 0
    assert found.memory_bytes > 1e8
    assert found.save_seconds is not None
    assert 0 < found.save_seconds < time.time() - before
    assert found.device
    assert not (run.path / "loss").exists()
    assert not run.checkpoints.exists()
    assert run.checkpointed_step() == 0


def test_mfu_is_the_share_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device: 2e9)
    root, study = tiny_study(tmp_path)
    found, spec = measure(run_of(root, study), root, 0.05), study.runs[0]
    assert found.mfu == pytest.approx(
        found.tokens_per_second * (spec.train_flops / spec.tokens) / 2e9
    )


@pytest.mark.parametrize(("step_s", "steps"), [(1.0, 1), (0.25, 4), (1e-9, measuring.MOST_STEPS)])
def test_the_median_of_the_parts_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, steps: int
) -> None:
    root, study = tiny_study(tmp_path)
    asked: list[int] = []

    def timed(bench: object, count: int) -> float:
        slow = (
            100.0 if len(asked) in (0, WARM_UP + 1) else 1.0
        )  # the first step, and one of the parts
        asked.append(count)
        return slow * count * step_s

    monkeypatch.setattr(measuring._Bench, "_time", timed)
    found = measure(run_of(root, study), root, 5.0)
    assert asked == [1] * WARM_UP + [steps] * PARTS
    assert found.tokens_per_second == pytest.approx(
        study.runs[0].batch_size * 32 / step_s, rel=1e-3
    )


def test_a_gpu_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    root, study = tiny_study(tmp_path)
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(
        RunError, match=r"^the job asks for 2 GPUs, and its processes see 0; see `isoflop doctor`$"
    ):
        measure(run_of(root, study), root, 0.05, gpus=2)
