"""Laws of compute, fitted or read from a file: exponents, intervals, predictions, the headline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.intervals import Interval, check_confidence, exponential
from isoflop.fitting.tables.provenance import Provenance
from isoflop.fitting.terms import ENDS, STATISTICAL, Finding, IntervalKind, span_text
from isoflop.frames import Floats

if TYPE_CHECKING:
    from isoflop.fitting.estimators.holdout import HoldOut
    from isoflop.fitting.estimators.skew import Skew
    from isoflop.shapes import ParamCount

MAX_EQUAL_PACE_RATIO = 1.5
"""Largest factor between 1 and either end of the interval of b / a for the headline "same pace"."""
MAX_EXPONENT_WIDTH = 1.0
"""Width above which the interval of an exponent is uninformative: from an optimum that stays to one
that takes all compute.
"""


class LawEstimate(Protocol):
    """Numbers of a fit that predictions need; the runs are not among them."""

    @property
    def dof(self) -> int:
        """Degrees of freedom of the t intervals."""
        ...

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """Return a row for each estimate, among them `a`, `b` and `ratio` (b / a); columns value,
        low, high.
        """
        ...

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Return intervals of ln N* (`params`), ln D* (`tokens`) and, where the law has it, ln loss
        (`loss`) at a budget, valid if the law is true.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for fit.json; `fitfile.saved_fit` restores the estimate from them."""
        ...


