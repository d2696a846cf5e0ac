"""Result of an IsoFLOP fit: laws through the optima of parabolas, with intervals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.intervals import (
    Interval,
    Line,
    draws_interval,
    exponential,
    percentile_interval,
    t_interval,
    wider,
)
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.skew import Skew
from isoflop.fitting.results.profile_fit import ProfileFit
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import ENDS, EXPONENT_LETTERS, Axis, IntervalKind
from isoflop.frames import Floats, records

if TYPE_CHECKING:
    from isoflop.fitting.terms import Finding

_ESTIMATES = ("a", "b", "ratio", "k_params", "k_tokens")


@dataclass(frozen=True, eq=False)
class LineLawEstimate:
    """Straight lines of ln N* and ln D* on ln C.

    Attributes:
        lines: lines by quantity: `params` and `tokens`.
        covariance: covariance of their residuals.
        draws: bootstrap draws `a, b, ln_k_params, ln_k_tokens`, (R,); empty for a method without
            a bootstrap.
        residual_dof: degrees of freedom of the residuals drawn.
        weighted: the lines weigh budgets by their variances, so their t intervals are the result.
    """

    lines: dict[str, Line]
    covariance: float
    draws: dict[str, Floats] = field(default_factory=dict)
    residual_dof: int = 0
    weighted: bool = False

    @property
    def dof(self) -> int:
        """Return the degrees of freedom of the t intervals."""
        return self.lines["params"].dof

    def intervals(self, confidence: float, kind: IntervalKind | None = None) -> pd.DataFrame:
        """Return intervals of a, b, ratio (b / a), k_params and k_tokens, a row each.

        Columns value, low, high, bootstrap_low, bootstrap_high, line_low, line_high. `low` and
        `high` are the wider of the residual bootstrap (stretched to t quantiles) and the t interval
        of the line; for weighted lines they are the latter. `kind` chooses the line's (`t`) or
        plain percentiles of the resamples (`percentile`). Without draws the columns are value, low
        and high.

        Raises:
            FitError: percentiles without draws.
        """
        if not self.draws:
            if kind == "percentile":
                raise FitError("there are no resamples to take percentiles of, only t intervals")
            rows = {name: list(self._two_intervals(name, confidence)[1]) for name in _ESTIMATES}
            return pd.DataFrame.from_dict(rows, orient="index", columns=ENDS)
        columns = [*ENDS, "bootstrap_low", "bootstrap_high", "line_low", "line_high"]
        table = {}
        for name in _ESTIMATES:
            draws, line = self._two_intervals(name, confidence, percentile=kind == "percentile")
            default = line if self.weighted else wider(draws, line)
            chosen = {"t": line, "percentile": draws}.get(kind or "", default)
            table[name] = [*chosen, *draws[1:], *line[1:]]
        return pd.DataFrame.from_dict(table, orient="index", columns=columns)

    def at(self, flops: float, confidence: float) -> dict[str, Interval]:
        """Return intervals of ln N* (`params`) and ln D* (`tokens`) at a budget in FLOPs."""
        x = float(np.log(flops))
        both = {name: self._line_at(name, x, confidence) for name in EXPONENT_LETTERS}
        return {name: pair[1] if self.weighted else wider(*pair) for name, pair in both.items()}

    def _two_intervals(
        self, name: str, confidence: float, percentile: bool = False
    ) -> tuple[Interval, Interval]:
        """Return the interval of the bootstrap and that of the line."""
        if name == "ratio":
            return self._ratio(confidence, percentile)
        if name.startswith("k_"):
            logs = self._line_at(name.removeprefix("k_"), 0.0, confidence, percentile)
            return exponential(logs[0]), exponential(logs[1])
        line = self.lines["params" if name == "a" else "tokens"]
        draws = self._draws_interval(line.slope, self._resamples(name), confidence, percentile)
        return draws, t_interval(line.slope, line.slope_se, line.dof, confidence)

    def _ratio(self, confidence: float, percentile: bool) -> tuple[Interval, Interval]:
        first, second = self.lines["params"], self.lines["tokens"]
        value = second.slope / first.slope
        variance = second.variance - 2.0 * value * self.covariance + value**2 * first.variance
        shared = np.asarray(second.shared[1]) - value * np.asarray(first.shared[1])
        total = max(variance, 0.0) / first.sxx + float(shared @ shared)
        se = float(np.sqrt(total)) / abs(first.slope)  # delta method
        resamples = self._resamples("b") / self._resamples("a")
        draws = self._draws_interval(value, resamples, confidence, percentile)
        return draws, t_interval(value, se, first.dof, confidence)

    def _line_at(
        self, quantity: str, x: float, confidence: float, percentile: bool = False
    ) -> tuple[Interval, Interval]:
        """Return both intervals of ln N* or ln D* at ln C = x."""
        line, exponent = self.lines[quantity], EXPONENT_LETTERS[quantity]
        resamples = self._resamples(f"ln_k_{quantity}") + self._resamples(exponent) * x
        draws = self._draws_interval(line.at(x), resamples, confidence, percentile)
        return draws, t_interval(line.at(x), line.se_at(x), line.dof, confidence)

    def _resamples(self, name: str) -> Floats:
        return self.draws.get(name, np.empty(0))

    def _draws_interval(
        self, value: float, draws: Floats, confidence: float, percentile: bool
    ) -> Interval:
        if percentile:
            return percentile_interval(value, draws, confidence)
        return draws_interval(value, draws, self.residual_dof, confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return the lines as plain values for fit.json, without the draws."""
        lines = {name: dataclasses.asdict(self.lines[name]) for name in EXPONENT_LETTERS}
        return {
            "lines": lines,
            "covariance": self.covariance,
            "residual_dof": self.residual_dof,
            "weighted": self.weighted,
        }


