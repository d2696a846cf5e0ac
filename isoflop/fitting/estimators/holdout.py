"""Extrapolation hold-out (roll-out): the largest budgets are hidden, and the rest predicts them.

A law that is not quite true fits well within its data and fails beyond. Hidden budgets show by how
much: the error m at a distance h (in ln C beyond the largest fitted budget). An error of a smooth
law grows as the square of the distance (the fit has absorbed value and slope). So an interval at
distance H beyond all data is widened by the largest sqrt(m^2 + se^2) (H / h)^2 over all hold-outs
that reach 2.5 times the compute or more, where se is the size of m by noise alone.
analysis/coverage/ has the coverage of such intervals under laws that are wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from isoflop.fitting.estimators.intervals import Interval
from isoflop.frames import Floats

MIN_FITTED_BUDGETS = 3
MAX_HIDDEN_BUDGETS = 6
# In ln C: below, the square of the distance would blow up the noise.
MIN_DISTANCE_LN = float(np.log(2.5))
MAX_REPORTED_BUDGETS = 2


@dataclass(frozen=True)
class Miss:
    """Prediction error at one hidden budget.

    Attributes:
        hidden: number of the largest budgets that were hidden.
        budget: the predicted budget, FLOPs.
        distance: its distance beyond the largest fitted budget, in ln C.
        errors: predicted less measured, of ln N* (`params`), ln D* (`tokens`), ln loss (`loss`);
            (M,) for M sets of losses.
        ses: standard error of each error by noise alone.
    """

    hidden: int
    budget: float
    distance: float
    errors: dict[str, Floats]
    ses: dict[str, Floats]


@dataclass(frozen=True)
class HoldOut:
    """All hold-outs of a fit, from one hidden budget to as many as leave 3, at most 6.

    Attributes:
        misses: each hidden budget of each hold-out.
        reach: the least and the greatest budget of all, FLOPs.
    """

    misses: tuple[Miss, ...]
    reach: tuple[float, float]

    def allowance(self, quantity: str, flops: float) -> Floats:
        """Return the law's own error at a budget, in ln of `params`, `tokens` or `loss`.

        It is 0 within the data. One number, or (M,) for hold-outs of M sets of losses.
        """
        low, high = self.reach
        beyond = max(np.log(flops / high), np.log(low / flops), 0.0)
        if beyond == 0.0:
            return np.asarray(0.0)
        misses = [miss for miss in self.misses if quantity in miss.errors]
        least = min(MIN_DISTANCE_LN, max((miss.distance for miss in misses), default=0.0))
        rates = [
            np.hypot(miss.errors[quantity], miss.ses[quantity]) / miss.distance**2
            for miss in misses
            if miss.distance >= least
        ]
        return np.max(rates, axis=0) * beyond**2 if rates else np.asarray(0.0)

    def widen(self, interval: Interval, quantity: str, flops: float) -> Interval:
        """Return an interval of ln N*, ln D* or ln loss widened by the law's own error."""
        allowance = self.allowance(quantity, flops).item()
        return Interval(interval.value, interval.low - allowance, interval.high + allowance)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Predicted quantities: `params`, `tokens` and, where the law has it, `loss`."""
        return tuple(dict.fromkeys(name for miss in self.misses for name in miss.errors))

    def errors(self, quantity: str) -> pd.DataFrame:
        """Return a row for each hidden budget of each hold-out: `budget` (FLOPs), `distance` (ln C
        beyond the largest fitted budget), `error` (of the logarithm) and its standard error `se`.
        """
        return pd.DataFrame(
            [
                {
                    "budget": miss.budget,
                    "distance": miss.distance,
                    "error": miss.errors[quantity].item(),
                    "se": miss.ses[quantity].item(),
                }
                for miss in self.misses
                if quantity in miss.errors
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all hold-outs for fit.json, also unreported ones: each may widen a prediction."""
        misses = [
            {
                "hidden": miss.hidden,
                "budget": miss.budget,
                "distance": miss.distance,
                "errors": {name: error.item() for name, error in miss.errors.items()},
                "ses": {name: se.item() for name, se in miss.ses.items()},
            }
            for miss in self.misses
        ]
        return {"reach": list(self.reach), "misses": misses}

    def table(self) -> pd.DataFrame:
        """Return the reported hold-outs, with one and two budgets hidden, a row a hidden budget.

        Columns: `hidden`, `budget` (FLOPs), `decades` (distance in decades of compute), and for
        each quantity its error (a share; predicted above measured is positive) and standard error.
        """
        rows = []
        for miss in self.misses:
            if miss.hidden > MAX_REPORTED_BUDGETS:
                continue
            row: dict[str, Any] = {
                "hidden": miss.hidden,
                "budget": miss.budget,
                "decades": miss.distance / np.log(10.0),
            }
            for quantity, error in miss.errors.items():
                with np.errstate(over="ignore"):
                    row[quantity] = np.expm1(error).item()
                row[f"{quantity}_se"] = miss.ses[quantity].item()
            rows.append(row)
        return pd.DataFrame(rows)


Predict = Callable[[float], tuple[dict[str, Floats], dict[str, Floats]]]
"""Function from a hidden budget to errors and standard errors, see `Miss`."""


def hold_out(budget: Floats, fit_rows: Callable[[np.ndarray], Predict | None]) -> HoldOut | None:
    """Roll out over the budgets of the rows; return None below 4 budgets.

    Args:
        budget: budget of each row, FLOPs.
        fit_rows: fits the rows of a mask and returns the prediction of a hidden budget; None if
            they cannot be fitted.
    """
    levels = np.unique(budget)
    misses = []
    for hidden in range(1, min(len(levels) - MIN_FITTED_BUDGETS, MAX_HIDDEN_BUDGETS) + 1):
        top = levels[-hidden - 1]
        predict = fit_rows(budget <= top)
        if predict is not None:
            for level in levels[-hidden:]:
                errors, ses = predict(float(level))
                misses.append(Miss(hidden, float(level), float(np.log(level / top)), errors, ses))
    return HoldOut(tuple(misses), (float(levels[0]), float(levels[-1]))) if misses else None
