"""Whether a table is a loss log, with many rows a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.columns import (
    ROLES,
    SETTINGS,
    asks,
    find,
    first_found,
    missing,
    split_factor,
    to_number,
)
from isoflop.fitting.tables.final_loss import FinalRule
from isoflop.fitting.tables.rows import RUN_COLUMNS, texts

STEP_COLUMNS = ("step", "_step", "global_step", "trainer/global_step", "iteration", "iter", "Step")
RATES = ("lr", "learning_rate")

SEVERAL = 3  # steps of one size at one budget that no seeds explain
MANY = 20  # steps of one size; a study has fewer budgets
EVEN = 8  # the same, where the steps are evenly spaced, which budgets seldom are
_SPACING = 0.01  # share by which even spacings differ


@dataclass(frozen=True)
class LogOptions:
    """How a log is read; see `read_table`."""

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
    """Whether a table has many rows a run: a step, or tokens, that move while the run's name stays.

    Naming a step column or a split says so. Otherwise most runs must have rows with several steps or, where no step is
    a number, with several token counts at one budget.

    Raises:
        FitError: a log without a column that names its runs.
    """
    if options.step is not None or options.split is not None:
        return True
    run, step = run_of(frame, where, options), first_found(frame, STEP_COLUMNS)
    if run is None:
        if step is not None:
            _refuse_nameless(frame, where, step, options)
        return False
    if step is not None and _median(frame, run, step) >= 2:
        return True
    tokens = first_found(frame, ("tokens",))
    if tokens is None or len(frame) == 0 or (step is not None and _are_numbers(frame, step)):
        return False
    if "budget" in frame.columns and bool((distinct(frame, run, "budget") > 1).any()):
        return False
    return _median(frame, run, tokens) >= SEVERAL


def run_of(frame: pd.DataFrame, where: str, options: LogOptions) -> str | None:
    """The column of the runs' names."""
    if options.run is None:
        return next((name for name in RUN_COLUMNS if name in frame.columns), None)
    found = find(frame, options.run)
    if found is None:
        raise FitError(missing(frame, where, options.run, "run"))
    return found


def distinct(frame: pd.DataFrame, run: str, name: str) -> pd.Series:
    """How many values of a column each run has."""
    return cast(pd.Series, texts(frame, name).groupby(texts(frame, run)).nunique())


def _median(frame: pd.DataFrame, run: str, name: str) -> float:
    return float(distinct(frame, run, name).median())


def _are_numbers(frame: pd.DataFrame, name: str) -> bool:
    return all(to_number(cell) is not None for cell in frame[name])


def _refuse_nameless(frame: pd.DataFrame, where: str, step: str, options: LogOptions) -> None:
    """Stops where rows are those of a log, though nothing names the runs: each would be taken for a finished run.

    Of finished runs, one size at one budget has one step, whatever the seeds. Where no column has the budgets, the
    steps of one size may be those of several, so they must be many.
    """
    params = _column(frame, options.params, "params")
    budget = _column(frame, options.budget, "budget")
    flops = _column(frame, options.flops, "flops")
    moving = step if _are_numbers(frame, step) else _column(frame, options.tokens, "tokens")
    if params is None or moving is None:
        return
    fixed = [params, *(name for name in SETTINGS if name in frame.columns and name not in RATES)]
    steps = texts(frame, moving)
    several = budget is None and any(
        _as_logged(group) for _, group in steps.groupby(_cells(frame, fixed))
    )
    if level := budget or flops:
        several |= bool((steps.groupby(_cells(frame, [*fixed, level])).nunique() >= SEVERAL).any())
    if several:
        raise FitError(
            f"{where}: column {step!r} says that this is a loss log, but no column names its runs; name it with "
            f"{asks(where, 'run')}, or leave {step!r} out if each row is a finished run"
        )


def _cells(frame: pd.DataFrame, names: Sequence[str]) -> list[pd.Series]:
    return [texts(frame, name) for name in names]


def _column(frame: pd.DataFrame, given: str | None, role: str) -> str | None:
    """The column of a role, as it will be taken."""
    return (
        first_found(frame, ROLES[role])
        if given is None
        else find(frame, split_factor(frame, given)[0])
    )


def _as_logged(steps: pd.Series) -> bool:
    """Whether the steps of one size are as many and as evenly spaced as those that a run logs."""
    values = np.unique(np.array([to_number(cell) for cell in steps], dtype=np.float64))
    gaps = np.diff(values[np.isfinite(values)])
    if len(gaps) + 1 < EVEN:
        return False
    even = np.abs(gaps / np.median(gaps) - 1.0) <= _SPACING
    return len(gaps) + 1 >= MANY or float(even.mean()) >= 0.8
