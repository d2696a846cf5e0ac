"""Columns of a table: from the names that users and projects give to float64 values."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.rows import abbreviate, name_rows
from isoflop.frames import Bools, Floats, column
from isoflop.shapes import ParamCount

SIX_ND = "6ND"
"""Name in place of a column of FLOPs: C = 6ND."""
PARAM_COLUMNS = ("params", "params_total", "params_one_embedding", "params_non_embedding")
# Rows that differ in one of these are different configurations, not seeds of one.
SETTING_COLUMNS = (
    "width",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp_width",
    "seq_len",
    "batch_size",
    "lr",
    "beta2",
)

PYTHON_SOURCES = ("the table", "the beside= table")
"""Names of sources that are no files, but tables in Python."""
REQUIRED_ROLES = ("params", "tokens", "loss")
ROLES = {
    "params": PARAM_COLUMNS,
    "tokens": ("tokens",),
    "loss": ("loss",),
    "flops": ("flops", "train_flops"),
    "budget": ("budget",),
}
"""Role -> names of columns that have it without being named by the user."""

# Names that other projects use. They are proposed in messages, never used unasked.
PROPOSED_NAMES = {
    "params": (
        "n",
        "n_params",
        "num_params",
        "parameters",
        "num_parameters",
        "model_size",
        "model size",
        "size",
    ),
    "tokens": (
        "d",
        "n_tokens",
        "num_tokens",
        "train_tokens",
        "training_tokens",
        "tokens_seen",
        "total_tokens",
    ),
    "loss": ("val_loss", "eval_loss", "final_loss", "train_loss", "test_loss", "validation_loss"),
    "flops": ("c", "compute", "training_flops", "training flop", "total_flops", "flop"),
    "budget": ("flops_budget", "compute_budget", "isoflop"),
}
_MAX_MAGNITUDE = 1e50
_WITH_FACTOR = re.compile(r"^(?P<name>.*\S)\s*\*\s*(?P<factor>[0-9.]+(?:[eE][+-]?[0-9]+)?)$")
_WITH_THOUSANDS = re.compile(r"^\s*[+-]?[0-9]{1,3}([,' ][0-9]{3}){2,}(\.[0-9]*)?\s*$")
_WITH_DECIMAL_COMMA = re.compile(r"^\s*[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?\s*$")
_WITH_UNIT_LETTER = re.compile(r"^\s*[0-9.]+\s*[kKmMbBgGtT]\s*$")


def resolve_columns(
    frame: pd.DataFrame, where: str, *, n: ParamCount, **specs: str | None
) -> dict[str, str]:
    """Return the column of the source for each role; `params`, `tokens` and `loss` are required.

    Args:
        frame: table as it was read.
        where: name of the source in messages.
        n: parameter count that `params` is.
        **specs: column that the user named for each role, or None.

    Raises:
        FitError: missing columns, each with the nearest one of the table.
    """
    param_names = {"total": PARAM_COLUMNS[:2]}.get(n, (f"params_{n}",))
    if n not in ("total", "one_embedding", "non_embedding"):
        raise FitError(f"unknown parameter count {n!r}: total, one_embedding or non_embedding")
    names: dict[str, str] = {}
    absent: dict[str, Sequence[str]] = {}
    for role, usual in (ROLES | {"params": param_names}).items():
        spec = specs[role]
        name = first_column(frame, usual) if spec is None else _match_spec(frame, spec, role)
        if name is None and spec is None and role in REQUIRED_ROLES:
            # An empty column matches too; `read_numbers` reports its cells.
            name = next((c for c in usual if c in frame.columns), None)
        if name is not None:
            names[role] = name
        elif spec is not None or role in REQUIRED_ROLES:
            absent[role] = usual if spec is None else (split_factor(frame, spec)[0],)
    taken = {split_factor(frame, name)[0] for name in names.values()}
    problems: list[str] = []
    for role, usual in absent.items():
        near = nearest_column(frame, usual, role, taken)
        taken |= {near} if near else set()
        problems.append(_absence_text(frame, where, usual, role, near))
    if not {"flops", "budget"} & {*names, *absent}:
        near = nearest_column(frame, ROLES["flops"], "flops", taken)
        hint = (
            f"did you mean {near!r}? {option_text(where, 'flops', near)}."
            if near
            else f"name it with {option_text(where, 'flops')} or {option_text(where, 'budget')}, "
            f"or take {option_text(where, 'flops', SIX_ND)}."
        )
        problems.append(f"no column of FLOPs; {hint}")
    if problems:
        sentences = [problems[0], *(problem[0].upper() + problem[1:] for problem in problems[1:])]
        raise FitError(f"{where}: {' '.join(sentences)} {list_columns(frame)}")
    return names


def _match_spec(frame: pd.DataFrame, spec: str, role: str) -> str | None:
    """Return a named column in the frame's spelling, with its factor; None if it is missing."""
    if role == "flops" and spec.upper() == SIX_ND and spec not in frame.columns:
        return SIX_ND
    name, factor = split_factor(frame, spec)
    match = find_column(frame, name)
    return match if match is None or factor == 1.0 else f"{match}*{spec.rpartition('*')[2].strip()}"


