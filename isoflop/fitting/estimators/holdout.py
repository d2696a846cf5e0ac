"""Roll-out: the largest budgets are hidden, the rest is fitted and predicts them; the errors widen predictions.

A law that is not quite true fits well where it was fitted and fails beyond. How much shows where data that a fit has
not seen lie beyond its own: the error m at a distance h (in ln C beyond the largest budget kept). An error of a smooth
law grows as the square of the distance (the law has taken up value and slope), so an interval at distance H beyond all
data is widened by the largest sqrt(m^2 + se^2) (H / h)^2 over all roll-outs that reach 2.5 times the compute or more,
with se what m could be by noise alone.
analysis/coverage/ has how often such intervals hold the truth under laws that are wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from isoflop.fitting.estimators.intervals import Interval

Floats = np.ndarray
KEPT = 3  # budgets that a fit needs
DEEPEST = 6  # budgets hidden at once
NEAREST = float(
    np.log(2.5)
)  # in ln C: of what lies nearer, the noise would be blown up by the square of the distance
SHOWN = 2  # hidden budgets that are reported


@dataclass(frozen=True)
class Miss:
    """One hidden budget, predicted by the budgets below some limit.

    Attributes:
        hidden: how many of the largest budgets were hidden.
        budget: the one that is predicted, FLOPs.
        distance: of it beyond the largest budget kept, in ln C.
        errors: predicted less measured, of ln N* (`params`), ln D* (`tokens`), ln loss (`loss`); for M sets, (M,).
        ses: what each error could be by noise (standard error).
    """

    hidden: int
    budget: float
    distance: float
    errors: dict[str, Floats]
    ses: dict[str, Floats]


@dataclass(frozen=True)
class RollOut:
    """All roll-outs of a fit, from one hidden budget to as many as leave 3, at most 6.

    Attributes:
        misses: each hidden budget of each roll-out.
        reach: the least and the greatest budget of all, FLOPs.
    """

    misses: tuple[Miss, ...]
    reach: tuple[float, float]

    def allowance(self, quantity: str, flops: float) -> Floats:
        """What the law's own error may be at a budget, in ln of `params`, `tokens` or `loss`; 0 within the data.

        One number, or (M,) where M sets of losses were rolled out.
        """
        low, high = self.reach
        beyond = max(np.log(flops / high), np.log(low / flops), 0.0)
        if beyond == 0.0:
            return np.asarray(0.0)
        telling = [miss for miss in self.misses if quantity in miss.errors]
        least = min(NEAREST, max((miss.distance for miss in telling), default=0.0))
        rates = [
            np.hypot(miss.errors[quantity], miss.ses[quantity]) / miss.distance**2
            for miss in telling
            if miss.distance >= least
        ]
        return np.max(rates, axis=0) * beyond**2 if rates else np.asarray(0.0)

    def widen(self, interval: Interval, quantity: str, flops: float) -> Interval:
        """An interval of ln N*, ln D* or ln loss with the law's own error."""
        more = self.allowance(quantity, flops).item()
        return Interval(interval.value, interval.low - more, interval.high + more)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Quantities that were predicted: `params`, `tokens` and, where the law has it, `loss`."""
        return tuple(dict.fromkeys(name for miss in self.misses for name in miss.errors))

    def errors(self, quantity: str) -> pd.DataFrame:
        """Return a row for each hidden budget of each roll-out: `budget` (FLOPs), `distance` (ln C
        beyond the largest budget kept), `error` (of the logarithm) and its standard error `se`.
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
        """Return all roll-outs for fit.json, also those that are not shown: each may widen a
        prediction.
        """
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
        """What is reported: one and two budgets hidden. Columns hidden, budget, distance (in decades of compute), and
        for each quantity its error (share; predicted above measured is positive) and standard error.
        """
        rows = []
        for miss in self.misses:
            if miss.hidden <= SHOWN:
                row = {
                    "hidden": miss.hidden,
                    "budget": miss.budget,
                    "decades": miss.distance / np.log(10.0),
                }
                for quantity, error in miss.errors.items():
                    with np.errstate(over="ignore"):
                        row |= {
                            quantity: np.expm1(error).item(),
                            f"{quantity}_se": miss.ses[quantity].item(),
                        }
                rows.append(row)
        return pd.DataFrame(rows)


Predict = Callable[[float], tuple[dict[str, Floats], dict[str, Floats]]]
"""From a hidden budget to errors and standard errors, see `Miss`."""


def roll_out(budget: Floats, hide: Callable[[np.ndarray], Predict | None]) -> RollOut | None:
    """All roll-outs over the budgets of the rows; None where fewer than 4 budgets are there.

    Args:
        budget: of each row.
        hide: fits the rows of a mask and returns what it says of a hidden budget; None where they can't be fitted.
    """
    levels = np.unique(budget)
    misses = []
    for hidden in range(1, min(len(levels) - KEPT, DEEPEST) + 1):
        top = levels[-hidden - 1]
        predict = hide(budget <= top)
        if predict is not None:
            for level in levels[-hidden:]:
                errors, ses = predict(float(level))
                misses.append(Miss(hidden, float(level), float(np.log(level / top)), errors, ses))
    return RollOut(tuple(misses), (float(levels[0]), float(levels[-1]))) if misses else None
