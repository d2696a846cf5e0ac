"""Detection of loss logs: tables with many rows a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.columns import (
    ROLES,
    SETTING_COLUMNS,
    find_column,
    first_column,
    missing_column_message,
    option_text,
    parse_number,
    split_factor,
)
from isoflop.fitting.tables.rows import RUN_COLUMNS, as_text
from isoflop.fitting.terms import FinalRule

STEP_COLUMNS = ("step", "_step", "global_step", "trainer/global_step", "iteration", "iter", "Step")
LR_COLUMNS = ("lr", "learning_rate")

MIN_STEPS_AT_BUDGET = 3  # of one size at one budget: more than seeds explain
MIN_LOGGED_STEPS = 20  # of one size: a study has fewer budgets
MIN_EVEN_STEPS = 8  # of one size and evenly spaced, which the steps of budgets seldom are
_MAX_SPACING_ERROR = 0.01  # relative, between even spacings
_MIN_EVEN_SHARE = 0.8  # of the spacings


@dataclass(frozen=True)
class LogOptions:
    """Options for reading a log; see `read_table`."""

    loss: str | None = None
    tokens: str | None = None
    flops: str | None = None
    params: str | None = None
    budget: str | None = None
    run: str | None = None
    step: str | None = None
    split: str | None = None
    final: FinalRule = "auto"


def is_log(frame: pd.DataFrame, where: str, options: LogOptions) -> bool:
    """Return whether a table is a log: within a run, the step or the tokens change from row to row.

    A table for which the user names a step column or a split is a log. Otherwise most runs must
    have rows with several steps or, if no column of steps is numeric, with several token counts at
    one budget.

    Raises:
        FitError: a log without a column of run names.
    """
    if options.step is not None or options.split is not None:
        return True
    run, step = find_run_column(frame, where, options), first_column(frame, STEP_COLUMNS)
    if run is None:
        if step is not None:
            _refuse_nameless_log(frame, where, step, options)
        return False
    if step is not None and _median_distinct(frame, run, step) >= 2:
        return True
    tokens = first_column(frame, ("tokens",))
    if tokens is None or len(frame) == 0 or (step is not None and _is_numeric(frame, step)):
        return False
    if "budget" in frame.columns and bool((count_distinct(frame, run, "budget") > 1).any()):
        return False
    return _median_distinct(frame, run, tokens) >= MIN_STEPS_AT_BUDGET


def find_run_column(frame: pd.DataFrame, where: str, options: LogOptions) -> str | None:
    """Return the column of the runs' names; None if there is none.

    Raises:
        FitError: the user names a column that the table does not have.
    """
    if options.run is None:
        return next((name for name in RUN_COLUMNS if name in frame.columns), None)
    name = find_column(frame, options.run)
    if name is None:
        raise FitError(missing_column_message(frame, where, options.run, "run"))
    return name


def count_distinct(frame: pd.DataFrame, run: str, name: str) -> pd.Series:
    """Return the number of distinct values of a column in each run."""
    return cast(pd.Series, as_text(frame, name).groupby(as_text(frame, run)).nunique())


def _median_distinct(frame: pd.DataFrame, run: str, name: str) -> float:
    return float(count_distinct(frame, run, name).median())


def _is_numeric(frame: pd.DataFrame, name: str) -> bool:
    return all(parse_number(cell) is not None for cell in frame[name])


def _refuse_nameless_log(frame: pd.DataFrame, where: str, step: str, options: LogOptions) -> None:
    """Refuse a log without run names, since each of its rows would be read as a finished run.

    Finished runs of one size at one budget have one step, whatever their seeds. Without a column of
    budgets the steps of one size may be those of several budgets, so a log needs many.

    Raises:
        FitError: names the column of steps.
    """
    params = _find_role(frame, options.params, "params")
    budget = _find_role(frame, options.budget, "budget")
    flops = _find_role(frame, options.flops, "flops")
    tokens = _find_role(frame, options.tokens, "tokens")
    counter = step if _is_numeric(frame, step) else tokens
    if params is None or counter is None:
        return
    settings = [
        name for name in SETTING_COLUMNS if name in frame.columns and name not in LR_COLUMNS
    ]
    configuration = [params, *settings]
    steps = as_text(frame, counter)
    is_log = budget is None and any(
        _are_logged(group) for _, group in steps.groupby(_list_cells(frame, configuration))
    )
    if level := budget or flops:
        distinct = steps.groupby(_list_cells(frame, [*configuration, level])).nunique()
        is_log |= bool((distinct >= MIN_STEPS_AT_BUDGET).any())
    if is_log:
        raise FitError(
            f"{where}: column {step!r} marks this table as a loss log, but no column names its "
            f"runs; name it with {option_text(where, 'run')}, or leave {step!r} out if each row is "
            "a finished run"
        )


def _list_cells(frame: pd.DataFrame, names: Sequence[str]) -> list[pd.Series]:
    return [as_text(frame, name) for name in names]


def _find_role(frame: pd.DataFrame, spec: str | None, role: str) -> str | None:
    """Return the column that a role will have; None if there is none."""
    if spec is None:
        return first_column(frame, ROLES[role])
    return find_column(frame, split_factor(frame, spec)[0])


def _are_logged(steps: pd.Series) -> bool:
    """Return whether the steps of one size are as many and as even as those of a log."""
    values = np.unique(np.array([parse_number(cell) for cell in steps], dtype=np.float64))
    gaps = np.diff(values[np.isfinite(values)])
    if len(gaps) + 1 < MIN_EVEN_STEPS:
        return False
    is_even = np.abs(gaps / np.median(gaps) - 1.0) <= _MAX_SPACING_ERROR
    return len(gaps) + 1 >= MIN_LOGGED_STEPS or float(is_even.mean()) >= _MIN_EVEN_SHARE
