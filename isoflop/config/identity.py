"""The identity of a run and of a data set: a hash of all settings that change the result.

Not part of it: `max_epochs` (a threshold of warnings), the metric, logging, checkpoints, resources,
paths and the sweep's name. Two sweeps that contain the same run share its identity; a changed
learning rate gives another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from isoflop.config.schema import Data, Sweep
from isoflop.recipes import Candidate, RecipeLike
from isoflop.shapes import ModelShape

RUN_HASH_DIGITS = 8
DATA_HASH_DIGITS = 12


def data_identity(data: Data) -> dict[str, Any]:
    """Return the settings that determine a data set's content. Its shards serve any seq_len."""
    return {
        "codec": data.codec,
        "text_tokenizer": data.text_tokenizer,
        "composition": data.composition,
        "mixture": data.mixture,
        "tokens": data.tokens,
        "seed": data.seed,
        "heldout_share": data.heldout_share,
    }


def data_hash(data: Data) -> str:
    """Return the name of the folder `data/<hash>/`: 12 hexadecimal digits."""
    return canonical_hash(data_identity(data))[:DATA_HASH_DIGITS]


def run_identity(
    sweep: Sweep, recipe: RecipeLike, candidate: Candidate, seed: int
) -> dict[str, Any]:
    """Return all settings that change the result of a run, as nested plain values.

    Print them to find out why two runs differ. Precision is part of them only if the sweep pins it:
    `auto` lets a study move between machines.
    """
    identity = {
        "recipe": {"name": recipe.name, "version": recipe.version},
        "shape": _shape_identity(candidate.shape),
        "data": {**data_identity(sweep.data), "seq_len": sweep.seq_len},
        "optimizer": dataclasses.asdict(sweep.train.optimizer),
        "schedule": dataclasses.asdict(sweep.train.schedule),
        "z_loss": sweep.train.z_loss,
        "lr": candidate.lr,
        "beta2": candidate.beta2,
        "batch_size": candidate.batch_size,
        "steps": candidate.steps,
        "seed": seed,
    }
    if sweep.train.trainer != "builtin":
        identity["trainer"] = list(sweep.train.program)
    return (
        identity
        if sweep.train.precision == "auto"
        else {**identity, "precision": sweep.train.precision}
    )


def _shape_identity(shape: ModelShape) -> dict[str, Any]:
    """Return a shape's values without later additions at their defaults.

    Runs that were made before the additions keep their ids.
    """
    values = dataclasses.asdict(shape)
    if values["rope_theta"] == ModelShape.rope_theta:
        del values["rope_theta"]
    return values


def run_id(
    budget: float, width: int, seed: int, identity: Mapping[str, Any], check: str = ""
) -> str:
    """Return e.g. `9e18-w768-s0-1a2b3c4d`: budget, width, seed and the hash of `run_identity`.

    The id of a run that checks the recipe names the difference: `9e18-w768-lr0.5-s0-5e6f7a8b` for
    `lr x 0.5`.
    """
    mark = f"-{check.replace(' x ', '')}" if check else ""
    digits = canonical_hash(identity)[:RUN_HASH_DIGITS]
    return f"{budget_label(budget)}-w{width}{mark}-s{seed}-{digits}"


def budget_label(budget: float) -> str:
    """Return a budget as the text that names it in run ids, files and points: `9e18`, `1.8e19`."""
    mantissa, exponent = f"{budget:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def canonical_hash(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(
        _canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Return equal numbers in one spelling: 3e18, 3.0e18 and the integer; floats at 12 digits.

    The last bits of a power differ between mathematical libraries, but a plan made on a laptop has
    to name the same runs as one made on a cluster.
    """
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        rounded = float(f"{value:.12g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value
