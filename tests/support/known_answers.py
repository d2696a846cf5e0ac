"""What any table has to be answered with: fits whose every number is one, or a refusal in one line.

And what the command line then answers, and what can be drawn.
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
from isoflop.fitting.methods.fit_all import METHODS, Options, fit_laws
from isoflop.fitting.results.base import Fit
from isoflop.fitting.tables.runs_table import CANONICAL
from isoflop.frames import column

WAYS = st.fixed_dictionaries(
    {"bootstrap": st.sampled_from([0, 0, 100])},
    optional={
        "axis": st.sampled_from(["params", "tokens"]),
        "use": st.sampled_from(["all", ("interior",), ("interior", "edge", "one_sided")]),
        "huber_delta": st.sampled_from(["adaptive", "chinchilla", np.inf, 1e-9, 1e9]),
        "confidence": st.sampled_from([0.5, 0.95, 0.999]),
        "drop_outliers": st.sampled_from([1e-3, 1.0, 5.0]),
    },
)
"""Options of a fit."""


def search(examples: int) -> settings:
    """So many examples, the same ones each time; as many times more as ISOFLOP_SEARCH says, for a night's search."""
    examples *= int(os.environ.get("ISOFLOP_SEARCH", "1"))
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks
    )


def read(source: pd.DataFrame | Path, chosen: dict[str, Any]) -> tuple[RunsTable | None, str]:
    """The table, or the words of its refusal."""
    try:
        return read_table(source, **chosen), ""
    except FitError as refusal:
        return None, str(refusal)


def answer(source: pd.DataFrame | Path, chosen: dict[str, Any], how: dict[str, Any]) -> str:
    """Reads, and fits by every method; what came of it. Warnings are errors in these tests."""
    table, refusal = read(source, chosen)
    if table is not None:
        in_order(table)
        try:
            fits = fit_laws(table, METHODS, Options(**how))
        except FitError as problem:
            refusal = str(problem)
        else:
            for fit in fits.fits:
                sound(fit)
            for reason in fits.refused.values():
                assert reason.strip()
                assert "\n" not in reason
            return "fitted"
    assert refusal.strip()
    assert "\n" not in refusal
    return "refused"


def sound(fit: Fit) -> None:
    """Numbers where numbers belong, in every view of a fit."""
    value, low, high = (column(fit.exponents, name) for name in ("value", "low", "high"))
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
    strict(fit.to_json())


def in_order(table: RunsTable) -> None:
    values = table.frame[list(CANONICAL)].to_numpy()
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values > 0).all()
    assert table.reading.count("\n") == 0
    for what, why in [*table.dropped, *(finding.values() for finding in table.findings)]:
        assert what
        assert why
        assert "\n" not in what + why


def strict(document: str) -> Any:
    """What a document of JSON says, which has no infinity."""
    return json.loads(document, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def ask(*words: str) -> tuple[int, str]:
    """The command line in this process: exit code and stdout. It ends well or with one error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main(words)
    code = int(stop.value.code or 0)
    errors = [line for line in err.getvalue().splitlines() if "error: " in line]
    assert (code, len(errors)) in ((0, 0), (2, 1)), err.getvalue()
    return code, out.getvalue()


def draw(fit: Fit) -> None:
    """Every picture of a fit, as far as it has one."""
    for name in ("plot", "plot_residuals", "plot_influence", "plot_exponents"):
        if hasattr(fit, name):
            getattr(fit, name)().figure.canvas.draw()
    for quantity in ("params", "tokens", "loss"):
        for name in ("plot_law", "plot_rollout"):
            with contextlib.suppress(FitError):  # the fit has no law of it, or was not rolled out
                getattr(fit, name)(quantity).figure.canvas.draw()
    plt.close("all")
