"""A sweep's directory: made from a plan, checked against later plans, a folder for each run."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.config import Sweep, data_hash, load_sweep, run_identity
from isoflop.config.identity import canonical_hash
from isoflop.config.profile import Profile
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import ConfigError
from isoflop.files import replace_file
from isoflop.launching.records.code_snapshot import find_commit, versions
from isoflop.planning.calibration import CALIBRATIONS_FOLDER
from isoflop.planning.plan import Plan
from isoflop.planning.run_spec import RunSpec
from isoflop.recipes import find_recipe
from isoflop.runs.run_directory import RunDirectory

GRID_KEYS = {
    "schema",
    "name",
    "budgets",
    "widths",
    "extra",
    "seeds",
    "replicates",
    "recipe_check",
    "min_batch",
    "max_steps",
}
"""Keys that only add or remove runs; a later plan may change them."""

TIMING_KEYS = {
    *(
        f"train.{key}"
        for key in ("checkpoint_minutes", "deterministic", "evals", "log_points", "loggers")
    ),
    "data.max_epochs",
}
"""Keys outside a run's identity; a later plan may change them too."""


def runs_root() -> Path:
    """Return the folder of all data and sweeps: $ISOFLOP_ROOT, by default ./runs."""
    return Path(os.path.realpath(Path(os.environ.get("ISOFLOP_ROOT") or "runs").expanduser()))


def resolve_root(profile: Profile) -> Path:
    """Return the profile's folder of runs as an absolute path; without one, `runs_root()`.

    Raises:
        ConfigError: it is a file or below one.
    """
    if not profile.root:
        return runs_root()
    folder = Path(os.path.realpath(Path(profile.root).expanduser()))
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise ConfigError(f"root: {nearest} is not a folder; name a folder, which will be created")
    return folder


def sweep_directory(sweep: Sweep, root: Path) -> Path:
    """Return the folder of a sweep's runs.

    Raises:
        ConfigError: the sweep has the name of a folder shared by all sweeps.
    """
    if sweep.name in ("data", CALIBRATIONS_FOLDER):
        content = "the data" if sweep.name == "data" else "the measurements for plans"
        raise ConfigError(
            f"name: {root / sweep.name} holds {content} of all sweeps; "
            "give the sweep another name (name=...)"
        )
    return root / sweep.name


def make_directory(plan: Plan, root: Path, code: Path | None = None) -> Path:
    """Make a sweep's directory with its definition, plan and run directories; return it.

    Args:
        plan: the sweep's plan.
        root: the folder of all sweeps.
        code: code snapshot for the provenance of new runs; None for the current code.

    Raises:
        ConfigError: the directory was made with another recipe, data or metric.
    """
    directory = sweep_directory(plan.sweep, root)
    check_study(plan, directory)
    with replace_file(directory / "sweep.yaml") as temporary:
        temporary.write_text(to_yaml(plan.sweep))
    plan.write_parquet(directory / "plan.parquet")
    provenance = json.dumps(_provenance(code), indent=1) + "\n"
    for spec in plan.runs:
        state = {"state": "pending", "reason": "", "attempt": 0, "step": 0, "steps": spec.steps}
        files = {"provenance.json": provenance, "state.json": json.dumps(state) + "\n"}
        run = RunDirectory(directory / spec.run_id)
        run.create(run_config(plan.sweep, spec), files)
        run.remove_checkpoints()  # of a run that was killed right after its end
    os.sync()
    return directory


def run_config(sweep: Sweep, spec: RunSpec) -> dict[str, Any]:
    """Return a run's `config.yaml`: a worker's inputs, and the identity behind its name's hash."""
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
        "deterministic": train.deterministic,
        "evals": train.evals,
        "log_points": train.log_points,
        "checkpoint_minutes": train.checkpoint_minutes,
        "loggers": list(train.loggers),
    }


def check_study(plan: Plan, directory: Path) -> None:
    """Check that a plan may run in a directory; writes nothing.

    Raises:
        ConfigError: the directory was made with another recipe, data or metric; the message lists
            the differences.
    """
    if not (directory / "sweep.yaml").exists():
        return
    before, now = (
        dataclasses.asdict(sweep) for sweep in (load_sweep(directory / "sweep.yaml"), plan.sweep)
    )
    changed = {
        key: values
        for key, values in _differences(before, now).items()
        if (name := key.split("[")[0]).split(".")[0] not in GRID_KEYS and name not in TIMING_KEYS
    }
    if changed := changed or _changed_recipe(plan, directory):
        differences = "; ".join(
            f"{key} was {before}, is {now}" for key, (before, now) in changed.items()
        )
        raise ConfigError(
            f"{directory}: made by another study: {differences}; "
            "give this one another name (name=...), or delete the directory"
        )


def _changed_recipe(plan: Plan, directory: Path) -> dict[str, tuple[Any, Any]]:
    """Return differing keys of one run if its name exists with another hash, else an empty dict.

    Then the recipe's rules have changed.
    """
    made = {path.parent.name for path in directory.glob("*/config.yaml")}
    prefixes = {
        name.rpartition("-")[0]: name for name in sorted(made - {spec.run_id for spec in plan.runs})
    }
    for spec in plan.runs:
        prefix = spec.run_id.rpartition("-")[0]
        if spec.run_id not in made and prefix in prefixes:
            before = RunDirectory(directory / prefixes[prefix]).config()["identity"]
            if changed := _differences(before, run_config(plan.sweep, spec)["identity"]):
                return {f"{prefix}: {key}": values for key, values in changed.items()}
    return {}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return keys of differing leaves with both values; None for a missing one."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (a, b) for key, (a, b) in pairs.items() if canonical_hash(a) != canonical_hash(b)}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value


def _provenance(code: Path | None) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "command": sys.argv,
        "versions": versions(),
        "commit": find_commit(code),
    }
