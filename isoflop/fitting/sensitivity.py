"""Sensitivity of the exponents to the counts of N and C: the same runs, fitted with each count."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.outliers import select_remaining
from isoflop.fitting.estimators.token_cost import SIX_ND_COST, SIX_ND_TOLERANCE
from isoflop.fitting.methods.fit_all import (
    FitOptions,
    FitSet,
    Method,
    fit_method,
    parse_methods,
    read_shared_table,
)
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.tables.columns import SIX_ND
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import ENDS
from isoflop.shapes import ParamCount

SENSITIVITY_COLUMNS = ["method", "n", "c", "a", "a_low", "a_high", "b", "b_low", "b_high"]


def tabulate_sensitivity(fitted: FitSet, runs: Any) -> pd.DataFrame:
    """Return the exponents for each choice of N (total, one embedding, non-embedding) and C (of the
    table, or 6ND).

    With the C of the table, N*(C) and D*(C) are those of the fits. With C = 6ND of the same optima,
    N* ~ C^a and D* ~ C^b become N* ~ (6 N* D*)^(a / (a + b)); the parametric law, which depends on
    N and D alone, has its own optimum there. The envelope, whose optima are runs, has no row.

    Args:
        fitted: the fits of the runs.
        runs: source of the fits; it is read again for the other counts of N.

    Returns:
        A row for each choice: `method, n, c, a, a_low, a_high, b, b_low, b_high`; `c` is the
        table's column, or `6ND`. A choice that the runs do not have, or that can't be fitted, has
        no row.
    """
    options = fitted.options
    read_count = functools.cache(lambda n: _read_count(runs, n, options))
    rows = [
        row
        for fit in fitted.fits
        if fit.method != "envelope"
        for row in _method_rows(fit, read_count, options)
    ]
    return pd.DataFrame(rows, columns=SENSITIVITY_COLUMNS)


def _read_count(runs: Any, n: ParamCount, options: FitOptions) -> RunsTable | None:
    """Return the runs with another count of N; None if the source does not have it."""
    if isinstance(runs, RunsTable):
        return None  # a RunsTable has one count of N
    try:
        return read_shared_table(runs, options, n)
    except FitError:
        return None


def _method_rows(
    fit: Fit, read_count: Callable[[ParamCount], RunsTable | None], options: FitOptions
) -> Iterator[list[Any]]:
    (method,) = parse_methods([fit.method])
    for n in get_args(ParamCount):
        counted = fit if n == fit.n else _recounted_fit(fit, method, read_count(n), options)
        if counted is None:
            continue
        table = counted.intervals()
        flops = counted.runs.columns["flops"].strip("()")
        yield [method, n, flops, *_exponents(table)]
        if not _differs_from_six_nd(counted.runs):
            continue
        if isinstance(counted, ParametricFit):
            law = replace(counted.law_estimate, cost=SIX_ND_COST)
            yield [method, n, SIX_ND, *_exponents(law.intervals(counted.confidence))]
        else:
            yield [method, n, SIX_ND, *_six_nd_exponents(*table.loc["ratio", ENDS])]


def _exponents(table: pd.DataFrame) -> list[float]:
    return [float(value) for name in ("a", "b") for value in table.loc[name, ENDS]]


def _six_nd_exponents(ratio: float, low: float, high: float) -> list[float]:
    """Return a / (a + b) and b / (a + b), each with low and high, from b / a and its interval.

    The ends follow by the delta method: 1 / (1 + ratio) of the ends themselves would diverge for a
    ratio near -1.
    """
    share, slope = 1.0 / (1.0 + ratio), 1.0 / (1.0 + ratio) ** 2
    a = [share, share - slope * (high - ratio), share + slope * (ratio - low)]
    return [*a, 1.0 - a[0], 1.0 - a[2], 1.0 - a[1]]


def _recounted_fit(
    fit: Fit, method: Method, table: RunsTable | None, options: FitOptions
) -> Fit | None:
    """Return the fit of its runs in a table with another count of N; None if they can't be
    fitted.
    """
    if table is None:
        return None
    if method == "parametric":
        options = replace(options, bootstrap=0)
    try:
        return fit_method(method, select_remaining(table, fit.runs), options)
    except FitError:
        return None


def _differs_from_six_nd(table: RunsTable) -> bool:
    """Return whether the FLOPs of any run differ from 6ND."""
    six_nd = 6.0 * table.array("params") * table.array("tokens")
    return bool(np.any(np.abs(np.log(table.array("flops") / six_nd)) > SIX_ND_TOLERANCE))
