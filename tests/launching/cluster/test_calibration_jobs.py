"""Calibration on a real SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.slurm_bed import (
    LONG_WITHOUT_ACCOUNTING,
    WITHOUT_ACCOUNTING,
    Bed,
    submitted,
)

from isoflop.errors import ClusterError
from isoflop.launching.calibrate import calibrate
from isoflop.launching.slurm import client as slurm
from isoflop.planning.calibration import read_calibration
from isoflop.planning.pricing import with_bill

pytestmark = pytest.mark.slow


@LONG_WITHOUT_ACCOUNTING
@pytest.mark.parametrize(
    "options", [(), ("slurm.ntasks_per_node=2",)], ids=["alone", "two processes"]
)
def test_a_cluster_is_measured_and_plans_take_it(
    bed: Bed, tmp_path: Path, options: tuple[str, ...]
) -> None:
    study = submitted(bed, tmp_path, "train.batch_scale=2", options=options)
    root, lines = study.directory.parent, list[str]()
    calibration, file = calibrate(
        study.plan, study.profile, root, seconds=0.5, report_line=lines.append
    )
    assert [measurement.shape.width for measurement in calibration.measurements] == [8, 12]
    assert [line.partition(" ")[0] for line in lines] == ["measuring", "queued", "measured"]
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.stem}.lease"}
    billed = with_bill(
        study.plan,
        study.profile,
        calibration=read_calibration(root, study.plan.sweep, study.profile),
    )
    assert {run.est_source for run in billed.runs} == {"measured"}


@WITHOUT_ACCOUNTING
def test_what_can_not_be_measured_is_one_line(bed: Bed, tmp_path: Path) -> None:
    gpus = ("gpu={type: h100-sxm, per_node: 4}", "node={cpus: 16, memory_gb: 8}")
    study = submitted(bed, tmp_path, options=gpus)  # they are names only
    with pytest.raises(
        ClusterError,
        match=r"^width 8, batch \d+ on 1 GPU failed: .*requests 1 GPUs, but its processes "
        r"find 0; run `isoflop doctor`",
    ):
        calibrate(
            with_bill(study.plan, study.profile), study.profile, tmp_path / "runs", seconds=0.5
        )
    late = submitted(bed, tmp_path, options=("slurm.partition=short", "slurm.nodes=40"))
    with pytest.raises(
        ClusterError, match=r"can never start: PartitionConfig: slurm\.partition can't provide"
    ):
        calibrate(late.plan, late.profile, tmp_path / "runs", seconds=0.5)
    busy = submitted(bed, tmp_path, options=("slurm.begin=now+1hour",))
    with pytest.raises(
        ClusterError, match=r"still waits after 3 s \(BeginTime\); wait longer with --wait S"
    ):
        calibrate(busy.plan, busy.profile, tmp_path / "runs", seconds=0.5, wait_s=3.0)
    assert not any(job.active for job in slurm.queue().values())
