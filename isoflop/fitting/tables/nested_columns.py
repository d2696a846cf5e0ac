"""Tables of other shapes made flat: columns of dictionaries, and charts with a column a run.

Dictionaries are those of a W&B export, structs and nested JSON. Charts are CSV files of W&B.
"""

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
_MAX_CELL_CHARACTERS = 1_000_000
_LOW, _HIGH, _BETWEEN = "__MIN", "__MAX", " - "


def unnest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a column for each key of its dictionaries, such as `config.params`.

    A column of the frame itself keeps its name and cells. Cells may be dictionaries, JSON, or
    Python's print of a dictionary, as in a CSV of W&B's export example. A pair `{"value": x}` or
    `{"desc": ..., "value": x}`, as in W&B's configurations, is x.
    """
    frames = [frame]
    for name in frame.columns:
        if not isinstance(name, str) or getattr(frame[name].dtype, "kind", "O") not in "OUSTV":
            continue
        if isinstance(frame[name].dtype, pd.StringDtype):
            texts = frame[name].drop_duplicates().to_numpy(dtype=object)
            if all(_parse_dictionary(text) is None for text in texts):
                continue
        cells = [_parse_dictionary(cell) for cell in frame[name]]
        if any(cell is not None for cell in cells):
            flat = [dict(_flatten(cell, name)) if cell is not None else {} for cell in cells]
            added = pd.DataFrame(flat, index=frame.index, dtype=object)
            frames.append(added.loc[:, [c for c in added.columns if c not in frame.columns]])
    return cast(pd.DataFrame, pd.concat(frames, axis=1)) if len(frames) > 1 else frame


def unpivot_chart(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a loss log from the CSV of a W&B chart; other tables unchanged.

    A chart has columns `<run> - <metric>`, each with `__MIN` and `__MAX`. The log has `run`, the
    chart's x column and the metric.
    """
    names = [c for c in frame.columns if isinstance(c, str)]
    metrics = [c for c in names if _BETWEEN in c and {c + _LOW, c + _HIGH} <= set(names)]
    if not metrics:
        return frame
    x = frame.columns[0]
    logs = []
    for name in metrics:
        run, _, metric = name.rpartition(_BETWEEN)
        log = pd.DataFrame({"run": run, x: frame[x], metric: frame[name]})
        logs.append(log.loc[log[metric].notna().to_numpy(dtype=bool)])
    return pd.concat(logs, ignore_index=True)


def _parse_dictionary(cell: object) -> Mapping[str, Any] | None:
    """Return the dictionary in a cell; None for any other cell."""
    if isinstance(cell, Mapping):
        return cast(Mapping[str, Any], cell)
    if not isinstance(cell, str) or not cell.lstrip().startswith("{"):
        return None
    if len(cell) > _MAX_CELL_CHARACTERS:
        return None
    for parse in (json.loads, _parse_literal):
        try:
            value = parse(cell)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return cast(Mapping[str, Any], value) if isinstance(value, dict) else None
    return None


class _NameReplacer(ast.NodeTransformer):
    """Replacement of names that Python prints for numbers, such as nan, by their values."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(_NAMES[node.id]), node) if node.id in _NAMES else node


def _parse_literal(text: str) -> object:
    """Return the value of a Python literal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # odd escapes in strings of the cell
        return ast.literal_eval(_NameReplacer().visit(ast.parse(text.strip(), mode="eval")))


def _flatten(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of each leaf of a dictionary."""
    for key, item in value.items():
        name = f"{prefix}.{key}"
        if not isinstance(item, Mapping):
            yield name, item
        elif _is_described_value(pair := cast(Mapping[str, Any], item)):
            yield name, pair["value"]
        else:
            yield from _flatten(pair, name)


def _is_described_value(pair: Mapping[str, Any]) -> bool:
    """Return whether a dictionary is `{"value": x}`, with or without a description."""
    if "value" not in pair or not set(pair) <= {"desc", "value"}:
        return False
    return not isinstance(pair["value"], Mapping)
