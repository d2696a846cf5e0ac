"""A job that measures: some runs of the same resources, one after the other, and what it leaves in their folders."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from isoflop.config.validation import build
from isoflop.errors import ClusterError
from isoflop.files import replace_file
from isoflop.launching.slurm.signals import Job
from isoflop.planning.calibration import Measurement
from isoflop.planning.run_spec import RunSpec
from isoflop.runs.run_directory import RunDirectory

ORDER, FOUND, FAILED = "order.json", "found.json", "failed.txt"
LAST_WORDS = 300


@dataclass
class MeasureJob(Job):
    """What submitit pickles to measure: a folder with the directories of some runs, and their order."""

    def __call__(self) -> str:
        from isoflop.training.devices import use_one_core
        from isoflop.training.distributed import is_end_of_another, join
        from isoflop.training.throughput import measure

        use_one_core()
        ranks, folder = join(), Path(self.directory)
        order = json.loads((folder / ORDER).read_text())
        for run_id in order["runs"]:
            run = RunDirectory(folder / run_id)
            if ranks.any((run.path / FOUND).exists())[0]:  # a job that was preempted goes on
                continue
            try:
                found = measure(run, folder.parent, order["seconds"], order["gpus"], ranks)
            except Exception as problem:
                if not (
                    is_end_of_another(problem) or (run.path / FAILED).exists()
                ):  # what came first is the cause
                    _write(run.path / FAILED, f"{type(problem).__name__}: {problem}")
                raise SystemExit(1) from None
            if ranks.first:
                _write(run.path / FOUND, json.dumps(dataclasses.asdict(found)))
        return "measured"


def _write(file: Path, text: str) -> None:
    with replace_file(file) as temporary:
        temporary.write_text(text + "\n")


@dataclass(frozen=True)
class Group:
    """Classes that ask for the same resources, and the folder of their runs."""

    folder: Path
    runs: tuple[RunSpec, ...]

    @property
    def gpus(self) -> int:
        return self.runs[0].gpus or 0

    @property
    def nodes(self) -> int:
        return self.runs[0].nodes or 1

    @property
    def label(self) -> str:
        return f"{self.gpus} GPUs" if self.gpus > 1 else "1 GPU" if self.gpus else "CPUs"

    def found(self) -> list[Measurement]:
        """What was measured so far."""
        files = [self.folder / run.run_id / FOUND for run in self.runs]
        return [build(Measurement, json.loads(file.read_text())) for file in files if file.exists()]

    def check(self) -> None:
        """Raises ClusterError for a class that failed."""
        for run in self.runs:
            failed = self.folder / run.run_id / FAILED
            if failed.exists():
                words = " ".join(failed.read_text().split())[:LAST_WORDS]
                raise ClusterError(
                    f"width {run.width}, batch {run.batch_size} on {self.label} failed: {words}"
                )
