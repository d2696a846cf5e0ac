"""`isoflop submit`, called repeatedly by a user, on a fake SLURM."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from support.fake_study import SIMULATED, TIMED_OUT, Study, act_meanwhile, make_study

from isoflop.config.profile import Gpu, load_profile
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import BudgetError
from isoflop.launching.control import cancel
from isoflop.launching.queue.arrays import make_arrays
from isoflop.launching.records.study_files import read_study_profile
from isoflop.launching.records.submissions import read_submissions
from isoflop.launching.submit import submit as submit_runs
from isoflop.planning.plan import plan as make_plan
from isoflop.planning.plan import read_plan_rows
from isoflop.planning.pricing import with_bill
from isoflop.runs.run_directory import RunDirectory

Output = tuple[int, str, str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = make_study(tmp_path, monkeypatch)
    (tmp_path / "cpu.yaml").write_text(to_yaml(made.profile))
    gpu = dataclasses.replace(made.profile, gpu=Gpu(type="h100-sxm", per_node=8), max_gpus=4)
    (tmp_path / "gpu.yaml").write_text(to_yaml(gpu))
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def submit(study: Study, isoflop: Callable[..., Output]) -> Callable[..., Output]:
    def submit(*arguments: str, cluster: str = "cpu.yaml") -> Output:
        return isoflop("submit", "tiny.yaml", SIMULATED, "--cluster", cluster, "--yes", *arguments)

    return submit


def scontrol(study: Study) -> Callable[[], list[str]]:
    """Return a reader of scontrol's calls from now on."""
    log = study.folder / "told"
    log.touch()
    study.slurm.program(
        "scontrol", f'echo "$@" >>{log}; exec /bin/cat {study.slurm.folder / "config"}'
    )
    return lambda: log.read_text().splitlines()


def test_what_a_killed_call_left_half_made_is_queued_by_the_next(
    study: Study, submit: Callable[..., Output]
) -> None:
    study.prepare()
    study.half_made()
    code, _, err = submit()
    assert (code, "queued 100: 3 runs" in err) == (0, True)
    assert [made.job_id for made in read_submissions(study.directory)] == ["100"]
    assert len(study.slurm.read()["queue"]) == 3


def test_after_an_sbatch_that_kept_failing_submitting_again_queues(
    study: Study, submit: Callable[..., Output]
) -> None:
    study.slurm.answer("sbatch", TIMED_OUT, times=99)
    code, _, err = submit()
    assert (code, "run `isoflop submit` again later" in err) == (4, True)
    study.slurm.change(answers={})
    assert submit()[0] == 0
    assert len(study.slurm.read()["queue"]) == 3


