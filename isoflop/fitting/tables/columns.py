"""Which column is meant, and its cells as float64."""

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
from isoflop.fitting.tables.rows import name_rows, short
from isoflop.frames import column
from isoflop.shapes import ParamCount

Floats = np.ndarray

SIX_ND = "6ND"
"""Given in place of a column of FLOPs: C = 6ND."""
COUNTS = ("params", "params_total", "params_one_embedding", "params_non_embedding")
# Two rows that differ in one of these are two configurations, not two seeds of one.
SETTINGS = (
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

IN_PYTHON = ("the table", "the table beside")
"""What a source is called that is no file."""
NEEDED = ("params", "tokens", "loss")
ROLES = {
    "params": COUNTS,
    "tokens": ("tokens",),
    "loss": ("loss",),
    "flops": ("flops", "train_flops"),
    "budget": ("budget",),
}
"""Names that are taken for what they say."""

# Names that other projects use; they are proposed, never taken unasked.
OTHER_NAMES = {
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
_LARGEST = 1e50
_TIMES = re.compile(r"^(?P<name>.*\S)\s*\*\s*(?P<factor>[0-9.]+(?:[eE][+-]?[0-9]+)?)$")
_THOUSANDS = re.compile(r"^\s*[+-]?[0-9]{1,3}([,' ][0-9]{3}){2,}(\.[0-9]*)?\s*$")
_COMMA = re.compile(r"^\s*[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?\s*$")
_IN_LETTERS = re.compile(r"^\s*[0-9.]+\s*[kKmMbBgGtT]\s*$")


def canonical_names(
    frame: pd.DataFrame, where: str, *, n: ParamCount, **given: str | None
) -> dict[str, str]:
    """Canonical name -> column of the source, for what is given or found; `params`, `tokens` and `loss` have to be.

    Raises:
        FitError: columns that aren't there, each with the nearest one that is.
    """
    counts = {"total": COUNTS[:2]}.get(n, (f"params_{n}",))
    if n not in ("total", "one_embedding", "non_embedding"):
        raise FitError(f"unknown parameter count {n!r}: total, one_embedding or non_embedding")
    names: dict[str, str] = {}
    absent: dict[str, Sequence[str]] = {}
    for key, known in (ROLES | {"params": counts}).items():
        spec = given[key]
        found = first_found(frame, known) if spec is None else _spelt(frame, spec, key)
        if (
            found is None and spec is None and key in NEEDED
        ):  # an empty column is as good as none; numbers() says so
            found = next((c for c in known if c in frame.columns), None)
        if found is not None:
            names[key] = found
        elif spec is not None or key in NEEDED:
            absent[key] = known if spec is None else (split_factor(frame, spec)[0],)
    taken = {split_factor(frame, name)[0] for name in names.values()}
    problems: list[str] = []
    for key, wanted in absent.items():
        near = nearest(frame, wanted, key, taken)
        taken |= {near} if near else set()
        problems.append(_absent(frame, where, wanted, key, near))
    if not {"flops", "budget"} & {*names, *absent}:
        mend = f"name it with {asks(where, 'flops')} or {asks(where, 'budget')}, or take {asks(where, 'flops', SIX_ND)}."
        near = nearest(frame, ROLES["flops"], "flops", taken)
        hint = f"did you mean {near!r}? {asks(where, 'flops', near)}." if near else mend
        problems.append(f"no column of FLOPs; {hint}")
    if problems:
        sentences = [problems[0], *(problem[0].upper() + problem[1:] for problem in problems[1:])]
        raise FitError(f"{where}: {' '.join(sentences)} {columns_of(frame)}")
    return names


def _spelt(frame: pd.DataFrame, spec: str, key: str) -> str | None:
    """A given name as the frame spells it, with its factor; None where there is no such column."""
    if key == "flops" and spec.upper() == SIX_ND and spec not in frame.columns:
        return SIX_ND
    name, factor = split_factor(frame, spec)
    found = find(frame, name)
    return found if found is None or factor == 1.0 else f"{found}*{spec.rpartition('*')[2].strip()}"


def find(frame: pd.DataFrame, name: str) -> str | None:
    """The column of a name, or the only one whose last part it is: `config.params` and `train/loss`, too."""
    if name in frame.columns:
        return name
    tails = [
        c for c in frame.columns if isinstance(c, str) and c.endswith((f".{name}", f"/{name}"))
    ]
    return tails[0] if len(tails) == 1 else None


def split_factor(frame: pd.DataFrame, spec: str) -> tuple[str, float]:
    """Column and factor of `COL` or `COL*FACTOR`."""
    times = _TIMES.match(spec)
    if find(frame, spec) is None and times is not None:
        try:
            factor = float(times["factor"])
        except ValueError:
            return spec, 1.0
        if 0.0 < factor < math.inf:
            return times["name"], factor
    return spec, 1.0


def chosen(frame: pd.DataFrame, where: str, spec: str, key: str) -> str:
    """A given name as the frame spells it, with its factor.

    Raises:
        FitError: there is no such column; the nearest one is named.
    """
    found = _spelt(frame, spec, key)
    if found is None:
        raise FitError(missing(frame, where, split_factor(frame, spec)[0], key))
    return found


def missing(frame: pd.DataFrame, where: str, name: str, option: str) -> str:
    """That a column is not there, with the nearest that is."""
    near = nearest(frame, [name], option, set())
    return f"{where}: {_absent(frame, where, [name], option, near)} {columns_of(frame)}"


def _absent(
    frame: pd.DataFrame, where: str, wanted: Sequence[str], key: str, near: str | None
) -> str:
    """The same in a sentence, where any of some names would do."""
    for name in wanted:
        tails = [c for c in map(str, frame.columns) if c.endswith((f".{name}", f"/{name}"))]
        if len(tails) > 1:
            return f"column {name!r} could be {', '.join(map(repr, tails[:5]))}; name one with {asks(where, key)}."
    hint = (
        f"did you mean {near!r}? {asks(where, key, near)}."
        if near
        else f"name it with {asks(where, key)}."
    )
    return f"no column {' or '.join(map(repr, wanted))}; {hint}"


def nearest(frame: pd.DataFrame, wanted: Sequence[str], key: str, taken: set[str]) -> str | None:
    """The column that may be meant by a name, small letters and capitals alike; never one that is something else."""
    others = {name for role in ROLES if role != key for name in (*ROLES[role], *OTHER_NAMES[role])}
    spelt = {str(c).lower(): str(c) for c in frame.columns if str(c) not in taken}
    free = {
        name: column for name, column in spelt.items() if key not in ROLES or name not in others
    }
    for name in map(str.lower, wanted):
        if near := get_close_matches(name, free, n=1, cutoff=0.6):
            return free[near[0]]
    return next((free[name] for name in OTHER_NAMES.get(key, ()) if name in free), None)


def asks(where: str, key: str, value: str = "") -> str:
    """How something is said of a source: by an option or, of a table in Python, by an argument."""
    if where in IN_PYTHON:
        return f"{key}={value!r}" if value else f"{key}="
    return f"--{key} {shlex.quote(value)}" if value else f"--{key}"


def columns_of(frame: pd.DataFrame) -> str:
    """The columns that a frame has, for the end of an error."""
    names = [str(c) for c in frame.columns]
    return (
        f"Columns: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        if names
        else "It has no columns"
    )


def numbers(frame: pd.DataFrame, spec: str, where: str) -> Floats:
    """A column, times its factor, as float64: products of integer columns can't overflow after this.

    Returns:
        One value a row; NaN where a cell is empty, infinite beyond 1e50 and 0 within 1e-50: no run has such numbers.

    Raises:
        FitError: a column of something else, or text that is no number, with the rows.
    """
    name, factor = split_factor(frame, spec)
    cells = cast(pd.Series, frame[name])
    kind = getattr(cells.dtype, "kind", "O")
    if kind in "mMcb":
        raise FitError(f"{where}: column {name!r} holds {cells.dtype}, not numbers")
    if kind in "iuf":
        return _in_range(column(frame, name), factor)
    parsed = [to_number(cell) for cell in cells]
    text = np.array([value is None for value in parsed], dtype=bool)
    if text.any():
        raise FitError(not_numbers(frame, name, where, text))
    return _in_range(np.array(parsed, dtype=np.float64), factor)


def _in_range(values: Floats, factor: float) -> Floats:
    """Values times a factor, such that no product or square of them can overflow."""
    with np.errstate(over="ignore", under="ignore"):
        values = values * factor
    size = np.abs(values)
    return np.where(
        size > _LARGEST, np.copysign(np.inf, values), np.where(size < 1.0 / _LARGEST, 0.0, values)
    )


def to_number(cell: object) -> float | None:
    """A cell of a text or mixed column: NaN where it is empty, None where it is no number."""
    if (
        cell is None
        or cell is pd.NA
        or cell is pd.NaT
        or (isinstance(cell, str) and not cell.strip())
    ):
        return math.nan
    if isinstance(cell, bool | np.bool_) or not isinstance(
        cell, str | int | float | np.number | Decimal
    ):
        return None
    try:
        return float(cell)  # pyright: ignore[reportArgumentType]
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def not_numbers(frame: pd.DataFrame, name: str, where: str, bad: Floats) -> str:
    """That cells of a column can't be used, with rows and cells."""
    cells = list(cast(pd.Series, frame[name])[bad])
    shown = ", ".join(short(v) for v in cells[:3])
    words = f"{where}: column {name!r} needs positive, finite numbers; not so in {name_rows(frame, bad)} ({shown})"
    if any(isinstance(c, str) and _IN_LETTERS.match(c) for c in cells):
        words += "; write 1.5e6 for 1.5M"
    return words + _separators([c for c in cells if isinstance(c, str)])


def _separators(cells: list[str]) -> str:
    """How to write numbers whose commas are decimal, or set thousands apart; 4,386 alone may be either."""
    thousands, decimal = (any(form.match(c) for c in cells) for form in (_THOUSANDS, _COMMA))
    if thousands:
        return "; write numbers without separators of thousands: 61399163 for 61,399,163"
    return (
        "; write numbers with a decimal point, 4.38 for 4,38, and no separators of thousands"
        if decimal
        else ""
    )


def is_empty(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column has no cell that is filled."""
    return len(frame) > 0 and bool(frame[name].isna().all())


def first_found(frame: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The first of some names that a frame has, not counting empty columns."""
    found = (find(frame, name) for name in names)
    return next((name for name in found if name is not None and not is_empty(frame, name)), None)
