"""Table of runs in canonical form, and its reader for every source.

Columns have canonical names and units, rows are usable runs, and each run has a budget.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.budgets import (
    FLOPS_AS_BUDGET,
    cluster,
    label_by_flops,
    merge_rounded_budgets,
)
from isoflop.fitting.tables.checks import check_table, refuse_falling_flops, refuse_mixed_units
from isoflop.fitting.tables.columns import (
    SETTING_COLUMNS,
    first_column,
    parse_number,
    resolve_columns,
)
from isoflop.fitting.tables.final_loss import FINAL_RULES
from isoflop.fitting.tables.log_detection import LogOptions, is_log
from isoflop.fitting.tables.log_summary import summarise_logs
from isoflop.fitting.tables.nested_columns import unnest, unpivot_chart
from isoflop.fitting.tables.rows import DroppedRows, as_text, dropped_text, find_name_column
from isoflop.fitting.tables.sources import RunsSource, read_source
from isoflop.fitting.tables.table_files import read_frame, refuse_duplicates
from isoflop.fitting.tables.usable_rows import (
    drop_copies,
    select_finished,
    select_numeric,
    select_planned,
)
from isoflop.fitting.terms import FinalRule, Finding, LossUnit
from isoflop.frames import Floats, column
from isoflop.shapes import ParamCount

__all__ = [
    "CANONICAL_COLUMNS",
    "SETTING_COLUMNS",
    "DroppedRows",
    "Finding",
    "LossUnit",
    "ReadOptions",
    "RunsTable",
    "cluster",
    "read_table",
]

CANONICAL_COLUMNS = ("params", "tokens", "loss", "flops", "budget")


class ReadOptions(TypedDict, total=False):
    """Columns and units of a table of runs: arguments of `read_table` common to all fits."""

    params: str | None
    tokens: str | None
    loss: str | None
    flops: str | None
    budget: str | None
    n: ParamCount
    loss_unit: LossUnit


@dataclass(frozen=True, eq=False)
class RunsTable:
    """Usable runs in a fixed order, one row a run, all numbers in float64.

    Attributes:
        frame: `params, tokens, loss` (nats per token), `flops` (training FLOPs), `budget` (FLOPs,
            the label of the run's profile), `config` (number of the configuration, shared by its
            seeds); `seed, epochs, run_id` where the source has them.
        source: file or directory of the runs; `the table` for a DataFrame.
        n: parameter count that `params` is.
        columns: canonical name -> name in the source; a name in brackets is a derived column.
        loss_unit: unit of the losses in the source.
        dropped: rows left out, with the reason.
        findings: doubts about the table, as code and message.
        reading: one line on the source, its rows and its columns.
        hash: SHA-256 of the canonical columns, the same for every order of rows.
    """

    frame: pd.DataFrame
    source: str
    n: ParamCount
    columns: dict[str, str]
    loss_unit: LossUnit = "nats"
    dropped: tuple[DroppedRows, ...] = ()
    findings: tuple[Finding, ...] = ()
    reading: str = ""
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", _hash(self.frame))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def configurations(self) -> pd.DataFrame:
        """Return a row a configuration: means over its seeds, `seeds` (their number) and `loss_sd`.

        `loss_sd` is the standard deviation between seeds in nats, NaN for one seed.
        """
        return self._configurations.copy()

    @cached_property
    def _configurations(self) -> pd.DataFrame:
        groups = self.frame.groupby("config", sort=True)
        means = cast(pd.DataFrame, groups[list(CANONICAL_COLUMNS)].mean())
        return means.assign(seeds=groups.size(), loss_sd=groups["loss"].std()).reset_index()

    @property
    def budgets_are_flops(self) -> bool:
        """True if the runs have no common budgets: each run's budget is its FLOPs."""
        return self.columns.get("budget") == FLOPS_AS_BUDGET

    def array(self, name: str) -> Floats:
        """Return a canonical column as float64, one value a run."""
        return column(self.frame, name)


