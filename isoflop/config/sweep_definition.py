"""Reading a sweep file, or a shipped sweep by name, and writing definitions back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from isoflop.config.config_file import Overrides, Source, find, read, shipped_files
from isoflop.config.profile import Profile
from isoflop.config.schema import Sweep
from isoflop.config.validation import SchemaError, show
from isoflop.config.yaml_scalars import dump, escape

KINDS = ("isoflop",)


def load_sweep(source: str | PathLike[str], overrides: Overrides = ()) -> Sweep:
    """Reads and checks a sweep.

    Args:
        source: path of a YAML file, or the name of a shipped sweep such as `soda`.
        overrides: `key=value` texts, or a mapping of dotted keys to values. A key's whole value is replaced.

    Raises:
        ConfigError: a file, key or value that can't be used, in one line with the mend.
    """
    return _checked(find(source, "sweeps"), overrides)


def sweep_in(directory: str | PathLike[str]) -> Sweep | None:
    """The definition of a sweep's directory; None for other tables of runs.

    Raises:
        ConfigError: as `load_sweep`.
    """
    definition = Path(directory) / "sweep.yaml"
    return load_sweep(definition) if definition.exists() else None


def sweep_of(mapping: Mapping[str, Any], label: str) -> Sweep:
    """A sweep from what `to_mapping` made of it; `label` is where it was read, for errors.

    Raises:
        ConfigError: as `load_sweep`.
    """
    return _checked(Source(label, "sweep", dump(dict(mapping))), ())


def _checked(found: Source, overrides: Overrides) -> Sweep:
    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        kind = values.get("kind", KINDS[0])
        if kind not in KINDS:  # before the other keys, which another kind would have of its own
            raise SchemaError("kind", f"expected {', '.join(KINDS)}, got {show(kind)}")
        named = values if values.get("name") is not None else {**values, "name": found.stem}
        return _spell_out_trainer(_spell_out_widths(named))

    return read(found, overrides, Sweep, prepare)


def shipped_sweeps() -> list[str]:
    """Names of the sweeps that travel with the package."""
    return list(shipped_files("sweeps"))


def to_yaml(definition: Sweep | Profile) -> str:
    """A sweep or a profile as YAML with every default written out; it is read back to an equal one."""
    return dump(to_mapping(definition))


def to_mapping(definition: Sweep | Profile) -> dict[str, Any]:
    """A sweep or a profile as the plain values of its YAML."""
    return _plain(dataclasses.asdict(definition))


def _spell_out_widths(values: dict[str, Any]) -> dict[str, Any]:
    """`widths: [16, 24]` is short for one rule with these values."""
    widths = values.get("widths")
    if not isinstance(widths, list) or any(isinstance(item, dict) for item in widths) or not widths:
        return values
    for i, width in enumerate(widths):
        if not isinstance(width, int) or isinstance(width, bool):
            raise SchemaError(
                f"widths[{i}]",
                f"expected a whole number (or a rule in every place), got {show(width)}",
            )
    return {**values, "widths": [{"values": widths}]}


def _spell_out_trainer(values: dict[str, Any]) -> dict[str, Any]:
    """`trainer: {simulated: soda}` is the same as `trainer: "simulated: soda"`."""
    train = values.get("train")
    if (
        not isinstance(train, dict)
        or not isinstance(given := train.get("trainer"), dict)
        or len(given) != 1
    ):
        return values
    ((kind, argument),) = given.items()
    if not isinstance(argument, str):
        return values
    return {**values, "train": {**train, "trainer": f"{kind}: {argument}"}}


def _plain(value: Any) -> Any:
    """Lists for tuples, and no empty options: what YAML shows best."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return escape(value) if isinstance(value, str) else value
