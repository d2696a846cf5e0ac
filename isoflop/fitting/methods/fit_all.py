"""Fits of one table of runs by several methods, with the reason for each method that is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.methods.envelope import fit_envelope
from isoflop.fitting.methods.isoflop import (
    DEFAULT_USE,
    AllowedStatuses,
    check_profile_options,
    fit_isoflop,
    parse_statuses,
)
from isoflop.fitting.methods.joint import fit_joint
from isoflop.fitting.methods.parametric import HuberDelta, check_surface_options, fit_parametric
from isoflop.fitting.results.base import Fit
from isoflop.fitting.tables.columns import option_text
from isoflop.fitting.tables.fit_table import RunsTable, read_table
from isoflop.fitting.tables.table_files import read_frame
from isoflop.fitting.terms import Axis, LossUnit
from isoflop.shapes import ParamCount

Method = Literal["isoflop", "joint", "parametric", "envelope"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHODS: tuple[Method, ...] = ("isoflop", "joint", "parametric")
"""Methods used unless some are named: not the envelope, whose optima are sizes that were run."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Options of all methods; see `fit_isoflop`, `fit_joint` and `fit_parametric`.

    Attributes:
        columns: the source's column by canonical name: `params, tokens, loss, flops, budget`.
        logs: options for reading loss logs: `run, step, split, beside, final` of `read_table`.
        huber_delta: Huber's delta of the parametric law; the joint fit takes least squares if it is
            infinite, else its own.
        drop_outliers: distance from the parametric law, in robust standard deviations, beyond which
            a run is left out of all methods.
    """

    axis: Axis = "params"
    n: ParamCount = "total"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)
    loss_unit: LossUnit = "nats"
    use: AllowedStatuses = DEFAULT_USE
    huber_delta: HuberDelta = "adaptive"
    bootstrap: int = 4000
    seed: int = 0
    confidence: float = 0.95
    drop_outliers: float | None = None

    def check(self) -> None:
        """Check the options before anything is read.

        Raises:
            FitError: an option that no method accepts.
        """
        check_profile_options(self.axis, self.bootstrap, self.confidence)
        parse_statuses(self.use)
        check_surface_options(
            self.huber_delta, "log", self.bootstrap, "case", self.confidence, self.drop_outliers
        )


@dataclass(frozen=True, eq=False)
class FitSet:
    """Fits of one table by several methods.

    Attributes:
        fits: in the order of the methods requested.
        refused: reason why a method could not be fitted, by method.
        options: options of the fits.
    """

    fits: tuple[Fit, ...]
    refused: dict[str, str]
    options: FitOptions


def fit_laws(
    runs: pd.DataFrame | str | Path | RunsTable,
    methods: Sequence[str] = DEFAULT_METHODS,
    options: FitOptions = FitOptions(),
) -> FitSet:
    """Fit a table by several methods.

    Args:
        runs: a table of runs, its file, a sweep's directory, or a `RunsTable`; see `read_table`.
        methods: `isoflop`, `joint`, `parametric`, `envelope`.
        options: options of all methods.

    Raises:
        FitError: an unknown method, an invalid option, a table that can't be read, or no method
            that can be fitted.
    """
    chosen = parse_methods(methods)
    options.check()
    table = read_shared_table(runs, options)
    if options.drop_outliers is not None:
        table = fit_parametric(
            table, huber_delta=options.huber_delta, bootstrap=0, drop_outliers=options.drop_outliers
        ).runs
    fits, refused = [], {}
    for method in chosen:
        try:
            fits.append(fit_method(method, table, options))
        except FitError as error:
            refused[method] = str(error)
    if not fits:
        raise FitError(_refusal(table, refused))
    return FitSet(tuple(fits), refused, options)


def parse_methods(names: Sequence[str]) -> tuple[Method, ...]:
    """Return methods by name, each once.

    Raises:
        FitError: an unknown name, or none.
    """
    methods: dict[str, Method] = {method: method for method in METHODS}
    for name in names:
        if name not in methods:
            raise FitError(f"unknown method {name!r}: {', '.join(METHODS)}")
    if not names:
        raise FitError(f"no method is named: {', '.join(METHODS)}")
    return tuple(dict.fromkeys(methods[name] for name in names))


def read_shared_table(
    runs: pd.DataFrame | str | Path | RunsTable, options: FitOptions, n: ParamCount | None = None
) -> RunsTable:
    """Return the table that all methods share; its runs need not fall into budgets."""
    columns = options.columns
    return read_table(
        runs,
        params=columns.get("params") if n is None else None,
        tokens=columns.get("tokens"),
        loss=columns.get("loss"),
        flops=columns.get("flops"),
        budget=columns.get("budget"),
        n=n or options.n,
        loss_unit=options.loss_unit,
        need_budgets=False,
        **options.logs,
    )


def fit_method(method: Method, table: RunsTable, options: FitOptions) -> Fit:
    """Fit a table by one method.

    Raises:
        FitError: the runs can't be fitted by this method.
    """
    level = options.confidence
    if method == "parametric":
        return fit_parametric(
            table,
            huber_delta=options.huber_delta,
            bootstrap=options.bootstrap,
            confidence=level,
            seed=options.seed,
        )
    if method == "envelope":
        return fit_envelope(table, confidence=level)
    if table.budgets_are_flops:
        raise FitError(
            f"{table.source}: the FLOPs don't fall into budgets; "
            f"name a column of budgets with {option_text(table.source, 'budget')}"
        )
    if method == "joint":
        huber = options.huber_delta != float("inf")
        return fit_joint(table, axis=options.axis, huber=huber, confidence=level)
    return fit_isoflop(
        table,
        axis=options.axis,
        use=options.use,
        bootstrap=options.bootstrap,
        confidence=level,
        seed=options.seed,
    )


def loss_columns(runs: pd.DataFrame | str | Path, loss: str | None) -> list[str | None]:
    """Return the columns of losses to fit.

    Args:
        runs: a table or its source; read only for `all`.
        loss: names separated by commas; or `all` for `loss` and each `loss_...` with a value; None
            for the default column, returned as [None].

    Raises:
        FitError: a source that can't be read, or has no such column.
    """
    if loss != "all":
        return [None] if loss is None else [name.strip() for name in loss.split(",")]
    frame = runs if isinstance(runs, pd.DataFrame) else read_frame(runs)
    names = [str(name) for name in frame.columns if name == "loss" or str(name).startswith("loss_")]
    filled = [name for name in names if bool(frame[name].notna().any())]
    if not filled:
        source = "the table" if runs is frame else runs
        raise FitError(f"{source}: has no column of losses; name them with --loss")
    return list(filled)


def _refusal(table: RunsTable, refused: Mapping[str, str]) -> str:
    reasons = {
        method: reason.removeprefix(f"{table.source}: ") for method, reason in refused.items()
    }
    if len(set(reasons.values())) == 1:
        return f"{table.source}: {next(iter(reasons.values()))}"
    by_method = "; ".join(f"{method}: {reason}" for method, reason in reasons.items())
    return f"{table.source}: no method can be fitted. {by_method}"