def read_table(
    source: pd.DataFrame | str | Path | RunsTable,
    *,
    params: str | None = None,
    tokens: str | None = None,
    loss: str | None = None,
    flops: str | None = None,
    budget: str | None = None,
    n: ParamCount = "total",
    loss_unit: LossUnit = "nats",
    run: str | None = None,
    step: str | None = None,
    split: str | None = None,
    beside: pd.DataFrame | str | Path | None = None,
    final: FinalRule = "auto",
    need_budgets: bool = True,
) -> RunsTable:
    """Read runs into a table with canonical columns.

    A column's name may have a factor, as in `params_m*1e6`. The name `params` or `loss` also
    matches `config.params` or `train/loss` if no other column ends so. Columns of dictionaries or
    JSON become columns with dotted names. Rows with numbers that are missing, infinite or not
    positive are left out, with the reason, unless at least half of a column is bad.

    A loss log (many rows a run, see `log_detection.is_log`) becomes a row a run: tokens and FLOPs
    at its end, and its final loss by the rule `final`. Runs that diverged, stopped before their
    planned steps, or whose learning rate did not decay are left out.

    Args:
        source: DataFrame, a sweep's directory, a Parquet, CSV, TSV or JSONL file, a folder of such
            files, of TensorBoard's event files (needs tensorboard) or of offline runs of W&B (needs
            wandb).
        params: column of parameter counts; default: the column that `n` names (`params` or
            `params_total`, `params_one_embedding`, `params_non_embedding`).
        tokens: column of training tokens; default `tokens`.
        loss: column of losses; default `loss`.
        flops: column of training FLOPs, or `6ND`; default `flops` or `train_flops`, else the
            budget.
        budget: column of planned budgets; default `budget`, else the FLOPs, clustered in log space,
            never rounded.
        n: parameter count of the law; recorded in the result.
        loss_unit: unit of the losses; bits are converted to nats.
        run: column of the runs' names in a loss log.
        step: column of the steps in a loss log; a table with a named step column is a log.
        split: value of a log's column `split` whose loss counts; default: the one that isn't
            `train`.
        beside: a table with a row a run, and its name in `run`, for the columns that a log lacks.
        final: `line` (the end of a straight line through the log loss of the last tenth of the
            run), `mean` (of the log loss over the last 5%), `last`; `auto` is `last` for a held-out
            loss and for fewer than 8 rows in the last tenth, else `line`.
        need_budgets: refuse FLOPs that don't fall into budgets; otherwise each run's budget is then
            its own FLOPs.

    Raises:
        FitError: one line that names file, column and rows.
    """
    if isinstance(source, RunsTable):
        return source
    if loss_unit not in ("nats", "bits"):
        raise FitError(f"unknown loss unit {loss_unit!r}: nats or bits")
    if final not in FINAL_RULES:
        raise FitError(f"unknown rule {final!r} for the final loss: {', '.join(FINAL_RULES)}")
    raw_source = read_source(source)
    options = LogOptions(loss, tokens, flops, params, budget, run, step, split, final)
    raw, text, dropped, findings = _list_runs(raw_source, options, beside)
    where = raw_source.where
    names = resolve_columns(
        raw, where, params=params, tokens=tokens, loss=loss, flops=flops, budget=budget, n=n
    )
    raw, unfinished = select_finished(raw, where)
    raw, recipe_checks = select_planned(raw, where)
    frame, broken = select_numeric(raw, names, where)
    raw = cast(pd.DataFrame, raw.loc[frame.index])
    if loss_unit == "bits":
        frame["loss"] *= math.log(2.0)
    derived, grouping_findings = _fill_flops_and_budget(frame, where, need_budgets)
    names |= derived
    frame, copies = drop_copies(_add_extras(frame, raw))
    refuse_mixed_units(frame, names, where)
    refuse_falling_flops(frame, names, where)
    findings += [*grouping_findings, *check_table(frame, names)]
    frame = frame.sort_values(
        [*CANONICAL_COLUMNS, *(c for c in ("seed",) if c in frame)],
        kind="stable",
        ignore_index=True,
    )
    return RunsTable(
        frame,
        where,
        n,
        names,
        loss_unit,
        tuple(dropped + unfinished + recipe_checks + broken + copies),
        tuple(findings),
        _reading_text(text, frame, names),
    )


