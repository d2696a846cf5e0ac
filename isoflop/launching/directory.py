"""A sweep's directory: made from a plan, checked against the plan that made it, filled with run directories."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoflop.config import Sweep, data_hash, load_sweep, run_identity
from isoflop.config.loading import sweep_to_yaml
from isoflop.errors import ConfigError
from isoflop.files import replace_file
from isoflop.planning.plan import Plan
from isoflop.planning.runspec import RunSpec
from isoflop.recipes import find_recipe
from isoflop.runs import RunDirectory

GRID_KEYS = {"schema", "name", "budgets", "widths", "extra", "seeds", "replicates", "min_batch", "max_steps"}
"""Keys that add or remove runs; a directory may change them, and nothing else."""

TIMING_KEYS = {"train.checkpoint_minutes", "train.evals", "train.log_points", "data.max_epochs"}


def runs_root() -> Path:
    """$ISOFLOP_ROOT, by default ./runs: the folder of all data and sweeps."""
    return Path(os.environ.get("ISOFLOP_ROOT") or "runs").resolve()


def make_directory(plan: Plan, root: Path) -> Path:
    """The sweep's directory with its definition, its plan and a directory for each run.

    Raises:
        ConfigError: a directory that was made with another recipe, data or metric, with the differences.
    """
    directory = root / plan.sweep.name
    check_same_study(plan.sweep, directory)
    with replace_file(directory / "sweep.yaml") as temporary:
        temporary.write_text(sweep_to_yaml(plan.sweep))
    plan.write_parquet(directory / "plan.parquet")
    provenance = _provenance()
    for spec in plan.runs:
        run = RunDirectory(directory / spec.run_id)
        is_new = not (run.path / "config.yaml").exists()
        run.create(run_config(plan.sweep, spec))
        if is_new:
            _write_json(run.path / "provenance.json", provenance)
            run.set_state("pending", attempt=0, step=0, steps=spec.steps)
    return directory


def run_config(sweep: Sweep, spec: RunSpec) -> dict[str, Any]:
    """`config.yaml`: all that a worker needs, and the identity that the run's name is a hash of."""
    train = sweep.train
    return {
        "run": {
            "run_id": spec.run_id,
            "sweep": sweep.name,
            "budget": spec.budget,
            "batch_size": spec.batch_size,
            "steps": spec.steps,
            "lr": spec.lr,
            "beta2": spec.beta2,
            "seed": spec.seed,
        },
        "identity": run_identity(sweep, find_recipe(sweep.recipe), spec.candidate, spec.seed),
        "data": data_hash(sweep.data),
        "metric": dataclasses.asdict(sweep.metric),
        "precision": train.precision,
        "evals": train.evals,
        "log_points": train.log_points,
        "checkpoint_minutes": train.checkpoint_minutes,
    }


def check_same_study(sweep: Sweep, directory: Path) -> None:
    """Refuses a directory whose runs were made with another recipe, data or metric."""
    if not (directory / "sweep.yaml").exists():
        return
    before, now = (dict(_leaves(dataclasses.asdict(s))) for s in (load_sweep(directory / "sweep.yaml"), sweep))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.split(".")[0].split("[")[0] not in GRID_KEYS and key not in TIMING_KEYS]
    if changed:
        differences = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise ConfigError(
            f"{directory}: made by another study: {differences}; give this one another name (name=...), "
            "or delete the directory"
        )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value


def _provenance() -> dict[str, Any]:
    packages = ("isoflop", "torch", "lightning", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "command": sys.argv,
        "versions": {package: version(package) for package in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it runs from one."""
    import subprocess

    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write_json(path: Path, document: Any) -> None:
    import json

    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
