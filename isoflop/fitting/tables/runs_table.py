"""A table of runs in canonical form: which columns, which units, which rows, which budget each run belongs to."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.budgets import OWN, cluster, label_as_planned, label_by_flops
from isoflop.fitting.tables.checks import doubts, refuse_falling_flops, refuse_mixed_units
from isoflop.fitting.tables.columns import (
    SETTINGS,
    SIX_ND,
    canonical_names,
    first_found,
    not_numbers,
    numbers,
    split_factor,
    to_number,
)
from isoflop.fitting.tables.final_loss import RULES, FinalRule
from isoflop.fitting.tables.log_detection import LogOptions, is_log
from isoflop.fitting.tables.loss_logs import one_row_a_run
from isoflop.fitting.tables.nested_columns import unnest
from isoflop.fitting.tables.readers import read_frame, refuse_duplicates
from isoflop.fitting.tables.rows import Dropped, name_rows, run_column, texts
from isoflop.fitting.tables.sources import Source, read_source
from isoflop.fitting.tables.wandb_charts import unpivot
from isoflop.fitting.terms import Finding
from isoflop.frames import column, rows
from isoflop.shapes import ParamCount

__all__ = [
    "CANONICAL",
    "SETTINGS",
    "Dropped",
    "Finding",
    "LossUnit",
    "ReadOptions",
    "RunsTable",
    "cluster",
    "read_table",
]

LossUnit = Literal["nats", "bits"]
Floats = np.ndarray

CANONICAL = ("params", "tokens", "loss", "flops", "budget")
DONE = frozenset({"done", "finished", "completed", "complete", "succeeded", "success"})
_MOST_BAD = 0.5  # of a column's cells: beyond it is the wrong column, not a few broken runs


class ReadOptions(TypedDict, total=False):
    """Columns and units of a table of runs: keyword arguments of `read_table` that every fit takes."""

    params: str | None
    tokens: str | None
    loss: str | None
    flops: str | None
    budget: str | None
    n: ParamCount
    loss_unit: LossUnit


@dataclass(frozen=True, eq=False)
class RunsTable:
    """Runs that can be fitted, a row each, sorted, all in float64.

    Attributes:
        frame: `params, tokens, loss` (nats per token), `flops` (training FLOPs), `budget` (FLOPs that the profile is
            labelled with), `config` (number of the configuration: its seeds share it), and `seed, epochs, run_id`
            where the source has them.
        source: where the runs were read.
        n: which parameter count `params` is.
        columns: canonical name -> name in the source; a name in brackets says how a column was made.
        loss_unit: the unit of the losses in the source.
        dropped: rows left out, and why.
        findings: doubts about the table, as code and message.
        reading: what was read and how, in a line.
    """

    frame: pd.DataFrame
    source: str
    n: ParamCount
    columns: dict[str, str]
    loss_unit: LossUnit = "nats"
    dropped: tuple[Dropped, ...] = ()
    findings: tuple[Finding, ...] = ()
    reading: str = ""
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", _hash(self.frame))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def configurations(self) -> pd.DataFrame:
        """A row a configuration: means over its seeds, `seeds` (how many) and `loss_sd` (NaN for one seed)."""
        groups = self.frame.groupby("config", sort=True)
        means = cast(pd.DataFrame, groups[list(CANONICAL)].mean())
        return means.assign(seeds=groups.size(), loss_sd=groups["loss"].std()).reset_index()

    @property
    def budgets_are_flops(self) -> bool:
        """True for runs without common budgets: each has its own FLOPs for a budget."""
        return self.columns.get("budget") == OWN

    def array(self, name: str) -> Floats:
        """One canonical column as float64."""
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
    """Reads runs and names their columns.

    A column's name may have a factor, as in `params_m*1e6`. `config.params` or `train/loss` is found as `params` or
    `loss`, too, where it is the only one. Columns of dictionaries or JSON are opened to dotted names. Rows with numbers
    that are missing, infinite or not positive are left out, with the reason, unless most of a column is so.

    A loss log (many rows a run, see `logtables.is_log`) becomes a row a run: tokens and FLOPs at its end, and its final
    loss by the rule `final`. Runs that diverged, stopped before their planned steps, or whose learning rate did not
    decay are left out.

    Args:
        source: DataFrame, a sweep's directory, a Parquet, CSV, TSV or JSONL file, a folder of such files, of
            TensorBoard's event files (needs tensorboard) or of offline runs of W&B (needs wandb).
        params: column of parameter counts; default: the column that `n` names (`params` or `params_total`,
            `params_one_embedding`, `params_non_embedding`).
        tokens: column of training tokens; default `tokens`.
        loss: column of losses; default `loss`.
        flops: column of training FLOPs, or `6ND`; default `flops` or `train_flops`, else the budget.
        budget: column of planned budgets; default `budget`, else the FLOPs, clustered in log space, never rounded.
        n: which parameter count the law is about; recorded in the result.
        loss_unit: bits are converted to nats.
        run: column of the runs' names in a loss log.
        step: column of the steps in a loss log; naming it says that the table is one.
        split: value of a log's column `split` whose loss counts; default: the one that isn't `train`.
        beside: a table with a row a run, and its name in `run`, for the columns that a log lacks.
        final: `line` (the end of a straight line through the log loss of the last tenth of the run), `mean` (of the log
            loss over the last 5 %), `last`; `auto` is `last` for a held-out loss and for fewer than 8 rows in the last
            tenth, else `line`.
        need_budgets: refuse FLOPs that don't fall into budgets; else each run gets a budget of its own there.

    Raises:
        FitError: one line that names file, column and rows.
    """
    if isinstance(source, RunsTable):
        return source
    if loss_unit not in ("nats", "bits"):
        raise FitError(f"unknown loss unit {loss_unit!r}: nats or bits")
    if final not in RULES:
        raise FitError(f"unknown rule {final!r} for the final loss: {', '.join(RULES)}")
    read = read_source(source)
    options = LogOptions(loss, tokens, flops, params, budget, run, step, split, final)
    raw, words, dropped, findings = _runs_of(read, options, beside)
    where = read.where
    names = canonical_names(
        raw, where, params=params, tokens=tokens, loss=loss, flops=flops, budget=budget, n=n
    )
    raw, unfinished = _finished(raw, where)
    raw, checks = _planned(raw, where)
    frame, broken = _numeric(raw, names, where)
    raw = cast(pd.DataFrame, raw.loc[frame.index])
    if loss_unit == "bits":
        frame["loss"] *= math.log(2.0)
    made, grouping = _fill_flops_and_budget(frame, where, need_budgets)
    names |= made
    frame, twice = _without_copies(_with_extras(frame, raw))
    refuse_mixed_units(frame, names, where)
    refuse_falling_flops(frame, names, where)
    findings += [*grouping, *doubts(frame, names)]
    frame = frame.sort_values(
        [*CANONICAL, *(c for c in ("seed",) if c in frame)], kind="stable", ignore_index=True
    )
    left_out = tuple(dropped + unfinished + checks + broken + twice)
    return RunsTable(
        frame, where, n, names, loss_unit, left_out, tuple(findings), _reading(words, frame, names)
    )


def _runs_of(
    read: Source, options: LogOptions, beside: pd.DataFrame | str | Path | None
) -> tuple[pd.DataFrame, str, list[Dropped], list[Finding]]:
    """A row a run, whatever the source; with what it was, what was left out, and doubts."""
    if read.frame.columns.nlevels > 1:
        raise FitError(
            f"{read.where}: its columns have {read.frame.columns.nlevels} levels of names; one is needed"
        )
    raw = read.frame.reset_index(drop=True)
    refuse_duplicates(list(raw.columns), read.where)
    raw = unnest(unpivot(raw))
    table, beside_where = (
        None,
        "the table beside" if isinstance(beside, pd.DataFrame) else str(beside),
    )
    if beside is not None:
        table = beside if isinstance(beside, pd.DataFrame) else read_frame(beside)
        table = unnest(table.reset_index(drop=True))
    if len(raw) and (read.log or beside is not None or is_log(raw, read.where, options)):
        summary = one_row_a_run(raw, read.where, options, table, beside_where)
        if not len(summary.frame):
            why = "; ".join(f"{what}: {reason}" for what, reason in summary.dropped)
            raise FitError(f"{read.where}: no run can be used: {why}")
        words = f"{read.words}: {summary.words}"
        return summary.frame, words, [*read.dropped, *summary.dropped], summary.findings
    return raw, f"{read.words} with {len(raw):,} rows", list(read.dropped), []


def _finished(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows that are done, where a `state` says so."""
    if len(raw) == 0:
        raise FitError(f"{where}: has no rows")
    name = next((c for c in ("state", "State") if c in raw.columns), None)
    if name is None:
        return raw, []
    states = texts(raw, name).where(raw[name].notna(), "unknown")
    keep = states.str.strip().str.lower().isin(DONE).to_numpy(dtype=bool)
    if not keep.any():
        counts = ", ".join(
            f"{count} {state}" for state, count in states.value_counts(sort=True).items()
        )
        raise FitError(f"{where}: no run is done ({counts})")
    left = list(dict.fromkeys(states[~keep]))
    dropped = [
        Dropped(name_rows(raw, (states == s).to_numpy(dtype=bool)), f"state is {s}, not done")
        for s in left
    ]
    return rows(raw, keep), dropped


