"""The runs table of a sweep: plan, state and results, one row per run."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import RunError
from isoflop.files import replace_file
from isoflop.runs.loss_log import find_column_fault
from isoflop.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("isoflop")

REQUIRED_PLAN_COLUMNS = {
    "run_id": "str",
    "budget": "float64",
    "tokens": "int64",
    "train_flops": "float64",
}
"""Columns of the plan that the runs table needs."""

RESULT_COLUMNS: dict[str, type] = {
    "state": str,
    "reason": str,
    "loss": float,
    "loss_text": float,
    "loss_semantic": float,
    "loss_acoustic": float,
    "gpu_hours": float,
    "mfu": float,
    "wall_s": float,
    "restarts": int,
    "simulated": bool,
}
"""Columns of the runs table after those of the plan, and their types; empty numbers are NaN."""


def read_runs(sweep: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the runs of a sweep's directory, one row each: plan, state and held-out losses.

    A saved result, with `runs.parquet` and no run directories, is read unchanged. A finished run
    whose files can't be read is `failed`, with the reason; the other runs are not affected.

    Raises:
        RunError: no plan in the directory, or a damaged one.
    """
    import pandas as pd

    directory = Path(sweep)
    file = directory / ("runs.parquet" if _is_saved_result(directory) else "plan.parquet")
    if not file.exists():
        raise RunError(
            f"{directory}: no sweep's directory (it has no plan.parquet); see `isoflop run --help`"
        )
    try:
        plan = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file}: damaged ({error}); delete it, and the command that made it writes it again"
        ) from None
    if file.name == "runs.parquet":
        return plan
    if fault := find_column_fault(plan, REQUIRED_PLAN_COLUMNS):
        raise RunError(
            f"{file}: damaged ({fault}); delete it, and the command that made it writes it again"
        )
    results = pd.DataFrame(
        [_result(RunDirectory(directory / str(run_id))) for run_id in plan["run_id"]],
        index=plan.index,
    )
    return pd.concat([plan, results], axis=1)


def write_runs(sweep: Path) -> pd.DataFrame:
    """Read a sweep's runs and save them as `runs.parquet`; return the table."""
    runs = read_runs(sweep)
    if not _is_saved_result(sweep):
        with replace_file(sweep / "runs.parquet") as temporary:
            runs.to_parquet(temporary, index=False)
    return runs


def _is_saved_result(directory: Path) -> bool:
    return (directory / "runs.parquet").exists() and not any(directory.glob("*/config.yaml"))


def _result(run: RunDirectory) -> dict[str, Any]:
    state = run.state()
    result: dict[str, Any] = {
        **{name: float("nan") for name, kind in RESULT_COLUMNS.items() if kind is float},
        "state": state["state"],
        "reason": state.get("reason", "") or str(state.get("warning", "")),
        "gpu_hours": _gpu_hours(state, state.get("wall_s", 0.0)),
        "restarts": max(0, state.get("attempt", 0) - 1),
        "simulated": bool(state.get("simulated")),
    }
    if state["state"] == "done":
        try:
            result |= _read_result(run, state)
        except RunError as problem:
            log.warning("%s; until then the run counts as failed", problem)
            result |= {"state": "failed", "reason": str(problem)}
    return {name: result.pop(name) for name in RESULT_COLUMNS} | result


def _read_result(run: RunDirectory, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return losses and cost of a finished run.

    Raises:
        RunError: files that can't be read, or that lack the fitted loss.
    """
    rows, config = run.log(), run.config()
    try:
        metric, steps = config["metric"], config["run"]["steps"]
        split, fitted_kind = metric["set"], metric["kind"]
    except (KeyError, TypeError):
        raise RunError(
            f"{run.path / 'config.yaml'}: damaged; delete the run's directory to start it again"
        ) from None
    final = rows[(rows["split"] == split) & (rows["step"] == steps)].set_index("kind")["loss"]
    if fitted_kind not in final.index:
        raise RunError(
            f"{run.path}: marked done without a loss after step {steps}; delete it to start it "
            "again"
        )
    result: dict[str, Any] = {
        "loss" if kind == "all" else f"loss_{kind}": loss for kind, loss in final.items()
    }
    result["loss"] = final[fitted_kind]
    wall_s = float(rows["wall_s"].iloc[-1])
    if math.isnan(wall_s):  # an external trainer's log may have none
        wall_s = state.get("wall_s", wall_s)
    result["wall_s"] = wall_s
    # Dropped first: NumPy warns of a median of only missing values.
    result["mfu"] = float(rows.loc[rows["split"] == "train", "mfu"].dropna().median())
    return {**result, "gpu_hours": _gpu_hours(state, wall_s)}


def _gpu_hours(state: Mapping[str, Any], wall_s: float) -> float:
    # state.json may have been edited: any number is possible
    hours = min(state.get("gpus", 0), 1e6) * min(wall_s, 1e10) / 3600
    return hours if math.isfinite(hours) else 0.0
