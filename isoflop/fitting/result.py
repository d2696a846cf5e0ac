"""The result of an IsoFLOP fit: laws, intervals, predictions, and how it is printed and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from isoflop.fitting.intervals import Interval, Line, draws_interval, exponential, t_interval, wider
from isoflop.fitting.table import RunsTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.diagnostics import Diagnostic

Axis = Literal["params", "tokens"]
Floats = np.ndarray
_LETTERS = {"params": "a", "tokens": "b"}
_ENDS = ["value", "low", "high"]


@dataclass(frozen=True)
class Noise:
    """Standard deviations as shares of the loss (of ln loss), with degrees of freedom.

    Attributes:
        residual_sd: of runs about the parabolas of the profiles used: noise and misfit together.
        replicate_sd: between seeds of one configuration, pooled: pure error; NaN without replicates.
    """

    residual_sd: float
    residual_dof: int
    replicate_sd: float
    replicate_dof: int

    @property
    def sd(self) -> float:
        """Pure error where it is known, else the residuals."""
        return self.replicate_sd if self.replicate_dof else self.residual_sd


@dataclass(frozen=True, eq=False)
class IsoflopFit:
    """Power laws N*(C) = k_N C^a and D*(C) = k_D C^b through the optima of IsoFLOP profiles.

    Attributes:
        axis: what the parabolas are in: `params` or `tokens`.
        runs: the table that was fitted.
        profiles: a row a budget: `budget` (label), `flops` (geometric mean of its runs), `params_opt, tokens_opt,
            loss_opt` (at the vertex), `low, high` (interval of the optimum on the axis), `curvature` (second
            derivative of the loss in ln(axis), nats), `depth` (nats: how far the lesser arm, the mean loss at the
            smallest or the largest size, rises above `loss_opt`), `depth_to_noise` (depth over the noise of one run),
            `interpolation_error` (rms, in ln, of the runs about the curve that the other axis is read from),
            `n_points` (configurations), `n_runs`, `status`, `used`.
        lines: least-squares lines of ln N*, ln D* and ln L* on ln C (`params`, `tokens`, `loss`).
        covariance: of the residuals of the first two lines.
        draws: bootstrap draws: `a, b, ln_k_params, ln_k_tokens` (R,), `optimum` (R, budgets), ln of the axis.
        noise: of the runs.
        use: statuses that were let into the laws.
        diagnostics: findings, each with `code` and `message`.
    """

    axis: Axis
    runs: RunsTable
    profiles: pd.DataFrame
    lines: dict[str, Line]
    covariance: float
    draws: dict[str, Floats]
    noise: Noise
    use: tuple[str, ...]
    bootstrap: int
    confidence: float
    seed: int
    diagnostics: list[Diagnostic]

    @property
    def n(self) -> str:
        """Which parameter count the law is about."""
        return self.runs.n

    @property
    def exponents(self) -> pd.DataFrame:
        """Rows `a` (of N*) and `b` (of D*), columns value, low, high."""
        return self.intervals().loc[["a", "b"], _ENDS]

    @property
    def ratio(self) -> pd.Series:
        """b / a: how many times faster ln(data) grows than ln(model size); value, low, high."""
        return self.intervals().loc["ratio", _ENDS]

    @property
    def coefficients(self) -> pd.DataFrame:
        """Rows N, D and loss of k * C^exponent: value, low, high of k, and the exponent.

        N in parameters, D in tokens, C in FLOPs. The line of the loss has no floor (no irreducible loss): it
        describes the budgets that were run and must not be extrapolated; it has no interval.
        """
        both = self.intervals()
        rows = {
            "N": [*both.loc["k_params", _ENDS], self.lines["params"].slope],
            "D": [*both.loc["k_tokens", _ENDS], self.lines["tokens"].slope],
            "loss": [float(np.exp(self.lines["loss"].intercept)), np.nan, np.nan, self.lines["loss"].slope],
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=[*_ENDS, "exponent"])

    def intervals(self, confidence: float | None = None) -> pd.DataFrame:
        """Both intervals of a, b, ratio (b / a), k_params and k_tokens, and the wider of the two.

        Columns value, low, high (the wider), bootstrap_low, bootstrap_high, line_low, line_high.
        """
        level = confidence or self.confidence
        rows = {name: self._both(name, level) for name in ("a", "b", "ratio", "k_params", "k_tokens")}
        columns = [*_ENDS, "bootstrap_low", "bootstrap_high", "line_low", "line_high"]
        table = {name: [*wider(draws, line), *draws[1:], *line[1:]] for name, (draws, line) in rows.items()}
        return pd.DataFrame.from_dict(table, orient="index", columns=columns)

    def conf_int(self, confidence: float | None = None) -> pd.DataFrame:
        """Columns low and high of a, b, ratio, k_params, k_tokens at any confidence."""
        return self.intervals(confidence).loc[:, ["low", "high"]]

    def predict(self, flops: float | Sequence[float] | Floats, confidence: float | None = None) -> pd.DataFrame:
        """N* and D* at a compute budget in training FLOPs.

        Rows params and tokens (for several budgets: flops, then quantity), columns value, low, high. The interval is
        of the law as a law: it does not know how far a power law itself fails beyond the data.
        """
        level = confidence or self.confidence
        many = np.atleast_1d(np.asarray(flops, dtype=np.float64))
        rows = {(c, q): self._law_at(q, float(c), level) for c in many for q in _LETTERS}
        frame = pd.DataFrame(list(rows.values()), columns=_ENDS)
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["flops", "quantity"])
        return frame.droplevel("flops") if np.ndim(flops) == 0 else frame

    def _both(self, name: str, confidence: float) -> tuple[Interval, Interval]:
        """The bootstrap's and the line's interval."""
        if name == "ratio":
            return self._ratio(confidence)
        if name.startswith("k_"):
            logs = self._line_at(name.removeprefix("k_"), 0.0, confidence)
            return exponential(logs[0]), exponential(logs[1])
        line = self.lines["params" if name == "a" else "tokens"]
        return self._drawn(line.slope, self.draws[name], confidence), t_interval(
            line.slope, line.slope_se, line.dof, confidence
        )

    def _ratio(self, confidence: float) -> tuple[Interval, Interval]:
        first, second = self.lines["params"], self.lines["tokens"]
        value = second.slope / first.slope
        variance = second.variance - 2.0 * value * self.covariance + value**2 * first.variance
        se = float(np.sqrt(max(variance, 0.0) / first.sxx)) / abs(first.slope)  # delta method
        draws = self._drawn(value, self.draws["b"] / self.draws["a"], confidence)
        return draws, t_interval(value, se, first.dof, confidence)

    def _line_at(self, quantity: str, x: float, confidence: float) -> tuple[Interval, Interval]:
        """ln of N* or D* at ln C = x."""
        line = self.lines[quantity]
        drawn = self.draws[f"ln_k_{quantity}"] + self.draws[_LETTERS[quantity]] * x
        return (
            self._drawn(line.at(x), drawn, confidence),
            t_interval(line.at(x), line.se_at(x), line.dof, confidence),
        )

    def _law_at(self, quantity: str, flops: float, confidence: float) -> Interval:
        return exponential(wider(*self._line_at(quantity, float(np.log(flops)), confidence)))

    def _drawn(self, value: float, draws: Floats, confidence: float) -> Interval:
        return draws_interval(value, draws, self.noise.residual_dof, confidence)

    def headline(self) -> str:
        """The result in one sentence; where the interval of b / a holds 1, it says so."""
        table = self.intervals()
        a, b, ratio = (table.loc[name].to_dict() for name in ("a", "b", "ratio"))
        laws = f"N* ~ C^{_span(a)}, D* ~ C^{_span(b)}"
        value, open_question = ratio["value"], ratio["low"] <= 1.0 <= ratio["high"]
        doubt = " (equal pace is not ruled out)" if open_question else ""
        if min(a["value"], b["value"]) <= 0.0:
            return f"Optimal {'data' if a['value'] > 0.0 else 'model size'} does not grow with compute: {laws}"
        if abs(value - 1.0) < 0.05:
            return f"Optimal model size and data grow at about the same pace: {laws}"
        if value > 1.0:
            return f"Optimal data grows {value:.2g}x faster than optimal model size{doubt}: {laws}"
        return f"Optimal model size grows {1.0 / value:.2g}x faster than optimal data{doubt}: {laws}"

    def summary(self) -> str:
        """The result as text for a terminal."""
        from isoflop.fitting.summary import summary_text

        return summary_text(self)

    def to_dict(self) -> dict[str, Any]:
        """One entry of fit.json's `fits`; numbers with all digits, null for what isn't known or isn't bounded."""
        from isoflop.fitting.save import fit_entry

        return fit_entry(self)

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Profiles with parabolas and optima."""
        from isoflop.reporting.plots import plot_profiles

        return plot_profiles(self, ax=ax)

    def _repr_html_(self) -> str:
        exponents = self.intervals().loc[["a", "b", "ratio"]].to_html(float_format=lambda v: f"{v:.4f}")
        profiles = self.profiles.to_html(float_format=lambda v: f"{v:.5g}", index=False)
        notes = "".join(f"<li>{escape(d['message'])}</li>" for d in self.diagnostics)
        return f"<p><b>{escape(self.headline())}</b></p>{exponents}{profiles}<ul>{notes}</ul>"


def _span(row: dict[Any, float]) -> str:
    value, low, high = (row[k] for k in _ENDS)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(high - low) else f"{value:.3f} [unbounded]"