def _list_runs(
    source: RunsSource, options: LogOptions, beside: pd.DataFrame | str | Path | None
) -> tuple[pd.DataFrame, str, list[DroppedRows], list[Finding]]:
    """Return a row a run from any source, a text on the source, rows left out, and findings.

    Raises:
        FitError: columns with several levels of names or with one name, or no usable run.
    """
    levels = source.frame.columns.nlevels
    if levels > 1:
        raise FitError(f"{source.where}: its columns have {levels} levels of names; one is needed")
    raw = source.frame.reset_index(drop=True)
    refuse_duplicates(list(raw.columns), source.where)
    raw = unnest(unpivot_chart(raw))
    table, beside_where = None, str(beside)
    if beside is not None:
        if isinstance(beside, pd.DataFrame):
            table, beside_where = beside, "the beside= table"
        else:
            table = read_frame(beside)
        table = unnest(table.reset_index(drop=True))
    if len(raw) and (source.log or beside is not None or is_log(raw, source.where, options)):
        summary = summarise_logs(raw, source.where, options, table, beside_where)
        if not len(summary.frame):
            raise FitError(f"{source.where}: no run can be used: {dropped_text(summary.dropped)}")
        text = f"{source.kind}: {summary.text}"
        return summary.frame, text, [*source.dropped, *summary.dropped], summary.findings
    return raw, f"{source.kind} with {len(raw):,} rows", list(source.dropped), []


def _fill_flops_and_budget(
    frame: pd.DataFrame, where: str, needed: bool
) -> tuple[dict[str, str], list[Finding]]:
    """Group runs into budgets, and add, in place, the column that the source lacks.

    Returns:
        Canonical name -> name in brackets of the added column, and findings about the budgets.

    Raises:
        FitError: FLOPs that cannot be grouped, if `needed`.
    """
    if "budget" not in frame:
        labelled = label_by_flops(column(frame, "flops"), column(frame, "params"), where, needed)
        frame["budget"] = labelled.budgets
        return {"budget": labelled.column}, labelled.findings
    frame["budget"] = merge_rounded_budgets(column(frame, "budget"))
    if "flops" in frame:
        return {}, []
    frame["flops"] = frame["budget"]
    return {"flops": "(budget)"}, []


def _add_extras(frame: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the configuration's number and columns for diagnostics and figures."""
    key = frame[["budget", "params", "tokens"]].copy()
    for name in SETTING_COLUMNS:
        if name in raw.columns:
            key[name] = as_text(raw, name)
    frame = frame.loc[:, list(CANONICAL_COLUMNS)].copy()
    frame["config"] = key.groupby(list(key.columns), sort=True, dropna=False).ngroup()
    for name in ("seed", "epochs"):
        source_name = first_column(raw, (name,))
        if source_name is not None:
            values = [parse_number(cell) for cell in cast(list[object], raw[source_name].tolist())]
            frame[name] = [math.nan if value is None else value for value in values]
    if "simulated" in raw.columns:  # booleans, or their text in a CSV
        frame["simulated"] = (
            raw["simulated"].astype(str).str.lower().isin(("true", "1", "1.0")).astype(np.float64)
        )
    name = find_name_column(raw)
    if name is not None:
        frame["run_id"] = as_text(raw, name)
    return frame


def _reading_text(source: str, frame: pd.DataFrame, names: dict[str, str]) -> str:
    """Return one line on the source, its runs, its budgets and its columns."""
    columns = ", ".join(key if key == name else f"{key} = {name}" for key, name in names.items())
    budgets = len(set(column(frame, "budget")))
    plural = "s" if budgets != 1 else ""
    return f"{source}: {len(frame):,} runs at {budgets} budget{plural}; {columns}"


def _hash(frame: pd.DataFrame) -> str:
    """Return the SHA-256 of the canonical columns as little-endian float64, sorted by row."""
    rows = np.ascontiguousarray(frame[list(CANONICAL_COLUMNS)].to_numpy(dtype="<f8"))
    rows = rows[np.lexsort(rows.T[::-1])]
    return hashlib.sha256(",".join(CANONICAL_COLUMNS).encode() + rows.tobytes()).hexdigest()
