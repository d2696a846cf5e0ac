"""GPUs, memory and hours of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from isoflop.config.profile import Gpu, Profile
from isoflop.errors import ConfigError
from isoflop.planning.gpu_specs import GPU_TYPES, find_gpu, mfu_prior, resolve_gpu
from isoflop.planning.plan import Plan, plan
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.sizing import (
    MIN_SPREAD_HOURS,
    STATE_BYTES_PER_PARAM,
    USABLE_MEMORY_SHARE,
    Size,
    Sizer,
    estimate_memory_bytes,
    fit_memory,
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


def first_sizes(runs: Sequence[RunSpec], profile: Profile, precision: str = "auto") -> list[Size]:
    """Return the first choice; only the limit on jobs can lead to another."""
    return next(Sizer(runs, profile, precision=precision).choices(profile.max_gpus))


# GPUs


def test_a_gpu_is_found_by_its_type_and_by_its_cuda_name() -> None:
    assert resolve_gpu(Gpu(type="h100-sxm", per_node=8)) is not None
    assert all(find_gpu(f"NVIDIA {gpu.device_name}") == gpu for gpu in GPU_TYPES.values())


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
def test_cuda_names_of_gpus(name: str, peak: float | None, memory_gb: float | None) -> None:
    gpu = find_gpu(name)
    assert (gpu and gpu.peak_flops, gpu and gpu.memory_gb) == (peak, memory_gb)


def test_a_profile_may_correct_a_gpu_or_define_another() -> None:
    assert resolve_gpu(Gpu(type="h100-sxm", per_node=8, memory_gb=94)).memory_gb == 94
    mi300 = resolve_gpu(Gpu(type="mi300x", per_node=8, memory_gb=192, peak_tflops=1307))
    assert (mi300.device_name, mi300.peak_flops, mi300.memory_gb) == ("mi300x", 1.307e15, 192)
    with pytest.raises(
        ConfigError,
        match=r"gpu.type 'h100' is not known; did you mean h100-sxm\? .*gpu.peak_tflops",
    ):
        resolve_gpu(Gpu(type="h100", per_node=8))


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
    """Return the bytes of memory that a GPU needs."""
    states = STATE_BYTES_PER_PARAM * SHAPE.params_total
    return (
        states + SHAPE.activation_bytes(micro, checkpointing=checkpointing)
    ) / USABLE_MEMORY_SHARE


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
def test_the_largest_micro_batch_that_fits(
    memory: float, micro: int | None, checkpointing: bool
) -> None:
    fit = fit_memory(SHAPE, 24, memory)
    assert fit is not None
    assert fit.checkpointing is checkpointing
    assert micro is None or fit.micro_batch == micro
    assert fit.memory_bytes <= memory * USABLE_MEMORY_SHARE


@pytest.mark.parametrize(("precision", "bytes_per_value"), [("auto", 2), ("bf16", 2), ("fp32", 4)])
def test_memory_depends_on_the_precision(soda: Plan, precision: str, bytes_per_value: int) -> None:
    sizes = first_sizes(soda.runs, cluster(), precision=precision)
    for run, size in zip(soda.runs, sizes, strict=True):
        fit = size.memory_fit
        assert fit.memory_bytes == estimate_memory_bytes(
            run.shape, fit.micro_batch, fit.checkpointing, True, bytes_per_value
        )
        assert fit.memory_bytes <= USABLE_MEMORY_SHARE * 80e9


def test_memory_too_small_for_one_sequence() -> None:
    assert fit_memory(SHAPE, 24, needed(1, True) - 1) is None


# Runs


def test_sizes_of_soda(soda: Plan) -> None:
    sizes = first_sizes(soda.runs, cluster())
    for run, size in zip(soda.runs, sizes, strict=True):
        assert run.batch_size % size.gpus == 0
        assert size.nodes == 1
        assert size.gpu_hours * 3600 * 989e12 * mfu_prior(run.shape, size.gpus) == pytest.approx(
            run.train_flops
        )
    longest = max(MIN_SPREAD_HOURS, sum(size.gpu_hours for size in sizes) / 64)
    assert all(size.hours <= longest for size in sizes)
    assert all(size.gpus == 1 for size in sizes if 2 * size.hours <= MIN_SPREAD_HOURS)


def test_more_gpus_spread_runs_wider_and_fewer_do_not(soda: Plan) -> None:
    widest = {
        max_gpus: max(size.gpus for size in first_sizes(soda.runs, cluster(max_gpus=max_gpus)))
        for max_gpus in (8, 64, 512)
    }
    assert widest[8] <= 8
    assert widest[8] <= widest[64] < widest[512]
    wide = max(first_sizes(soda.runs, cluster(max_gpus=512)), key=lambda size: size.gpus)
    assert wide.nodes == wide.gpus // 8


def test_runs_take_at_most_a_day_without_a_limit_on_gpus(soda: Plan) -> None:
    assert all(size.hours <= 24 for size in first_sizes(soda.runs, cluster(max_gpus=None)))


def test_too_large_a_model_is_refused_with_the_memory_it_needs(soda: Plan) -> None:
    small = cluster(gpu=Gpu(type="l4", per_node=1))
    with pytest.raises(
        ConfigError,
        match=r"3e20-w\d+-s0-\w+: .* need about [\d.]+ GB on each GPU, but L4 has 24.0 GB",
    ):
        first_sizes([run for run in soda.runs if run.budget == 3e20], small)
    with pytest.raises(
        ConfigError, match="gpu: missing; a cost estimate needs the GPUs of the nodes"
    ):
        first_sizes(soda.runs, cluster(gpu=None))
