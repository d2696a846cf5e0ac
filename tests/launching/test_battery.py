"""Study under every fault of a cluster, compared with the same study undisturbed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from support.cluster_faults import Faults, break_programs
from support.slurm_bed import PROFILE, Submitted, open_bed
from support.tiny_studies import FREQUENT_CHECKPOINTS, tiny_plan, train_here, write_corpus

from isoflop.config.profile import load_profile
from isoflop.errors import ClusterError
from isoflop.launching.control import retry
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.slurm import client as slurm
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import TERMINAL_STATES, RunDirectory

pytestmark = pytest.mark.slow

GRID = (
    "recipe=support.diverging_recipe:RECIPE",
    "widths=[4, 8, 12, 16]",
    "data.tokens.pocket=8.0e4",
    "data.max_epochs=1000",
    FREQUENT_CHECKPOINTS,
)
EVERY_S = 4.0
MOST_S = 20 * 60.0
SHORT = (("budgets=[2.5e8, 8.0e8]", "seeds=[0, 1]"), 1)
LONG = (("budgets=[2.5e8, 4.0e8, 5.5e8, 7.0e8]", "seeds=[0, 1, 2, 3]"), 3)
"""Overrides, and how often every kind of fault comes. Few runs are longer, to meet them all."""
BATTERIES = [
    pytest.param(True, *SHORT, id="16 runs"),
    pytest.param(True, *LONG, id="64 runs, accounting", marks=pytest.mark.long),
    pytest.param(False, *LONG, id="64 runs, no accounting", marks=pytest.mark.long),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Make a disk for a run to fill, before the nodes: they keep the mounts of their start."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False
    ).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Train the undisturbed study once, without the runs that must fail, by its overrides."""

    @cache
    def train(grid: tuple[str, ...]) -> Path:
        root = tmp_path_factory.mktemp("calm")
        plan = tiny_plan(root, *GRID, *grid)
        write_corpus(root, plan)
        make_directory(plan, root)
        wild, crashing, _ = odd_ones(plan)
        for run in plan.runs:
            if run.run_id not in {*wild, crashing}:
                train_here(RunDirectory(root / plan.sweep.name / run.run_id), root)
        return root

    return train


def odd_ones(plan: Plan) -> tuple[set[str], str, str]:
    """Prepare runs that diverge, one that always fails, and one whose disk is full."""
    crashing, full = (
        run.run_id
        for run in plan.runs
        if run.width == 8 and run.seed in (0, 1) and run.budget == plan.sweep.budgets[1]
    )
    return {run.run_id for run in plan.runs if run.lr > 1}, crashing, full


@pytest.mark.parametrize(("accounting", "grid", "rounds"), BATTERIES)
def test_a_study_comes_through_every_fault(
    tmp_path: Path,
    calm: Callable[[tuple[str, ...]], Path],
    small_disk: Path,
    accounting: bool,
    grid: tuple[str, ...],
    rounds: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = tiny_plan(tmp_path, *GRID, *grid)
    undisturbed = calm(grid) / plan.sweep.name
    root = tmp_path / "runs"
    write_corpus(root, plan)
    make_directory(plan, root)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    wild, crashing, full = odd_ones(plan)
    assert len(wild) == len({run.seed for run in plan.runs})

    options = [
        f"root={root}",
        "slurm.partition=preempt",
        "max_jobs=4",
        "retries=4",
        "slurm.cpus_per_task=4",
    ]
    with open_bed(tmp_path / "bed", 17400 + 50 * accounting, accounting=accounting) as bed:
        monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
        flag = break_programs(tmp_path / "programs")
        study = Submitted(bed, root / plan.sweep.name, plan, load_profile(PROFILE, options))
        for run_id in (
            crashing,
            full,
        ):  # they fail where they save, and would else be done before they do
            file = study.directory / run_id / "config.yaml"
            file.write_text(
                yaml.safe_dump(yaml.safe_load(file.read_text()) | {"checkpoint_minutes": 1e-6})
            )
        (study.directory / crashing / "checkpoints").touch()
        (study.directory / full / "checkpoints").symlink_to(small_disk)
        scavenging = dataclasses.replace(
            study.profile, slurm={**study.profile.slurm, "partition": "scavenge"}
        )
        Submitted(bed, study.directory, plan, scavenging).submit(only="width >= 12")
        study.submit()

        faults, start, injected = Faults(study, flag, 1, rounds), time.monotonic(), time.monotonic()
        story: list[str] = []
        while True:
            assert time.monotonic() - start < MOST_S, (story, study.query(), study.words()[-5000:])
            try:
                status = study.query()
                if status.ids("cancelled"):
                    retry(study.directory, [])
                if status.held or status.orphans or any(run.retry for run in status.runs.values()):
                    study.submit()
            except ClusterError as problem:
                story.append(str(problem))
                continue
            if status.runs[full].state == "failed" and "disk is full" in status.runs[full].reason:
                subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
                faults.counts["disk of a run full"] = 1
            last = status.runs[crashing]
            if last.state == "failed" and not last.retry and "checkpoints" not in last.reason:
                retry(study.directory, [crashing])  # a fault was its last failure; its own shall be
                continue
            if faults.due and time.monotonic() - injected > EVERY_S:
                if name := faults.inject():
                    story.append(f"{time.monotonic() - start:.0f} s: {name}")
                injected = time.monotonic()
            settled = (
                run.state in TERMINAL_STATES and not run.retry for run in status.runs.values()
            )
            if all(settled):
                faults.end()
                if not any(job.active for job in slurm.queue().values()):
                    break
            time.sleep(1.0)

        status = study.query()
        assert set(status.ids("diverged")) == wild
        assert status.runs[crashing].state == "failed"
        assert "checkpoints" in status.runs[crashing].reason
        assert sorted(status.ids("done")) == sorted(
            {run.run_id for run in plan.runs} - wild - {crashing}
        )
        sound = tuple(run for run in plan.runs if run.run_id in status.ids("done"))
        Submitted(
            bed, study.directory, dataclasses.replace(plan, runs=sound), study.profile
        ).equals(undisturbed)
        assert not [job for job in slurm.queue().values() if job.active]
        assert faults.counts["disk of a run full"] == 1
        missed = {name for name in faults.kinds if not faults.counts[name]}
        assert missed <= {"worker killed while it saved"}, faults.table()
        starts = sum(run.state()["attempt"] for run in study.runs)
        with capsys.disabled():
            print(f"\n{faults.table()}\n   1  disk of a run full, made larger, tried again")
            print(
                f"{len(plan.runs)} runs, {starts} starts, {time.monotonic() - start:.0f} "
                f"s, accounting {accounting}"
            )
