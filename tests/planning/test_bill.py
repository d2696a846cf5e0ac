"""The bill: its columns of a plan, its warnings, and its refusals."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.profile import Gpu, Profile, load_profile
from isoflop.errors import BudgetError, ConfigError
from isoflop.launching.queue.arrays import make_arrays
from isoflop.planning.bill import Bill
from isoflop.planning.plan import Plan, plan
from isoflop.planning.pricing import check_cap, with_bill, with_remaining_bill
from isoflop.planning.queue_simulation import Order
from isoflop.planning.run_spec import RunSpec
from isoflop.text import bytes_text


@pytest.fixture(scope="module")
def soda() -> Plan:
    return plan("soda")


@pytest.fixture(scope="module")
def h100() -> Profile:
    return load_profile("h100", to_plan=True)


def require_bill(plan: Plan) -> Bill:
    assert plan.bill is not None
    return plan.bill


def test_a_plan_with_its_bill(soda: Plan, h100: Profile) -> None:
    billed = with_bill(soda, h100)
    bill, rows = require_bill(billed), billed.rows()
    for name in ("gpus", "nodes", "est_hours", "est_gpu_hours", "est_source"):
        assert None not in [row[name] for row in rows]
    assert {row["est_source"] for row in rows} == {"prior"}
    assert sum(row["est_gpu_hours"] for row in rows) == pytest.approx(bill.gpu_hours)
    assert billed.totals()["gpu_hours"] == bill.gpu_hours
    assert billed.totals()["cost"] == pytest.approx(2.5 * bill.gpu_hours)
    assert billed.totals()["finish_hours"] == bill.schedule.finish_hours == max(bill.schedule.ends)
    assert bill.gpu_hours / 64 <= bill.finish_hours <= 2 * bill.gpu_hours / 64
    assert [run.run_id for run in billed.runs] == [run.run_id for run in soda.runs]
    assert (soda.bill, soda.totals()["gpu_hours"], soda.runs[0].gpus) == (None, None, None)


def test_disk_holds_checkpoints_of_running_and_weights_of_finished_runs(
    soda: Plan, h100: Profile
) -> None:
    bill = require_bill(with_bill(soda, h100))
    assert bill.weights_bytes == sum(4 * run.params_total for run in soda.runs)
    spans = list(zip(soda.runs, bill.schedule.starts, bill.schedule.ends, strict=True))
    held = [
        sum(3 * 16 * run.params_total for run, start, end in spans if start <= moment < end)
        + sum(4 * run.params_total for run, _, end in spans if end <= moment)
        for moment in bill.schedule.starts
    ]
    assert bill.disk_bytes == max(held)
    assert (
        bill.weights_bytes < bill.disk_bytes < 3 * 16 * sum(run.params_total for run in soda.runs)
    )
    unlimited = require_bill(with_bill(soda, replace(h100, max_gpus=None)))
    assert unlimited.disk_bytes == 3 * 16 * sum(run.params_total for run in soda.runs)


def test_more_gpus_end_sooner_and_fewer_later(soda: Plan, h100: Profile) -> None:
    bill = require_bill(with_bill(soda, h100))
    assert list(bill.alternatives) == [32, 128]
    assert (
        bill.alternatives[128].finish_hours < bill.finish_hours < bill.alternatives[32].finish_hours
    )
    assert require_bill(with_bill(soda, replace(h100, max_gpus=None))).alternatives == {}


def test_small_budgets_first_give_early_results_and_a_later_end(soda: Plan, h100: Profile) -> None:
    def first_ends(order: Any) -> float:
        bill = require_bill(with_bill(soda, h100, order=order))
        ends = zip(soda.runs, bill.schedule.ends, strict=True)
        return max(end for run, end in ends if run.budget <= 9e18)

    assert first_ends("budget") < first_ends("longest") / 2


def test_interruptions_cost_unsaved_work_and_a_restart(soda: Plan, h100: Profile) -> None:
    unlimited = replace(h100, slurm={})
    plain, busy = (
        require_bill(with_bill(soda, unlimited, interruptions_per_day=rate)) for rate in (0, 24)
    )
    # Half of ten minutes between checkpoints, and a quarter of an hour to restart.
    lost = 10 / 60 / 2 + 0.25
    assert busy.gpu_hours == pytest.approx(plain.gpu_hours * (1 + lost))
    assert busy.finish_hours > plain.finish_hours


def test_a_preemptible_cluster_has_interruptions_unless_their_number_is_given(
    soda: Plan, h100: Profile
) -> None:
    preemptible = replace(h100, preemptible=True)
    bills = [
        require_bill(with_bill(soda, preemptible, interruptions_per_day=rate))
        for rate in (None, 2.0, 0.0)
    ]
    assert [bill.interruptions_per_day for bill in bills] == [2.0, 2.0, 0.0]
    assert (
        bills[0].gpu_hours
        == bills[1].gpu_hours
        > bills[2].gpu_hours
        == require_bill(with_bill(soda, h100)).gpu_hours
    )


def test_runs_longer_than_a_job_are_restarted_at_a_cost(soda: Plan, h100: Profile) -> None:
    unlimited = require_bill(with_bill(soda, replace(h100, slurm={})))
    assert set(unlimited.starts) == {1}
    for limit, hours in (("48:00:00", 48), ("4:00:00", 4), ("1:00:00", 1)):
        bill = require_bill(with_bill(soda, replace(h100, slurm={"time": limit})))
        # A job saves before its end: a minute, and the checkpoint at half a GB a second.
        leads = [
            min(max(90, 60 + 16 * run.params_total / 0.5e9), 360 * hours) / 3600
            for run in soda.runs
        ]
        starts = [
            math.ceil(duration / (hours - lead))
            for duration, lead in zip(unlimited.hours, leads, strict=True)
        ]
        assert list(bill.starts) == starts
        restart_hours = [0.25 * (count - 1) for count in starts]
        assert bill.hours == pytest.approx(
            [sum(pair) for pair in zip(unlimited.hours, restart_hours, strict=True)]
        )
        assert max(bill.starts) > 1
        assert bill.gpu_hours > unlimited.gpu_hours


@pytest.mark.parametrize("text", ["0:10", "1:00", "1", "0:00:11"])
def test_jobs_too_short_for_a_checkpoint_are_refused(soda: Plan, h100: Profile, text: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^slurm.time: {text} is too short for a checkpoint of 3e20-w2\S+, which",
    ):
        with_bill(replace(soda, runs=soda.runs[-2:]), replace(h100, slurm={"time": text}))


def saving_hours(run: RunSpec, training_hours: float, minutes: float) -> float:
    """Return the hours of saves of weights and two moments, one after every `minutes`."""
    remaining, hours = training_hours, 0.0
    while remaining > 0:
        remaining -= minutes / 60
        hours += 12 * run.params_total / 0.5e9 / 3600
    return hours


@pytest.mark.parametrize(("minutes", "lost"), [(60.0, 0.5), (1e6, None), (1e305, None)])
def test_an_interruption_costs_at_most_half_of_the_training(
    soda: Plan, h100: Profile, minutes: float, lost: float | None
) -> None:
    study = replace(
        soda, sweep=replace(soda.sweep, train=replace(soda.sweep.train, checkpoint_minutes=minutes))
    )
    never, hourly = (
        require_bill(with_bill(study, replace(h100, slurm={}), interruptions_per_day=rate))
        for rate in (0.0, 24.0)
    )
    for size, plain, busy in zip(hourly.sizes, never.hours, hourly.hours, strict=True):
        assert busy == pytest.approx(plain * (1 + min(size.hours / 2, lost or math.inf) + 0.25))


def test_on_this_machine_max_jobs_limits_the_runs_at_a_time(soda: Plan) -> None:
    local = Profile(name="this-machine", executor="local", gpu=Gpu(type="h100-sxm", per_node=8))
    single, eight = (
        require_bill(with_bill(soda, replace(local, max_jobs=max_jobs))) for max_jobs in (1, 8)
    )
    assert single.finish_hours == pytest.approx(sum(single.hours))
    assert eight.finish_hours < single.finish_hours / 6


def test_the_remaining_bill_is_that_of_the_remaining_work(soda: Plan, h100: Profile) -> None:
    billed = with_bill(soda, replace(h100, disk_gb=100.0))
    small = {run.run_id: 0.5 for run in soda.runs if run.budget == 3e18}
    rest = with_remaining_bill(billed, small)
    bill, whole = require_bill(rest), require_bill(billed)
    numbers = [number for number, run in enumerate(soda.runs) if run.run_id in small]
    assert bill.hours == tuple(whole.hours[number] / 2 for number in numbers)
    assert bill.gpu_hours == pytest.approx(
        sum(whole.sizes[number].held_gpus * whole.hours[number] / 2 for number in numbers)
    )
    assert set(bill.schedule.critical) <= set(small)
    assert max(bill.hours) <= bill.finish_hours < whole.finish_hours
    assert bill.weights_bytes == sum(4 * soda.runs[number].params_total for number in numbers)
    assert any(" at a time" in warning for warning in billed.warnings)
    assert not any("GB at a time" in warning for warning in rest.warnings)
    everything = {run.run_id: 1.0 for run in soda.runs}
    assert require_bill(with_remaining_bill(billed, everything)).schedule == whole.schedule
    assert with_remaining_bill(billed, {}) is billed
    assert with_remaining_bill(soda, everything) is soda


@pytest.mark.parametrize("minutes", [10, 60, 7])
def test_a_run_waits_while_it_saves(soda: Plan, h100: Profile, minutes: float) -> None:
    study = replace(
        soda, sweep=replace(soda.sweep, train=replace(soda.sweep.train, checkpoint_minutes=minutes))
    )
    bill = require_bill(with_bill(study, replace(h100, slurm={})))
    for run, size, hours in zip(soda.runs, bill.sizes, bill.hours, strict=True):
        assert hours == pytest.approx(size.hours + saving_hours(run, size.hours, minutes), rel=1e-3)
    external = replace(soda.sweep, train=replace(soda.sweep.train, trainer="command: train"))
    unsaved = require_bill(with_bill(replace(soda, sweep=external), replace(h100, slurm={})))
    assert unsaved.hours == tuple(size.hours for size in unsaved.sizes)


def test_there_is_at_most_one_checkpoint_a_step(h100: Profile) -> None:
    study = plan("soda", ["budgets=[3.0e18]", "extra=[]", "train.checkpoint_minutes=1e-300"])
    bill = require_bill(with_bill(study, replace(h100, slurm={})))
    saves = [run.steps * 12 * run.params_total / 0.5e9 / 3600 for run in study.runs]
    assert bill.hours == pytest.approx(
        [size.hours + save for size, save in zip(bill.sizes, saves, strict=True)]
    )


@pytest.mark.parametrize("max_gpus", [64, 256, None])
@pytest.mark.parametrize("order", ["longest", "budget"])
def test_a_limit_on_jobs_above_their_number_changes_nothing(
    soda: Plan, h100: Profile, max_gpus: int | None, order: Order
) -> None:
    limited, free = (
        require_bill(
            with_bill(soda, replace(h100, max_gpus=max_gpus, max_jobs=max_jobs), order=order)
        )
        for max_jobs in (len(soda.runs), None)
    )
    assert (limited.finish_hours, limited.gpu_hours) == (free.finish_hours, free.gpu_hours)


@pytest.mark.parametrize("max_jobs", [1, 2, 3, 5])
def test_few_jobs_without_a_limit_on_gpus_take_more_gpus_each(
    soda: Plan, h100: Profile, max_jobs: int
) -> None:
    """They end about as soon as any number of jobs, or as on the most GPUs that help."""
    many, few, any_number = (
        require_bill(with_bill(soda, replace(h100, max_gpus=gpus, max_jobs=jobs))).finish_hours
        for gpus, jobs in ((512, max_jobs), (None, max_jobs), (None, None))
    )
    assert few < 1.1 * max(many, any_number)


@pytest.mark.parametrize(
    ("max_gpus", "max_jobs"),
    [(64, 3), (8, 3), (16, 3), (64, 1), (64, 8), (128, 16), (512, 4), (16, 30)],
)
def test_few_jobs_at_a_time_take_enough_gpus_to_end_the_study_soon(
    soda: Plan, h100: Profile, max_gpus: int, max_jobs: int
) -> None:
    bill = require_bill(with_bill(soda, replace(h100, max_gpus=max_gpus, max_jobs=max_jobs)))
    least = max(*bill.hours, bill.gpu_hours / max_gpus, sum(bill.hours) / max_jobs)
    assert (1 - 1e-12) * least <= bill.finish_hours <= 1.5 * least  # sums round differently
    assert (
        bill.finish_hours
        <= 1.6 * require_bill(with_bill(soda, replace(h100, max_gpus=max_gpus))).finish_hours
    )
    assert bill.alternatives[2 * max_gpus].finish_hours <= bill.finish_hours


def test_a_cap_refuses_with_exit_code_3(soda: Plan, h100: Profile) -> None:
    bill = require_bill(with_bill(soda, h100))
    check_cap(bill.gpu_hours, None)
    check_cap(bill.gpu_hours, bill.gpu_hours)
    with pytest.raises(
        BudgetError, match=r"needs about [\d,]+ GPU-hours, --max-gpu-hours allows 100;"
    ) as problem:
        check_cap(bill.gpu_hours, 100)
    for hours, cap in ((math.nan, 100), (math.inf, 100), (1.0, math.nan)):
        with pytest.raises(BudgetError):
            check_cap(hours, cap)
    assert problem.value.exit_code == 3


def test_estimates_for_bf16_carry_a_warning_for_fp32(h100: Profile) -> None:
    (warning,) = with_bill(plan("soda", ["train.precision=fp32"]), h100).warnings
    assert (
        warning
        == "the hours are estimates for bf16, but train.precision is fp32; run `isoflop calibrate` "
        "to measure them"
    )
    assert with_bill(plan("soda", ["train.precision=bf16"]), h100).warnings == ()


def test_too_little_disk_leads_to_a_warning(soda: Plan, h100: Profile, tmp_path: Path) -> None:
    assert with_bill(soda, h100).warnings == ()
    billed = with_bill(soda, replace(h100, disk_gb=1000.0))
    need = f"checkpoints and weights will take up to {bytes_text(require_bill(billed).disk_bytes)}"
    assert billed.warnings == (f"{need} at a time, disk_gb allows 1.00 TB",)


def test_free_disk_is_that_of_the_root_or_of_its_parent(
    h100: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soda, usage = plan("soda"), shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10**9))
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in (str(tmp_path), str(tmp_path / "runs"), "~", "~/runs"):
        (free,) = with_bill(soda, replace(h100, root=root)).warnings
        assert free.startswith("checkpoints and weights will take up to ")
        assert free.endswith(f"B at a time, {tmp_path} has 1.00 GB free")
    for elsewhere in ("/no/such/place", "/scratch-of-a-cluster"):
        assert with_bill(soda, replace(h100, root=elsewhere)).warnings == ()


@pytest.mark.parametrize("order", ["longest", "budget"])
@pytest.mark.parametrize("max_array_size", [1001, 5])
@pytest.mark.parametrize(
    "limits",
    [
        {"max_gpus": 64},
        {"max_gpus": 24, "max_jobs": 9},
        {"max_gpus": None},
        {"slurm": {"exclusive": True}},
    ],
)
def test_the_finish_is_that_of_the_submitted_arrays(
    soda: Plan, h100: Profile, order: Any, max_array_size: int, limits: dict[str, Any]
) -> None:
    profile = replace(h100, **limits)
    billed = with_bill(soda, profile, order=order, max_array_size=max_array_size)
    ends: list[float] = []
    for array in make_arrays(billed.runs, profile, max_array_size, order):
        slots = [max((ends[number] for number in array.after), default=0.0)] * array.at_once
        for run in array.runs:  # the next run starts when one ends
            assert run.est_hours is not None
            slots.append(slots.pop(slots.index(min(slots))) + run.est_hours)
        ends.append(max(slots))
    assert require_bill(billed).finish_hours == pytest.approx(max(ends))


def test_max_jobs_limits_the_jobs_at_a_time(soda: Plan, h100: Profile) -> None:
    few = require_bill(with_bill(soda, replace(h100, max_jobs=4)))
    assert few.finish_hours >= sum(few.hours) / 4
    spans = list(zip(few.schedule.starts, few.schedule.ends, strict=True))
    assert (
        max(sum(start <= moment < end for start, end in spans) for moment in few.schedule.starts)
        <= 4
    )


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({"gpus_per_node": 8}, {8}),
        ({"gpus-per-node": "h100:4"}, {4}),
        ({"gres": "gpu:h100:2"}, {2}),
        ({"gres": "gpu"}, {1}),
        ({"gres": "gpu:1g.10gb:1"}, {1}),
        ({"gres": "nvme:1,gpu:a100:2(S:0-1)"}, {2}),
        ({"gpus": "h100:4"}, {4}),
        ({"gres": "gres/gpu:h100:2"}, {2}),
        ({"gres": "nvme:1"}, {1, 2, 4, 8}),
    ],
)
def test_runs_get_the_gpus_of_the_profiles_options(
    soda: Plan, h100: Profile, options: dict[str, Any], gpus: set[int]
) -> None:
    small = replace(
        soda, runs=tuple(run for run in soda.runs if run.params_total < 5e8 or run.budget < 1e20)
    )
    billed = with_bill(small if gpus <= {1, 2} else soda, replace(h100, slurm=options))
    assert {(run.gpus or 0) // (run.nodes or 1) for run in billed.runs} <= gpus
    assert max(run.gpus or 0 for run in billed.runs) == max(gpus) or len(gpus) == 1


def test_gpus_that_do_not_divide_a_batch_are_refused(soda: Plan, h100: Profile) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^slurm.gres: requests 3 GPUs, with which .* can't be trained; leave it out",
    ):
        with_bill(soda, replace(h100, slurm={"gres": "gpu:h100:3"}))


@pytest.mark.parametrize("options", [{"exclusive": True}, {"exclusive": True, "gpus_per_node": 4}])
def test_whole_nodes_are_paid_for_and_used_if_they_divide_the_batch(
    soda: Plan, h100: Profile, options: dict[str, Any]
) -> None:
    billed = with_bill(soda, replace(h100, slurm=options))
    bill = require_bill(billed)
    assert {run.gpus for run in billed.runs} == {options.get("gpus_per_node", 8)}
    for run, hours in zip(billed.runs, bill.hours, strict=True):
        assert run.est_gpu_hours == 8 * hours
    assert bill.gpu_hours == 8 * sum(bill.hours)
    spans = list(zip(bill.schedule.starts, bill.schedule.ends, strict=True))
    assert (
        max(sum(start <= moment < end for start, end in spans) for moment in bill.schedule.starts)
        == 8
    )


def test_fewer_gpus_than_a_run_holds_are_refused(soda: Plan, h100: Profile) -> None:
    with pytest.raises(
        ConfigError, match=r"^max_gpus: 3e18-\S+ holds at least 8 GPUs, 4 are allowed; raise it"
    ):
        with_bill(soda, replace(h100, slurm={"exclusive": True}, max_gpus=4))
