"""Loss logs, many rows a run, reduced to a table with one row a run.

A row has the final loss of its run, its tokens and FLOPs at the end, and its settings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
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
from isoflop.fitting.tables.final_loss import (
    RULE_TEXTS,
    FinalRule,
    choose_rule,
    estimate_final_loss,
    is_held_out,
)
from isoflop.fitting.tables.log_detection import (
    LR_COLUMNS,
    STEP_COLUMNS,
    LogOptions,
    count_distinct,
    find_run_column,
)
from isoflop.fitting.tables.rows import RUN_COLUMNS, Dropped, as_text, list_names
from isoflop.fitting.terms import Finding, finding
from isoflop.frames import Bools, Floats, column, mask

PLANNED_STEPS_COLUMNS = (
    "steps",
    "max_steps",
    "total_steps",
    "train_steps",
    "num_steps",
    "planned_steps",
)
CUMULATIVE_COLUMNS = ("tokens", "flops", "train_flops", "epochs")  # the largest is the run's value
STATE_COLUMNS = ("state", "State")  # the last is the run's value

MIN_MEASURED_SHARE = 0.95  # of a run, before its last loss may count as its final one
MIN_DENSE_SHARE = 0.9  # of the rows have a loss: in such a log a missing one at the end is a sign
MAX_ROWS_AFTER_LOSS = 1  # at the end of such a log, as in a logger's summary
MIN_STEPS_SHARE = 0.99  # of the planned steps
MAX_LR_SHARE = 0.5  # of the peak at the end: decay to a tenth is common, to over half is none
MAX_LOSS_RISE = 1.2  # final loss relative to the lowest level of the run

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
    dropped: list[Dropped] = field(default_factory=list[Dropped])
    findings: list[Finding] = field(default_factory=list[Finding])


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
    held_out = is_held_out(split or loss)
    ends = pd.DataFrame(
        [
            _summarise_run(str(name), group, options.final, held_out)
            for name, group in log.groupby("run")
        ]
    )
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
    return _leave_out_runs(LogSummary(table, text), ends, step, unknown)


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
    """Add to a log what only the table beside it has.

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


