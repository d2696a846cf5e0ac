"""Measurements: interpolation, choice of the runs to measure, use in a plan, and the file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.profile import Gpu, Profile
from isoflop.errors import ConfigError
from isoflop.planning.calibration import (
    Calibration,
    Measurement,
    calibration_file,
    choose_classes,
    read_calibration,
    write_calibration,
)
from isoflop.planning.gpu_specs import EFFICIENCY_PER_DOUBLING
from isoflop.planning.plan import Plan, plan
from isoflop.planning.pricing import with_bill
from isoflop.planning.sizing import Sizer, estimate_memory_bytes
from isoflop.shapes import ModelShape

H100 = Profile(
    name="h100",
    executor="slurm",
    root="/runs",
    gpu=Gpu(type="h100-sxm", per_node=8),
    max_gpus=64,
    price_per_gpu_hour=2,
)
CPUS = Profile(name="cpus", executor="local", max_jobs=2)


@pytest.fixture(scope="module")
def soda() -> Plan:
    return plan("soda")


def shape(width: int) -> ModelShape:
    return ModelShape(
        width=width,
        layers=4,
        heads=4,
        kv_heads=4,
        head_dim=64,
        mlp_width=4 * width,
        vocab_size=512,
        seq_len=128,
    )


def measured(
    model: ModelShape, gpus: int = 1, batch: int = 8, flops: float = 1e14, **more: Any
) -> Measurement:
    """Return the measurement of a class that trains at `flops` FLOP/s per GPU."""
    speed = flops * max(1, gpus) / model.train_flops_per_token
    defaults = {
        "micro_batch": 8,
        "checkpointing": False,
        "mfu": 0.1,
        "memory_bytes": 10**9,
        "measured": 1.7e9,
    }
    return Measurement(
        shape=model,
        gpus=gpus,
        batch_size=batch,
        tokens_per_second=speed,
        device="H100",
        **{**defaults, **more},
    )


# Between measurements

SMALL, MIDDLE, LARGE = shape(128), shape(512), shape(2048)


def between(
    low: ModelShape, middle: ModelShape, high: ModelShape, flops: tuple[float, float]
) -> float:
    """Return the FLOP/s on the line through two points in log-log, from its slope."""
    x = [item.train_flops_per_token for item in (low, middle, high)]
    slope = math.log(flops[1] / flops[0]) / math.log(x[2] / x[0])
    return flops[0] * (x[1] / x[0]) ** slope


@pytest.mark.parametrize(
    ("model", "gpus", "expected", "inside"),
    [
        (SMALL, 1, 1e13, True),
        (LARGE, 1, 3e14, True),
        (MIDDLE, 1, between(SMALL, MIDDLE, LARGE, (1e13, 3e14)), True),
        (shape(64), 1, 1e13, False),
        (shape(4096), 1, 3e14, False),
        (SMALL, 8, 8 * 5e13, True),
        (LARGE, 8, 8 * 5e13, False),
        (LARGE, 2, 2 * 3e14 * EFFICIENCY_PER_DOUBLING, False),
        (SMALL, 16, 16 * 5e13 * EFFICIENCY_PER_DOUBLING, False),
    ],
)
def test_speeds_within_and_beyond_the_measurements(
    model: ModelShape, gpus: int, expected: float, inside: bool
) -> None:
    known = Calibration(
        (
            measured(SMALL, flops=1e13),
            measured(LARGE, flops=3e14),
            measured(SMALL, 8, batch=64, flops=5e13),
        )
    )
    speed, is_inside = known.flops_per_second(model, 8 * gpus, gpus)
    assert (speed, is_inside) == (pytest.approx(expected), inside)


def test_the_nearest_of_several_batches_counts() -> None:
    known = Calibration(
        tuple(measured(SMALL, batch=batch, flops=batch * 1e12) for batch in (1, 8, 64))
    )
    for batch, nearest in ((1, 1), (2, 1), (4, 8), (8, 8), (30, 64), (1000, 64)):
        assert known.flops_per_second(SMALL, batch, 1)[0] == pytest.approx(nearest * 1e12), batch


def test_newer_measurements_replace_those_of_the_same_class() -> None:
    old, other = measured(SMALL), measured(LARGE)
    new = measured(SMALL, flops=2e14, measured=1.8e9)
    both = Calibration((old, other)).merge([new])
    assert both.measurements == (new, other)
    assert (Calibration((old, other)).day, both.day) == ("2023-11-14", "2027-01-15")


# Runs to measure


def test_the_smallest_the_middle_and_the_largest_of_each_number_of_gpus(soda: Plan) -> None:
    runs = with_bill(soda, H100).runs
    classes = choose_classes(runs)
    assert len(set(classes)) == len(classes)
    for gpus in {run.gpus for run in runs}:
        flops = sorted({run.shape.train_flops_per_token for run in runs if run.gpus == gpus})
        measured_flops = [run.shape.train_flops_per_token for run in classes if run.gpus == gpus]
        assert len(measured_flops) <= 3
        assert (measured_flops[0], measured_flops[-1]) == (flops[0], flops[-1])
        assert measured_flops == sorted(measured_flops)
    assert [run.gpus for run in classes] == sorted(run.gpus or 0 for run in classes)
    assert choose_classes(runs[:1]) == list(runs[:1])


# In a plan


def full_calibration(soda: Plan, share: float = 0.25) -> Calibration:
    """Return measurements of every class of SODA's bill.

    They have a share of the peak, and twice the estimated memory.
    """
    runs = with_bill(soda, H100).runs
    measurements = []
    for run in choose_classes(runs):
        micro = max(1, run.batch_size // (run.gpus or 1))
        memory = 2 * estimate_memory_bytes(run.shape, micro, False)
        measurements.append(
            measured(
                run.shape,
                run.gpus or 0,
                run.batch_size,
                share * 989e12,
                micro_batch=micro,
                memory_bytes=memory,
            )
        )
    return Calibration(tuple(measurements))


def test_hours_come_from_measured_speed(soda: Plan) -> None:
    billed = with_bill(soda, H100, calibration=full_calibration(soda))
    assert billed.bill is not None
    sized = zip(billed.runs, billed.bill.sizes, strict=True)
    inside = [(run, size) for run, size in sized if size.source == run.est_source == "measured"]
    assert len(inside) > 40
    assert {run.est_source for run in billed.runs} <= {"measured", "extrapolated"}
    for run, size in inside:
        assert size.gpu_hours == pytest.approx(run.train_flops / (0.25 * 989e12) / 3600)
        assert size.gpu_hours < (run.est_gpu_hours or 0) < 1.2 * size.gpu_hours  # it saves too
    beyond = sum(run.est_source == "extrapolated" for run in billed.runs)
    assert billed.bill.source == "measured 2023-11-14" + (
        f", extrapolated for {beyond} runs" if beyond else ""
    )
    slower = with_bill(soda, H100, calibration=full_calibration(soda, 0.1))
    assert slower.bill is not None
    assert slower.bill.gpu_hours > 2 * billed.bill.gpu_hours


@pytest.mark.parametrize("slower", [0.1, 3.0])
def test_checkpoints_take_the_measured_time(soda: Plan, slower: float) -> None:
    """Runs save every ten minutes; the time is that of the nearest model, in proportion to size."""
    classes = choose_classes(with_bill(soda, H100).runs)
    bare = full_calibration(soda).measurements
    timed = [
        dataclasses.replace(
            measurement, save_seconds=10.0 * slower * measurement.shape.params_total / 1e9
        )
        for measurement in bare
    ]
    assert [measurement.shape for measurement in bare] == [run.shape for run in classes]
    billed = with_bill(soda, H100, calibration=Calibration(tuple(timed)))
    assert billed.bill is not None
    for run, size in zip(billed.runs, billed.bill.sizes, strict=True):
        saves = 1 + math.floor(60 * size.hours / 10)
        assert run.est_hours == pytest.approx(
            size.hours + saves * slower * run.params_total / 1e8 / 3600
        )


def test_measurements_correct_the_estimated_memory(soda: Plan) -> None:
    before, after = (
        next(Sizer(soda.runs, H100, calibration).choices(H100.max_gpus))
        for calibration in (None, full_calibration(soda))
    )
    same = [(old, new) for old, new in zip(before, after, strict=True) if old.gpus == new.gpus]
    assert len(same) > 20
    for old, new in same:
        assert new.memory_fit.memory_bytes == pytest.approx(
            2 * old.memory_fit.memory_bytes, rel=1e-6
        )
        assert (new.memory_fit.micro_batch, new.memory_fit.checkpointing) == (
            old.memory_fit.micro_batch,
            old.memory_fit.checkpointing,
        )


def test_cpus_have_a_bill_once_they_are_measured() -> None:
    pocket = plan("pocket")
    with pytest.raises(
        ConfigError, match=r"gpu: missing; .* or on CPUs the measurements of `isoflop calibrate`"
    ):
        with_bill(pocket, CPUS)
    shapes = [run.shape for run in choose_classes(pocket.runs)]
    known = Calibration(tuple(measured(model, gpus=0, flops=1e9) for model in shapes))
    billed = with_bill(pocket, CPUS, calibration=known)
    assert billed.bill is not None
    assert [(run.gpus, run.nodes, run.est_gpu_hours) for run in billed.runs] == [(0, 1, 0.0)] * 20
    for run in billed.runs:
        assert (run.est_hours, run.est_source) == (
            pytest.approx(run.train_flops / 1e9 / 3600, rel=1e-4),
            "measured",
        )
    work = sum(billed.bill.hours)
    assert work / 2 <= billed.bill.finish_hours <= work / 2 + max(billed.bill.hours)
    assert billed.bill.alternatives == {}
    assert (
        billed.bill.gpu_hours,
        {size.memory_fit.memory_bytes for size in billed.bill.sizes},
    ) == (
        0.0,
        {10**9},
    )


def test_on_this_machine_a_run_takes_one_gpu(soda: Plan) -> None:
    local = Profile(name="this-machine", executor="local", gpu=Gpu(type="h100-sxm", per_node=2))
    bill = with_bill(soda, local).bill
    assert bill is not None
    assert {size.gpus for size in bill.sizes} == {1}
    assert bill.finish_hours >= bill.gpu_hours / 2


# The file


def test_measurements_are_read_back_as_written(soda: Plan, tmp_path: Path) -> None:
    known = full_calibration(soda)
    assert read_calibration(tmp_path, soda.sweep, H100) is None
    file = write_calibration(tmp_path, soda.sweep, H100, known)
    assert read_calibration(tmp_path, soda.sweep, H100) == known
    assert [path.name for path in tmp_path.rglob("*.*")] == [file.name]
    assert file.name.startswith("h100-")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (
            {
                "max_gpus": 8,
                "price_per_gpu_hour": 9.0,
                "slurm": {"time": "1:00:00"},
                "root": "/other",
            },
            True,
        ),
        ({"name": "other"}, False),
        ({"gpu": Gpu(type="a100-sxm-80gb", per_node=8)}, False),
        ({"gpu": Gpu(type="h100-sxm", per_node=8, peak_tflops=500)}, False),
        ({"gpu": Gpu(type="h100-sxm", per_node=4)}, True),
        ({"gpu": None}, False),
        ({"executor": "local"}, False),
    ],
)
def test_measurements_hold_for_no_other_cluster(
    soda: Plan, changes: dict[str, Any], same: bool
) -> None:
    files = [
        calibration_file(Path(), soda.sweep, profile)
        for profile in (H100, dataclasses.replace(H100, **changes))
    ]
    assert (files[0] == files[1]) is same


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("budgets=[3e18]", True),
        ("seq_len=2048", True),
        ("train.precision=fp32", False),
        ("recipe=pocket", False),
    ],
)
def test_measurements_hold_for_other_studies_of_the_recipe(
    soda: Plan, override: str, same: bool
) -> None:
    other = plan("soda", [override, "extra=[]", "train.evals=2", "min_batch=1", "max_steps=null"])
    assert (
        calibration_file(Path(), soda.sweep, H100) == calibration_file(Path(), other.sweep, H100)
    ) is same


def test_another_trainer_has_no_measurements(soda: Plan, tmp_path: Path) -> None:
    write_calibration(tmp_path, soda.sweep, H100, full_calibration(soda))
    other = plan("soda", ["train.trainer=simulated: soda"])
    assert read_calibration(tmp_path, other.sweep, H100) is None


def with_value(key: str, value: Any) -> Any:
    """Return a function that replaces a value of the first measurement in a file's text."""

    def damage(text: str) -> str:
        document = json.loads(text)
        document["measurements"][0][key] = value
        return json.dumps(document)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(
            with_value("tokens_per_second", value)
            for value in (math.nan, math.inf, -1.0, 0, 5e-324, 1e300, "9", None)
        ),
        *(with_value("gpus", value) for value in (-1, 1.0, True, 10**30, [])),
        *(with_value("batch_size", value) for value in (0, 0.5, "x")),
        *(with_value("micro_batch", value) for value in (0, None)),
        *(with_value("memory_bytes", value) for value in (-5, math.nan, 10**400)),
        *(with_value("measured", value) for value in (math.nan, 1e300, "yesterday")),
        *(with_value("save_seconds", value) for value in (-1.0, 0.0, math.nan, 1e300, "1")),
        *(with_value("mfu", value) for value in (math.nan, "0.1")),
        *(with_value("device", value) for value in (None, 1)),
        *(with_value("shape", value) for value in (None, [], {"width": 128})),
        with_value("checkpointing", 1),
        lambda text: "[" * 100_000,
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: json.dumps({**json.loads(text), "measurements": []}),
        lambda text: text.replace('"gpus"', '"gpu"'),
        lambda text: text.replace('"head_dim": 128', '"head_dim": 127'),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(soda: Plan, tmp_path: Path, damage: Any) -> None:
    file = write_calibration(tmp_path, soda.sweep, H100, full_calibration(soda))
    before = file.read_text()
    assert damage(before) != before
    file.write_text(damage(before))
    with pytest.raises(ConfigError) as problem:
        read_calibration(tmp_path, soda.sweep, H100)
    assert (
        str(problem.value)
        == f"{file}: damaged; delete it, and measure again with `isoflop calibrate`"
    )
