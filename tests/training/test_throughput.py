"""Speed and memory of a few steps of the real trainer, without traces in the run's directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from support.tiny_studies import find_run, tiny_study

from isoflop.errors import RunError
from isoflop.training import loop, throughput
from isoflop.training.throughput import (
    MAX_INTERVAL_STEPS,
    TIMED_INTERVALS,
    WARM_UP_STEPS,
    measure,
)


def test_a_run_is_measured_and_leaves_no_log(tmp_path: Path) -> None:
    root, study = tiny_study(tmp_path)
    run, before = find_run(root, study), time.time()
    measurement = measure(run, root, 0.05)
    spec = study.runs[0]
    assert (measurement.shape, measurement.batch_size, measurement.gpus) == (
        spec.shape,
        spec.batch_size,
        0,
    )
    assert (measurement.mfu, measurement.checkpointing) == (None, False)
    assert before <= measurement.measured <= time.time()
    assert measurement.tokens_per_second > 0
    assert measurement.memory_bytes > 1e8
    assert measurement.save_seconds is not None
    assert 0 < measurement.save_seconds < time.time() - before
    assert measurement.device
    assert not (run.path / "loss").exists()
    assert not run.checkpoints.exists()
    assert run.checkpointed_step() == 0


def test_mfu_is_the_share_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device: 2e9)
    root, study = tiny_study(tmp_path)
    measurement, spec = measure(find_run(root, study), root, 0.05), study.runs[0]
    assert measurement.mfu == pytest.approx(
        measurement.tokens_per_second * (spec.train_flops / spec.tokens) / 2e9
    )


@pytest.mark.parametrize(("step_s", "steps"), [(1.0, 1), (0.25, 4), (1e-9, MAX_INTERVAL_STEPS)])
def test_the_speed_is_that_of_the_median_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, steps: int
) -> None:
    root, study = tiny_study(tmp_path)
    counts: list[int] = []

    def time_steps(trainer: object, count: int) -> float:
        # The first step is slow, and one of the intervals.
        factor = 100.0 if len(counts) in (0, WARM_UP_STEPS + 1) else 1.0
        counts.append(count)
        return factor * count * step_s

    monkeypatch.setattr(throughput._TimedTrainer, "_time", time_steps)
    measurement = measure(find_run(root, study), root, 5.0)
    assert counts == [1] * WARM_UP_STEPS + [steps] * TIMED_INTERVALS
    assert measurement.tokens_per_second == pytest.approx(
        study.runs[0].batch_size * 32 / step_s, rel=1e-3
    )


def test_a_missing_gpu_is_an_error(tmp_path: Path) -> None:
    root, study = tiny_study(tmp_path)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    message = r"^the job requests 2 GPUs, but its processes find 0; run `isoflop doctor`$"
    with pytest.raises(RunError, match=message):
        measure(find_run(root, study), root, 0.05, gpus=2)
