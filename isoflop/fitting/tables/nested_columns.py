"""Columns of dictionaries, as columns with dotted names: `config.params` of a W&B export, structs, nested JSON."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pandas as pd

_NAMES = {
    "nan": math.nan,
    "inf": math.inf,
    "None": None,
    "null": None,
    "true": True,
    "false": False,
}
_MOST_CHARACTERS = 1_000_000


def unnest(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column for each key of its dictionaries; a column of the frame itself keeps its name and cells.

    Cells may be dictionaries, JSON, or what Python prints for a dictionary, which is what a CSV of W&B's export example
    has. A pair `{"value": x}` or `{"desc": ..., "value": x}`, as W&B stores configurations, is x.
    """
    parts = [frame]
    for name in frame.columns:
        if not isinstance(name, str) or getattr(frame[name].dtype, "kind", "O") not in "OUSTV":
            continue
        cells = [_dictionary(cell) for cell in frame[name]]
        if any(cell is not None for cell in cells):
            flat = [dict(_leaves(cell, name)) if cell is not None else {} for cell in cells]
            added = pd.DataFrame(flat, index=frame.index, dtype=object)
            parts.append(added.loc[:, [c for c in added.columns if c not in frame.columns]])
    return cast(pd.DataFrame, pd.concat(parts, axis=1)) if len(parts) > 1 else frame


def _dictionary(cell: object) -> Mapping[str, Any] | None:
    if isinstance(cell, Mapping):
        return cast(Mapping[str, Any], cell)
    if (
        not isinstance(cell, str)
        or not cell.lstrip().startswith("{")
        or len(cell) > _MOST_CHARACTERS
    ):
        return None
    for parse in (json.loads, _literal):
        try:
            value = parse(cell)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return cast(Mapping[str, Any], value) if isinstance(value, dict) else None
    return None


class _Names(ast.NodeTransformer):
    """Names that Python prints for numbers, such as nan, as those numbers."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(_NAMES[node.id]), node) if node.id in _NAMES else node


def _literal(text: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of odd escapes in somebody's strings
        return ast.literal_eval(_Names().visit(ast.parse(text.strip(), mode="eval")))


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{prefix}.{key}"
        if isinstance(item, Mapping):
            pair = cast(Mapping[str, Any], item)
            if (
                "value" in pair
                and set(pair) <= {"desc", "value"}
                and not isinstance(pair["value"], Mapping)
            ):
                yield name, pair["value"]
            else:
                yield from _leaves(pair, name)
        else:
            yield name, item