class Laws(ABC):
    """Laws N*(C) and D*(C) with intervals: of a fit (`Fit`), or read from its file (`SavedFit`).

    Attributes:
        method: `isoflop`, `joint`, `parametric` or `envelope`.
        confidence: default level of the intervals, a share.
        rollout: hold-out tests: the largest budgets hidden and predicted; None if too few budgets
            or runs remain for one.
        skew: skew of the parabolas, which shifts their optima; None for other methods.
        diagnostics: findings, each with `code` and `message`, the gravest first.
    """

    method: str
    confidence: float
    rollout: HoldOut | None
    skew: Skew | None = None
    diagnostics: list[Finding]

    @property
    @abstractmethod
    def n(self) -> ParamCount:
        """Parameter count that N stands for."""

    @property
    @abstractmethod
    def loss_column(self) -> str:
        """The source's column of the fitted loss."""

    @property
    @abstractmethod
    def provenance(self) -> Provenance:
        """Source of the runs that the law was fitted to."""

    @property
    @abstractmethod
    def reach(self) -> tuple[float, float] | None:
        """The least and the greatest budget that the law was fitted to, FLOPs; None if its runs are
        not known.
        """

    @property
    @abstractmethod
    def law_estimate(self) -> LawEstimate:
        """Numbers of the laws: all that predictions need."""

    def intervals(
        self, confidence: float | None = None, kind: IntervalKind | None = None
    ) -> pd.DataFrame:
        """Return value, low and high of all estimates, a row each; see `LawEstimate.intervals`.

        They are widened by the skew of the parabolas unless `kind` is given.

        Raises:
            FitError: a confidence that is not a share between 0 and 1, or no resamples for
                percentiles.
        """
        level = self._level(confidence)
        if kind is None and level == self.confidence:
            return self._own_intervals.copy()
        return self._intervals(level, kind)

    @cached_property
    def _own_intervals(self) -> pd.DataFrame:
        """Intervals at the law's own confidence, which texts, figures and files need often."""
        return self._intervals(self.confidence, None)

    def _intervals(self, level: float, kind: IntervalKind | None) -> pd.DataFrame:
        table = self.law_estimate.intervals(level, kind)
        return table if kind or self.skew is None else self.skew.widen_laws(table, level)

    def _level(self, confidence: float | None) -> float:
        """Return the given confidence, by default the law's.

        Raises:
            FitError: it is not a share between 0 and 1.
        """
        level = self.confidence if confidence is None else confidence
        check_confidence(level)
        return level

    def law_at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Return intervals of ln N* (`params`), ln D* (`tokens`) and, where the law has it, ln loss
        (`loss`) at a budget, valid if the law is true.
        """
        return self.law_estimate.at(flops, confidence)

    def widen(self, interval: Interval, quantity: str, flops: float, confidence: float) -> Interval:
        """Return an interval of `law_at` widened by the law's own error: the skew of parabolas, and
        the errors of hold-out tests beyond the data.
        """
        if self.skew is not None:
            interval = self.skew.widen(interval, quantity, flops, confidence)
        return self.rollout.widen(interval, quantity, flops) if self.rollout else interval

    def has_model_error(self, flops: float) -> bool:
        """Return whether `widen` includes the law's own error at a budget: within the data, or with
        hold-out tests.
        """
        return self.rollout is not None or (
            self.reach is not None and self.reach[0] <= flops <= self.reach[1]
        )

    @property
    def dof(self) -> int:
        """Degrees of freedom of the t intervals."""
        return self.law_estimate.dof

    @property
    def exponents(self) -> pd.DataFrame:
        """Rows `a` (of N*) and `b` (of D*), columns value, low, high."""
        return self.intervals().loc[["a", "b"], ENDS]

    @property
    def ratio(self) -> pd.Series:
        """b / a, the growth of ln(data) over that of ln(model size): value, low, high."""
        return self.intervals().loc["ratio", ENDS]

    def conf_int(
        self, confidence: float | None = None, kind: IntervalKind | None = None
    ) -> pd.DataFrame:
        """Return the intervals of all estimates, a row each; columns low, high.

        Args:
            confidence: level, a share; by default the fit's.
            kind: `t` or `percentile` (of the resamples); by default the method's own choice.

        Raises:
            FitError: a confidence that is not a share between 0 and 1, or no resamples for
                percentiles.
        """
        return self.intervals(confidence, kind).loc[:, ["low", "high"]]

    def predict(
        self, flops: float | Sequence[float] | Floats, confidence: float | None = None
    ) -> pd.DataFrame:
        """Predict N*, D* and, where the law has it, the loss at compute budgets.

        Args:
            flops: a budget or several, training FLOPs.
            confidence: level of the intervals, a share; by default the fit's.

        Returns:
            Rows params, tokens, loss (nats per token); for several budgets flops, then quantity.
            Column value. Columns low and high: the interval with the law's own error. Beyond the
            data this is the error of hold-out tests (without them none, see `has_model_error`);
            inside the data it is the shift of skewed parabolas. Columns statistical_low and
            statistical_high: the interval that is valid if the law is true.

        Raises:
            FitError: a budget that is not a number above 0, or a confidence that is not a share
                between 0 and 1.
        """
        level = self._level(confidence)
        budgets = np.atleast_1d(np.asarray(flops, dtype=np.float64))
        if not np.all(np.isfinite(budgets) & (budgets > 0)):
            raise FitError("a budget is a number of FLOPs above 0")
        rows: dict[tuple[float, str], list[float]] = {}
        for budget in map(float, budgets):
            for name, inner in self.law_at(budget, level).items():
                outer = self.widen(inner, name, budget, level)
                rows[budget, name] = [*exponential(outer), *exponential(inner)[1:]]
        frame = pd.DataFrame(list(rows.values()), columns=[*ENDS, *STATISTICAL])
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["flops", "quantity"])
        return frame.droplevel("flops") if np.ndim(flops) == 0 else frame

    @property
    @abstractmethod
    def no_law(self) -> str:
        """Sentence on why the exponents are not a result; empty if they may be one."""

    def headline(self) -> str:
        """Return the result in one sentence, or the reason why there is none."""
        return f"No law of compute: {reason}" if (reason := self.no_law) else self.growth()

    def growth(self) -> str:
        """Return a sentence on the growth of the optimum, with no claim beyond the intervals; it
        adds that equal pace is not ruled out if the interval of b / a includes 1.
        """
        table = self.intervals()
        a, b, ratio = (table.loc[name].to_dict() for name in ("a", "b", "ratio"))
        laws = f"N* ~ C^{span_text(a)}, D* ~ C^{span_text(b)}"
        if not is_informative(table):
            return f"The growth of the optimum with compute is not determined: {laws}"
        value, includes_one = ratio["value"], ratio["low"] <= 1.0 <= ratio["high"]
        doubt = " (equal pace is not ruled out)" if includes_one else ""
        if min(a["value"], b["value"]) <= 0.0:
            name, row = ("data", b) if a["value"] > 0.0 else ("model size", a)
            if row["high"] > 0.0:
                return f"It is not determined whether optimal {name} grows with compute: {laws}"
            return f"Optimal {name} does not grow with compute: {laws}"
        if abs(value - 1.0) < 0.05 and (
            ratio["low"] < 1.0 / MAX_EQUAL_PACE_RATIO or ratio["high"] > MAX_EQUAL_PACE_RATIO
        ):
            return f"It is not determined whether optimal model size or data grows faster: {laws}"
        if abs(value - 1.0) < 0.05:
            return f"Optimal model size and data grow at about the same pace: {laws}"
        if value > 1.0:
            return f"Optimal data grows {value:.2g}x faster than optimal model size{doubt}: {laws}"
        return (
            f"Optimal model size grows {1.0 / value:.2g}x faster than optimal data{doubt}: {laws}"
        )


def is_informative(table: pd.DataFrame) -> bool:
    """Return whether the intervals of a and b are narrow enough to determine the growth of the
    optimum; missing intervals count as narrow.
    """
    rows = (table.loc[name].to_dict() for name in ("a", "b"))
    return not any(row["high"] - row["low"] > MAX_EXPONENT_WIDTH for row in rows)
