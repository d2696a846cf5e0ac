"""What was measured, what lies between, which runs are measured, and the file that it is kept in."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.profile import Gpu, Profile
from isoflop.errors import ConfigError
from isoflop.planning.bill import with_bill
from isoflop.planning.calibration import (
    Calibration,
    Measurement,
    calibration_file,
    choose_classes,
    read_calibration,
    write_calibration,
)
from isoflop.planning.gpu_specs import PARALLEL_EFFICIENCY
from isoflop.planning.plan import Plan, plan
from isoflop.planning.sizing import Sizer, needed_bytes
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
    of: ModelShape, gpus: int = 1, batch: int = 8, flops: float = 1e14, **more: Any
) -> Measurement:
    """A class that trains at `flops` a GPU."""
    speed = flops * max(1, gpus) / of.train_flops_per_token
    known = {
        "micro_batch": 8,
        "checkpointing": False,
        "mfu": 0.1,
        "memory_bytes": 10**9,
        "measured": 1.7e9,
    }
    return Measurement(
        shape=of,
        gpus=gpus,
        batch_size=batch,
        tokens_per_second=speed,
        device="H100",
        **{**known, **more},
    )


# Between measurements

SMALL, MIDDLE, LARGE = shape(128), shape(512), shape(2048)


def between(
    low: ModelShape, here: ModelShape, high: ModelShape, flops: tuple[float, float]
) -> float:
    """On the line through two points in log-log, worked out by its slope."""
    x = [item.train_flops_per_token for item in (low, here, high)]
    slope = math.log(flops[1] / flops[0]) / math.log(x[2] / x[0])
    return flops[0] * (x[1] / x[0]) ** slope


@pytest.mark.parametrize(
    ("of", "gpus", "expected", "inside"),
    [
        (SMALL, 1, 1e13, True),
        (LARGE, 1, 3e14, True),
        (MIDDLE, 1, between(SMALL, MIDDLE, LARGE, (1e13, 3e14)), True),
        (shape(64), 1, 1e13, False),
        (shape(4096), 1, 3e14, False),
        (SMALL, 8, 8 * 5e13, True),
        (LARGE, 8, 8 * 5e13, False),
        (LARGE, 2, 2 * 3e14 * PARALLEL_EFFICIENCY, False),
        (SMALL, 16, 16 * 5e13 * PARALLEL_EFFICIENCY, False),
    ],
)
def test_speeds_between_and_beyond_what_was_measured(
    of: ModelShape, gpus: int, expected: float, inside: bool
) -> None:
    known = Calibration(
        (
            measured(SMALL, flops=1e13),
            measured(LARGE, flops=3e14),
            measured(SMALL, 8, batch=64, flops=5e13),
        )
    )
    speed, is_inside = known.flops_per_second(of, 8 * gpus, gpus)
    assert (speed, is_inside) == (pytest.approx(expected), inside)


def test_of_several_batches_the_nearest_counts() -> None:
    known = Calibration(
        tuple(measured(SMALL, batch=batch, flops=batch * 1e12) for batch in (1, 8, 64))
    )
    for batch, nearest in ((1, 1), (2, 1), (4, 8), (8, 8), (30, 64), (1000, 64)):
        assert known.flops_per_second(SMALL, batch, 1)[0] == pytest.approx(nearest * 1e12), batch


def test_newer_measurements_replace_those_of_the_same_class() -> None:
    old, other = measured(SMALL), measured(LARGE)
    new = measured(SMALL, flops=2e14, measured=1.8e9)
    both = Calibration((old, other)).with_more([new])
    assert both.measurements == (new, other)
    assert (Calibration((old, other)).day, both.day) == ("2023-11-14", "2027-01-15")


# What is measured


def test_the_smallest_the_middle_and_the_largest_of_each_number_of_gpus(soda: Plan) -> None:
    runs = with_bill(soda, H100).runs
    classes = choose_classes(runs)
    assert len(set(classes)) == len(classes)
    for gpus in {run.gpus for run in runs}:
        flops = sorted({run.shape.train_flops_per_token for run in runs if run.gpus == gpus})
        found = [run.shape.train_flops_per_token for run in classes if run.gpus == gpus]
        assert len(found) <= 3
        assert (found[0], found[-1]) == (flops[0], flops[-1])
        assert found == sorted(found)
    assert [run.gpus for run in classes] == sorted(run.gpus or 0 for run in classes)
    assert choose_classes(runs[:1]) == list(runs[:1])


# In a plan


def everything(soda: Plan, share: float = 0.25) -> Calibration:
    """Every class of SODA's bill, at a share of the peak, in twice the memory of the estimate."""
    runs = with_bill(soda, H100).runs
    found = []
    for run in choose_classes(runs):
        micro = max(1, run.batch_size // (run.gpus or 1))
        memory = 2 * needed_bytes(run.shape, micro, False)
        found.append(
            measured(
                run.shape,
                run.gpus or 0,
                run.batch_size,
                share * 989e12,
                micro_batch=micro,
                memory_bytes=memory,
            )
        )
    return Calibration(tuple(found))


def test_hours_come_from_measured_speed(soda: Plan) -> None:
    billed = with_bill(soda, H100, calibration=everything(soda))
    assert billed.bill is not None
    sized = zip(billed.runs, billed.bill.sizes, strict=True)
    own = [(run, size) for run, size in sized if size.source == run.est_source == "measured"]
    assert len(own) > 40
    assert {run.est_source for run in billed.runs} <= {"measured", "extrapolated"}
    for run, size in own:
        assert size.gpu_hours == pytest.approx(run.train_flops / (0.25 * 989e12) / 3600)
        assert size.gpu_hours < (run.est_gpu_hours or 0) < 1.2 * size.gpu_hours  # it saves too
    beyond = sum(run.est_source == "extrapolated" for run in billed.runs)
    assert billed.bill.source == "measured 2023-11-14" + (
        f", extrapolated for {beyond} runs" if beyond else ""
    )
    slower = with_bill(soda, H100, calibration=everything(soda, 0.1))
    assert slower.bill is not None
    assert slower.bill.gpu_hours > 2 * billed.bill.gpu_hours


@pytest.mark.parametrize("slower", [0.1, 3.0])
def test_checkpoints_take_the_time_that_was_measured(soda: Plan, slower: float) -> None:
    """Ten minutes of training, then a checkpoint, by the nearest model that was measured, in proportion."""
    runs = with_bill(soda, H100).runs
    found = {one: 10.0 * slower * one.shape.params_total / 1e9 for one in choose_classes(runs)}
    bare = everything(soda).measurements
    timed = [
        dataclasses.replace(one, save_seconds=s)
        for one, s in zip(bare, found.values(), strict=True)
    ]
    assert [one.shape for one in bare] == [run.shape for run in found]
    billed = with_bill(soda, H100, calibration=Calibration(tuple(timed)))
    assert billed.bill is not None
    for run, size in zip(billed.runs, billed.bill.sizes, strict=True):
        saves = 1 + math.floor(60 * size.hours / 10)
        assert run.est_hours == pytest.approx(
            size.hours + saves * slower * run.params_total / 1e8 / 3600
        )


def test_memory_is_what_measurements_make_of_the_estimate(soda: Plan) -> None:
    before, after = (
        next(Sizer(soda.runs, H100, found).choices(H100.max_gpus))
        for found in (None, everything(soda))
    )
    same = [(old, new) for old, new in zip(before, after, strict=True) if old.gpus == new.gpus]
    assert len(same) > 20
    for old, new in same:
        assert new.fit.memory_bytes == pytest.approx(2 * old.fit.memory_bytes, rel=1e-6)
        assert (new.fit.micro_batch, new.fit.checkpointing) == (
            old.fit.micro_batch,
            old.fit.checkpointing,
        )


def test_cpus_have_a_bill_once_they_are_measured() -> None:
    pocket = plan("pocket")
    with pytest.raises(
        ConfigError, match=r"gpu: missing; .* or on CPUs what `isoflop calibrate` measures"
    ):
        with_bill(pocket, CPUS)
    shapes = [run.shape for run in choose_classes(pocket.runs)]
    known = Calibration(tuple(measured(of, gpus=0, flops=1e9) for of in shapes))
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
    assert billed.bill.others == {}
    assert (billed.bill.gpu_hours, {size.fit.memory_bytes for size in billed.bill.sizes}) == (
        0.0,
        {10**9},
    )


def test_on_this_machine_a_run_takes_one_gpu(soda: Plan) -> None:
    here = Profile(name="here", executor="local", gpu=Gpu(type="h100-sxm", per_node=2))
    bill = with_bill(soda, here).bill
    assert bill is not None
    assert {size.gpus for size in bill.sizes} == {1}
    assert bill.finish_hours >= bill.gpu_hours / 2


# The file


def test_it_is_read_back_as_it_was_written(soda: Plan, tmp_path: Path) -> None:
    known = everything(soda)
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
def test_what_was_measured_holds_for_no_other_cluster(
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
def test_it_holds_for_other_studies_of_the_recipe(soda: Plan, override: str, same: bool) -> None:
    other = plan("soda", [override, "extra=[]", "train.evals=2", "min_batch=1", "max_steps=null"])
    assert (
        calibration_file(Path(), soda.sweep, H100) == calibration_file(Path(), other.sweep, H100)
    ) is same


def test_another_trainer_is_not_as_fast(soda: Plan, tmp_path: Path) -> None:
    write_calibration(tmp_path, soda.sweep, H100, everything(soda))
    other = plan("soda", ["train.trainer=simulated: soda"])
    assert read_calibration(tmp_path, other.sweep, H100) is None


def with_value(key: str, value: Any) -> Any:
    """Puts a value in the place of one of the first measurement."""

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
def test_a_damaged_file_is_one_line(soda: Plan, tmp_path: Path, damage: Any) -> None:
    file = write_calibration(tmp_path, soda.sweep, H100, everything(soda))
    before = file.read_text()
    assert damage(before) != before
    file.write_text(damage(before))
    with pytest.raises(ConfigError) as problem:
        read_calibration(tmp_path, soda.sweep, H100)
    assert (
        str(problem.value)
        == f"{file}: damaged; delete it, and measure again with `isoflop calibrate`"
    )
