"""From a YAML file and `key=value` overrides to plain, resolved values, with errors that name file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from isoflop.config.validation import SchemaError, build, one_line, show
from isoflop.config.yaml_scalars import check_written
from isoflop.errors import ConfigError

T = TypeVar("T")
Overrides = Iterable[str] | Mapping[str, Any]

SHIPPED = Path(__file__).parents[1] / "shipped"

_KEY = re.compile(r"[^.\[\]=\s]+(\.[^.\[\]=\s]+|\[\d+\])*")


@dataclass(frozen=True)
class Source:
    """A configuration file: the label that errors use, the stem that names it, and its text."""

    label: str
    stem: str
    text: str


def find(given: str | PathLike[str], shipped: str) -> Source:
    """The file at a path, or the shipped file of that name in the package's folder `shipped`.

    Raises:
        ConfigError: there is neither, or it can't be read as text.
    """
    label = fspath(given)
    path = Path(given)
    try:
        if path.exists() and not path.is_dir():  # a pipe too: sweep-plan <(...)
            return Source(label, path.stem, _text(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: not a text file in UTF-8") from None
    except OSError as problem:
        raise ConfigError(f"{label}: can't be read ({problem.strerror})") from None
    texts = shipped_files(shipped)
    if label in texts:
        return Source(f"{label} (shipped)", label, texts[label].read_text(encoding="utf-8"))
    if path.is_dir():
        raise ConfigError(
            f"{label}: is a folder; give a YAML file, or a shipped name: {', '.join(texts)}"
        )
    near = difflib.get_close_matches(path.stem, texts, n=1)
    hint = f"did you mean {near[0]}, of the shipped ones" if near else "shipped ones"
    raise ConfigError(f"{label}: no such file; {hint}: {', '.join(texts)}")


def _text(path: Path) -> str:
    """A file's text; that of a pipe, which gives it once, is kept for who reads it again."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return _of_pipe(path)


@cache
def _of_pipe(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shipped_files(folder: str) -> dict[str, Path]:
    """The YAML files that travel in the package's folder `shipped/<folder>`, by name without suffix."""
    return {path.stem: path for path in sorted((SHIPPED / folder).glob("*.yaml"))}


def read(
    source: Source,
    overrides: Overrides,
    schema: type[T],
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    verbatim: Sequence[str] = (),
) -> T:
    """A checked instance of `schema` from a file and overrides.

    Args:
        source: the file, from `find`.
        overrides: `key=value` texts or a mapping of dotted keys; each replaces the whole value at its key.
        schema: a dataclass.
        prepare: puts shorthands and defaults into the plain values before they are converted.
        verbatim: sections whose values go on as they are written, which YAML must not change.

    Raises:
        ConfigError: one line with file, key and mend.
    """
    values = _parse(source, verbatim)
    changes = dict(_split(overrides, verbatim))
    for key, value in changes.items():
        _assign(values, key, value)
    try:
        return build(schema, prepare(_resolve(values, source)))
    except SchemaError as problem:
        changed = [key for key in changes if _concerns(key, problem.key)]
        place = (
            f"{source.label}, override {changed[0]}={show(changes[changed[0]])}"
            if changed
            else source.label
        )
        raise ConfigError(f"{place}: {problem}") from None


def _parse(source: Source, verbatim: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if not source.text.strip():
        raise ConfigError(f"{source.label}: the file is empty")
    try:
        values = OmegaConf.to_container(OmegaConf.create(source.text), resolve=False)
        check_written(source.text, verbatim)
    except SchemaError as problem:
        raise ConfigError(f"{source.label}: {problem}") from None
    except (
        Exception
    ) as problem:  # PyYAML and OmegaConf have some twenty types of error for a text they can't take
        mark = getattr(problem, "problem_mark", None)
        if mark is not None:
            reason = getattr(problem, "problem", None) or "not valid YAML"
            raise ConfigError(f"{source.label}, line {mark.line + 1}: {one_line(reason)}") from None
        raise ConfigError(
            f"{source.label}: not a YAML mapping of keys to values ({_first_line(problem)})"
        ) from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(
            f"{source.label}: expected a mapping of keys to values, got {show(values)}"
        )
    return values  # type: ignore[return-value]


def _resolve(values: dict[str, Any], source: Source) -> dict[str, Any]:
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)  # type: ignore[return-value]
    except Exception as problem:  # an interpolation runs resolvers, which may raise anything
        key = getattr(problem, "full_key", None)
        place = f"{source.label}: {key}" if key else source.label
        mend = ""
        if name := re.search(r"Interpolation key '([A-Za-z_]\w*)' not found", str(problem)):
            mend = f"; for a variable of the shell write ${name[1]}, or \\${{{name[1]}}}"
        raise ConfigError(f"{place}: {_first_line(problem)}{mend}") from None


def _split(overrides: Overrides, verbatim: Sequence[str]) -> Iterable[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise ConfigError(
                    f"override {show(key)}: expected a key, e.g. seq_len or data.seed"
                )
            yield key, value
        return
    from omegaconf import OmegaConf

    for text in overrides:
        key, equals, value = str(text).partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(
                f"override {text!r}: expected key=value, e.g. seq_len=1024 or data.seed=1"
            )
        try:
            plain = OmegaConf.to_container(
                OmegaConf.from_dotlist([f"value={value}"]), resolve=False
            )
            check_written(value, verbatim, key)
            yield key, plain["value"]  # type: ignore[index, call-overload]
        except SchemaError as problem:
            raise ConfigError(f"override {text!r}: {problem.message}") from None
        except Exception as problem:  # as in _parse
            raise ConfigError(
                f"override {text!r}: the value is not valid YAML ({_first_line(problem)})"
            ) from None


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b[0].c` (or `a.b.0.c`), making the mappings on the way."""
    *parents, last = parts = _parts(key)
    holder: Any = values
    for part, following in zip(parents, parts[1:], strict=True):
        holder = _step(holder, part, key)
        if not isinstance(holder, dict | list):
            raise ConfigError(
                f"override {key}: {part} holds a single value, so it has no {following}"
            )
    if isinstance(holder, list):
        holder[_index(holder, last, key)] = value
    else:
        holder[last] = value


def _step(holder: Any, part: str, key: str) -> Any:
    if isinstance(holder, list):
        return holder[_index(holder, part, key)]
    if holder.get(part) is None:
        holder[part] = {}
    return holder[part]


def _index(holder: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(holder):
        raise ConfigError(
            f"override {key}: {part} is no place in a list of {len(holder)}; count from 0"
        )
    return int(part)


def _concerns(override: str, key: str) -> bool:
    """Whether a problem at `key` lies in what `override` set, or in the mapping around it."""
    inner, outer = _parts(override), _parts(key)
    shared = min(len(inner), len(outer))
    return shared > 0 and inner[:shared] == outer[:shared]


def _parts(key: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", key)


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
