"""From plain YAML values to frozen dataclasses, with errors that name the whole key.

A schema is a tree of dataclasses; their type hints are the expected types. OmegaConf reads the file and resolves its
interpolations, but the conversion is done here: inside lists OmegaConf reports keys without their path, and it takes
'3' for 3 and 1 for true without a word.
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

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class SchemaError(ConfigError):
    """Something wrong at one key. Readers of a file put the file's name before it.

    Attributes:
        key: dotted key, e.g. `data.mixture.emilia-en` or `widths[1].step`.
        message: what is wrong and the mend.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(one_line(f"{key}: {message}" if key else message))
        self.key = key
        self.message = message

    def under(self, prefix: str) -> SchemaError:
        """The same problem, seen from the mapping that holds this one."""
        return SchemaError(join(prefix, self.key), self.message)


def require(holds: bool, key: str, message: str) -> None:
    """Raises SchemaError unless `holds`."""
    if not holds:
        raise SchemaError(key, message)


def require_name(key: str, value: str) -> None:
    """Raises SchemaError unless `value` can be the name of a file or folder anywhere."""
    require(
        bool(_SAFE_NAME.fullmatch(value)),
        key,
        f"expected a name of letters, digits, '.', '_' and '-' (up to 100, a letter or digit first), got {show(value)}",
    )


def join(prefix: str, key: str) -> str:
    """`prefix.key`, or `prefix[0]` where the key is an index."""
    return prefix + key if not prefix or not key or key.startswith("[") else f"{prefix}.{key}"


def one_line(text: str) -> str:
    """The text with every run of white space, line ends among it, as one space: keys and values may hold any."""
    return " ".join(text.split())


def show(value: Any) -> str:
    """A value on one line, cut to a readable length."""
    try:
        text = "nothing" if value is None else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 60 else text[:57] + "..."


def build(schema: type[T], value: Any) -> T:
    """An instance of the dataclass `schema` from plain YAML values.

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
        fits = any(value == choice and type(value) is type(choice) for choice in choices)
        require(fits, key, f"expected {_either(choices)}, got {show(value)}")
        return value
    if origin is tuple:
        require(isinstance(value, list), key, f"expected a list, got {show(value)}")
        return tuple(
            _convert(get_args(hint)[0], item, f"{key}[{i}]", root) for i, item in enumerate(value)
        )
    if origin is dict:
        require(
            isinstance(value, dict),
            key,
            f"expected a mapping of names to values, got {show(value)}",
        )
        for name in value:
            require(
                isinstance(name, str),
                key,
                f"expected names as keys, got {show(name)}; put it in quotes",
            )
        return {
            name: _convert(get_args(hint)[1], item, join(key, name), root)
            for name, item in value.items()
        }
    return _convert_scalar(hint, value, key)


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number, key, f"expected a number, got {show(value)}")
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        require(finite, key, f"expected a finite number, got {show(value)}")
        return float(value)
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole, key, f"expected a whole number, got {show(value)}")
        require(
            -(2**63) < value < 2**63, key, f"expected a whole number under 2^63, got {show(value)}"
        )
        return value
    if hint is bool:
        require(isinstance(value, bool), key, f"expected true or false, got {show(value)}")
        return value
    require(isinstance(value, str), key, f"expected text, got {show(value)}")
    return value


def _convert_fields(schema: Any, value: Any, key: str, root: type) -> Any:
    hints = _hints(schema)
    require(
        isinstance(value, dict),
        key,
        f"expected a mapping with keys such as {', '.join(hints)}, got {show(value)}",
    )
    for name in value:
        if name not in hints:
            nearest = _nearest_key(str(name), key, schema, root)
            raise SchemaError(join(key, str(name)), f"unknown key; did you mean {nearest}?")
    for field in fields(schema):
        if field.name not in value and _is_required(field):
            raise SchemaError(join(key, field.name), "missing; it has no default")
    known = {
        name: _convert(hints[name], item, join(key, name), root) for name, item in value.items()
    }
    try:
        return schema(**known)
    except SchemaError as problem:
        raise problem.under(key) from None


@cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _nearest_key(name: str, prefix: str, schema: type, root: type) -> str:
    """The key most likely meant: a like one at this place, else the same one elsewhere, else the likest here."""
    here = list(_hints(schema))
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.85)
    if not close:
        elsewhere = [key for key in _dotted_keys(root) if key.rpartition(".")[2] == name]
        if elsewhere:
            return elsewhere[0]
        close = difflib.get_close_matches(name, here, n=1, cutoff=0.0)
    return join(prefix, close[0])


def _dotted_keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(schema).items():
        yield join(prefix, name)
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _dotted_keys(hint, join(prefix, name))


def _either(choices: tuple[Any, ...]) -> str:
    return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"
