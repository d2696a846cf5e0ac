"""Run directories: configuration, state and loss log.

The directory is the only record of a run: a `DONE` marker, the newest valid checkpoint, the loss
log. When the run is done, its final weights replace its checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

from isoflop.errors import RunError
from isoflop.files import checksum_file, read_replaced, remove_abandoned, replace_file, sync
from isoflop.lease import Lease, is_leased, take_lease
from isoflop.runs.loss_log import read_part, to_log_frame, write_part

if TYPE_CHECKING:
    import pandas as pd

State = Literal[
    "pending", "queued", "running", "requeued", "done", "failed", "diverged", "cancelled"
]

TERMINAL_STATES: tuple[State, ...] = ("done", "failed", "diverged")
"""States that a run does not leave without a command."""

STATES: tuple[State, ...] = get_args(State)
STATE_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "reason": str,
    "attempt": int,
    "step": int,
    "steps": int,
    "gpus": int,
    "loss": (float, int, NoneType),
    "tokens_per_second": (float, int, NoneType),
    "wall_s": (float, int),
    "heartbeat": (float, int),
    "failures": int,
    "failed_at": int,
    "failed_on": list,
    "failed_time": (float, int),
    "starts_without_progress": int,
    "start_step": (int, NoneType),
    "job_id": (str, NoneType),
    "cancelled_job": str,
    "node": (str, NoneType),
    "data_checksum": str,
}
"""Types of the fields of `state.json` beside the state."""

OLD_STATE_FIELDS = {"in_vain": "starts_without_progress"}
"""Present names of fields by the names that older versions wrote."""

MIN_ABANDONED_AGE_S = 300.0
"""Age in seconds above which an incomplete file counts as left by a killed process."""

FIXED_PARTS = ("run", "identity", "data", "metric", "precision")
"""Parts of `config.yaml` that define a run; others, such as the log interval, may differ from the
plan's.
"""

UPDATED_PARTS = ("checkpoint_minutes", "deterministic", "loggers")
"""Parts that an unfinished run takes from the newest plan at its next start."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        """Return the run's id, which names its directory."""
        return self.path.name

    @property
    def done(self) -> bool:
        """Return True if the run is finished."""
        return (self.path / "DONE").exists()

    @property
    def checkpoints(self) -> Path:
        """Return the path of the folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Path of the final weights, which some trainers save at the end of a run."""
        return self.path / "weights.pt"

    def log_file(self, attempt: int, rank: int = 0) -> Path:
        """Return the path of an attempt's log.

        For a rank above 0 it holds only the output of its external trainer.
        """
        name = f"log-{rank}.txt" if rank else "log.txt"
        return self.path / "attempts" / str(attempt) / name

    def checkpointed_step(self) -> int:
        """Return the step of the newest complete checkpoint; 0 if there is none."""
        steps = (
            int(path.stem.removeprefix("step-")) for path in self.checkpoints.glob("step-*.sha256")
        )
        return max(steps, default=0)

    def resume_step(self) -> int:
        """Return the step from which the next attempt resumes.

        It is that of the newest checkpoint, or an external trainer's last logged step.
        """
        return self.state()["step"] if self.trainer == "command" else self.checkpointed_step()

    # Configuration

    def create(self, config: dict[str, Any], files: Mapping[str, str] | None = None) -> None:
        """Make the directory, complete or not at all, or check that it has the same configuration.

        An existing, unfinished run gets the newest values of `UPDATED_PARTS`. The directory is not
        synced to the disk: a study has thousands of them, so the caller syncs once.

        Args:
            config: configuration of the run.
            files: texts of further files of a new directory, by name.

        Raises:
            RunError: a directory whose configuration was changed by hand.
        """
        from isoflop.config.identity import canonical_hash

        file = self.path / "config.yaml"
        if file.exists():
            stored = self.config()
            before, now = _fixed_parts(stored), _fixed_parts(config)
            if edited := [
                key
                for key in FIXED_PARTS
                if canonical_hash(before[key]) != canonical_hash(now[key])
            ]:
                raise RunError(
                    f"{file}: its {' and '.join(edited)} is not the plan's; it was edited: "
                    f"restore it, or delete {self.path} to start the run again"
                )
            newest = {**stored, **{key: config[key] for key in UPDATED_PARTS if key in config}}
            if newest != stored and not self.done:
                with replace_file(file) as temporary:
                    temporary.write_text(_yaml(newest))
            for name, text in (files or {}).items():
                if not (self.path / name).exists():
                    with replace_file(self.path / name) as temporary:
                        temporary.write_text(text)
            return
        self._make({"config.yaml": _yaml(config), **(files or {})})

    def _make(self, files: Mapping[str, str]) -> None:
        """Make the directory with files, all of them at the same moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.run_id}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
        try:
            temporary.mkdir()
            for name, text in files.items():
                (temporary / name).write_text(text)
            if self.path.exists():  # made by hand, or by an earlier version; its other files stay
                for name in files:
                    os.replace(temporary / name, self.path / name)
            else:
                os.rename(temporary, self.path)
        except OSError as error:
            if error.errno is not None and error.filename is None:  # e.g. a full disk
                error.filename = str(self.path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def config(self) -> dict[str, Any]:
        """Return the configuration that `launching.records.sweep_directory` wrote.

        Raises:
            RunError: a missing or unreadable file.
        """
        import yaml

        file = self.path / "config.yaml"
        try:
            # By YAML 1.1, which earlier versions wrote; what `_yaml` writes reads the same by both.
            loaded = yaml.load(
                file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"{file}: can't be read ({reason}); delete the run's directory to start it again"
            ) from None
        if not isinstance(loaded, dict) or not set(FIXED_PARTS) <= loaded.keys():
            raise RunError(f"{file}: damaged; delete the run's directory to start it again")
        return loaded

    def program(self) -> tuple[str, str]:
        """Return the run's trainer and its argument, as `Train.program` of its sweep.

        Raises:
            RunError: its configuration can't be read.
        """
        kind, argument = self.config()["identity"].get("trainer", ("builtin", ""))
        return kind, argument

    @property
    def trainer(self) -> str:
        """Trainer of the run: `builtin`, `command` or `simulated`.

        It is `builtin` if the configuration can't be read.
        """
        try:
            return self.program()[0]
        except RunError:
            return "builtin"

    # State

    def state(self) -> dict[str, Any]:
        """Return the run's `state.json`; its state is `pending` without a readable file."""
        try:
            state = _rename_fields(json.loads(read_replaced(self.path / "state.json")))
        except (FileNotFoundError, ValueError, RecursionError):
            state = None
        new = {"state": "pending", "reason": "", "attempt": 0, "step": 0}
        state = new | state if _is_state(state) else new
        if self.done:
            state["state"] = "done"
        return state

    def set_state(self, state: State, reason: str = "", **more: Any) -> None:
        """Write `state.json`: `more` replaces the fields of the same name; the heartbeat is now."""
        document = {
            **self.state(),
            "state": state,
            "reason": reason,
            "heartbeat": time.time(),
            **more,
        }
        with replace_file(self.path / "state.json") as temporary:
            temporary.write_text(json.dumps(document) + "\n")

    def mark_done(self) -> None:
        """Set the marker `DONE`, which is on the disk when this returns."""
        (self.path / "DONE").touch()
        sync(self.path)

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints if the run is done and has its final weights."""
        if self.done and checksum_file(self.weights).exists():
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def lease(self, *, settle_s: float = 0.0) -> AbstractContextManager[Lease]:
        """Take the right to train the run until the block ends.

        The lease is false if another process holds it; `settle_s` as in `take_lease`.
        """
        return take_lease(self.path / "lease", settle_s=settle_s)

    def is_leased(self) -> bool:
        """Return whether a process holds the run's lease."""
        return is_leased(self.path / "lease")

    def remove_abandoned(self) -> None:
        """Remove incomplete files of killed processes. The caller holds the lease."""
        for folder in (self.checkpoints, self.path / "loss"):
            remove_abandoned(folder)
        for stray in self.path.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                # Other processes may be writing here, e.g. the state from a login node.
                is_weights = stray.name.startswith(f".{self.weights.stem}.")
                age_s = time.time() - stray.stat().st_mtime
                if is_weights or age_s > MIN_ABANDONED_AGE_S:
                    stray.unlink()

    # Loss log

    def append_log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows as one part file, which is named by its first and last step."""
        if not rows:
            return
        first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
        write_part(self.path / "loss" / f"{first:09d}-{last:09d}.parquet", to_log_frame(rows))

    def log(self) -> pd.DataFrame:
        """Return the loss log, in order of steps.

        Raises:
            RunError: a part file that can't be read.
        """
        import pandas as pd

        parts = [read_part(file) for file in self._part_files()]
        if not parts:
            return to_log_frame([])
        # Parts overlap only if two processes trained the run at once, to the same losses.
        return pd.concat(parts, ignore_index=True).drop_duplicates(
            ["step", "split", "kind"], ignore_index=True
        )

    def truncate_log(self, step: int) -> None:
        """Drop the rows after `step`, which a run that resumes from there writes again."""
        for file in self._part_files():
            first, last = (int(number) for number in file.stem.split("-"))
            if last <= step:
                continue
            if first <= step:
                rows = read_part(file)
                rows = rows.loc[rows["step"] <= step]
                write_part(file.with_name(f"{first:09d}-{step:09d}.parquet"), rows)
            file.unlink()

    def _part_files(self) -> list[Path]:
        return sorted((self.path / "loss").glob("[0-9]*.parquet"))


def _rename_fields(document: Any) -> Any:
    """Return a `state.json` with the present names of fields.

    An old name wins: only a job with an older code copy, which wrote last, leaves one.
    """
    if not isinstance(document, dict) or OLD_STATE_FIELDS.keys().isdisjoint(document):
        return document
    renamed = {OLD_STATE_FIELDS[key]: document[key] for key in OLD_STATE_FIELDS.keys() & document}
    kept = {key: value for key, value in document.items() if key not in OLD_STATE_FIELDS}
    return kept | renamed


def _is_state(document: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a `state.json`, which may have been edited by hand, is valid."""
    return (
        isinstance(document, dict)
        and document.get("state") in STATES
        and all(
            isinstance(value, STATE_FIELD_TYPES.get(key, object)) for key, value in document.items()
        )
        and all(isinstance(node, str) for node in document.get("failed_on", ()))
    )


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    from isoflop.config.yaml_values import portable_dumper

    return yaml.dump(
        json.loads(json.dumps(document)), Dumper=portable_dumper(fast=True), sort_keys=False
    )


def _fixed_parts(config: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a configuration that a run can't change.

    The sweep's name is left out, because its directory may be renamed.
    """
    parts = {key: config[key] for key in FIXED_PARTS}
    return {**parts, "run": {key: value for key, value in config["run"].items() if key != "sweep"}}
