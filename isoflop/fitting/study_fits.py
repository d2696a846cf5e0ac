"""The laws of a study: every method, every loss that is asked for, and what N and C count."""

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
from isoflop.fitting.methods.fit_all import USUAL, FitSet, Options, fit_laws, loss_columns
from isoflop.fitting.results.base import Fit
from isoflop.fitting.sensitivity import sensitivity_of
from isoflop.frames import records


@dataclass(frozen=True, eq=False)
class StudyFits:
    """Fits of one source.

    Attributes:
        sets: one for each loss.
        refused: method, loss and reason of what can't be fitted.
        sensitivity: exponents by what N and C count; see `sensitivity_of`; with the column `loss`.
    """

    sets: tuple[FitSet, ...]
    refused: tuple[dict[str, str], ...]
    sensitivity: pd.DataFrame

    @property
    def fits(self) -> list[Fit]:
        """All of them, loss by loss, in the order of the methods."""
        return [fit for one in self.sets for fit in one.fits]

    @cached_property
    def comparison(self) -> Comparison:
        """All of them side by side, at 10 x the largest budget; method by method where there are several losses."""
        methods = dict.fromkeys(fit.method for fit in self.fits)
        return compare(
            named_laws([fit for method in methods for fit in self.fits if fit.method == method])
        )

    def reasons(self) -> list[str]:
        """Why a method, or a loss, could not be fitted, a line each."""
        several = (
            len({entry["loss"] for entry in self.refused} | {fit.loss_column for fit in self.fits})
            > 1
        )
        return [
            f"{entry['method']}{' of ' + entry['loss'] if several else ''} can't be fitted: {entry['reason']}"
            for entry in self.refused
        ]

    def parts(self) -> dict[str, Any]:
        """What fit.json has besides the fits."""
        return {
            "refused": list(self.refused),
            "comparison": self.comparison.to_dict(),
            "sensitivity": records(self.sensitivity),
        }


def fit_study(
    runs: pd.DataFrame | str | Path,
    methods: Sequence[str] = USUAL,
    options: Options | None = None,
    loss: str | None = None,
) -> StudyFits:
    """Fits runs by several methods, once for each loss.

    Args:
        runs: a table, a file of one, or a sweep's directory.
        methods: see `fit_laws`.
        options: how; its column of the loss is not used.
        loss: column of losses, several with commas, or `all`; default `loss`.

    Raises:
        FitError: see `fit_laws`; of several losses, only where none can be fitted.
    """
    asked, columns = options or Options(), loss_columns(runs, loss)
    sets, refused, tables, why = [], [], [], ""
    for column in columns:
        named = dataclasses.replace(asked, columns={**asked.columns, "loss": column})
        try:
            fitted = fit_laws(runs, methods, named)
        except FitError as reason:
            if len(columns) == 1:
                raise
            why = str(reason)
            refused.append({"method": ", ".join(methods), "loss": column or "loss", "reason": why})
            continue
        sets.append(fitted)
        refused += [
            {"method": m, "loss": column or "loss", "reason": why}
            for m, why in fitted.refused.items()
        ]
        tables.append(sensitivity_of(fitted, runs).assign(loss=column or "loss"))
    if not sets:
        raise FitError(why)
    return StudyFits(tuple(sets), tuple(refused), pd.concat(tables, ignore_index=True))