def find_column(frame: pd.DataFrame, name: str) -> str | None:
    """Return the column of a name, or the only one that ends in it.

    `params` matches `config.params`, and `loss` matches `train/loss`.
    """
    if name in frame.columns:
        return name
    tails = _columns_ending_in(frame, name)
    return tails[0] if len(tails) == 1 else None


def _columns_ending_in(frame: pd.DataFrame, name: str) -> list[str]:
    ends = (f".{name}", f"/{name}")
    return [c for c in frame.columns if isinstance(c, str) and c.endswith(ends)]


def split_factor(frame: pd.DataFrame, spec: str) -> tuple[str, float]:
    """Return column and factor of `COL` or `COL*FACTOR`."""
    match = _WITH_FACTOR.match(spec)
    if find_column(frame, spec) is None and match is not None:
        try:
            factor = float(match["factor"])
        except ValueError:
            return spec, 1.0
        if 0.0 < factor < math.inf:
            return match["name"], factor
    return spec, 1.0


def require_column(frame: pd.DataFrame, where: str, spec: str, role: str) -> str:
    """Return a named column in the frame's spelling, with its factor.

    Raises:
        FitError: no such column; names the nearest one.
    """
    name = _match_spec(frame, spec, role)
    if name is None:
        raise FitError(missing_column_message(frame, where, split_factor(frame, spec)[0], role))
    return name


def missing_column_message(frame: pd.DataFrame, where: str, name: str, option: str) -> str:
    """Return the message for a missing column, with the nearest column of the table."""
    near = nearest_column(frame, [name], option, set())
    return f"{where}: {_absence_text(frame, where, [name], option, near)} {list_columns(frame)}"


def _absence_text(
    frame: pd.DataFrame, where: str, names: Sequence[str], role: str, near: str | None
) -> str:
    """Return the sentence for a missing column that may have one of several names."""
    for name in names:
        tails = _columns_ending_in(frame, name)
        if len(tails) > 1:
            matches = ", ".join(map(repr, tails[:5]))
            return f"column {name!r} could be {matches}; name one with {option_text(where, role)}."
    hint = (
        f"did you mean {near!r}? {option_text(where, role, near)}."
        if near
        else f"name it with {option_text(where, role)}."
    )
    return f"no column {' or '.join(map(repr, names))}; {hint}"


def nearest_column(
    frame: pd.DataFrame, names: Sequence[str], role: str, taken: set[str]
) -> str | None:
    """Return the column that a user may mean by one of some names, in any case of letters.

    Args:
        frame: table.
        names: names that the frame does not have.
        role: role of the column; columns with the name of another role are no candidates.
        taken: columns that already have a role.
    """
    reserved = {
        name for key in ROLES if key != role for name in (*ROLES[key], *PROPOSED_NAMES[key])
    }
    spellings = {str(c).lower(): str(c) for c in frame.columns if str(c) not in taken}
    free = {
        name: column
        for name, column in spellings.items()
        if role not in ROLES or name not in reserved
    }
    for name in map(str.lower, names):
        if near := get_close_matches(name, free, n=1, cutoff=0.6):
            return free[near[0]]
    return next((free[name] for name in PROPOSED_NAMES.get(role, ()) if name in free), None)


