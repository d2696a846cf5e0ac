"""Losses of a model compiled by torch.compile, as on a GPU, and machines without a compiler."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from support.tiny_studies import exact, find_run, tiny_study

from isoflop.runs.run_directory import RunDirectory
from isoflop.training import loop
from isoflop.training.devices import MIN_COMPILED_FLOPS, can_compile, should_compile
from isoflop.training.loop import Trainer, train


def trained(folder: Path, *overrides: str, stop: int | None = None) -> RunDirectory:
    """Train a run of 71 steps with the z-loss; with `stop`, stop and resume it at that step."""
    root, study = tiny_study(folder, "train.z_loss=1e-3", *overrides)
    run = find_run(root, study)
    if stop is not None:
        trainer = Trainer(run, root)
        assert trainer.train(lambda: trainer.step == stop) == "pending"
    assert train(run, root) == "done"
    return run


def loss_difference(run: RunDirectory, other: RunDirectory) -> float:
    """Return the root mean square of the relative differences of two runs' losses."""
    ratios = run.log()["loss"].to_numpy() / other.log()["loss"].to_numpy()
    return float(np.sqrt(np.mean((ratios - 1) ** 2)))


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler; on Debian and Ubuntu: apt install g++"
)
# PyTorch's compiler emits warnings, and a warning that is an error ends the compilation.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "precision",
    [pytest.param("fp32", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.long)],
)
def test_a_compiled_run_has_the_losses_of_an_eager_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    override = f"train.precision={precision}"
    eager = trained(tmp_path / "eager", override)
    monkeypatch.setattr(loop, "should_compile", lambda device, _: can_compile(device))
    whole = trained(tmp_path / "whole", override)
    resumed = trained(tmp_path / "resumed", override, stop=40)
    assert_frame_equal(exact(whole), exact(resumed), check_exact=True)
    assert not exact(whole).equals(exact(eager))
    if precision == "fp32":
        np.testing.assert_allclose(whole.log()["loss"], eager.log()["loss"], rtol=1e-3)
    else:
        monkeypatch.undo()
        eager_fp32 = trained(tmp_path / "fp32", "train.precision=fp32")
        # The rounding of bf16 depends on the CPU: compiled it may be about as large as without.
        rounding = loss_difference(eager, eager_fp32)
        assert loss_difference(whole, eager_fp32) < 1.5 * rounding
        assert loss_difference(whole, eager) < 1.5 * rounding


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_and_head_work_in_the_precision_of_the_run(tmp_path: Path, precision: str) -> None:
    root, study = tiny_study(tmp_path, f"train.precision={precision}")
    trainer, dtypes = Trainer(find_run(root, study), root), []
    down = next(
        module for name, module in trainer.model.named_modules() if name.endswith("mlp.down")
    )
    down.register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    losses_T, *_ = trainer.micro_batches.losses(torch.from_numpy(trainer.windows[np.arange(1)]))
    assert dtypes == [torch.float32 if precision == "fp32" else torch.bfloat16]
    assert losses_T.dtype == torch.float32


def test_short_runs_and_cpus_are_not_compiled() -> None:
    assert not should_compile(torch.device("cpu"), 1e30)
    assert not should_compile(torch.device("cuda"), 0.99 * MIN_COMPILED_FLOPS)


def test_pytorchs_own_switch_forbids_compilation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    with caplog.at_level(logging.WARNING):
        assert not can_compile(torch.device("cpu"))
    assert not caplog.messages


@pytest.mark.slow
def test_without_a_compiler_one_line_is_logged(tmp_path: Path) -> None:
    code = (
        "import logging, torch; from isoflop.training.devices import can_compile; "
        "logging.basicConfig(format='%(message)s'); print(can_compile(torch.device('cpu')))"
    )
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    warnings = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("torch.compile does not work on this machine")
    ]
    assert len(warnings) == 1
    assert warnings[0].endswith(
        "; install a C compiler (gcc) on the node, or set TORCH_COMPILE_DISABLE=1 to train without "
        "it"
    )
