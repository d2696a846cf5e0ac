"""GPUs, memory and hours of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from isoflop.config.profile import Gpu, Profile
from isoflop.errors import ConfigError
from isoflop.planning.gpu_specs import GPUS, find_gpu, gpu_type, mfu_prior
from isoflop.planning.plan import Plan, plan
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.sizing import (
    LONG_ENOUGH_H,
    MEMORY_SHARE,
    STATE_BYTES,
    Size,
    Sizer,
    fit_memory,
    needed_bytes,
)
from isoflop.shapes import ModelShape


@pytest.fixture(scope="module")
def soda() -> Plan:
    return plan("soda")


def cluster(**changes: Any) -> Profile:
    gpu = Gpu(type="h100-sxm", per_node=8)
    return dataclasses.replace(
        Profile(name="h100", executor="slurm", root="/runs", gpu=gpu, max_gpus=64), **changes
    )


def sizes_of(runs: Sequence[RunSpec], profile: Profile, precision: str = "auto") -> list[Size]:
    """The first choice, which nothing but the limit on jobs can change."""
    return next(Sizer(runs, profile, precision=precision).choices(profile.max_gpus))


# GPUs


def test_a_gpu_is_known_by_its_type_and_by_what_cuda_calls_it() -> None:
    assert gpu_type(Gpu(type="h100-sxm", per_node=8)) is not None
    assert all(find_gpu(f"NVIDIA {gpu.device_name}") == gpu for gpu in GPUS.values())


@pytest.mark.parametrize(
    ("name", "peak", "memory_gb"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 80),
        ("NVIDIA H100 PCIe", 756e12, 80),
        ("NVIDIA H100 NVL", 835.5e12, 94),
        ("NVIDIA H200", 989e12, 141),
        ("NVIDIA H200 NVL", 835.5e12, 141),
        ("NVIDIA A100-SXM4-80GB", 312e12, 80),
        ("NVIDIA L40S", 362e12, 48),
        ("NVIDIA L40", 181e12, 48),
        ("NVIDIA L4", 121e12, 24),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None, None),
        ("NVIDIA L400", None, None),
        ("Tesla K80", None, None),
    ],
)
def test_what_cuda_calls_a_gpu(name: str, peak: float | None, memory_gb: float | None) -> None:
    gpu = find_gpu(name)
    assert (gpu and gpu.peak_flops, gpu and gpu.memory_gb) == (peak, memory_gb)


def test_a_profile_may_correct_a_gpu_or_bring_its_own() -> None:
    assert gpu_type(Gpu(type="h100-sxm", per_node=8, memory_gb=94)).memory_gb == 94
    mi300 = gpu_type(Gpu(type="mi300x", per_node=8, memory_gb=192, peak_tflops=1307))
    assert (mi300.device_name, mi300.peak_flops, mi300.memory_gb) == ("mi300x", 1.307e15, 192)
    with pytest.raises(
        ConfigError,
        match=r"gpu.type 'h100' is not known; did you mean h100-sxm\? .*gpu.peak_tflops",
    ):
        gpu_type(Gpu(type="h100", per_node=8))


def test_the_prior_grows_with_the_width_and_falls_with_the_gpus(soda: Plan) -> None:
    shapes = [run.shape for run in soda.runs if run.budget == 3e20]
    priors = [mfu_prior(shape, 1) for shape in shapes]
    assert priors == sorted(priors)
    assert all(0.1 < prior < 0.6 for prior in priors)
    assert mfu_prior(shapes[0], 8) == pytest.approx(priors[0] * 0.95**3)


# Memory


SHAPE = ModelShape(
    width=1024,
    layers=16,
    heads=8,
    kv_heads=8,
    head_dim=128,
    mlp_width=4096,
    vocab_size=8192,
    seq_len=2048,
)


def needed(micro: int, checkpointing: bool) -> float:
    """Memory that a GPU must have for it, in bytes."""
    states = STATE_BYTES * SHAPE.params_total
    return (states + SHAPE.activation_bytes(micro, checkpointing=checkpointing)) / MEMORY_SHARE


@pytest.mark.parametrize(
    ("memory", "micro", "checkpointing"),
    [
        (1e15, 24, False),
        (needed(24, False), 24, False),
        (needed(24, False) - 1, 12, False),
        (needed(3, False), 3, False),
        (needed(1, False), 1, False),
        (needed(1, False) - 1, None, True),
        (needed(1, True), 1, True),
    ],
)
def test_the_largest_part_of_a_batch_that_fits(
    memory: float, micro: int | None, checkpointing: bool
) -> None:
    fit = fit_memory(SHAPE, 24, memory)
    assert fit is not None
    assert fit.checkpointing is checkpointing
    assert micro is None or fit.micro_batch == micro
    assert fit.memory_bytes <= memory * MEMORY_SHARE


@pytest.mark.parametrize(("precision", "value_bytes"), [("auto", 2), ("bf16", 2), ("fp32", 4)])
def test_memory_is_that_of_the_precision(soda: Plan, precision: str, value_bytes: int) -> None:
    sizes = sizes_of(soda.runs, cluster(), precision=precision)
    for run, size in zip(soda.runs, sizes, strict=True):
        fit = size.fit
        assert fit.memory_bytes == needed_bytes(
            run.shape, fit.micro_batch, fit.checkpointing, True, value_bytes
        )
        assert fit.memory_bytes <= MEMORY_SHARE * 80e9


def test_what_does_not_fit_at_all() -> None:
    assert fit_memory(SHAPE, 24, needed(1, True) - 1) is None


# Runs


def test_sizes_of_soda(soda: Plan) -> None:
    sizes = sizes_of(soda.runs, cluster())
    for run, size in zip(soda.runs, sizes, strict=True):
        assert run.batch_size % size.gpus == 0
        assert size.nodes == 1
        assert size.gpu_hours * 3600 * 989e12 * mfu_prior(run.shape, size.gpus) == pytest.approx(
            run.train_flops
        )
    longest = max(LONG_ENOUGH_H, sum(size.gpu_hours for size in sizes) / 64)
    assert all(size.hours <= longest for size in sizes)
    assert all(size.gpus == 1 for size in sizes if 2 * size.hours <= LONG_ENOUGH_H)


def test_more_gpus_spread_runs_wider_and_fewer_do_not(soda: Plan) -> None:
    widest = {
        most: max(size.gpus for size in sizes_of(soda.runs, cluster(max_gpus=most)))
        for most in (8, 64, 512)
    }
    assert widest[8] <= 8
    assert widest[8] <= widest[64] < widest[512]
    wide = max(sizes_of(soda.runs, cluster(max_gpus=512)), key=lambda size: size.gpus)
    assert wide.nodes == wide.gpus // 8


def test_a_day_is_the_measure_without_a_limit_on_gpus(soda: Plan) -> None:
    assert all(size.hours <= 24 for size in sizes_of(soda.runs, cluster(max_gpus=None)))


def test_a_model_that_is_too_large_names_itself_and_what_it_needs(soda: Plan) -> None:
    small = cluster(gpu=Gpu(type="l4", per_node=1))
    with pytest.raises(
        ConfigError,
        match=r"3e20-w\d+-s0-\w+: .* parameters need about \d+ GB on each GPU, of which L4 has 24",
    ):
        sizes_of([run for run in soda.runs if run.budget == 3e20], small)
    with pytest.raises(ConfigError, match="gpu: missing; a bill needs the GPUs of the nodes"):
        sizes_of(soda.runs, cluster(gpu=None))
