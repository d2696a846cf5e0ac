"""Laws of a study: every method, every requested loss, and each count of N and C."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.comparison import Comparison, compare
from isoflop.fitting.fitfile.read import named_laws
from isoflop.fitting.methods.fit_all import (
    DEFAULT_METHODS,
    FitOptions,
    FitSet,
    fit_laws,
    loss_columns,
)
from isoflop.fitting.results.base import Fit
from isoflop.fitting.sensitivity import tabulate_sensitivity
from isoflop.frames import records


@dataclass(frozen=True, eq=False)
class StudyFits:
    """Fits of one source.

    Attributes:
        sets: the fits of each loss.
        refused: method, loss and reason of each refused fit.
        sensitivity: exponents by the counts of N and C, see `tabulate_sensitivity`; with the column
            `loss`.
    """

    sets: tuple[FitSet, ...]
    refused: tuple[dict[str, str], ...]
    sensitivity: pd.DataFrame

    @property
    def fits(self) -> list[Fit]:
        """All fits, loss by loss, in the order of the methods."""
        return [fit for fit_set in self.sets for fit in fit_set.fits]

    @cached_property
    def comparison(self) -> Comparison:
        """Comparison of all fits, method by method, at 10 x the largest budget."""
        methods = dict.fromkeys(fit.method for fit in self.fits)
        return compare(
            named_laws([fit for method in methods for fit in self.fits if fit.method == method])
        )

    def reasons(self) -> list[str]:
        """Return the reason of each refused fit, a line each."""
        losses = {entry["loss"] for entry in self.refused} | {fit.loss_column for fit in self.fits}
        lines = []
        for entry in self.refused:
            loss = f" of {entry['loss']}" if len(losses) > 1 else ""
            lines.append(f"{entry['method']}{loss} can't be fitted: {entry['reason']}")
        return lines

    def document_keys(self) -> dict[str, Any]:
        """Return the keys that the study adds to fit.json."""
        return {
            "refused": list(self.refused),
            "comparison": self.comparison.to_dict(),
            "sensitivity": records(self.sensitivity),
        }


def fit_study(
    runs: pd.DataFrame | str | Path,
    methods: Sequence[str] = DEFAULT_METHODS,
    options: FitOptions | None = None,
    loss: str | None = None,
) -> StudyFits:
    """Fit runs by several methods, once for each loss.

    Args:
        runs: a table of runs, its file, or a sweep's directory.
        methods: see `fit_laws`.
        options: options of the methods; its column of the loss is not used.
        loss: column of losses, several separated by commas, or `all`; default `loss`.

    Raises:
        FitError: see `fit_laws`; with several losses, only if none can be fitted.
    """
    options, columns = options or FitOptions(), loss_columns(runs, loss)
    sets, refused, tables, reason = [], [], [], ""
    for column in columns:
        name = column or "loss"
        loss_options = dataclasses.replace(options, columns={**options.columns, "loss": column})
        try:
            fit_set = fit_laws(runs, methods, loss_options)
        except FitError as error:
            if len(columns) == 1:
                raise
            reason = str(error)
            refused.append({"method": ", ".join(methods), "loss": name, "reason": reason})
            continue
        sets.append(fit_set)
        refused += [
            {"method": method, "loss": name, "reason": method_reason}
            for method, method_reason in fit_set.refused.items()
        ]
        tables.append(tabulate_sensitivity(fit_set, runs).assign(loss=name))
    if not sets:
        raise FitError(reason)
    return StudyFits(tuple(sets), tuple(refused), pd.concat(tables, ignore_index=True))
