"""Parts that all fits share beside their laws: runs, findings, plots, printing and JSON."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.fitting.results.fitted_laws import Laws, is_informative
from isoflop.fitting.tables.budgets import resolve_budget_flops
from isoflop.fitting.tables.provenance import Provenance
from isoflop.fitting.terms import ENDS, EXPONENT_LETTERS, METHOD_TITLES, Quantity, span_text
from isoflop.frames import Bools, Floats, records, rows
from isoflop.json_values import to_json_value
from isoflop.text import count_text, percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoflop.fitting.estimators.noise import Noise
    from isoflop.fitting.tables.fit_table import RunsTable
    from isoflop.plotting.law_plots import LawPoints
    from isoflop.shapes import ParamCount

MIN_LAW_BUDGETS = 3
"""Least number of budgets at which runs can contradict a power law."""
LAW_PARAMETERS = frozenset({"a", "b", "k", "alpha", "beta"})


class Fit(Laws):
    """Laws, and the runs that they were fitted to; see `Laws`.

    Attributes:
        runs: the table that was fitted.
        noise: noise of the runs.
    """

    runs: RunsTable
    noise: Noise

    @property
    def no_law(self) -> str:
        """Return the reason why the exponents are not a result; empty if they may be one."""
        if (budgets := len(set(self.runs.array("budget")))) < MIN_LAW_BUDGETS:
            plural = "s" if budgets > 1 else ""
            return (
                f"The runs are at {budgets} budget{plural}; at least {MIN_LAW_BUDGETS} are needed "
                "to determine the growth of the optimum with compute."
            )
        if bounded := sorted(LAW_PARAMETERS & set(self.at_bounds)):
            verb = "is" if len(bounded) == 1 else "are"
            return f"{' and '.join(bounded)} {verb} at a bound: the runs do not determine the law."
        if not is_informative(table := self.intervals()):
            a = span_text(table.loc["a"].to_dict())
            return f"The runs do not determine the growth of the optimum with compute: N* ~ C^{a}."
        messages = (d["message"] for d in self.diagnostics if d["code"] == "not_converged")
        return next(messages, "")

    @property
    def at_bounds(self) -> list[str]:
        """Names of the parameters that the optimiser left at a bound."""
        return []

    def configuration_name(self, config: int) -> str:
        """Return the name of a configuration: its run's, else its N and D."""
        table = self.runs.frame
        row = records(rows(table, table["config"].to_numpy() == config))[0]
        if "run_id" in row:
            return str(row["run_id"])
        return f"N = {count_text(row['params'])}, D = {count_text(row['tokens'])}"

    @property
    def n(self) -> ParamCount:
        """Return the parameter count that N stands for."""
        return self.runs.n

    @property
    def loss_column(self) -> str:
        """Return the name of the column of the loss."""
        return self.runs.columns["loss"]

    @property
    def provenance(self) -> Provenance:
        """Return the source of the runs."""
        return Provenance.from_table(self.runs)

    @property
    def reach(self) -> tuple[float, float]:
        """Return the least and the greatest budget fitted, in FLOPs."""
        flops, budgets = self.runs.array("flops"), self.runs.array("budget")
        levels = resolve_budget_flops(budgets, flops, np.ones_like(flops))[self._fitted(budgets)]
        return float(levels.min()), float(levels.max())

    def _fitted(self, budgets: Floats) -> Bools:
        """Return a mask of the runs, by their budgets, that the law was fitted to."""
        return np.ones(len(budgets), dtype=bool)

    # Figures

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the figure of the method."""

    @property
    @abstractmethod
    def fitted_flops(self) -> Floats:
        """Training FLOPs of the points that the laws were fitted to."""

    @abstractmethod
    def _law_points(self, quantity: Quantity) -> LawPoints:
        """Return the points that a law of N*, D* or the loss is drawn with."""

    def plot_law(self, quantity: Quantity = "params", ax: Axes | None = None) -> Axes:
        """Draw N*, D* or the loss against compute, with both intervals of `predict`.

        Raises:
            FitError: the loss of a fit that has no law of it.
        """
        from isoflop.errors import FitError
        from isoflop.plotting.law_plots import LawData, plot_law

        if quantity == "loss" and "loss" not in self.law_at(1e18, self.confidence):
            raise FitError(f"the {self.method} fit has no law of the loss: fit_parametric has")
        allowance = "model error" if self.rollout else "skew" if self.skew else ""
        exponent = (
            {} if quantity == "loss" else self.exponents.loc[EXPONENT_LETTERS[quantity]].to_dict()
        )
        data = LawData(
            quantity=quantity,
            predict=lambda flops: self.predict(flops).xs(quantity, level="quantity"),
            fitted_flops=self.fitted_flops,
            points=self._law_points(quantity),
            exponent={str(end): float(value) for end, value in exponent.items()},
            confidence=self.confidence,
            allowance=allowance,
            n=self.n,
        )
        return plot_law(data, ax)

    def plot_rollout(self, quantity: Quantity | None = None, ax: Axes | None = None) -> Axes:
        """Draw the errors of predictions of hidden budgets from the smaller ones.

        Args:
            quantity: default the loss where the law has it, else the axis of the profiles.

        Raises:
            FitError: a fit with too few budgets or runs to hide a budget; the loss of a fit that
                has no law of it.
        """
        from isoflop.errors import FitError
        from isoflop.plotting.law_plots import plot_rollout

        if self.rollout is None:
            raise FitError(
                f"the {self.method} fit has no hold-out test: too few budgets or runs to hide one"
            )
        known = self.rollout.quantities
        default: Quantity = "loss" if "loss" in known else getattr(self, "axis", "params")
        chosen = quantity or default
        if chosen not in known:
            names = " and ".join(known)
            raise FitError(
                f"the hold-out test of the {self.method} fit predicts {names}, not {chosen}"
            )
        rate = self.rollout.allowance(chosen, self.rollout.reach[1] * np.e).item()
        return plot_rollout(self.rollout.errors(chosen), chosen, rate, ax)

    # Text, JSON and HTML

    def summary(self) -> str:
        """Return the result as text for a terminal, no line wider than 92 characters."""
        from isoflop.fitting.results.summary import summary_text

        return summary_text(
            title=METHOD_TITLES[self.method],
            headline=self.headline(),
            source=self.runs.source,
            facts=self._facts(),
            intervals=self.intervals(),
            confidence=self.confidence,
            details=self._details(),
            findings=self.diagnostics,
        )

    def _facts(self) -> list[tuple[str, str]]:
        """Return name and value of the facts in the head of the summary."""
        noise = self.noise
        seeds, misfit = "no replicates", "-"
        if noise.replicate_dof:
            seeds = f"{percent_text(noise.replicate_sd)} ({noise.replicate_dof} dof)"
        if not np.isnan(noise.residual_sd):
            misfit = f"{percent_text(noise.residual_sd)} ({noise.residual_dof} dof)"
        return [
            ("Runs", f"{len(self.runs)}"),
            ("Configurations", f"{self.runs.frame['config'].nunique()}"),
            ("Loss", f"{self.loss_column} (nats)"),
            ("N counts", self.n.replace("_", " ")),
            ("Residual sd", misfit),
            ("Seed sd", seeds),
        ]

    @abstractmethod
    def _details(self) -> list[str]:
        """Return the lines that the method adds to the summary."""

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of fit.json's `fits`: numbers with all digits, null for unknown or
        unbounded ones.
        """
        table = self.intervals()
        law = self.law_estimate.to_dict() | {
            "budgets": list(self.reach),
            "rollout": None if self.rollout is None else self.rollout.to_dict(),
        }
        if self.skew is not None:
            law["skew"] = self.skew.to_dict()
        entry = {
            "method": self.method,
            "n": self.n,
            "loss": self.loss_column,
            "hash": self.provenance.hash,
            "confidence": self.confidence,
            "exponents": {name: interval_entry(table.loc[name].to_dict()) for name in ("a", "b")},
            "ratio": interval_entry(table.loc["ratio"].to_dict()),
            "no_law": self.no_law or None,
            "noise": vars(self.noise),
            **self._entry(),
            "rollout": [] if self.rollout is None else records(self.rollout.table()),
            "law": law,
            "diagnostics": [dict(finding) for finding in self.diagnostics],
        }
        return to_json_value(entry)

    @abstractmethod
    def _entry(self) -> dict[str, Any]:
        """Return the keys that the method adds to `to_dict`."""

    def to_json(self, indent: int | None = 2) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def _repr_html_(self) -> str:
        from isoflop.fitting.results.html import fit_html

        facts = [
            METHOD_TITLES[self.method],
            f"{len(self.runs)} runs",
            f"loss: {self.loss_column}",
            f"N counts {self.n}",
        ]
        if not np.isnan(self.noise.residual_sd):
            facts.append(f"residual sd {percent_text(self.noise.residual_sd)}")
        return fit_html(
            headline=self.headline(),
            facts="; ".join(facts).replace("_", " "),
            intervals=self.intervals(),
            confidence=self.confidence,
            profiles=getattr(self, "profiles", None),
            axis=getattr(self, "axis", "params"),
            findings=self.diagnostics,
        )


def interval_entry(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return value, low and high for fit.json; and, where it is the wider of two, the two."""
    entry = {end: row[end] for end in ENDS}
    for kind in ("bootstrap", "line"):
        if f"{kind}_low" in row:
            entry[kind] = [row[f"{kind}_low"], row[f"{kind}_high"]]
    return entry
