"""Read a sweep file, or a shipped sweep by name, and write definitions as YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from isoflop.config.config_file import (
    ConfigSource,
    Overrides,
    find_source,
    read_config,
    shipped_files,
)
from isoflop.config.profile import Profile
from isoflop.config.schema import Sweep
from isoflop.config.validation import SchemaError, format_value
from isoflop.config.yaml_values import dump_yaml

STUDY_KINDS = ("isoflop",)


def load_sweep(source: str | PathLike[str], overrides: Overrides = ()) -> Sweep:
    """Read and check a sweep.

    Args:
        source: path of a YAML file, or the name of a shipped sweep such as `soda`.
        overrides: `key=value` texts, or a mapping of dotted keys to values; each replaces the whole
            value at its key.

    Raises:
        ConfigError: an unusable file, key or value, in one line with the fix.
    """
    return _read_sweep(find_source(source, "sweeps"), overrides)


def load_directory_sweep(directory: str | PathLike[str]) -> Sweep | None:
    """Read the sweep that a directory of runs was made from; None for other tables of runs.

    Raises:
        ConfigError: as `load_sweep`.
    """
    definition = Path(directory) / "sweep.yaml"
    return load_sweep(definition) if definition.exists() else None


def sweep_from_mapping(mapping: Mapping[str, Any], label: str) -> Sweep:
    """Return the sweep of a mapping made by `to_mapping`; `label` names its source in errors.

    Raises:
        ConfigError: as `load_sweep`.
    """
    return _read_sweep(ConfigSource(label, "sweep", dump_yaml(dict(mapping))), ())


def _read_sweep(source: ConfigSource, overrides: Overrides) -> Sweep:
    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        kind = values.get("kind", STUDY_KINDS[0])
        if kind not in STUDY_KINDS:  # first, because another kind may have other keys
            expected = ", ".join(STUDY_KINDS)
            raise SchemaError("kind", f"expected {expected}, got {format_value(kind)}")
        named = values if values.get("name") is not None else {**values, "name": source.stem}
        return _expand_trainer(_expand_widths(named))

    return read_config(source, overrides, Sweep, prepare)


def shipped_sweeps() -> list[str]:
    """Return the names of the sweeps in the package."""
    return list(shipped_files("sweeps"))


def to_yaml(definition: Sweep | Profile) -> str:
    """Return a sweep or a profile as YAML with all defaults; it reads back to an equal one."""
    return dump_yaml(to_mapping(definition))


def to_mapping(definition: Sweep | Profile) -> dict[str, Any]:
    """Return a sweep or a profile as the plain values of its YAML."""
    return _to_plain(dataclasses.asdict(definition))


def _expand_widths(values: dict[str, Any]) -> dict[str, Any]:
    """Replace `widths: [16, 24]` by one rule with these values."""
    widths = values.get("widths")
    if not isinstance(widths, list) or any(isinstance(item, dict) for item in widths) or not widths:
        return values
    for i, width in enumerate(widths):
        if not isinstance(width, int) or isinstance(width, bool):
            raise SchemaError(
                f"widths[{i}]",
                f"expected a whole number (or rules only), got {format_value(width)}",
            )
    return {**values, "widths": [{"values": widths}]}


def _expand_trainer(values: dict[str, Any]) -> dict[str, Any]:
    """Replace `trainer: {simulated: soda}` by `trainer: "simulated: soda"`."""
    train = values.get("train")
    if (
        not isinstance(train, dict)
        or not isinstance(trainer := train.get("trainer"), dict)
        or len(trainer) != 1
    ):
        return values
    ((kind, argument),) = trainer.items()
    if not isinstance(argument, str):
        return values
    return {**values, "train": {**train, "trainer": f"{kind}: {argument}"}}


def _to_plain(value: Any) -> Any:
    """Return lists for tuples and escaped texts, without the options that are None."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return _escape(value) if isinstance(value, str) else value


def _escape(text: str) -> str:
    r"""Return the text with `\${` for `${`, backslashes before it doubled, for OmegaConf."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)
