"""Laws of compute, fitted now or read from a file: exponents, intervals, predictions, the headline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.intervals import Interval, check_confidence, exponential
from isoflop.fitting.tables.provenance import Origin
from isoflop.fitting.terms import ENDS, STATISTICAL, Finding, IntervalKind, span_text

if TYPE_CHECKING:
    from isoflop.fitting.estimators.holdout import RollOut
    from isoflop.fitting.estimators.skew import Skew
    from isoflop.fitting.terms import Finding
    from isoflop.shapes import ParamCount

Floats = np.ndarray
PACE = 1.5
"""Times that b / a may differ from 1, by the ends of its interval, where both are said to grow at about one pace."""
WIDEST = 1.0
"""Width of the interval of an exponent that tells nothing: from an optimum that stays to one that takes all compute."""


class Core(Protocol):
    """What is left of a fit without its runs."""

    @property
    def dof(self) -> int:
        """Degrees of freedom of the t intervals."""
        ...

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """A row for each estimate, `a`, `b` and `ratio` among them; columns value, low, high."""
        ...

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Intervals of ln N* (`params`), ln D* (`tokens`) and, where the law has it, ln loss, if the law is true."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for fit.json; `loading` makes the core of them again."""
        ...


class Laws(ABC):
    """Laws N*(C) and D*(C) with intervals: of a fit (`Fit`), or read back from its file (`loading.SavedFit`).

    Attributes:
        method: `isoflop`, `joint`, `parametric` or `envelope`.
        confidence: of the intervals, unless another is asked for.
        rollout: the largest budgets hidden and predicted; None where too few budgets are left for it.
        skew: of parabolas, which moves their optima; None for another method.
        diagnostics: findings, each with `code` and `message`, the gravest first.
    """

    method: str
    confidence: float
    rollout: RollOut | None
    skew: Skew | None = None
    diagnostics: list[Finding]

    @property
    @abstractmethod
    def n(self) -> ParamCount:
        """Which parameter count the law is about."""

    @property
    @abstractmethod
    def loss_column(self) -> str:
        """The source's column of the loss that was fitted."""

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """What it was fitted to."""

    @property
    @abstractmethod
    def reach(self) -> tuple[float, float] | None:
        """The least and the greatest budget that the law was fitted to, FLOPs; None where its runs are not known."""

    @property
    @abstractmethod
    def core(self) -> Core:
        """The numbers of the laws: all that predictions need."""

    def intervals(
        self, confidence: float | None = None, kind: IntervalKind | None = None
    ) -> pd.DataFrame:
        """Value, low, high of what the core estimates, a and b too; by the skew of parabolas unless `kind` is given."""
        table = self.core.intervals(level := self._level(confidence), kind)
        return table if kind or self.skew is None else self.skew.widen_laws(table, level)

    def _level(self, confidence: float | None) -> float:
        """A confidence that is asked for, or the law's own.

        Raises:
            FitError: it is no share between 0 and 1.
        """
        level = self.confidence if confidence is None else confidence
        check_confidence(level)
        return level

    def law_at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Intervals of ln N* (`params`), ln D* (`tokens`) and, where the law has it, ln loss, if the law is true."""
        return self.core.at(flops, confidence)

    def widen(self, interval: Interval, quantity: str, flops: float, confidence: float) -> Interval:
        """An interval of `law_at` with the law's own error: skew of parabolas, and what roll-outs show beyond."""
        if self.skew is not None:
            interval = self.skew.widen(interval, quantity, flops, confidence)
        return self.rollout.widen(interval, quantity, flops) if self.rollout else interval

    def own_error_known(self, flops: float) -> bool:
        """Whether `widen` can tell the law's own error at a budget: within the runs, or where there are roll-outs."""
        return self.rollout is not None or (
            self.reach is not None and self.reach[0] <= flops <= self.reach[1]
        )

    @property
    def dof(self) -> int:
        """Degrees of freedom of the t intervals."""
        return self.core.dof

    @property
    def exponents(self) -> pd.DataFrame:
        """Rows `a` (of N*) and `b` (of D*), columns value, low, high."""
        return self.intervals().loc[["a", "b"], ENDS]

    @property
    def ratio(self) -> pd.Series:
        """b / a: how many times faster ln(data) grows than ln(model size); value, low, high."""
        return self.intervals().loc["ratio", ENDS]

    def conf_int(
        self, confidence: float | None = None, kind: IntervalKind | None = None
    ) -> pd.DataFrame:
        """Columns low and high of all that is estimated, at any confidence.

        Args:
            kind: `t` or `percentile` (of the resamples); default: what the method trusts most.
        """
        return self.intervals(confidence, kind).loc[:, ["low", "high"]]

    def predict(
        self, flops: float | Sequence[float] | Floats, confidence: float | None = None
    ) -> pd.DataFrame:
        """N*, D* and, where the law has one, the loss there, at compute budgets in training FLOPs.

        Rows params, tokens, loss (for several budgets: flops, then quantity). Columns value; low and high, which allow
        for the law's own error, beyond the data as the roll-out shows it (without one nothing, see `own_error_known`),
        and of parabolas that are skewed inside them too (`with_model_error`); statistical_low and statistical_high,
        which are right where the law is true.
        """
        level = self._level(confidence)
        many = np.atleast_1d(np.asarray(flops, dtype=np.float64))
        if not np.all(np.isfinite(many) & (many > 0)):
            raise FitError("a budget is a number of FLOPs above 0")
        rows: dict[tuple[float, str], list[float]] = {}
        for budget in map(float, many):
            for name, inner in self.law_at(budget, level).items():
                outer = self.widen(inner, name, budget, level)
                rows[budget, name] = [*exponential(outer), *exponential(inner)[1:]]
        frame = pd.DataFrame(list(rows.values()), columns=[*ENDS, *STATISTICAL])
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["flops", "quantity"])
        return frame.droplevel("flops") if np.ndim(flops) == 0 else frame

    @property
    @abstractmethod
    def no_law(self) -> str:
        """Why the exponents are no result, in a sentence; empty where they may be one."""

    def headline(self) -> str:
        """The result in one sentence, or why there is none."""
        return f"No law of compute: {why}" if (why := self.no_law) else self.growth()

    def growth(self) -> str:
        """How the optimum grows, and no more than the intervals say; where that of b / a holds 1, it says so."""
        table = self.intervals()
        a, b, ratio = (table.loc[name].to_dict() for name in ("a", "b", "ratio"))
        laws = f"N* ~ C^{span_text(a)}, D* ~ C^{span_text(b)}"
        if not tells(table):
            return f"How the optimum grows with compute can't be told: {laws}"
        value, open_question = ratio["value"], ratio["low"] <= 1.0 <= ratio["high"]
        doubt = " (equal pace is not ruled out)" if open_question else ""
        if min(a["value"], b["value"]) <= 0.0:
            what, row = ("data", b) if a["value"] > 0.0 else ("model size", a)
            if row["high"] > 0.0:
                return f"Whether optimal {what} grows with compute can't be told: {laws}"
            return f"Optimal {what} does not grow with compute: {laws}"
        if abs(value - 1.0) < 0.05 and (ratio["low"] < 1.0 / PACE or ratio["high"] > PACE):
            return f"Whether optimal model size or data grows faster can't be told: {laws}"
        if abs(value - 1.0) < 0.05:
            return f"Optimal model size and data grow at about the same pace: {laws}"
        if value > 1.0:
            return f"Optimal data grows {value:.2g}x faster than optimal model size{doubt}: {laws}"
        return (
            f"Optimal model size grows {1.0 / value:.2g}x faster than optimal data{doubt}: {laws}"
        )


def tells(table: pd.DataFrame) -> bool:
    """Whether intervals (rows a and b) are narrow enough to tell how the optimum grows; none is not too wide."""
    rows = (table.loc[name].to_dict() for name in ("a", "b"))
    return not any(row["high"] - row["low"] > WIDEST for row in rows)
