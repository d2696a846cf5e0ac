"""Read a configuration: a YAML file and `key=value` overrides, as a checked dataclass.

The steps are: parse the file, set the overrides, resolve the interpolations, check. Each error
names the file, the line or the key, and the fix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from os import PathLike, fspath
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from isoflop.config.validation import SchemaError, build, format_value, one_line, text_keys
from isoflop.config.yaml_values import YamlError, keys_below, parse_yaml
from isoflop.errors import ConfigError

T = TypeVar("T")
Overrides = Iterable[str] | Mapping[str, Any]

SHIPPED = Path(__file__).parents[1] / "shipped"

_KEY = re.compile(r"[^.\[\]=\s]+(\.[^.\[\]=\s]+|\[\d+\])*")


@dataclass(frozen=True)
class ConfigSource:
    """A configuration file: its label in errors, its stem as a default name, and its text."""

    label: str
    stem: str
    text: str


def find_source(name: str | PathLike[str], folder: str) -> ConfigSource:
    """Read the file at a path, or the shipped file of that name.

    Args:
        name: path of a file, or name of a file in the package's folder `shipped/<folder>`.
        folder: `sweeps` or `slurm`.

    Raises:
        ConfigError: neither exists, or the file can't be read as text.
    """
    label = fspath(name)
    path = Path(name)
    try:
        if path.exists() and not path.is_dir():  # a pipe too: sweep-plan <(...)
            return ConfigSource(label, path.stem, _read_text(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: not a text file in UTF-8") from None
    except OSError as problem:
        raise ConfigError(f"{label}: can't be read ({problem.strerror})") from None
    shipped = shipped_files(folder)
    if label in shipped:
        return ConfigSource(f"{label} (shipped)", label, shipped[label].read_text(encoding="utf-8"))
    names = ", ".join(shipped)
    if path.is_dir():
        raise ConfigError(f"{label}: is a folder; give a YAML file, or a shipped name: {names}")
    nearest = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {nearest[0]}, of the shipped ones" if nearest else "shipped ones"
    raise ConfigError(f"{label}: no such file; {hint}: {names}")


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else _read_pipe(path)


@cache
def _read_pipe(path: Path) -> str:
    """Read a pipe once and keep its text, because a second read gives nothing."""
    return path.read_text(encoding="utf-8")


def shipped_files(folder: str) -> dict[str, Path]:
    """Return the YAML files of the package's folder `shipped/<folder>` by name without suffix."""
    return {path.stem: path for path in sorted((SHIPPED / folder).glob("*.yaml"))}


def read_config(
    source: ConfigSource,
    overrides: Overrides,
    schema: type[T],
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    as_written: Collection[str] = (),
) -> T:
    """Return a checked instance of `schema` from a file and overrides.

    Args:
        source: the file, from `find_source`.
        overrides: `key=value` texts or a mapping of dotted keys; each replaces the whole value at
            its key.
        schema: a dataclass.
        prepare: adds defaults and expands shorthands in the plain values before they are checked.
        as_written: keys whose values keep the spelling of the file, such as `1e5` and `010`, beside
            the schema's keys for text.

    Raises:
        ConfigError: one line with file, key and fix.
    """
    spelled = {*as_written, *text_keys(schema)}
    values = _parse_file(source, spelled)
    changes = dict(_parse_overrides(overrides, spelled))
    for key, value in changes.items():
        _assign(values, key, value)
    try:
        return build(schema, prepare(_resolve(values, source.label)))
    except SchemaError as problem:
        label = source.label
        if changed := next((key for key in changes if _overlaps(key, problem.key)), None):
            label += f", override {changed}={format_value(changes[changed])}"
        raise ConfigError(f"{label}: {problem}") from None


def _parse_file(source: ConfigSource, as_written: Collection[str]) -> dict[str, Any]:
    if not source.text.strip():
        raise ConfigError(f"{source.label}: the file is empty")
    try:
        values = parse_yaml(source.text, as_written=as_written)
    except YamlError as problem:
        line = "" if problem.line is None else f", line {problem.line}"
        raise ConfigError(f"{source.label}{line}: {one_line(problem.message)}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(
            f"{source.label}: expected a mapping of keys to values, got {format_value(values)}"
        )
    return values


def _parse_overrides(
    overrides: Overrides, as_written: Collection[str]
) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise ConfigError(
                    f"override {format_value(key)}: expected a key, e.g. seq_len or data.seed"
                )
            yield key, value
        return
    for text in overrides:
        key, equals, value = str(text).partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(
                f"override {text!r}: expected key=value, e.g. seq_len=1024 or data.seed=1"
            )
        try:
            inner = reduce(keys_below, _split_key(key), as_written)
            yield key, parse_yaml(value, as_written=inner)
        except YamlError as problem:
            raise ConfigError(
                f"override {text!r}: the value is not valid YAML ({one_line(problem.message)})"
            ) from None


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b[0].c` (or `a.b.0.c`); create the mappings on the way."""
    *parents, last = names = _split_key(key)
    holder: Any = values
    for name, child in zip(parents, names[1:], strict=True):
        holder = _child(holder, name, key)
        if not isinstance(holder, dict | list):
            raise ConfigError(f"override {key}: {name} holds a single value, so it has no {child}")
    if isinstance(holder, list):
        holder[_index(holder, last, key)] = value
    else:
        holder[last] = value


def _child(holder: Any, name: str, key: str) -> Any:
    if isinstance(holder, list):
        return holder[_index(holder, name, key)]
    if holder.get(name) is None:
        holder[name] = {}
    return holder[name]


def _index(items: list[Any], name: str, key: str) -> int:
    index = int(name) if name.isdecimal() else len(items)
    if index >= len(items):
        size = f"has {len(items)} items (0 to {len(items) - 1})" if items else "is empty"
        raise ConfigError(f"override {key}: index {name} is out of range; the list {size}")
    return index


def _resolve(values: dict[str, Any], label: str) -> dict[str, Any]:
    """Replace interpolations (`${seq_len}`) by their values."""
    try:
        if not _needs_omegaconf(values):
            return values
        from omegaconf import OmegaConf

        resolved = OmegaConf.create(values)
        return OmegaConf.to_container(resolved, resolve=True)  # type: ignore[return-value]
    except Exception as problem:  # an interpolation runs resolvers, which may raise anything
        key = getattr(problem, "full_key", None)
        location = f"{label}: {key}" if key else label
        fix = ""
        if name := re.search(r"Interpolation key '([A-Za-z_]\w*)' not found", str(problem)):
            fix = f"; for a variable of the shell write ${name[1]}, or \\${{{name[1]}}}"
        raise ConfigError(f"{location}: {_first_line(problem)}{fix}") from None


def _needs_omegaconf(value: Any) -> bool:
    """Return True for interpolations, and for Python values that OmegaConf converts or refuses."""
    if type(value) is str:
        return "${" in value
    if type(value) is dict:
        return any(map(_needs_omegaconf, value.values()))
    if type(value) is list:
        return any(map(_needs_omegaconf, value))
    return type(value) not in (int, float, bool, NoneType)


def _overlaps(override: str, key: str) -> bool:
    """Return True if `key` lies inside the value that `override` set, or around it."""
    inner, outer = _split_key(override), _split_key(key)
    shared = min(len(inner), len(outer))
    return shared > 0 and inner[:shared] == outer[:shared]


def _split_key(key: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", key)


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
