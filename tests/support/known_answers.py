"""Checks for any table: fits with only valid numbers, or a refusal in one line.

Further helpers run the command line and draw the figures of a fit.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from isoflop.cli import main
from isoflop.errors import FitError
from isoflop.fitting import RunsTable, read_table
from isoflop.fitting.methods.fit_all import METHODS, FitOptions, fit_laws
from isoflop.fitting.results.base import Fit
from isoflop.fitting.tables.fit_table import CANONICAL_COLUMNS
from isoflop.frames import column

FIT_OPTIONS = st.fixed_dictionaries(
    {"bootstrap": st.sampled_from([0, 0, 100])},
    optional={
        "axis": st.sampled_from(["params", "tokens"]),
        "use": st.sampled_from(["all", ("interior",), ("interior", "edge", "one_sided")]),
        "huber_delta": st.sampled_from(["adaptive", "chinchilla", np.inf, 1e-9, 1e9]),
        "confidence": st.sampled_from([0.5, 0.95, 0.999]),
        "drop_outliers": st.sampled_from([1e-3, 1.0, 5.0]),
    },
)
"""Strategy for options of a fit."""


def search_settings(examples: int) -> settings:
    """Return settings of a search over so many examples, the same ones each time.

    The variable ISOFLOP_SEARCH multiplies their number, for a long search.
    """
    examples *= int(os.environ.get("ISOFLOP_SEARCH", "1"))
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks
    )


def try_reading(
    source: pd.DataFrame | Path, read_options: dict[str, Any]
) -> tuple[RunsTable | None, str]:
    """Return the table, or None and the message of its refusal."""
    try:
        return read_table(source, **read_options), ""
    except FitError as refusal:
        return None, str(refusal)


def fit_or_refuse(
    source: pd.DataFrame | Path, read_options: dict[str, Any], fit_options: dict[str, Any]
) -> str:
    """Read a source and fit it by every method; return `fitted` or `refused`.

    Warnings are errors in these tests.
    """
    table, refusal = try_reading(source, read_options)
    if table is not None:
        check_runs_table(table)
        try:
            fits = fit_laws(table, METHODS, FitOptions(**fit_options))
        except FitError as problem:
            refusal = str(problem)
        else:
            for fit in fits.fits:
                check_fit(fit)
            for reason in fits.refused.values():
                assert reason.strip()
                assert "\n" not in reason
            return "fitted"
    assert refusal.strip()
    assert "\n" not in refusal
    return "refused"


def check_fit(fit: Fit) -> None:
    """Check that every view of a fit has valid numbers."""
    exponents = fit.exponents
    value, low, high = (column(exponents, name) for name in ("value", "low", "high"))
    assert np.isfinite(value).all()
    assert (low <= value).all()
    assert (value <= high).all()
    predicted = fit.predict(10.0 * float(fit.runs.array("flops").max()))
    value, high = column(predicted, "value"), column(predicted, "high")
    assert not np.isnan(value).any()
    assert (column(predicted, "statistical_low") <= value).all()
    assert (high >= column(predicted, "statistical_high")).all()
    if not np.isfinite(value).all():
        assert {"at_bound", "edge"} & {finding["code"] for finding in fit.diagnostics}
    assert fit.summary()
    assert fit._repr_html_()
    parse_strict_json(fit.to_json())


def check_runs_table(table: RunsTable) -> None:
    """Check that a table has finite, positive numbers and messages of one line."""
    values = table.frame[list(CANONICAL_COLUMNS)].to_numpy()
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values > 0).all()
    assert table.reading.count("\n") == 0
    for label, text in [*table.dropped, *(finding.values() for finding in table.findings)]:
        assert label
        assert text
        assert "\n" not in label + text


def parse_strict_json(document: str) -> Any:
    """Return the content of a JSON document, which has no NaN and no infinity."""
    return json.loads(document, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def run_command(*arguments: str) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and stdout.

    It must succeed, or fail with one error.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main(arguments)
    code = int(stop.value.code or 0)
    errors = [line for line in err.getvalue().splitlines() if "error: " in line]
    assert (code, len(errors)) in ((0, 0), (2, 1)), err.getvalue()
    return code, out.getvalue()


def draw_figures(fit: Fit) -> None:
    """Draw every figure that a fit has."""
    for name in ("plot", "plot_residuals", "plot_influence", "plot_exponents"):
        if hasattr(fit, name):
            getattr(fit, name)().figure.canvas.draw()
    for quantity in ("params", "tokens", "loss"):
        for name in ("plot_law", "plot_rollout"):
            with contextlib.suppress(FitError):  # the fit has no such law, or no hold-out
                getattr(fit, name)(quantity).figure.canvas.draw()
    plt.close("all")
