"""Build frozen dataclasses from plain YAML values, with errors that name the whole key.

A schema is a tree of dataclasses; their type hints are the expected types. The conversion is
strict: the text '3' is no number, and 1 is not true.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from isoflop.errors import ConfigError

T = TypeVar("T")

UNSET = "???"
"""OmegaConf's mark of a value that the user has to give."""

MAX_SHOWN_CHARACTERS = 60

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGITS = re.compile(r"0*([0-9][0-9_]*)")
_OCTAL = re.compile(r"0o[0-7]+")
_LEADING_POINT = re.compile(r"([-+]?)(\.[0-9]+.*)")


class SchemaError(ConfigError):
    """A fault at one key. Readers of a file put the file's name before it.

    Attributes:
        key: dotted key, e.g. `data.mixture.emilia-en` or `widths[1].step`.
        message: the fault and the fix.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(one_line(f"{key}: {message}" if key else message))
        self.key = key
        self.message = message

    def with_prefix(self, prefix: str) -> SchemaError:
        """Return the same error with the key of the enclosing mapping before its own."""
        return SchemaError(join(prefix, self.key), self.message)


def require(condition: bool, key: str, message: str) -> None:
    """Raise SchemaError unless the condition holds."""
    if not condition:
        raise SchemaError(key, message)


def require_name(key: str, value: str) -> None:
    """Raise SchemaError unless `value` can name a file or a folder on any system."""
    require(
        bool(_SAFE_NAME.fullmatch(value)),
        key,
        "expected a name of letters, digits, '.', '_' and '-' (up to 100, a letter or digit first),"
        f" got {format_value(value)}",
    )


def join(prefix: str, key: str) -> str:
    """Return `prefix.key`, or `prefix[0]` if the key is an index."""
    return prefix + key if not prefix or not key or key.startswith("[") else f"{prefix}.{key}"


def one_line(text: str) -> str:
    """Return the text with each run of white space, line ends included, as one space."""
    return " ".join(text.split())


def format_value(value: Any) -> str:
    """Return a value on one line, cut to `MAX_SHOWN_CHARACTERS`."""
    try:
        text = "nothing" if value is None else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text
    return text[: MAX_SHOWN_CHARACTERS - 3] + "..."


def build(schema: type[T], value: Any) -> T:
    """Return an instance of the dataclass `schema` made from plain YAML values.

    Raises:
        SchemaError: an unknown or missing key, a wrong type, or a value that the dataclass refuses.
    """
    return _convert(schema, value, "", schema)


def _convert(hint: Any, value: Any, key: str, root: type) -> Any:
    if value == UNSET:
        raise SchemaError(key, f"has no value yet ({UNSET}); put yours in its place")
    origin = get_origin(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _convert_fields(hint, value, key, root)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (hint,) = (arg for arg in get_args(hint) if arg is not NoneType)
        return _convert(hint, value, key, root)
    if origin is Literal:
        choices = get_args(hint)
        valid = any(value == choice and type(value) is type(choice) for choice in choices)
        require(valid, key, f"expected {_list_choices(choices)}, got {format_value(value)}")
        return value
    if origin is tuple:
        require(isinstance(value, list), key, f"expected a list, got {format_value(value)}")
        item_hint = get_args(hint)[0]
        return tuple(_convert(item_hint, item, f"{key}[{i}]", root) for i, item in enumerate(value))
    if origin is dict:
        return _convert_mapping(get_args(hint)[1], value, key, root)
    return _convert_scalar(hint, value, key)


def _convert_mapping(item_hint: Any, value: Any, key: str, root: type) -> dict[str, Any]:
    require(
        isinstance(value, dict),
        key,
        f"expected a mapping of names to values, got {format_value(value)}",
    )
    for name in value:
        require(
            isinstance(name, str),
            key,
            f"expected names as keys, got {format_value(name)}; put it in quotes",
        )
    return {name: _convert(item_hint, item, join(key, name), root) for name, item in value.items()}


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_number, key, f"expected a number, got {format_value(value)}{_fix(value)}")
        try:
            is_finite = math.isfinite(value)
        except OverflowError:
            is_finite = False
        require(is_finite, key, f"expected a finite number, got {format_value(value)}")
        return float(value)
    if hint is int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        require(is_integer, key, f"expected a whole number, got {format_value(value)}{_fix(value)}")
        require(
            -(2**63) < value < 2**63,
            key,
            f"expected a whole number under 2^63, got {format_value(value)}",
        )
        return value
    if hint is bool:
        is_bool = isinstance(value, bool)
        require(is_bool, key, f"expected true or false, got {format_value(value)}")
        return value
    require(isinstance(value, str), key, f"expected text, got {format_value(value)}")
    return value


def _fix(value: Any) -> str:
    """Return the number in a text such as 1_000, or '010', '0o17' and '-.5' in quotes."""
    if not isinstance(value, str):
        return ""
    if match := _DIGITS.fullmatch(value):
        return f"; write {match[1].replace('_', '')}"
    if _OCTAL.fullmatch(value):
        return f"; write {int(value, 8)}"
    if match := _LEADING_POINT.fullmatch(value):
        return f"; write {match[1]}0{match[2]}"
    return ""


def _convert_fields(schema: Any, value: Any, key: str, root: type) -> Any:
    hints = _hints(schema)
    require(
        isinstance(value, dict),
        key,
        f"expected a mapping with keys such as {', '.join(hints)}, got {format_value(value)}",
    )
    for name in value:
        if name not in hints:
            nearest = _nearest_key(str(name), key, schema, root)
            raise SchemaError(join(key, str(name)), f"unknown key; did you mean {nearest}?")
    for field in fields(schema):
        if field.name not in value and _is_required(field):
            raise SchemaError(join(key, field.name), "missing; it has no default")
    arguments = {
        name: _convert(hints[name], item, join(key, name), root) for name, item in value.items()
    }
    try:
        return schema(**arguments)
    except SchemaError as problem:
        raise problem.with_prefix(key) from None


@cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _nearest_key(name: str, prefix: str, schema: type, root: type) -> str:
    """Return the likeliest intended key.

    A very similar key of this mapping comes first, then the same name in another mapping, then the
    most similar key of this mapping.
    """
    siblings = list(_hints(schema))
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.85)
    if not close:
        elsewhere = [key for key in _dotted_keys(root) if key.rpartition(".")[2] == name]
        if elsewhere:
            return elsewhere[0]
        close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.0)
    return join(prefix, close[0])


def text_keys(hint: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys of a schema whose values are texts or lists of texts."""
    if is_dataclass(hint) and isinstance(hint, type):
        for name, inner in _hints(hint).items():
            yield from text_keys(inner, join(key, name))
    elif get_origin(hint) in (Union, UnionType, tuple):
        for inner in get_args(hint):
            yield from text_keys(inner, key)
    elif hint is str:
        yield key


def _dotted_keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(schema).items():
        yield join(prefix, name)
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _dotted_keys(hint, join(prefix, name))


def _list_choices(choices: tuple[Any, ...]) -> str:
    return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"
