"""Run directories: configuration, state, loss log, and the table of a sweep's runs.

The truth about a run is in its directory: a `DONE` marker, the newest valid checkpoint, the loss log. Once it is done,
its final weights take the place of its checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
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
from isoflop.files import checksum_file, remove_abandoned, replace_file, sync
from isoflop.lease import Lease, is_leased, take_lease
from isoflop.shapes import ModelShape

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("isoflop")
State = Literal["pending", "queued", "running", "requeued", "done", "failed", "diverged", "cancelled"]

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
    "in_vain": int,
    "start_step": (int, NoneType),
    "job_id": (str, NoneType),
    "node": (str, NoneType),
    "data_checksum": str,
}
"""What `state.json` keeps beside the state: what can be reckoned with."""

ABANDONED_S = 300.0
"""Age beyond which a half-written file that another process may be writing is a killed one's."""

LOG_COLUMNS = {
    "step": "int64",
    "tokens": "int64",
    "train_flops": "float64",
    "split": "str",
    "kind": "str",
    "targets": "int64",
    "loss": "float64",
    "lr": "float64",
    "grad_norm": "float64",
    "tokens_per_second": "float64",
    "mfu": "float64",
    "wall_s": "float64",
}
"""Columns of the loss log; the last three are measurements of time, the others repeat bit for bit."""

PLAN_COLUMNS = {"run_id": "str", "budget": "float64", "tokens": "int64", "train_flops": "float64"}
"""Columns of the plan without which its runs are no study."""


