"""The bill: what it adds to a plan, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.profile import Profile, load_profile
from isoflop.errors import BudgetError, ConfigError
from isoflop.planning.bill import Bill, check_cap, time_limit_hours, with_bill
from isoflop.planning.plan import Plan, plan


@pytest.fixture(scope="module")
def soda() -> Plan:
    return plan("soda")


@pytest.fixture(scope="module")
def h100() -> Profile:
    return load_profile("h100", to_plan=True)


def bill_of(plan: Plan) -> Bill:
    assert plan.bill is not None
    return plan.bill


def test_a_plan_with_its_bill(soda: Plan, h100: Profile) -> None:
    billed = with_bill(soda, h100)
    bill, rows = bill_of(billed), billed.rows()
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


def test_disk_is_that_of_the_runs_at_work_and_of_the_weights_of_those_before(soda: Plan, h100: Profile) -> None:
    bill = bill_of(with_bill(soda, h100))
    assert bill.kept_bytes == sum(4 * run.params_total for run in soda.runs)
    spans = list(zip(soda.runs, bill.schedule.starts, bill.schedule.ends, strict=True))
    held = [
        sum(3 * 16 * run.params_total for run, start, end in spans if start <= moment < end)
        + sum(4 * run.params_total for run, _, end in spans if end <= moment)
        for moment in bill.schedule.starts
    ]
    assert bill.disk_bytes == max(held)
    assert bill.kept_bytes < bill.disk_bytes < 3 * 16 * sum(run.params_total for run in soda.runs)
    at_once = bill_of(with_bill(soda, dataclasses.replace(h100, max_gpus=None)))
    assert at_once.disk_bytes == 3 * 16 * sum(run.params_total for run in soda.runs)


def test_more_gpus_end_sooner_and_fewer_later(soda: Plan, h100: Profile) -> None:
    bill = bill_of(with_bill(soda, h100))
    assert list(bill.others) == [32, 128]
    assert bill.others[128] < bill.finish_hours < bill.others[32]
    assert bill_of(with_bill(soda, dataclasses.replace(h100, max_gpus=None))).others == {}


def test_small_budgets_first_give_early_results_and_a_later_end(soda: Plan, h100: Profile) -> None:
    def first_ends(order: Any) -> float:
        bill = bill_of(with_bill(soda, h100, order=order))
        ends = zip(soda.runs, bill.schedule.ends, strict=True)
        return max(end for run, end in ends if run.budget <= 9e18)

    assert first_ends("budget") < first_ends("longest") / 2


def test_interruptions_cost_what_was_not_saved_and_a_restart(soda: Plan, h100: Profile) -> None:
    plain, busy = (bill_of(with_bill(soda, h100, interruptions_per_day=rate)) for rate in (0, 24))
    lost = 10 / 60 / 2 + 0.25  # half of ten minutes between checkpoints, a quarter of an hour to start again
    assert busy.gpu_hours == pytest.approx(plain.gpu_hours * (1 + lost))
    assert busy.finish_hours > plain.finish_hours


def test_a_preemptible_cluster_is_reckoned_with_unless_somebody_knows_better(soda: Plan, h100: Profile) -> None:
    preemptible = dataclasses.replace(h100, preemptible=True)
    bills = [bill_of(with_bill(soda, preemptible, interruptions_per_day=rate)) for rate in (None, 2.0, 0.0)]
    assert [bill.interruptions_per_day for bill in bills] == [2.0, 2.0, 0.0]
    assert bills[0].gpu_hours == bills[1].gpu_hours > bills[2].gpu_hours == bill_of(with_bill(soda, h100)).gpu_hours


def test_runs_longer_than_a_job_are_started_again(soda: Plan, h100: Profile) -> None:
    bill = bill_of(with_bill(soda, h100))
    assert bill.starts == tuple(math.ceil(hours / 48) for hours in bill.hours)
    assert max(bill.starts) > 1
    unlimited = bill_of(with_bill(soda, dataclasses.replace(h100, slurm={})))
    assert set(unlimited.starts) == {1}


def test_a_cap_refuses_with_exit_code_3(soda: Plan, h100: Profile) -> None:
    bill = bill_of(with_bill(soda, h100))
    check_cap(bill, None)
    check_cap(bill, bill.gpu_hours)
    with pytest.raises(BudgetError, match=r"needs about [\d,]+ GPU-hours, --max-gpu-hours allows 100;") as problem:
        check_cap(bill, 100)
    assert problem.value.exit_code == 3


def test_hours_of_bf16_for_fp32_are_warned_about(h100: Profile) -> None:
    (warning,) = with_bill(plan("soda", ["train.precision=fp32"]), h100).warnings
    assert warning == "the hours are those of bf16, and train.precision is fp32: measure it with `isoflop calibrate`"
    assert with_bill(plan("soda", ["train.precision=bf16"]), h100).warnings == ()


def test_too_little_disk_is_warned_about(soda: Plan, h100: Profile, tmp_path: Path) -> None:
    assert with_bill(soda, h100).warnings == ()
    (quota,) = with_bill(soda, dataclasses.replace(h100, disk_gb=1000.0)).warnings
    assert quota == "checkpoints and weights will take up to 1,709 GB at a time, disk_gb allows 1,000"
    huge = plan("soda", [f"seeds=[{', '.join(map(str, range(50)))}]"])
    (free,) = with_bill(huge, dataclasses.replace(h100, root=str(tmp_path))).warnings
    assert free.startswith("checkpoints and weights will take up to ")
    assert f" GB at a time, {tmp_path} has " in free


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("48:00:00", 48), ("90", 1.5), ("90:30", 1.5 + 30 / 3600), ("0:30:00", 0.5), ("2-00", 48), ("1-12:30", 36.5),
        ("1-00:00:36", 24.01), ("UNLIMITED", math.inf), ("infinite", math.inf), (None, math.inf),
    ],
)  # fmt: skip
def test_times_as_sbatch_reads_them(h100: Profile, text: str | None, hours: float) -> None:
    assert time_limit_hours(dataclasses.replace(h100, slurm={"time": text} if text else {})) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "0", "00:00:00", "1-"])
def test_what_is_no_time(h100: Profile, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^slurm.time: "):
        time_limit_hours(dataclasses.replace(h100, slurm={"time": text}))