def test_what_was_cancelled_while_a_submission_waited_stays_so_unless_it_was_shown(
    study: Study, submit: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = study.ids
    study.queued()
    cancel(study.directory, [first])
    act_meanwhile(study, monkeypatch, lambda: cancel(study.directory, [second]))
    code, _, err = submit()
    assert (code, "tiny: 1 new, 2 queued" in err, "queued 101: 1 runs" in err) == (0, True, True)
    assert [made.runs for made in read_submissions(study.directory)[1:]] == [(first,)]
    act_meanwhile(study, monkeypatch, lambda: cancel(study.directory, [third]))
    code, _, err = submit("--only", "width == 16")
    assert (code, "queued 102" in err) == (0, False)
    assert submit()[0] == 0  # who is shown them means them
    assert set(read_submissions(study.directory)[2].runs) == {second, third}


def test_a_cancellation_of_all_that_waited_for_a_larger_sweep_ends_that(
    study: Study, submit: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    study.queued()
    act_meanwhile(study, monkeypatch, lambda: submit("budgets=[1.0e8, 2.0e8]"))
    assert len(cancel(study.directory, [])) > 3
    assert not any(
        state[0] in ("PENDING", "RUNNING") for state in study.slurm.read()["queue"].values()
    )


def test_a_damaged_plan_is_written_anew_though_nothing_is_queued(
    study: Study, submit: Callable[..., Output]
) -> None:
    study.queued()
    (study.directory / "plan.parquet").write_bytes(b"damaged")
    assert submit()[0] == 0
    assert [row["run_id"] for row in read_plan_rows(study.directory, ["run_id"])] == study.ids
    assert len(study.slurm.read()["queue"]) == 3


def test_runs_that_leave_the_sweep_leave_its_plan_though_nothing_is_queued(
    study: Study, submit: Callable[..., Output]
) -> None:
    study.queued()
    code, _, err = submit("widths=[8, 12]")
    assert code == 0
    assert "1 existing runs are no longer in the sweep; they were not changed: " in err
    assert [row["run_id"] for row in read_plan_rows(study.directory, ["run_id"])] == study.ids[:2]


def test_a_job_that_slurm_holds_since_a_node_failed_is_let_go(
    study: Study, submit: Callable[..., Output]
) -> None:
    study.queued()
    queue = study.slurm.read()["queue"]
    study.slurm.change(queue={**queue, "100_1": ["PENDING", "", "launch failed requeued held"]})
    calls = scontrol(study)
    assert submit()[0] == 0
    assert "release 100_1" in calls()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_code_that_can_not_be_copied_is_one_line(
    study: Study, submit: Callable[..., Output], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        if code == errno.EIO:
            raise shutil.Error([("a.py", "b.py", "whatever else there is")])
        raise OSError(code, os.strerror(code), str(study.directory / "code"))

    monkeypatch.setattr(shutil, "copytree", fails)
    exit_code, _, err = submit()
    assert (exit_code, err.splitlines()[-1]) == (
        2,
        f"isoflop: error: {study.directory / 'code'}: {os.strerror(code)}",
    )


def test_the_cap_is_on_what_would_be_queued(study: Study, submit: Callable[..., Output]) -> None:
    small = (
        "budgets=[1.0e8, 1.0e18]",
        "widths=[8, 12]",
        "data.tokens={}",
        "max_steps=100000000000000",
    )
    code, _, err = submit(*small, "--max-gpu-hours", "0.1", cluster="gpu.yaml")
    assert code == 3
    assert "the runs to queue need about " in err
    code, _, err = submit(
        *small, "--max-gpu-hours", "0.1", "--only", "budget < 1e9", cluster="gpu.yaml"
    )
    assert code == 0
    assert "cost: <0.001 GPU-hours on testbed" in err
    assert re.search(
        r"estimate for the remaining work of the queued runs; the whole study takes 1\d\d GPU-h",
        err,
    )


def test_what_is_to_be_queued_is_what_is_left(study: Study, submit: Callable[..., Output]) -> None:
    """Runs resume: the cap and the hours count their remaining work."""
    large = ["budgets=[1.0e21]", "widths=[8]", "data.tokens={}", "max_steps=100000000000000000"]
    (run,) = make_plan("tiny.yaml", [SIMULATED, *large]).runs
    _, _, err = submit(*large, "--max-gpu-hours", "0", cluster="gpu.yaml")
    hours = int(re.findall(r"runs to queue need about ([\d,]+) GPU-hours", err)[0].replace(",", ""))
    RunDirectory(study.directory / run.run_id).set_state("pending", step=75, steps=100, attempt=1)
    code, _, err = submit(*large, "--max-gpu-hours", f"{0.24 * hours}", cluster="gpu.yaml")
    assert code == 3
    code, _, err = submit(*large, "--max-gpu-hours", f"{0.26 * hours}", cluster="gpu.yaml")
    assert code == 0
    (remaining,) = re.findall(r"cost: ([\d,]+) GPU-hours", err)
    assert int(remaining.replace(",", "")) == pytest.approx(0.25 * hours, abs=1)
    assert f"the whole study takes {hours:,} GPU-hours\n" in err


def test_interruptions_without_a_bill_are_refused(
    study: Study, submit: Callable[..., Output]
) -> None:
    code, _, err = submit("--interruptions", "3")
    assert (code, "--interruptions: needs a cost estimate; set the profile's `gpu`" in err) == (
        2,
        True,
    )
    assert not study.slurm.read()["jobs"]


def test_a_cap_without_a_bill_is_refused(study: Study, submit: Callable[..., Output]) -> None:
    code, _, err = submit("--max-gpu-hours", "10")
    assert code == 2
    assert "gpu: missing; a cost estimate needs the GPUs of the nodes" in err
    assert not study.slurm.read()["jobs"]


def test_shares_follow_what_is_left_though_nothing_is_queued(study: Study) -> None:
    """Capacity of ended arrays goes to the others in every cycle."""
    gpu = Gpu(type="h100-sxm", per_node=8)
    study.profile = dataclasses.replace(study.profile, gpu=gpu, max_gpus=3, max_jobs=None)
    sizes = (2, 1, 1)
    study.plan = dataclasses.replace(
        study.plan,
        runs=tuple(
            dataclasses.replace(run, gpus=count, nodes=1, est_hours=1.0)
            for run, count in zip(study.plan.runs, sizes, strict=True)
        ),
    )
    assert [array.at_once for array in make_arrays(study.plan.runs, study.profile, 1001)] == [1, 1]
    study.submit()
    study.slurm.change(
        queue={"101_0": ["RUNNING", "n1", "None"], "101_1": ["PENDING", "", "JobArrayTaskLimit"]}
    )
    study.run(0).set_state("diverged", "the loss was not finite")
    calls = scontrol(study)
    study.submit(runs=())
    assert calls() == ["update jobid=101 arraytaskthrottle=2"]
    study.submit(runs=())
    assert len(calls()) == 1  # once


def test_of_more_than_the_cluster_takes_a_part_is_queued_and_the_rest_later(
    study: Study, submit: Callable[..., Output]
) -> None:
    study.slurm.change(limit=2)
    code, _, err = submit()
    assert code == 4
    accepted = "the cluster's submit limit accepted 1 of these 3 runs"
    assert f"{accepted}: run `isoflop submit` again when jobs have finished" in err
    assert len(study.slurm.read()["queue"]) == 1
    code, _, err = submit("--supervise")
    assert code == 4  # one more run, and the supervisor has no place
    assert "isoflop: warning: the cluster's submit limit accepted 1 of these 2 runs\n" in err
    *_, last = err.splitlines()
    assert last.startswith(
        "isoflop: error: could not submit the supervisor; "
        "lost runs will not be requeued automatically: "
        "job submit limit reached: try again when some of your jobs have finished "
        "(AssocMaxSubmitJobLimit; "
    )
    assert "--supervise" not in err
    assert len(study.slurm.read()["queue"]) == 2
    study.slurm.change(limit=None)
    assert submit("--supervise")[0] == 0
    assert len(study.slurm.read()["queue"]) == 4


def test_a_changed_profile_counts_though_nothing_is_queued(
    study: Study, submit: Callable[..., Output]
) -> None:
    assert submit()[0] == 0
    changed = dataclasses.replace(study.profile, retries=7, notify="true")
    (study.folder / "cpu.yaml").write_text(to_yaml(changed))
    code, _, err = submit()
    assert (code, "3 queued" in err) == (0, True)
    assert (
        read_study_profile(study.directory).retries,
        read_study_profile(study.directory).notify,
    ) == (
        7,
        "true",
    )
    (study.directory / "cluster.yaml").unlink()
    assert submit()[0] == 0
    assert read_study_profile(study.directory).retries == 7


def test_a_cap_holds_where_slurm_was_silent_for_a_moment(
    study: Study, submit: Callable[..., Output]
) -> None:
    small = (
        "budgets=[1.0e8, 1.0e18]",
        "widths=[8, 12]",
        "data.tokens={}",
        "max_steps=100000000000000",
    )
    assert submit(*small, "--only", "budget < 1e9 and width == 8", cluster="gpu.yaml")[0] == 0
    before = len(read_submissions(study.directory))
    study.slurm.answer("squeue", "slurm_load_jobs error: Socket timed out on send/recv operation")
    code, _, err = submit(*small, "--max-gpu-hours", "0.1", cluster="gpu.yaml")
    assert (code, "nothing was queued, try again" in err) == (4, True)
    assert len(read_submissions(study.directory)) == before
    profile = load_profile("gpu.yaml")
    billed = with_bill(make_plan("tiny.yaml", (SIMULATED, *small)), profile)
    with pytest.raises(BudgetError, match="the runs to queue need about"):
        submit_runs(billed, profile, max_gpu_hours=0.1)
    assert len(read_submissions(study.directory)) == before


def test_a_retry_that_had_to_wait_takes_the_sweep_and_the_profile_of_now(
    study: Study,
    submit: Callable[..., Output],
    isoflop: Callable[..., Output],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study.queued()
    cancel(study.directory, [study.ids[0]])
    (study.folder / "more.yaml").write_text(to_yaml(dataclasses.replace(study.profile, retries=7)))
    extend = ("--only", "budget > 1.5e8")
    act_meanwhile(
        study, monkeypatch, lambda: submit("budgets=[1.0e8, 2.0e8]", *extend, cluster="more.yaml")
    )
    code, _, err = isoflop("retry", str(study.directory))
    assert (code, "1 runs, on CPUs" in err) == (0, True)
    assert len(read_plan_rows(study.directory, ["run_id"])) > 3
    assert read_study_profile(study.directory).retries == 7
