"""Loss logs, many rows a run, reduced to a table with one row a run.

A row has the final loss of its run, its tokens and FLOPs at the end, and its settings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.columns import (
    PARAM_COLUMNS,
    find_column,
    first_column,
    missing_column_message,
    option_text,
    read_numbers,
    require_column,
    split_factor,
)
from isoflop.fitting.tables.final_loss import RULE_TEXTS, is_held_out
from isoflop.fitting.tables.log_detection import (
    LR_COLUMNS,
    STEP_COLUMNS,
    LogOptions,
    count_distinct,
    find_run_column,
)
from isoflop.fitting.tables.log_ends import check_ends, summarise_ends
from isoflop.fitting.tables.rows import RUN_COLUMNS, DroppedRows, as_text, list_names
from isoflop.fitting.terms import Finding
from isoflop.frames import Bools

CUMULATIVE_COLUMNS = ("tokens", "flops", "train_flops", "epochs")  # the largest is the run's value
STATE_COLUMNS = ("state", "State")  # the last is the run's value

_RUN = "(run)"


@dataclass
class LogSummary:
    """Table of runs that is read from their logs.

    Attributes:
        frame: one row a run.
        text: rows, runs and rule of the final loss, for the record of the reading.
        dropped: runs left out, with the reason.
        findings: doubts about the logs.
    """

    frame: pd.DataFrame
    text: str
    dropped: list[DroppedRows]
    findings: list[Finding]


def summarise_logs(
    frame: pd.DataFrame,
    where: str,
    options: LogOptions,
    beside: pd.DataFrame | None,
    beside_where: str,
) -> LogSummary:
    """Return a row a run: its final loss, its tokens and FLOPs at the end, its settings.

    Args:
        frame: rows of all runs in the order of writing. A later row of a step replaces an earlier
            one, as in a resumed run.
        where: name of the source in messages.
        options: columns, split and rule of the final loss.
        beside: a table with a row a run. It gives the columns that the log lacks, and values for
            runs that have none in the log.
        beside_where: name of `beside` in messages.

    Raises:
        FitError: a column that is missing, is not numeric, or changes within a run; several splits
            without a choice.
    """
    run = find_run_column(frame, where, options)
    step = options.step or first_column(frame, STEP_COLUMNS)
    step = require_column(frame, where, step, "step") if step is not None else None
    frame = frame.assign(**{_RUN: as_text(frame, run) if run is not None else "the run"})
    unknown: list[str] = []
    source_text = ""
    if beside is not None:
        loss_column = find_column(frame, split_factor(frame, options.loss or "loss")[0])
        log_columns = {_RUN, run, step, loss_column, "split", "kind", *LR_COLUMNS}
        frame, unknown, source_text = _join_beside(frame, beside, beside_where, log_columns)
    frame = _separate_seeds(frame)
    in_split, split = _select_split(frame, where, options)
    loss = require_column(frame, where, options.loss or "loss", "loss")
    tokens = (
        require_column(frame, where, options.tokens, "tokens")
        if options.tokens
        else first_column(frame, ("tokens",))
    )
    rate = first_column(frame, LR_COLUMNS)
    log = pd.DataFrame({"run": frame[_RUN], "loss": read_numbers(frame, loss, where)})
    log.loc[~in_split, "loss"] = np.nan
    log["in_split"] = in_split
    for name, spec in (("step", step), ("tokens", tokens), ("lr", rate)):
        log[name] = read_numbers(frame, spec, where) if spec is not None else np.nan
    ends = summarise_ends(log, options.final, is_held_out(split or loss))
    table = _collect_settings(frame, where, options)
    loss_name, loss_factor = split_factor(frame, loss)
    table[loss_name] = ends["loss"].to_numpy() / loss_factor
    if rate is not None:
        table[rate] = ends["peak"].to_numpy()
    counts = Counter(ends["rule"])
    rules = ", ".join(f"{RULE_TEXTS[rule]} ({count})" for rule, count in counts.items() if rule)
    text = (
        f"{len(frame):,} rows of {len(ends)} loss logs; "
        f"final {loss!r}{f' of {split}' if split else ''}: {rules}{source_text}"
    )
    gone, dropped, findings = check_ends(ends, table, step)
    if unknown:
        option = option_text(beside_where, "beside")
        dropped.append(DroppedRows(list_names(unknown, "run"), f"not in the {option} table"))
    usable = cast(pd.DataFrame, table.loc[~gone]).reset_index(drop=True)
    return LogSummary(usable, text, dropped, findings)


def _select_split(frame: pd.DataFrame, where: str, options: LogOptions) -> tuple[Bools, str | None]:
    """Return the rows of the chosen split and its name; by default the split that isn't `train`.

    Raises:
        FitError: no such split, or several to choose from.
    """
    if "split" not in frame.columns:
        if options.split is not None:
            raise FitError(missing_column_message(frame, where, "split", "split"))
        return np.ones(len(frame), dtype=bool), None
    splits = as_text(frame, "split")
    names = sorted(set(splits))
    held_out = [name for name in names if name != "train"]
    candidates = names if len(names) == 1 else held_out
    split = options.split or (candidates[0] if len(candidates) == 1 else None)
    if split not in names:
        problem = f"has no {split!r}; it has" if split else "has"
        raise FitError(
            f"{where}: column 'split' {problem} {', '.join(names[:8])}; "
            f"choose one with {option_text(where, 'split')}"
        )
    in_split = (splits == split).to_numpy(dtype=bool)
    if "kind" in frame.columns:  # kind of the target tokens, in isoflop's own logs
        all_kinds = in_split & (as_text(frame, "kind") == "all").to_numpy(dtype=bool)
        in_split = all_kinds if all_kinds.any() else in_split
    return in_split, split


def _join_beside(
    frame: pd.DataFrame, beside: pd.DataFrame, where: str, log_columns: set[str | None]
) -> tuple[pd.DataFrame, list[str], str]:
    """Add to a log what only the `beside` table has.

    Args:
        frame: the log.
        beside: a table with a row a run.
        where: name of `beside` in messages.
        log_columns: columns that are only read from the log.

    Returns:
        The log without the runs that `beside` lacks; their names; a text with the columns that
        were filled for some runs.

    Raises:
        FitError: `beside` names no runs, names one twice, or has none of the log's.
    """
    key = next((name for name in RUN_COLUMNS if name in beside.columns), None)
    if key is None:
        raise FitError(missing_column_message(beside, where, "run", "beside"))
    names = as_text(beside, key)
    if not names.is_unique:
        repeated = list_names(sorted(set(names[names.duplicated()])), "run")
        raise FitError(f"{where}: column {key!r} has {repeated} more than once")
    table = beside.set_axis(pd.Index(names), axis=0)
    unknown = sorted(set(frame[_RUN]) - set(names))
    known = frame.loc[frame[_RUN].isin(names).to_numpy(dtype=bool)].reset_index(drop=True)
    if not len(known):
        raise FitError(
            f"{where}: has none of the log's runs ({list_names(unknown, 'run', 3)} in the log)"
        )
    common = [c for c in beside.columns if c in frame.columns and c not in log_columns]
    filled = _fill_missing(known, table.loc[:, common])
    counts = [
        f"{name!r} of {count} run{'s' if count > 1 else ''}" for name, count in filled.items()
    ]
    known = known.join(table.loc[:, [c for c in beside.columns if c not in frame.columns]], on=_RUN)
    return known, unknown, f"; {', '.join(counts)} from {where}" if counts else ""


def _fill_missing(log: pd.DataFrame, table: pd.DataFrame) -> dict[str, int]:
    """Fill columns of a log, in place, for each run that has no value of its own.

    Returns:
        Number of runs filled, by column.
    """
    counts: dict[str, int] = {}
    runs = cast(pd.Series, log[_RUN])
    for name in table.columns:
        values = cast(pd.Series, log[name])
        replacements = runs.map(cast(pd.Series, table[name]).to_dict())
        is_missing = ~values.notna().groupby(runs).transform("any") & replacements.notna()
        if any(is_missing):
            log[name] = values.astype(object).where(~is_missing, replacements)
            counts[str(name)] = len(set(runs[is_missing]))
    return counts


def _separate_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the log with a run for each seed if rows of several seeds share a run's name."""
    if "seed" not in frame.columns or not bool((count_distinct(frame, _RUN, "seed") > 1).any()):
        return frame
    return frame.assign(**{_RUN: as_text(frame, _RUN) + " seed " + as_text(frame, "seed")})


