"""Plain values from YAML text and back, by the core schema of YAML 1.2.

PyYAML parses the text. Its own rules for plain scalars are those of YAML 1.1 (`1:30` is 90, `yes`
is true, `010` is 8, `2026-01-01` is a date); the rules of YAML 1.2 replace them here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable
from functools import cache
from typing import Any

MAX_DEPTH = 50
MAX_YAML_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"

_CORE_SCHEMA = {
    "null": ([*"~nN", ""], r"null|Null|NULL|~|"),
    "bool": ([*"tTfF"], r"true|True|TRUE|false|False|FALSE"),
    "int": ([*"-+0123456789"], r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": (
        [*"-+.0123456789"],
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    "merge": (["<"], r"<<"),
}
"""First characters and pattern of the plain scalars of each type, in the order of the tests.

Source: YAML 1.2.2, section 10.3.2; `<<` is YAML 1.1's.
"""

_QUOTED_TEXTS = {
    "int": _CORE_SCHEMA["int"],
    "float": _CORE_SCHEMA["float"],
    "bool": ([*"yYnN"], r"[yYnN]"),
}
"""Texts that need quotes for other readers, beside those that PyYAML quotes for YAML 1.1."""

_BASES = {"0o": 8, "0x": 16}

_FIXES = {
    "but found another document": "a second document begins here; keep one",
    "found character that cannot start any token": "{}; indent with spaces, not tabs, and put text"
    " that begins with @, ` or % in quotes",
}


class YamlError(Exception):
    """A text that is not usable YAML.

    Attributes:
        line: line of the fault, from 1; None if the parser reports none.
        message: fault and fix, on one line.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def parse_yaml(text: str, *, as_written: bool | Collection[str] = False) -> Any:
    """Return the plain values of a YAML text: dict, list, str, int, float, bool and None.

    Args:
        text: one YAML document, with or without anchors and merge keys.
        as_written: keep a number as text unless Python prints it as it is written, so that `010`,
            `1e5` and `1.50` stay; for all values, or for those at and below the dotted keys given.

    Raises:
        YamlError: invalid YAML, an unknown tag, a duplicate key, or too many or too deep values.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "not valid YAML"
        mark = error.problem_mark
        message = _FIXES.get(problem, "{}").format(problem)
        raise YamlError(message, None if mark is None else mark.line + 1) from None
    except RecursionError:
        raise YamlError(f"nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeError:
        raise YamlError("not Unicode text") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise YamlError(str(error).strip().partition("\n")[0]) from None
    return None if root is None else _Builder().build(root, as_written)


def dump_yaml(values: dict[str, Any]) -> str:
    """Return plain values as YAML that readers of YAML 1.1 and of YAML 1.2 read back the same."""
    import yaml

    return yaml.dump(values, Dumper=portable_dumper(), sort_keys=False, allow_unicode=True)


def keys_below(as_written: bool | Collection[str], key: Any) -> bool | Collection[str]:
    """Return `as_written` of `parse_yaml` for the value at a key of a mapping."""
    if isinstance(as_written, bool):
        return as_written
    prefix = f"{key}."
    return key in as_written or {
        name.removeprefix(prefix) for name in as_written if name.startswith(prefix)
    }


class _Builder:
    """Plain values of a tree of YAML nodes. An alias gives a copy of its anchor's value."""

    def __init__(self) -> None:
        self.count = 0

    def build(self, node: Any, as_written: bool | Collection[str], depth: int = 0) -> Any:
        self.count += 1
        if depth > MAX_DEPTH:
            raise _error(node, f"nested deeper than {MAX_DEPTH} levels")
        if self.count > MAX_YAML_VALUES:
            raise _error(node, f"more than {MAX_YAML_VALUES:,} values")
        if node.id == "scalar":
            return _scalar(node, as_written is True)
        if node.id == "mapping" and node.tag == _TAG + "map":
            return self._mapping(node, as_written, depth + 1)
        if node.id == "sequence" and node.tag == _TAG + "seq":
            return [self.build(item, as_written is True, depth + 1) for item in node.value]
        raise _unknown_tag(node)

    def _mapping(self, node: Any, as_written: bool | Collection[str], depth: int) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        merged: dict[Any, Any] | None = None
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                if merged is not None:
                    raise _error(key_node, "found duplicate key <<; keep one")
                merged = self._merged(value_node, as_written, depth)
                continue
            key = self.build(key_node, False, depth)
            if not isinstance(key, Hashable):
                raise _error(key_node, "a key is a list or a mapping; write text")
            if key in values:
                raise _error(key_node, f"found duplicate key {key}; keep one")
            values[key] = self.build(value_node, keys_below(as_written, key), depth)
        return {key: value for key, value in (merged or {}).items() if key not in values} | values

    def _merged(self, node: Any, as_written: bool | Collection[str], depth: int) -> dict[Any, Any]:
        """Return the values that `<<` adds to a mapping; of several sources, the first counts."""
        merged: dict[Any, Any] = {}
        for source in node.value if node.id == "sequence" else [node]:
            if source.id != "mapping":
                raise _error(source, "`<<` needs the alias of a mapping, or a list of such aliases")
            merged = self.build(source, as_written, depth) | merged
        return merged


def _scalar(node: Any, as_written: bool) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind in ("str", "merge"):
        return text
    if kind not in ("null", "bool", "int", "float"):
        raise _unknown_tag(node)
    if not re.fullmatch(_CORE_SCHEMA[kind][1], text):
        raise _error(node, f"{text!r} is not of type {kind}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        number = int(text, _BASES.get(text[:2], 10)) if kind == "int" else _float(text)
    except ValueError:
        raise _error(node, "a number with more digits than Python reads") from None
    return text if as_written and str(number) != text else number


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _unknown_tag(node: Any) -> YamlError:
    return _error(node, f"the tag {node.tag.replace(_TAG, '!!')} is not supported; leave it out")


def _error(node: Any, message: str) -> YamlError:
    return YamlError(message, node.start_mark.line + 1)


@cache
def _loader() -> Any:
    """Return PyYAML's loader with the core schema; the fast one if PyYAML was built with it."""
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = type("CoreSchemaLoader", (base,), {"yaml_implicit_resolvers": {}})
    return _with_resolvers(loader, _CORE_SCHEMA)


@cache
def portable_dumper(*, fast: bool = False) -> Any:
    """Return PyYAML's dumper with quotes for readers of YAML 1.1 and of YAML 1.2.

    Args:
        fast: take the one in C if PyYAML was built with it; it places line breaks in another way.
    """
    import yaml

    base = getattr(yaml, "CSafeDumper", yaml.SafeDumper) if fast else yaml.SafeDumper
    return _with_resolvers(type("PortableDumper", (base,), {}), _QUOTED_TEXTS)


def _with_resolvers(target: Any, schema: dict[str, tuple[list[str], str]]) -> Any:
    for kind, (first, pattern) in schema.items():
        target.add_implicit_resolver(_TAG + kind, re.compile(rf"(?:{pattern})\Z"), first)
    return target
