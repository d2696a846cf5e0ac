"""Run directories: configuration, state and loss log.

The truth about a run is in its directory: a `DONE` marker, the newest valid checkpoint, the loss log. Once it is done,
its final weights take the place of its checkpoints.
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
from isoflop.runs.loss_log import frame_of, read_part, write_part

if TYPE_CHECKING:
    import pandas as pd

State = Literal[
    "pending", "queued", "running", "requeued", "done", "failed", "diverged", "cancelled"
]

SETTLED: tuple[State, ...] = ("done", "failed", "diverged")
"""States in which nothing more happens to a run by itself."""

STATES: tuple[State, ...] = get_args(State)
STORED: dict[str, type | tuple[type, ...]] = {
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
    "in_vain": int,
    "start_step": (int, NoneType),
    "job_id": (str, NoneType),
    "cancelled_job": str,
    "node": (str, NoneType),
    "data_checksum": str,
}
"""What `state.json` keeps beside the state: what can be reckoned with."""

ABANDONED_S = 300.0
"""Age beyond which a half-written file that another process may be writing is a killed one's."""

WHAT = ("run", "identity", "data", "metric", "precision")
"""Parts of `config.yaml` that say what a run is; the others may differ from the plan's (how often it is logged)."""

HOW = ("checkpoint_minutes", "deterministic", "loggers")
"""Parts that a run which is not done takes from the newest plan, at its next start."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The final weights, of a run that is done and whose trainer keeps them."""
        return self.path / "weights.pt"

    def checkpointed_step(self) -> int:
        """The step of the newest finished checkpoint; 0 where there is none."""
        steps = (
            int(path.stem.removeprefix("step-")) for path in self.checkpoints.glob("step-*.sha256")
        )
        return max(steps, default=0)

    def reached(self) -> int:
        """The step that a new start goes on from; of a program that resumes by itself that of its last loss."""
        return self.state()["step"] if self.trainer == "command" else self.checkpointed_step()

    # Configuration

    def create(self, config: dict[str, Any], files: Mapping[str, str] | None = None) -> None:
        """Makes the directory, whole or not at all, or checks that the one there is of the same configuration.

        Of one that is there and not done, the parts named in `HOW` are brought up to date.

        It is not synced to the disk: a study has thousands of them, and whoever makes them syncs once.

        Args:
            config: what the run does.
            files: more files of a new directory, by name.

        Raises:
            RunError: a directory whose configuration was changed by hand.
        """
        from isoflop.config.identity import canonical_hash

        file = self.path / "config.yaml"
        if file.exists():
            found = self.config()
            before, now = _what(found), _what(config)
            if edited := [
                key for key in WHAT if canonical_hash(before[key]) != canonical_hash(now[key])
            ]:
                raise RunError(
                    f"{file}: its {' and '.join(edited)} is not the plan's; it was edited: "
                    f"restore it, or delete {self.path} to start the run again"
                )
            newest = {**found, **{key: config[key] for key in HOW if key in config}}
            if newest != found and not self.done:
                with replace_file(file) as temporary:
                    temporary.write_text(_yaml(newest))
            for name, text in (files or {}).items():
                if not (self.path / name).exists():
                    with replace_file(self.path / name) as temporary:
                        temporary.write_text(text)
            return
        self._make({"config.yaml": _yaml(config), **(files or {})})

    def _make(self, files: Mapping[str, str]) -> None:
        """Puts files into the directory, which appears with all of them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.run_id}.{os.getpid()}.tmp")
        shutil.rmtree(part, ignore_errors=True)  # of a killed process that had this one's number
        try:
            part.mkdir()
            for name, text in files.items():
                (part / name).write_text(text)
            if self.path.exists():  # made by hand, or by an earlier version; what is in it stays
                for name in files:
                    os.replace(part / name, self.path / name)
            else:
                os.rename(part, self.path)
        except OSError as error:
            if error.errno is not None and error.filename is None:  # so it is with a full disk
                error.filename = str(self.path)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def config(self) -> dict[str, Any]:
        """What the run does, as `launching.directory` wrote it.

        Raises:
            RunError: a missing or unreadable file.
        """
        import yaml

        file = self.path / "config.yaml"
        try:
            loaded = yaml.load(
                file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
        except (OSError, ValueError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise RunError(
                f"{file}: can't be read ({why}); delete the run's directory to start it again"
            ) from None
        if not isinstance(loaded, dict) or not set(WHAT) <= loaded.keys():
            raise RunError(f"{file}: damaged; delete the run's directory to start it again")
        return loaded

    def program(self) -> tuple[str, str]:
        """Which trainer it has, and what that is given, as `Train.program` of its sweep.

        Raises:
            RunError: its configuration can't be read.
        """
        kind, argument = self.config()["identity"].get("trainer", ("builtin", ""))
        return kind, argument

    @property
    def trainer(self) -> str:
        """Who trains it: `builtin`, `command` or `simulated`; `builtin` too where its configuration can't be read."""
        try:
            return self.program()[0]
        except RunError:
            return "builtin"

    # State

    def state(self) -> dict[str, Any]:
        """The run's `state.json`; `pending` where there is none yet, or none that can be read."""
        try:
            state = json.loads(read_replaced(self.path / "state.json"))
        except (FileNotFoundError, ValueError, RecursionError):
            state = None
        new = {"state": "pending", "reason": "", "attempt": 0, "step": 0}
        state = new | state if _is_state(state) else new
        if self.done:
            state["state"] = "done"
        return state

    def set_state(self, state: State, reason: str = "", **more: Any) -> None:
        """Writes `state.json`: the given keys replace those before; the heartbeat is now."""
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
        """Sets the marker, which is on the disk when this returns."""
        (self.path / "DONE").touch()
        sync(self.path)

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of a run that is done and has its final weights; of others, none."""
        if self.done and checksum_file(self.weights).exists():
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def lease(self, *, settle_s: float = 0.0) -> AbstractContextManager[Lease]:
        """The right to train the run, until the block ends; false where another process has it."""
        return take_lease(self.path / "lease", settle_s=settle_s)

    def is_leased(self) -> bool:
        """Whether some process holds the run now."""
        return is_leased(self.path / "lease")

    def remove_abandoned(self) -> None:
        """Removes half-written files of killed processes; for who holds the lease."""
        for folder in (self.checkpoints, self.path / "loss"):
            remove_abandoned(folder)
        for stray in self.path.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                # Others write to the folder of the run itself, for a moment: the state, from a login node.
                own = stray.name.startswith(f".{self.weights.stem}.")
                if own or time.time() - stray.stat().st_mtime > ABANDONED_S:
                    stray.unlink()

    # Loss log

    def append_log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds rows as one part file; a part is named by its first and last step."""
        if not rows:
            return
        first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
        write_part(self.path / "loss" / f"{first:09d}-{last:09d}.parquet", frame_of(rows))

    def log(self) -> pd.DataFrame:
        """The loss log, in order of steps.

        Raises:
            RunError: a part that can't be read.
        """
        import pandas as pd

        parts = [read_part(part) for part in self._parts()]
        if not parts:
            return frame_of([])
        # Parts overlap only where two processes trained the run at once, to the same losses.
        return pd.concat(parts, ignore_index=True).drop_duplicates(
            ["step", "split", "kind"], ignore_index=True
        )

    def cut_log(self, step: int) -> None:
        """Drops the rows after `step`, which a run that resumes from there writes again."""
        for part in self._parts():
            first, last = (int(number) for number in part.stem.split("-"))
            if last <= step:
                continue
            if first <= step:
                kept = read_part(part)
                kept = kept.loc[kept["step"] <= step]
                write_part(part.with_name(f"{first:09d}-{step:09d}.parquet"), kept)
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted((self.path / "loss").glob("[0-9]*.parquet"))


def _is_state(document: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a `state.json`, which may have been edited by hand, can be reckoned with."""
    return (
        isinstance(document, dict)
        and document.get("state") in STATES
        and all(isinstance(value, STORED.get(key, object)) for key, value in document.items())
        and all(isinstance(node, str) for node in document.get("failed_on", ()))
    )


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    return yaml.dump(
        json.loads(json.dumps(document)),
        Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
        sort_keys=False,
    )


def _what(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that a run can't change, without the sweep's name: its directory may be renamed."""
    parts = {key: config[key] for key in WHAT}
    return {**parts, "run": {key: value for key, value in config["run"].items() if key != "sweep"}}