def log_row(shape: ModelShape, batch_size: int, step: int, **values: Any) -> dict[str, Any]:
    """A row of the loss log after `step` updates of `batch_size` sequences; what is not given is not known."""
    tokens = step * batch_size * shape.seq_len
    counts = {"step": step, "tokens": tokens, "train_flops": float(tokens * shape.train_flops_per_token), "targets": 0}
    return {**dict.fromkeys(LOG_COLUMNS, float("nan")), **counts, **values}


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
        steps = (int(path.stem.removeprefix("step-")) for path in self.checkpoints.glob("step-*.sha256"))
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
            if edited := [key for key in WHAT if canonical_hash(before[key]) != canonical_hash(now[key])]:
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
            loaded = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (OSError, ValueError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise RunError(f"{file}: can't be read ({why}); delete the run's directory to start it again") from None
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
            state = json.loads((self.path / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            state = None
        new = {"state": "pending", "reason": "", "attempt": 0, "step": 0}
        state = new | state if _is_state(state) else new
        if self.done:
            state["state"] = "done"
        return state

    def set_state(self, state: State, reason: str = "", **more: Any) -> None:
        """Writes `state.json`: the given keys replace those before; the heartbeat is now."""
        document = {**self.state(), "state": state, "reason": reason, "heartbeat": time.time(), **more}
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
        _write_part(self.path / "loss" / f"{first:09d}-{last:09d}.parquet", _frame(rows))

    def log(self) -> pd.DataFrame:
        """The loss log, in order of steps.

        Raises:
            RunError: a part that can't be read.
        """
        import pandas as pd

        parts = [_read_part(part) for part in self._parts()]
        if not parts:
            return _frame([])
        # Parts overlap only where two processes trained the run at once, to the same losses.
        return pd.concat(parts, ignore_index=True).drop_duplicates(["step", "split", "kind"], ignore_index=True)

    def cut_log(self, step: int) -> None:
        """Drops the rows after `step`, which a run that resumes from there writes again."""
        for part in self._parts():
            first, last = (int(number) for number in part.stem.split("-"))
            if last <= step:
                continue
            if first <= step:
                kept = _read_part(part)
                kept = kept.loc[kept["step"] <= step]
                _write_part(part.with_name(f"{first:09d}-{step:09d}.parquet"), kept)
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
        json.loads(json.dumps(document)), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False
    )


def _what(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that a run can't change, without the sweep's name: its directory may be renamed."""
    parts = {key: config[key] for key in WHAT}
    return {**parts, "run": {key: value for key, value in config["run"].items() if key != "sweep"}}


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(LOG_COLUMNS)).astype(LOG_COLUMNS)


def _write_part(path: Path, frame: pd.DataFrame) -> None:
    with replace_file(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _read_part(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise RunError(f"{path}: damaged ({why}); delete the run's directory to start it again") from None
    if lack := _lack(frame, LOG_COLUMNS):
        raise RunError(f"{path}: damaged ({lack}); delete the run's directory to start it again")
    return frame


def _lack(frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """What keeps a table, which may have been edited by hand, from being reckoned with; empty where nothing does."""
    for name, kind in columns.items():
        if name not in frame.columns:
            return f"no column {name}"
        if (frame[name].dtype.kind in "iuf") is (kind == "str"):
            return f"its column {name} holds {frame[name].dtype}, not {kind}"
    return ""


def read_runs(sweep: str | os.PathLike[str]) -> pd.DataFrame:
    """The runs of a sweep's directory, a row each: the plan's columns, state and held-out losses.

    A kept result, with `runs.parquet` and no run directories, is read as it is.

    A run that is done, and whose files can't be read, is `failed` here, with the reason: the others count all the same.

    Raises:
        RunError: no plan in the directory, or a damaged one.
    """
    import pandas as pd

    directory = Path(sweep)
    file = directory / ("runs.parquet" if _is_kept_result(directory) else "plan.parquet")
    if not file.exists():
        raise RunError(f"{directory}: no sweep's directory (it has no plan.parquet); see `isoflop run --help`")
    try:
        plan = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error}); delete it, and the command that made it writes it anew") from None
    if file.name == "runs.parquet":
        return plan
    if lack := _lack(plan, PLAN_COLUMNS):
        raise RunError(f"{file}: damaged ({lack}); delete it, and the command that made it writes it anew")
    results = pd.DataFrame(
        [_result(RunDirectory(directory / str(run_id))) for run_id in plan["run_id"]], index=plan.index
    )
    return pd.concat([plan, results], axis=1)


def write_runs(sweep: Path) -> pd.DataFrame:
    """Reads a sweep's runs and keeps them as `runs.parquet`."""
    runs = read_runs(sweep)
    if not _is_kept_result(sweep):
        with replace_file(sweep / "runs.parquet") as temporary:
            runs.to_parquet(temporary, index=False)
    return runs


def _is_kept_result(directory: Path) -> bool:
    return (directory / "runs.parquet").exists() and not any(directory.glob("*/config.yaml"))


def _result(run: RunDirectory) -> dict[str, Any]:
    state = run.state()
    reason = state.get("reason", "") or str(state.get("warning", ""))
    result: dict[str, Any] = {"state": state["state"], "reason": reason}
    result |= {name: float("nan") for name in ("loss", "loss_text", "loss_semantic", "loss_acoustic")}
    result |= {"gpu_hours": _gpu_hours(state, state.get("wall_s", 0.0)), "mfu": float("nan"), "wall_s": float("nan")}
    result["restarts"] = max(0, state.get("attempt", 0) - 1)
    result["simulated"] = bool(state.get("simulated"))
    if state["state"] == "done":
        try:
            result |= _measured(run, state)
        except RunError as problem:
            log.warning("%s; until then the run counts as failed", problem)
            result |= {"state": "failed", "reason": str(problem)}
    return result


def _measured(run: RunDirectory, state: Mapping[str, Any]) -> dict[str, Any]:
    """Losses and cost of a run that is done.

    Raises:
        RunError: files that can't be read, or that lack the loss that is fitted.
    """
    rows, config = run.log(), run.config()
    try:
        split, fitted, steps = config["metric"]["set"], config["metric"]["kind"], config["run"]["steps"]
    except (KeyError, TypeError):
        raise RunError(f"{run.path / 'config.yaml'}: damaged; delete the run's directory to start it again") from None
    final = rows[(rows["split"] == split) & (rows["step"] == steps)].set_index("kind")["loss"]
    if fitted not in final.index:
        raise RunError(f"{run.path}: marked done without a loss after step {steps}; delete it to start it again")
    found: dict[str, Any] = {"loss" if kind == "all" else f"loss_{kind}": loss for kind, loss in final.items()}
    found["loss"] = final[fitted]
    wall_s = float(rows["wall_s"].iloc[-1])
    found["wall_s"] = state.get("wall_s", wall_s) if math.isnan(wall_s) else wall_s  # of a program that doesn't say
    found["mfu"] = float(rows.loc[rows["split"] == "train", "mfu"].median())
    return {**found, "gpu_hours": _gpu_hours(state, found["wall_s"])}


def _gpu_hours(state: Mapping[str, Any], wall_s: float) -> float:
    hours = min(state.get("gpus", 0), 1e6) * min(wall_s, 1e10) / 3600  # somebody may have written any number
    return hours if math.isfinite(hours) else 0.0
