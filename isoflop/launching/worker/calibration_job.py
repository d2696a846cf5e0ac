"""Calibration job: measures runs of equal resources in turn and writes results to their folders."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from isoflop.config.validation import build
from isoflop.errors import MAX_MESSAGE_CHARACTERS, ClusterError
from isoflop.files import replace_file
from isoflop.launching.slurm.signals import Job
from isoflop.planning.calibration import Measurement
from isoflop.planning.run_spec import RunSpec
from isoflop.runs.run_directory import RunDirectory

REQUEST_FILE, MEASURED_FILE, FAILED_FILE = "order.json", "found.json", "failed.txt"


@dataclass
class MeasureJob(Job):
    """Job that submitit pickles to measure the runs in a folder, in the order of its order file."""

    def __call__(self) -> str:
        from isoflop.training.devices import use_one_core
        from isoflop.training.distributed import is_peer_loss, join_job
        from isoflop.training.throughput import measure

        use_one_core()
        ranks, folder = join_job(), Path(self.directory)
        order = json.loads((folder / REQUEST_FILE).read_text())
        for run_id in order["runs"]:
            run = RunDirectory(folder / run_id)
            if ranks.any((run.path / MEASURED_FILE).exists())[0]:  # before a preemption
                continue
            try:
                measurement = measure(run, folder.parent, order["seconds"], order["gpus"], ranks)
            except Exception as problem:
                # Only the first failure is the cause of the others.
                if not (is_peer_loss(problem) or (run.path / FAILED_FILE).exists()):
                    _write(run.path / FAILED_FILE, f"{type(problem).__name__}: {problem}")
                raise SystemExit(1) from None
            if ranks.first:
                _write(run.path / MEASURED_FILE, json.dumps(dataclasses.asdict(measurement)))
        return "measured"


MeasureJob.__module__ = "isoflop.launching.measuring"
"""Module named in pickles: jobs import a study's code copy, which may have an older layout."""


def _write(file: Path, text: str) -> None:
    with replace_file(file) as temporary:
        temporary.write_text(text + "\n")


@dataclass(frozen=True)
class Group:
    """Shape classes of equal resources.

    Attributes:
        folder: folder of their runs.
        runs: a run per class.
    """

    folder: Path
    runs: tuple[RunSpec, ...]

    @property
    def gpus(self) -> int:
        """Return the GPUs of each run; 0 on CPUs."""
        return self.runs[0].gpus or 0

    @property
    def nodes(self) -> int:
        """Return the nodes of each run."""
        return self.runs[0].nodes or 1

    @property
    def label(self) -> str:
        """Return the resources as text, such as `8 GPUs` or `CPUs`."""
        return f"{self.gpus} GPUs" if self.gpus > 1 else "1 GPU" if self.gpus else "CPUs"

    def measurements(self) -> list[Measurement]:
        """Return the measurements so far."""
        files = [self.folder / run.run_id / MEASURED_FILE for run in self.runs]
        return [build(Measurement, json.loads(file.read_text())) for file in files if file.exists()]

    def check(self) -> None:
        """Raise ClusterError if a class failed."""
        for run in self.runs:
            failed = self.folder / run.run_id / FAILED_FILE
            if failed.exists():
                problem = " ".join(failed.read_text().split())[:MAX_MESSAGE_CHARACTERS]
                raise ClusterError(
                    f"width {run.width}, batch {run.batch_size} on {self.label} failed: {problem}"
                )
