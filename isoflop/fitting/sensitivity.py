"""How far the exponents hang on what N and C count: the same runs, fitted with each count that they have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.methods.fit_all import FitSet, Method, Options, fit_one, methods_of, recount
from isoflop.fitting.results.base import Fit
from isoflop.fitting.tables.runs_table import RunsTable
from isoflop.fitting.terms import ENDS
from isoflop.shapes import ParamCount

SIX_ND = "6ND"
SAME = 0.01  # FLOPs that differ less from 6ND are 6ND
COLUMNS = ["method", "n", "c", "a", "a_low", "a_high", "b", "b_low", "b_high"]


def sensitivity_of(fitted: FitSet, runs: Any) -> pd.DataFrame:
    """Exponents by each choice of N (total, one embedding, non-embedding) and C (of the table, or 6ND).

    With C as the table has it, N*(C) and D*(C) are those of the fits. Where C is 6ND of the same optima, N* ~ C^a and
    D* ~ C^b become N* ~ (6 N* D*)^(a / (a + b)). The parametric law is about N and D alone, and its optimum is that
    of C = 6ND. The envelope, which takes its optima from the runs, has no row.

    Args:
        fitted: the fits of the runs.
        runs: what was fitted; it is read again for the other counts of N.

    Returns:
        A row for each choice: `method, n, c, a, a_low, a_high, b, b_low, b_high`; `c` is the table's column, or `6ND`.
        A choice that the runs can't be fitted by, or don't have, has none.
    """
    rows = [
        row
        for fit in fitted.fits
        if fit.method != "envelope"
        for row in _of_method(fit, runs, fitted.options)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_method(fit: Fit, runs: Any, options: Options) -> Iterator[list[Any]]:
    (method,) = methods_of([fit.method])
    for n in get_args(ParamCount):
        counted = fit if n == fit.n else _counted(fit, method, runs, n, options)
        if counted is None:
            continue
        table = counted.intervals()
        pair = [float(value) for name in ("a", "b") for value in table.loc[name, ENDS]]
        flops = counted.runs.columns["flops"].strip("()")
        if method == "parametric":
            yield [method, n, SIX_ND, *pair]
            continue
        yield [method, n, flops, *pair]
        if _differs(counted.runs):
            yield [method, n, SIX_ND, *_of_six_nd(*table.loc["ratio", ENDS])]


def _of_six_nd(ratio: float, low: float, high: float) -> list[float]:
    """a / (a + b) and b / (a + b) from b / a, each with its ends by the delta method: the interval of the ratio is an
    error about it, which 1 / (1 + ratio) would bend out of shape near -1.
    """
    share, slope = 1.0 / (1.0 + ratio), 1.0 / (1.0 + ratio) ** 2
    a = [share, share - slope * (high - ratio), share + slope * (ratio - low)]
    return [*a, 1.0 - a[0], 1.0 - a[2], 1.0 - a[1]]


def _counted(fit: Fit, method: Method, runs: Any, n: ParamCount, options: Options) -> Fit | None:
    if isinstance(runs, RunsTable):
        return None  # it has one count
    try:
        table = recount(fit.runs, runs, n, options)
        return fit_one(
            method, table, replace(options, bootstrap=0) if method == "parametric" else options
        )
    except FitError:
        return None


def _differs(table: RunsTable) -> bool:
    """Whether the FLOPs are more than 6ND by some measure."""
    six = 6.0 * table.array("params") * table.array("tokens")
    return bool(np.any(np.abs(np.log(table.array("flops") / six)) > SAME))