def _planned(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows that follow the recipe: those that check it (column `check`) are no points of a profile."""
    if not {"check", "run_id"} <= set(raw.columns):
        return raw, []
    keep = (texts(raw, "check").where(raw["check"].notna(), "").str.strip() == "").to_numpy(
        dtype=bool
    )
    if keep.all():
        return raw, []
    if not keep.any():
        raise FitError(
            f"{where}: all runs check the recipe (column check): none is a point of a profile"
        )
    return rows(raw, keep), [
        Dropped(name_rows(raw, ~keep), "checks the recipe at another rate or batch")
    ]


def _numeric(
    raw: pd.DataFrame, names: dict[str, str], where: str
) -> tuple[pd.DataFrame, list[Dropped]]:
    """The named columns as positive, finite float64, without the rows where one isn't."""
    named = {key: name for key, name in names.items() if name != SIX_ND}
    frame = pd.DataFrame(
        {key: numbers(raw, name, where) for key, name in named.items()}, index=raw.index
    )
    if SIX_ND in names.values():
        frame["flops"] = 6.0 * column(frame, "params") * column(frame, "tokens")
    gone, dropped = np.zeros(len(frame), dtype=bool), list[Dropped]()
    for key, name in names.items():
        values = column(frame, key)
        bad = ~(np.isfinite(values) & (values > 0.0))
        if bad.mean() >= _MOST_BAD:
            shown, _ = split_factor(raw, names["params"] if name == SIX_ND else name)
            raise FitError(not_numbers(raw, shown, where, bad))
        kinds = (
            ("missing", np.isnan(values)),
            ("infinite", np.isinf(values)),
            ("zero or negative", values <= 0.0),
        )
        for word, here in kinds:
            if (here & bad & ~gone).any():
                dropped.append(Dropped(name_rows(raw, here & bad & ~gone), f"{name} is {word}"))
                gone |= here
    if gone.all():
        raise FitError(
            f"{where}: no row has all its numbers: {'; '.join(f'{what}: {why}' for what, why in dropped)}"
        )
    return rows(frame, ~gone), dropped


def _fill_flops_and_budget(
    frame: pd.DataFrame, where: str, needed: bool
) -> tuple[dict[str, str], list[Finding]]:
    """Groups runs into budgets; adds the column that the source doesn't have. Returns how it was made."""
    if "budget" not in frame:
        labelled = label_by_flops(column(frame, "flops"), column(frame, "params"), where, needed)
        frame["budget"] = labelled.budgets
        return {"budget": labelled.how}, labelled.findings
    frame["budget"] = label_as_planned(column(frame, "budget"))
    if "flops" in frame:
        return {}, []
    frame["flops"] = frame["budget"]
    return {"flops": "(budget)"}, []


def _with_extras(frame: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """Adds the configuration's number and the columns that diagnostics and figures use."""
    key = frame[["budget", "params", "tokens"]].copy()
    for name in SETTINGS:
        if name in raw.columns:
            key[name] = texts(raw, name)
    frame = frame.loc[:, list(CANONICAL)].copy()
    frame["config"] = key.groupby(list(key.columns), sort=True, dropna=False).ngroup()
    for name in ("seed", "epochs"):
        found = first_found(raw, (name,))
        if found is not None:
            values = [to_number(cell) for cell in cast(list[object], raw[found].tolist())]
            frame[name] = [math.nan if value is None else value for value in values]
    if "simulated" in raw.columns:  # true or false, or what a text file makes of them
        frame["simulated"] = (
            raw["simulated"].astype(str).str.lower().isin(("true", "1", "1.0")).astype(np.float64)
        )
    name = run_column(raw)
    if name is not None:
        frame["run_id"] = texts(raw, name)
    return frame


def _without_copies(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row that repeats another in every column is the same run listed twice, not a second seed."""
    copies = frame.duplicated().to_numpy(dtype=bool)
    if not copies.any():
        return frame, []
    return rows(frame, ~copies), [
        Dropped(name_rows(frame, copies), "repeats another row in every column")
    ]


def _reading(words: str, frame: pd.DataFrame, names: dict[str, str]) -> str:
    """What was read, in a line."""
    columns = ", ".join(key if key == name else f"{key} = {name}" for key, name in names.items())
    budgets = len(set(column(frame, "budget")))
    return (
        f"{words}: {len(frame):,} runs at {budgets} budget{'s' if budgets != 1 else ''}; {columns}"
    )


def _hash(frame: pd.DataFrame) -> str:
    """SHA-256 of the canonical columns, sorted by row, as little-endian float64: the order of rows doesn't matter."""
    rows = np.ascontiguousarray(frame[list(CANONICAL)].to_numpy(dtype="<f8"))
    rows = rows[np.lexsort(rows.T[::-1])]
    return hashlib.sha256(",".join(CANONICAL).encode() + rows.tobytes()).hexdigest()