def option_text(where: str, key: str, value: str = "") -> str:
    """Return an option of the command line or, for a table in Python, a keyword argument."""
    if where in PYTHON_SOURCES:
        return f"{key}={value!r}" if value else f"{key}="
    return f"--{key} {shlex.quote(value)}" if value else f"--{key}"


def list_columns(frame: pd.DataFrame) -> str:
    """Return a sentence with the columns of a frame, for the end of an error."""
    names = [str(c) for c in frame.columns]
    if not names:
        return "It has no columns"
    return f"Columns: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def read_numbers(frame: pd.DataFrame, spec: str, where: str) -> Floats:
    """Return a column times its factor as float64, so that no product of integers overflows.

    Returns:
        One value a row: NaN for an empty cell, infinite beyond 1e50 and 0 within 1e-50, which no
        run has.

    Raises:
        FitError: a column of another type, or text that is no number, with the rows.
    """
    name, factor = split_factor(frame, spec)
    cells = cast(pd.Series, frame[name])
    kind = getattr(cells.dtype, "kind", "O")
    if kind in "mMcb":
        raise FitError(f"{where}: column {name!r} holds {cells.dtype}, not numbers")
    if kind in "iuf":
        return _scale_in_range(column(frame, name), factor)
    parsed = [parse_number(cell) for cell in cells]
    is_text = np.array([value is None for value in parsed], dtype=bool)
    if is_text.any():
        raise FitError(bad_cells_message(frame, name, where, is_text))
    return _scale_in_range(np.array(parsed, dtype=np.float64), factor)


def _scale_in_range(values: Floats, factor: float) -> Floats:
    """Return values times a factor, limited so that no product or square of them overflows."""
    with np.errstate(over="ignore", under="ignore"):
        values = values * factor
    size = np.abs(values)
    limited = np.where(size > _MAX_MAGNITUDE, np.copysign(np.inf, values), values)
    return np.where(size < 1.0 / _MAX_MAGNITUDE, 0.0, limited)


def parse_number(cell: object) -> float | None:
    """Return a cell of a text or mixed column: NaN if it is empty, None if it is no number."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return math.nan
    if isinstance(cell, str) and not cell.strip():
        return math.nan
    if isinstance(cell, bool | np.bool_):
        return None
    if not isinstance(cell, str | int | float | np.number | Decimal):
        return None
    try:
        return float(cell)  # pyright: ignore[reportArgumentType]
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def bad_cells_message(frame: pd.DataFrame, name: str, where: str, bad: Bools) -> str:
    """Return the message for unusable cells of a column, with their rows and values."""
    cells = list(cast(pd.Series, frame[name])[bad])
    examples = ", ".join(abbreviate(cell) for cell in cells[:3])
    message = (
        f"{where}: column {name!r} needs positive, finite numbers; not so in "
        f"{name_rows(frame, bad)} ({examples})"
    )
    texts = [cell for cell in cells if isinstance(cell, str)]
    if any(_WITH_UNIT_LETTER.match(text) for text in texts):
        message += "; write 1.5e6 for 1.5M"
    return message + _separator_hint(texts)


def _separator_hint(cells: list[str]) -> str:
    """Return a hint on commas: decimal, or separators of thousands; 4,386 alone may be either."""
    if any(_WITH_THOUSANDS.match(cell) for cell in cells):
        return "; write numbers without thousands separators: 61399163 for 61,399,163"
    if any(_WITH_DECIMAL_COMMA.match(cell) for cell in cells):
        return (
            "; write numbers with a decimal point, 4.38 for 4,38, and without thousands separators"
        )
    return ""


def is_empty_column(frame: pd.DataFrame, name: str) -> bool:
    """Return whether no cell of a column has a value."""
    return len(frame) > 0 and bool(frame[name].isna().all())


def first_column(frame: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the first of some columns that a frame has and that is not empty."""
    matches = (find_column(frame, name) for name in names)
    return next((c for c in matches if c is not None and not is_empty_column(frame, c)), None)