@dataclass(frozen=True, eq=False)
class IsoflopFit(ProfileFit):
    """Power laws N*(C) = k_N C^a and D*(C) = k_D C^b through the vertices of parabolas; see `Fit`
    and `ProfileFit`.

    Attributes:
        profiles: adds `depth` (nats: the lesser rise of the mean loss above `loss_opt`, at the
            smallest or the largest size), `depth_to_noise` (depth over the noise of one run),
            `interpolation_error` (rms, in ln, of the runs about the curve that the other axis is
            read from).
        lines: least-squares lines of ln N*, ln D* and ln L* on ln C (`params`, `tokens`, `loss`).
        covariance: covariance of the residuals of the first two lines.
        weighted: the first two lines weigh budgets by their variances, since one is `shallow`.
        draws: bootstrap draws: `a, b, ln_k_params, ln_k_tokens` (R,), `optimum` (R, budgets), ln of
            the axis.
        skew: skew of the profiles; None if they do not determine it.
        use: statuses of profiles that enter the laws.
        bootstrap: number of resamples.
        seed: seed of the resampling.
    """

    axis: Axis
    runs: RunsTable
    profiles: pd.DataFrame
    lines: dict[str, Line]
    covariance: float
    weighted: bool
    draws: dict[str, Floats]
    noise: Noise
    rollout: HoldOut | None
    use: tuple[str, ...]
    bootstrap: int
    confidence: float
    seed: int
    diagnostics: list[Finding]
    skew: Skew | None = None

    method = "isoflop"

    @property
    def law_estimate(self) -> LineLawEstimate:
        """Return the numbers of the laws: two lines and their bootstrap draws."""
        dof = self.noise.residual_dof
        return LineLawEstimate(self.lines, self.covariance, self.draws, dof, self.weighted)

    @property
    def coefficients(self) -> pd.DataFrame:
        """Rows N, D and loss of k * C^exponent: value, low, high of k, and the exponent.

        N is in parameters, D in tokens, C in FLOPs. The line of the loss has no irreducible loss:
        it describes the budgets that were run and must not be extrapolated. It has no interval.
        """
        table, loss = self.intervals(), self.lines["loss"]
        rows = {
            "N": [*table.loc["k_params", ENDS], self.lines["params"].slope],
            "D": [*table.loc["k_tokens", ENDS], self.lines["tokens"].slope],
            "loss": [*exponential(Interval(loss.intercept, np.nan, np.nan)), loss.slope],
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=[*ENDS, "exponent"])

    def curve(self, budget: float, size: Floats) -> Floats:
        """Return the loss (K,) of a budget's parabola at sizes (K,) on the axis, nats per token.

        `budget` is a label of `profiles`.
        """
        row = next(row for row in records(self.profiles) if row["budget"] == budget)
        distance = np.log(size / row[f"{self.axis}_opt"])
        return row["loss_opt"] + 0.5 * row["curvature"] * distance**2