def _collect_settings(frame: pd.DataFrame, where: str, options: LogOptions) -> pd.DataFrame:
    """Return a row a run, sorted by its name.

    It has the columns that do not change within a run, the largest value of cumulative columns and
    the last state.

    Raises:
        FitError: a parameter count or a budget changes within a run.
    """
    groups = frame.groupby(_RUN, sort=True)
    specs = [spec for spec in (options.tokens, options.flops) if spec]
    names = {split_factor(frame, spec)[0] for spec in specs} | set(CUMULATIVE_COLUMNS)
    cumulative = {find_column(frame, name) for name in names}
    specs = [options.params, options.budget, *PARAM_COLUMNS, "budget"]
    constant = {find_column(frame, split_factor(frame, spec)[0]) for spec in specs if spec}
    table: dict[str, Any] = {}
    for name in (c for c in frame.columns if isinstance(c, str)):
        if name in cumulative:
            values = pd.Series(read_numbers(frame, name, where), index=frame.index)
            table[name] = values.groupby(frame[_RUN]).max()
        elif name != _RUN and (summary := _summarise_column(groups, name)) is not None:
            distinct, first, last = summary
            if name in STATE_COLUMNS:
                table[name] = last
            elif (distinct <= 1).all():
                table[name] = first
            elif name in constant:
                changing = distinct.index[(distinct > 1).to_numpy(dtype=bool)]
                runs = list_names([str(run) for run in changing], "run")
                raise FitError(
                    f"{where}: column {name!r} changes within {runs}; each run needs one value"
                )
    runs = pd.Index(sorted(set(frame[_RUN])), name=_RUN)
    return pd.DataFrame(table, index=runs).assign(run_id=runs).reset_index(drop=True)


def _summarise_column(groups: Any, name: str) -> tuple[pd.Series, pd.Series, pd.Series] | None:
    """Return a column's number of distinct values, first and last value in each run.

    Cells that cannot be compared give None.
    """
    try:
        return groups[name].nunique(), groups[name].first(), groups[name].last()
    except (TypeError, ValueError, NotImplementedError):
        return None
