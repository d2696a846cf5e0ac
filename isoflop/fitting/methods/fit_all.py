"""Several methods on one table of runs: what can be fitted is, and the rest says why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators.outliers import same_rows
from isoflop.fitting.methods.envelope import fit_envelope
from isoflop.fitting.methods.isoflop import Use, check_options, fit_isoflop, statuses_of
from isoflop.fitting.methods.joint import fit_joint
from isoflop.fitting.methods.parametric import Delta, fit_parametric
from isoflop.fitting.methods.parametric import check_options as check_surface
from isoflop.fitting.results.base import Fit
from isoflop.fitting.tables.budgets import OWN
from isoflop.fitting.tables.readers import read_frame
from isoflop.fitting.tables.runs_table import RunsTable, read_table
from isoflop.fitting.terms import Axis, LossUnit
from isoflop.shapes import ParamCount

Method = Literal["isoflop", "joint", "parametric", "envelope"]
METHODS: tuple[Method, ...] = get_args(Method)
USUAL: tuple[Method, ...] = ("isoflop", "joint", "parametric")
"""What is fitted unless a method is named: the envelope knows its optima no better than the sizes lie apart."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How runs are fitted; see `fit_isoflop`, `fit_joint` and `fit_parametric`.

    Attributes:
        columns: canonical name to the source's: `params, tokens, loss, flops, budget`.
        logs: how loss logs are read: `run, step, split, beside, final` of `read_table`.
        huber_delta: of the parametric law; the joint fit takes least squares where it is infinite, else its own.
        drop_outliers: robust standard deviations off the parametric law beyond which no method sees a run.
    """

    axis: Axis = "params"
    n: ParamCount = "total"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)
    loss_unit: LossUnit = "nats"
    use: Use = ("interior",)
    huber_delta: Delta = "adaptive"
    bootstrap: int = 4000
    seed: int = 0
    confidence: float = 0.95
    drop_outliers: float | None = None

    def check(self) -> None:
        """Refuses what no method takes, before anything is read.

        Raises:
            FitError: in one line.
        """
        check_options(self.axis, self.bootstrap, self.confidence)
        statuses_of(self.use)
        check_surface(
            self.huber_delta, "log", self.bootstrap, "case", self.confidence, self.drop_outliers
        )


@dataclass(frozen=True, eq=False)
class FitSet:
    """What came of several methods.

    Attributes:
        fits: in the order asked for.
        refused: why a method could not be fitted, by method.
        options: that they were fitted with.
    """

    fits: tuple[Fit, ...]
    refused: dict[str, str]
    options: Options


def fit_laws(
    runs: pd.DataFrame | str | Path | RunsTable,
    methods: Sequence[str] = USUAL,
    options: Options = Options(),
) -> FitSet:
    """Fits a table by several methods.

    Args:
        runs: a table (see `read_table`).
        methods: `isoflop`, `joint`, `parametric`, `envelope`.

    Raises:
        FitError: a method or an option that is none, a table that can't be read, or no method that can be fitted.
    """
    chosen = methods_of(methods)
    options.check()
    table = table_of(runs, options)
    if options.drop_outliers is not None:
        table = fit_parametric(
            table, huber_delta=options.huber_delta, bootstrap=0, drop_outliers=options.drop_outliers
        ).runs
    fits, refused = [], {}
    for method in chosen:
        try:
            fits.append(fit_one(method, table, options))
        except FitError as reason:
            refused[method] = str(reason)
    if not fits:
        raise FitError(_all_refused(table, refused))
    return FitSet(tuple(fits), refused, options)


def methods_of(names: Sequence[str]) -> tuple[Method, ...]:
    """Methods by name, each once.

    Raises:
        FitError: a name that is none.
    """
    known: dict[str, Method] = {method: method for method in METHODS}
    for name in names:
        if name not in known:
            raise FitError(f"unknown method {name!r}: {', '.join(METHODS)}")
    if not names:
        raise FitError(f"no method is named: {', '.join(METHODS)}")
    return tuple(dict.fromkeys(known[name] for name in names))


def table_of(
    runs: pd.DataFrame | str | Path | RunsTable, options: Options, n: ParamCount | None = None
) -> RunsTable:
    """The table that methods share; its runs need not fall into budgets."""
    named = options.columns
    return read_table(
        runs,
        params=named.get("params") if n is None else None,
        tokens=named.get("tokens"),
        loss=named.get("loss"),
        flops=named.get("flops"),
        budget=named.get("budget"),
        n=n or options.n,
        loss_unit=options.loss_unit,
        need_budgets=False,
        **options.logs,
    )


def fit_one(method: Method, table: RunsTable, options: Options) -> Fit:
    """One method on a table.

    Raises:
        FitError: the runs can't be fitted by this method.
    """
    if method in ("isoflop", "joint") and table.columns.get("budget") == OWN:
        raise FitError(
            f"{table.source}: the FLOPs don't fall into budgets; name a column of budgets with --budget"
        )
    level, huber = options.confidence, options.huber_delta != float("inf")
    fitters: dict[Method, Callable[[], Fit]] = {
        "isoflop": lambda: fit_isoflop(
            table,
            axis=options.axis,
            use=options.use,
            bootstrap=options.bootstrap,
            confidence=level,
            seed=options.seed,
        ),
        "joint": lambda: fit_joint(table, axis=options.axis, huber=huber, confidence=level),
        "parametric": lambda: fit_parametric(
            table,
            huber_delta=options.huber_delta,
            bootstrap=options.bootstrap,
            confidence=level,
            seed=options.seed,
        ),
        "envelope": lambda: fit_envelope(table, confidence=level),
    }
    return fitters[method]()


def recount(fitted: RunsTable, runs: Any, n: ParamCount, options: Options) -> RunsTable:
    """The runs of a fit with N counted otherwise, without those that the fit left out.

    Raises:
        FitError: the source does not have that count.
    """
    return same_rows(table_of(runs, options, n), fitted)


def loss_columns(runs: pd.DataFrame | str | Path, named: str | None) -> list[str | None]:
    """Columns of losses to fit: `all` is `loss` and every `loss_...` that has one, others are named with commas.

    Raises:
        FitError: a source that can't be read, or has no such column.
    """
    if named != "all":
        return [None] if named is None else [name.strip() for name in named.split(",")]
    frame = runs if isinstance(runs, pd.DataFrame) else read_frame(runs)
    found = [str(name) for name in frame.columns if name == "loss" or str(name).startswith("loss_")]
    filled = [name for name in found if bool(frame[name].notna().any())]
    if not filled:
        raise FitError(
            f"{'the table' if runs is frame else runs}: has no column of losses; name them with --loss"
        )
    return list(filled)


def _all_refused(table: RunsTable, refused: Mapping[str, str]) -> str:
    reasons = {
        method: reason.removeprefix(f"{table.source}: ") for method, reason in refused.items()
    }
    if len(set(reasons.values())) == 1:
        return f"{table.source}: {next(iter(reasons.values()))}"
    return f"{table.source}: no method can be fitted. " + "; ".join(
        f"{m}: {r}" for m, r in reasons.items()
    )