def _summarise_run(run: str, log: pd.DataFrame, rule: FinalRule, held_out: bool) -> dict[str, Any]:
    """Return final loss and signs of an early end from the log of one run.

    Returns:
        `run, rule, loss`; `rows` with a loss at a new x, and `repeated` ones; the largest `step`
        and `tokens`, the `peak` and the last `lr`; the median distance `between` losses in x, in
        steps if `by_step`; the `x` of the last loss and the last `x_end`; the `lowest` smoothed
        loss; whether an `infinite` loss follows the last loss; in a log with a dense loss, the
        number of x after it that are `lacking` one.
    """
    step, tokens, loss, rate = (column(log, name) for name in ("step", "tokens", "loss", "lr"))
    usable = np.isfinite(loss) & (loss > 0.0)
    by_tokens = np.isfinite(tokens[usable]).all() and len(np.unique(tokens[usable])) > 1
    x = tokens if by_tokens else step
    if not _largest(x[usable]) > 0.0:
        x = np.arange(1.0, len(loss) + 1.0)  # the order of the rows
    usable &= np.isfinite(x)
    order = np.flatnonzero(usable)[np.argsort(x[usable], kind="stable")]
    is_latest = np.ones(len(order), dtype=bool)
    is_latest[:-1] = np.diff(x[order]) > 0.0
    final = order[is_latest]
    end: dict[str, Any] = {
        "run": run,
        "rule": "",
        "loss": np.nan,
        "rows": len(final),
        "repeated": len(order) - len(final),
        "step": _largest(step),
        "tokens": _largest(tokens),
        "peak": _largest(rate),
        "lr": _last(rate, step),
        "between": float(np.median(np.diff(x[final]))) if len(final) > 1 else 0.0,
        "by_step": x is step,
        "x": float(x[final[-1]]) if len(final) else np.nan,
        "x_end": _largest(x),
        "lowest": np.nan,
        "infinite": False,
        "lacking": 0,
    }
    if not len(final):
        return end
    in_split = mask(log, "in_split")
    end["infinite"] = bool((np.isinf(loss) & ~(x <= end["x"])).any())
    if usable[in_split & (x <= end["x"])].mean() >= MIN_DENSE_SHARE:
        end["lacking"] = len(np.unique(x[in_split & (x > end["x"])]))
    end["rule"] = choose_rule(x[final], rule, held_out)
    end["loss"] = estimate_final_loss(x[final], loss[final], end["rule"])
    window = max(len(final) // 20, 1)
    levels = np.convolve(np.log(loss[final]), np.full(window, 1.0 / window), mode="valid")
    end["lowest"] = float(np.exp(levels.min()))
    return end


def _largest(values: Floats) -> float:
    """Return the largest finite value; NaN if there is none."""
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else np.nan


def _last(values: Floats, step: Floats) -> float:
    """Return the last finite value, by step if the rows have steps; NaN if there is none."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.nan
    return float(values[known[np.argsort(np.nan_to_num(step[known]), kind="stable")[-1]]])


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


def _leave_out_runs(
    summary: LogSummary, ends: pd.DataFrame, step: str | None, unknown: list[str]
) -> LogSummary:
    """Leave out the runs whose log does not end in a final loss, and report doubtful ends.

    Args:
        summary: table of all runs.
        ends: ends of their logs, see `_summarise_run`.
        step: column of steps in the log.
        unknown: runs that the table beside the log lacks.
    """
    gone = np.zeros(len(ends), dtype=bool)
    for reason, bad in _list_reasons(summary, ends, step):
        if (bad & ~gone).any():
            names = [str(name) for name in ends["run"][bad & ~gone]]
            summary.dropped.append(Dropped(list_names(names, "run"), reason))
        gone |= bad
    if unknown:
        summary.dropped.append(Dropped(list_names(unknown, "run"), "not in the table beside"))
    x, x_end = column(ends, "x"), column(ends, "x_end")
    if (before := (x < x_end) & ~gone).any():
        names = list_names([str(name) for name in ends["run"][before]], "Run")
        share = float((1.0 - x / x_end)[before].max())
        message = (
            f"{names}: the final loss is the last one logged, up to {share:.1%} of the run before "
            "its end."
        )
        summary.findings.append(finding("early_loss", message))
    if repeated := int(column(ends, "repeated").sum()):
        message = (
            f"{repeated} rows of the logs repeat a step of their run, as after a restart; "
            "the later rows count."
        )
        summary.findings.append(finding("log_repeats", message))
    summary.frame = cast(pd.DataFrame, summary.frame.loc[~gone]).reset_index(drop=True)
    return summary


def _list_reasons(
    summary: LogSummary, ends: pd.DataFrame, step: str | None
) -> list[tuple[str, Bools]]:
    """Return the reasons to leave runs out, each with a mask of its runs.

    A reason that holds for all runs may be a finding instead, see `_add_reason`.
    """
    loss, lowest, x, x_end = (column(ends, name) for name in ("loss", "lowest", "x", "x_end"))
    cause = "it diverged, or its loss was not measured"
    early = x + column(ends, "between") < MIN_MEASURED_SHARE * x_end
    reasons: list[tuple[str, Bools]] = [
        ("no loss in the log", np.isnan(loss)),
        ("diverged: the loss ends infinite", mask(ends, "infinite")),
        (f"no finite loss in the last {1 - MIN_MEASURED_SHARE:.0%} of the log: {cause}", early),
    ]
    reason = f"its last rows have no finite loss, though almost all earlier rows have one: {cause}"
    lacks_last = column(ends, "lacking") > MAX_ROWS_AFTER_LOSS
    _add_reason(summary, reasons, "no_last_loss", reason, lacks_last)
    reason = f"diverged: the loss ends more than {MAX_LOSS_RISE - 1:.0%} above its own lowest level"
    reasons.append((reason, loss > MAX_LOSS_RISE * lowest))
    planned = first_column(summary.frame, PLANNED_STEPS_COLUMNS)
    # W&B's _step counts calls of the logger, not steps.
    if planned is not None and step is not None and not step.endswith("_step"):
        steps = read_numbers(summary.frame, planned, "the log")
        between = np.where(ends["by_step"], column(ends, "between"), 0.0)
        stopped = (column(ends, "step") + 1 + between < MIN_STEPS_SHARE * steps) & (steps > 0)
        reason = f"stopped before its planned steps (column {planned!r})"
        _add_reason(summary, reasons, "stopped", reason, stopped)
    with np.errstate(divide="ignore", invalid="ignore"):
        undecayed = column(ends, "lr") / column(ends, "peak") > MAX_LR_SHARE
    reason = f"its learning rate did not decay (it ends above {MAX_LR_SHARE:.0%} of its peak)"
    _add_reason(summary, reasons, "undecayed", reason, undecayed)
    return reasons


def _add_reason(
    summary: LogSummary, reasons: list[tuple[str, Bools]], code: str, reason: str, bad: Bools
) -> None:
    """Add a reason to leave runs out; a finding if it holds for all, as the study's design."""
    if bad.all():
        message = f"All {len(bad)} runs: {reason}. They are still used."
        summary.findings.append(finding(code, message))
    else:
        reasons.append((reason, bad))
