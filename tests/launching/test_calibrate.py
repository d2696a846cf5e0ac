"""`isoflop calibrate` on this machine, and on a fake SLURM for faults that a real one lacks."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_slurm import FakeSlurm
from support.tiny_studies import tiny_plan, write_sweep

from isoflop.config.profile import Profile, load_profile
from isoflop.errors import ClusterError, ConfigError, RunError
from isoflop.launching import calibrate as calibrating
from isoflop.launching.calibrate import calibrate
from isoflop.launching.queue import submit_array as queueing
from isoflop.launching.worker.calibration_job import (
    FAILED_FILE,
    MEASURED_FILE,
    REQUEST_FILE,
    MeasureJob,
)
from isoflop.lease import take_lease
from isoflop.planning.calibration import Measurement, calibration_file, read_calibration
from isoflop.planning.plan import Plan
from isoflop.planning.plan import plan as make_plan
from isoflop.planning.pricing import with_bill
from isoflop.shapes import ModelShape

LOCAL = """\
name: here
executor: local
root: ROOT
"""


# On this machine


@pytest.mark.slow
def test_the_command_measures_and_the_plan_takes_it(tmp_path: Path) -> None:
    """Return a caller of commands in new processes: measuring needs torch, planning must not."""
    write_sweep(tmp_path)
    (tmp_path / "here.yaml").write_text(LOCAL.replace("ROOT", str(tmp_path / "runs")))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"from isoflop.cli import {arguments[0]}; {arguments[0]}()"
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = call("sweep_plan", "tiny.yaml", "--cluster", "here.yaml")
    assert (refused.returncode, refused.stdout) == (2, "")
    done = call("main", "calibrate", "tiny.yaml", "--cluster", "here.yaml", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in table] == [
        ["gpus", "width"],
        ["CPU", "8"],
        ["CPU", "12"],
        ["CPU", "16"],
    ]
    (file,) = (tmp_path / "runs" / "calibrations").glob("*.json")
    assert done.stderr.splitlines() == [
        "measuring 3 classes on CPUs: widths 8, 12, 16",
        f"wrote {file}",
    ]
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.stem}.lease"}

    billed = call("sweep_plan", "tiny.yaml", "--cluster", "here.yaml", "--json")
    rows = json.loads(billed.stdout)["runs"]
    for row, measurement in zip(rows, json.loads(file.read_text())["measurements"], strict=True):
        assert (row["est_source"], row["gpus"], measurement["shape"]["width"]) == (
            "measured",
            0,
            row["width"],
        )
        trains = row["tokens"] / measurement["tokens_per_second"]
        assert 3600 * row["est_hours"] == pytest.approx(
            trains + measurement["save_seconds"]
        )  # it saves its weights once
        assert 1e8 < measurement["memory_bytes"] < 1e11
        assert measurement["mfu"] is None
    output = call("sweep_plan", "tiny.yaml", "--cluster", "here.yaml").stdout
    assert re.search(
        r"^time: .* on here, on CPUs \(speed: measured \d{4}-\d\d-\d\d\)$", output, re.MULTILINE
    )
    assert re.search(
        r"^finish: .* with \d+ runs at once, longest runs first$", output, re.MULTILINE
    )


def test_a_class_that_fails_is_one_line_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, profile = tiny_plan(tmp_path), Profile(name="here", executor="local")
    monkeypatch.setattr(
        calibrating.subprocess,
        "run",
        lambda command, **_: play(Path(command[-1]), fails={16: "no room\nat all"}),
    )
    with pytest.raises(ClusterError, match=r"^width 16, batch \d+ on CPUs failed: no room at all$"):
        calibrate(plan, profile, tmp_path / "runs")
    saved = read_calibration(tmp_path / "runs", plan.sweep, profile)
    assert saved is not None
    assert [measurement.shape.width for measurement in saved.measurements] == [8, 12]
    monkeypatch.setattr(
        calibrating.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, -9, "", "a\nKilled\n"),
    )
    with pytest.raises(ClusterError, match=r"^measuring on CPUs ended with -9: Killed$"):
        calibrate(plan, profile, tmp_path / "runs")
    assert read_calibration(tmp_path / "runs", plan.sweep, profile) == saved


def test_only_what_isoflop_trains_itself_is_measured(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, "train.trainer=simulated: soda")
    with pytest.raises(
        ConfigError, match=r"^train\.trainer: only the builtin trainer can be measured"
    ):
        calibrate(plan, Profile(name="here", executor="local"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    plan, profile = tiny_plan(tmp_path), Profile(name="here", executor="local")
    file = calibration_file(tmp_path, plan.sweep, profile)
    with take_lease(file.with_name(f".{file.stem}.lease")) as held:
        assert held
        with pytest.raises(RunError, match="another `isoflop calibrate` is running; wait for it"):
            calibrate(plan, profile, tmp_path)


def test_a_measuring_process_goes_on_after_those_that_are_measured(tmp_path: Path) -> None:
    play(tmp_path, runs={"a": 8, "b": 12})
    assert MeasureJob(str(tmp_path))() == "measured"  # nothing is left, so nothing is opened


# On SLURM


def play(
    folder: Path, fails: dict[int, str] | None = None, runs: dict[str, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """Write the results of a measuring process for the runs of a folder."""
    if runs is None:
        order = json.loads((folder / REQUEST_FILE).read_text())["runs"]
        runs = {run_id: int(re.findall(r"-w(\d+)-", run_id)[0]) for run_id in order}
    else:
        (folder / REQUEST_FILE).write_text(
            json.dumps({"seconds": 1.0, "gpus": 0, "runs": list(runs)})
        )
    for run_id, width in runs.items():
        (folder / run_id).mkdir(exist_ok=True)
        if width in (fails or {}):
            (folder / run_id / FAILED_FILE).write_text((fails or {})[width])
            return subprocess.CompletedProcess([], 1, "", "")
        of = ModelShape(
            width=width,
            layers=1,
            heads=1,
            kv_heads=1,
            head_dim=8,
            mlp_width=8,
            vocab_size=518,
            seq_len=32,
        )
        gpus = int(folder.name.partition("x")[0]) if "x" in folder.name else 0
        measurement = Measurement(of, gpus, 8, 8, False, 1000.0, None, 10**9, time.time(), "CPU")
        (folder / run_id / MEASURED_FILE).write_text(json.dumps(dataclasses.asdict(measurement)))
    return subprocess.CompletedProcess([], 0, "", "")


@dataclasses.dataclass
class Cluster:
    """Fake SLURM, a study, and its progress messages."""

    slurm: FakeSlurm
    folder: Path
    plan: Plan
    profile: Profile
    lines: list[str]

    @property
    def root(self) -> Path:
        return self.folder / "runs"

    def calibrate(self, then: Callable[[Path], Any] = lambda work: None, **options: Any) -> Any:
        """Measure; call `then` with the work folder once the first job is queued."""

        def report_line(line: str) -> None:
            if line.startswith("queued ") and not any(
                before.startswith("queued ") for before in self.lines
            ):
                (work,) = (
                    path for path in (self.root / "calibrations").glob(".*") if path.is_dir()
                )
                then(work)
            self.lines.append(line)

        return calibrate(self.plan, self.profile, self.root, report_line=report_line, **options)

    def waits(self, state: str, reason: str) -> None:
        queue = self.slurm.read()["queue"]
        self.slurm.change(queue={task: [state, "", reason] for task in queue})

    def left(self) -> list[str]:
        return sorted(
            path.name
            for path in (self.root / "calibrations").iterdir()
            if not path.name.endswith(".lease")
        )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    slurm = FakeSlurm.make(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(slurm.folder))
    monkeypatch.setattr(calibrating, "MEASUREMENTS_POLL_S", 0.01)
    monkeypatch.setattr(calibrating, "MISSING_JOB_TIMEOUT_S", 0.0)
    monkeypatch.setattr(queueing, "PAUSES_S", ())
    monkeypatch.setattr(calibrating, "snapshot_code", lambda work: (work / "code", False))
    profile = load_profile("testbed", {"root": str(tmp_path / "runs"), "slurm.time": "48:00:00"})
    return Cluster(slurm, tmp_path, tiny_plan(tmp_path), profile, [])


def test_a_job_a_number_of_gpus_and_all_is_gone_at_the_end(cluster: Cluster) -> None:
    profile = dataclasses.replace(
        load_profile(
            "h100", {"root": str(cluster.root), "slurm": {"partition": "gpu", "time": "48:00:00"}}
        ),
        max_gpus=None,
    )
    cluster.profile = profile
    cluster.plan = with_bill(make_plan("soda"), profile)
    sizes = sorted({(run.gpus or 0, run.nodes or 0) for run in cluster.plan.runs})
    assert len(sizes) > 1

    def then(work: Path) -> None:
        for folder in work.glob("*x*"):
            play(folder)

    calibration, file = cluster.calibrate(then, seconds=3.0)
    jobs = cluster.slurm.read()["jobs"]
    assert [
        (
            int(job["options"]["gpus-per-node"]),
            int(job["options"]["nodes"]),
            int(job["options"]["ntasks-per-node"]),
        )
        for job in jobs.values()
    ] == [(gpus // nodes, nodes, gpus // nodes) for gpus, nodes in sizes]
    assert {job["options"]["time"] for job in jobs.values()} == {"60:00"}
    assert {measurement.gpus for measurement in calibration.measurements} == {
        gpus for gpus, _ in sizes
    }
    assert read_calibration(cluster.root, cluster.plan.sweep, profile) == calibration
    assert cluster.left() == [file.name]
    assert cluster.lines[-1].startswith("measured ")


@pytest.mark.parametrize(
    ("state", "reason", "says"),
    [
        (
            "PENDING",
            "PartitionTimeLimit",
            "can never start: PartitionTimeLimit: slurm.time is longer than the partiti",
        ),
        ("PENDING", "Resources", r"still waits after 0 s \(Resources\); wait longer with --wait S"),
        (
            "FAILED",
            "NonZeroExitCode",
            r"ended before all was measured \(failed\): it wrote nothing",
        ),
        ("TIMEOUT", "TimeLimit", r"ended before all was measured \(timeout\): "),
    ],
)
def test_a_job_that_does_not_come_to_its_end_is_one_line(
    cluster: Cluster, state: str, reason: str, says: str
) -> None:
    with pytest.raises(ClusterError, match=rf"^job 100 on CPUs {says}") as problem:
        cluster.calibrate(lambda work: cluster.waits(state, reason), wait_s=0.0)
    assert problem.value.exit_code == 4
    assert "\n" not in str(problem.value)
    assert cluster.left() == []
    assert cluster.slurm.calls("scancel")[-1]["arguments"][-1] == "100"


def test_a_class_that_fails_in_its_job(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"^width 12, batch \d+ on CPUs failed: no room$"):
        cluster.calibrate(lambda work: play(work / "0x1", fails={12: "no room"}))
    saved = read_calibration(cluster.root, cluster.plan.sweep, cluster.profile)
    assert saved is not None
    assert [measurement.shape.width for measurement in saved.measurements] == [8]


def test_a_controller_that_is_away_for_a_moment_is_waited_for(cluster: Cluster) -> None:
    def then(work: Path) -> None:
        cluster.slurm.answer(
            "squeue", "slurm_load_jobs error: Unable to contact slurm controller", 3
        )
        play(work / "0x1")

    calibration, _ = cluster.calibrate(then)
    assert len(calibration.measurements) == 3


def test_without_slurm_nothing_is_made(cluster: Cluster) -> None:
    cluster.slurm.remove("squeue")
    with pytest.raises(ClusterError, match=r"^squeue: not found; is this a login node"):
        cluster.calibrate()
    assert not cluster.root.exists()


def test_what_the_cluster_refuses_names_the_key(cluster: Cluster) -> None:
    cluster.slurm.answer("sbatch", "sbatch: error: invalid partition specified: main")
    with pytest.raises(
        ConfigError,
        match=r"^slurm\.partition: sbatch rejects the job: invalid partition specified: main",
    ):
        cluster.calibrate()
    assert cluster.left() == []


def test_a_killed_call_is_cleaned_up_by_the_next(cluster: Cluster) -> None:
    class KilledError(Exception):
        pass

    def then(work: Path) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "_remove", lambda work: None)
        with pytest.raises(KilledError):
            cluster.calibrate(then)
    assert any(name.startswith(".") for name in cluster.left())
    cluster.lines.clear()
    cluster.calibrate(lambda work: play(work / "0x1"))
    assert cluster.slurm.calls("scancel")[0]["arguments"][-1] == "100"
    assert cluster.lines[1] == "queued 101: CPUs"
    assert not any(name.startswith(".") for name in cluster.left())
