"""Loss logs, many rows a run, as a table with one row a run: its final loss, and what a fit needs beside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables import final_loss as finalloss
from isoflop.fitting.tables.columns import (
    COUNTS,
    asks,
    chosen,
    find,
    first_found,
    missing,
    numbers,
    split_factor,
)
from isoflop.fitting.tables.final_loss import FinalRule
from isoflop.fitting.tables.log_detection import RATES, STEP_COLUMNS, LogOptions, distinct, run_of
from isoflop.fitting.tables.rows import RUN_COLUMNS, Dropped, listed, texts
from isoflop.fitting.terms import Finding, finding
from isoflop.frames import column, mask

Floats = np.ndarray

PLANNED_STEPS = ("steps", "max_steps", "total_steps", "train_steps", "num_steps", "planned_steps")
GROWING = ("tokens", "flops", "train_flops", "epochs")  # over a run; the largest value is the run's
LAST = ("state", "State")

ENDED = 0.95  # share of a run after which its last loss may stand for the end
DENSE = 0.9  # share of the rows that have a loss: where as many have, one that lacks it at the end is a sign
AT_END = 1  # rows of such a log that may lack one at the end, as those of a logger's summary
STOPPED = 0.99  # share of the planned steps
DECAYED = 0.5  # of the peak learning rate; to a tenth is a common decay, to more than half is none
ROSE = 1.2  # times the run's own lowest level

_RUN = "(run)"


@dataclass
class Summary:
    """A row a run, and what is to be said about them."""

    frame: pd.DataFrame
    words: str
    dropped: list[Dropped] = field(default_factory=list[Dropped])
    findings: list[Finding] = field(default_factory=list[Finding])


def one_row_a_run(
    frame: pd.DataFrame,
    where: str,
    options: LogOptions,
    beside: pd.DataFrame | None,
    beside_where: str,
) -> Summary:
    """The final loss of each run, its tokens and FLOPs at the end, its settings.

    Args:
        frame: rows of all runs, in the order they were written: a later row of a step replaces an earlier one, as where
            a run was resumed.
        beside: a table with a row a run, for the columns that the log lacks, and the values that a run's own lacks.
        beside_where: for messages.

    Raises:
        FitError: a column that isn't there, changes within a run, or is no number; several splits to choose from.
    """
    run, step = run_of(frame, where, options), options.step or first_found(frame, STEP_COLUMNS)
    step = chosen(frame, where, step, "step") if step is not None else None
    frame = frame.assign(**{_RUN: texts(frame, run) if run is not None else "the run"})
    unknown: list[str] = []
    given = ""
    if beside is not None:
        own = {
            _RUN,
            run,
            step,
            find(frame, split_factor(frame, options.loss or "loss")[0]),
            "split",
            "kind",
            *RATES,
        }
        frame, unknown, given = _joined(frame, beside, beside_where, own)
    frame = _seeds_apart(frame)
    rows, split = _rows_of_split(frame, where, options)
    loss = chosen(frame, where, options.loss or "loss", "loss")
    tokens = (
        chosen(frame, where, options.tokens, "tokens")
        if options.tokens
        else first_found(frame, ("tokens",))
    )
    rate = first_found(frame, RATES)
    log = pd.DataFrame({"run": frame[_RUN], "loss": numbers(frame, loss, where)})
    log.loc[~rows, "loss"] = np.nan
    log["of_split"] = rows
    for name, spec in (("step", step), ("tokens", tokens), ("lr", rate)):
        log[name] = numbers(frame, spec, where) if spec is not None else np.nan
    held_out = finalloss.is_held_out(split or loss)
    ends = pd.DataFrame(
        [_end(str(name), group, options.final, held_out) for name, group in log.groupby("run")]
    )
    table = _settings(frame, where, options)
    table[split_factor(frame, loss)[0]] = ends["loss"].to_numpy() / split_factor(frame, loss)[1]
    if rate is not None:
        table[rate] = ends["peak"].to_numpy()
    rules = ", ".join(
        f"{finalloss.RULE_WORDS[r]} ({n})" for r, n in Counter(ends["rule"]).items() if r
    )
    words = f"{len(frame):,} rows of {len(ends)} loss logs; final {loss!r}{f' of {split}' if split else ''}: {rules}{given}"
    return _judged(Summary(table, words), ends, frame, step, unknown)


def _rows_of_split(
    frame: pd.DataFrame, where: str, options: LogOptions
) -> tuple[np.ndarray, str | None]:
    """The rows whose loss counts, where a log has several splits: those asked for, else those not of training."""
    if "split" not in frame.columns:
        if options.split is not None:
            raise FitError(missing(frame, where, "split", "split"))
        return np.ones(len(frame), dtype=bool), None
    splits = texts(frame, "split")
    there = sorted(set(splits))
    others = [name for name in there if name != "train"]
    split = options.split or (
        there[0] if len(there) == 1 else others[0] if len(others) == 1 else None
    )
    if split not in there:
        asked = f"has no {split!r}; it has" if split else "has"
        raise FitError(
            f"{where}: column 'split' {asked} {', '.join(there[:8])}; choose one with {asks(where, 'split')}"
        )
    rows = (splits == split).to_numpy(dtype=bool)
    if "kind" in frame.columns:  # of the target tokens, in our own logs
        all_kinds = rows & (texts(frame, "kind") == "all").to_numpy(dtype=bool)
        rows = all_kinds if all_kinds.any() else rows
    return rows, split


def _joined(
    frame: pd.DataFrame, beside: pd.DataFrame, where: str, own: set[str | None]
) -> tuple[pd.DataFrame, list[str], str]:
    """The log with what only the table beside it has, the runs that this table doesn't know, and what it gave to some.

    Args:
        own: columns of the log that are never taken from the table.
    """
    key = next((name for name in RUN_COLUMNS if name in beside.columns), None)
    if key is None:
        raise FitError(missing(beside, where, "run", "beside"))
    names = texts(beside, key)
    if not names.is_unique:
        raise FitError(
            f"{where}: {listed(sorted(set(names[names.duplicated()])), 'run')} twice in {key!r}"
        )
    table = beside.set_axis(pd.Index(names), axis=0)
    unknown = sorted(set(frame[_RUN]) - set(names))
    known = frame.loc[frame[_RUN].isin(names).to_numpy(dtype=bool)].reset_index(drop=True)
    if not len(known):
        raise FitError(
            f"{where}: has none of the log's runs ({listed(unknown, 'run', 3)} in the log)"
        )
    filled = _filled(
        known, table.loc[:, [c for c in beside.columns if c in frame.columns and c not in own]]
    )
    counts = [
        f"{name!r} of {count} run{'s' if count > 1 else ''}" for name, count in filled.items()
    ]
    known = known.join(table.loc[:, [c for c in beside.columns if c not in frame.columns]], on=_RUN)
    return known, unknown, f"; {', '.join(counts)} from {where}" if counts else ""


def _filled(log: pd.DataFrame, table: pd.DataFrame) -> dict[str, int]:
    """Puts the table's values into the log of each run that has none of its own; how many runs got one, by column."""
    counts: dict[str, int] = {}
    runs = cast(pd.Series, log[_RUN])
    for name in table.columns:
        values = cast(pd.Series, log[name])
        given = runs.map(cast(pd.Series, table[name]).to_dict())
        lacks = ~values.notna().groupby(runs).transform("any") & given.notna()
        if any(lacks):
            log[name] = values.astype(object).where(~lacks, given)
            counts[str(name)] = len(set(runs[lacks]))
    return counts


def _seeds_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """The log with a run for each seed, where rows of several seeds have one run's name."""
    if "seed" not in frame.columns or not bool((distinct(frame, _RUN, "seed") > 1).any()):
        return frame
    return frame.assign(**{_RUN: texts(frame, _RUN) + " seed " + texts(frame, "seed")})


def _end(run: str, log: pd.DataFrame, rule: FinalRule, held_out: bool) -> dict[str, Any]:
    """What the log of one run says about its end."""
    step, tokens, loss, rate = (column(log, name) for name in ("step", "tokens", "loss", "lr"))
    usable = np.isfinite(loss) & (loss > 0.0)
    by_tokens = np.isfinite(tokens[usable]).all() and len(np.unique(tokens[usable])) > 1
    x = tokens if by_tokens else step
    if not _largest(x[usable]) > 0.0:
        x = np.arange(1.0, len(loss) + 1.0)  # the order of the rows
    usable &= np.isfinite(x)
    order = np.flatnonzero(usable)[np.argsort(x[usable], kind="stable")]
    latest = np.ones(len(order), dtype=bool)
    latest[:-1] = np.diff(x[order]) > 0.0
    final = order[latest]
    end = {
        "run": run,
        "rule": "",
        "loss": np.nan,
        "rows": len(final),
        "repeated": len(order) - len(final),
    }
    end |= {
        "step": _largest(step),
        "tokens": _largest(tokens),
        "peak": _largest(rate),
        "lr": _last(rate, step),
    }
    end |= {
        "between": float(np.median(np.diff(x[final]))) if len(final) > 1 else 0.0,
        "by_step": x is step,
    }
    end |= {
        "x": float(x[final[-1]]) if len(final) else np.nan,
        "x_end": _largest(x),
        "lowest": np.nan,
    }
    end |= {"infinite": False, "lacking": 0}
    if len(final):
        own = mask(log, "of_split")
        end["infinite"] = bool((np.isinf(loss) & ~(x <= end["x"])).any())
        if usable[own & (x <= end["x"])].mean() >= DENSE:
            end["lacking"] = len(np.unique(x[own & (x > end["x"])]))
        chosen_rule = finalloss.rule_for(x[final], rule, held_out)
        window = max(len(final) // 20, 1)
        levels = np.convolve(np.log(loss[final]), np.full(window, 1.0 / window), mode="valid")
        end |= {
            "rule": chosen_rule,
            "loss": finalloss.final_loss(x[final], loss[final], chosen_rule),
        }
        end["lowest"] = float(np.exp(levels.min()))
    return end


def _largest(values: Floats) -> float:
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else np.nan


def _last(values: Floats, step: Floats) -> float:
    """The last value, by step where there are steps."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.nan
    return float(values[known[np.argsort(np.nan_to_num(step[known]), kind="stable")[-1]]])


def _settings(frame: pd.DataFrame, where: str, options: LogOptions) -> pd.DataFrame:
    """A row a run, sorted by its name: columns that don't change, the largest of those that grow, the last state."""
    groups = frame.groupby(_RUN, sort=True)
    grows = {
        split_factor(frame, spec)[0] for spec in (options.tokens, options.flops) if spec
    } | set(GROWING)
    growing = {find(frame, name) for name in grows}
    constant = [options.params, options.budget, *COUNTS, "budget"]
    constant = {find(frame, split_factor(frame, spec)[0]) for spec in constant if spec}
    table: dict[str, Any] = {}
    for name in (c for c in frame.columns if isinstance(c, str)):
        if name in growing:
            values = pd.Series(numbers(frame, name, where), index=frame.index)
            table[name] = values.groupby(frame[_RUN]).max()
        elif name != _RUN and (of_runs := _of_runs(groups, name)) is not None:
            distinct, first, last = of_runs
            if name in LAST or (distinct <= 1).all():
                table[name] = last if name in LAST else first
            elif name in constant:
                changing = listed(
                    [str(r) for r in distinct.index[(distinct > 1).to_numpy(dtype=bool)]], "run"
                )
                raise FitError(
                    f"{where}: column {name!r} changes within {changing}; a run has one value of it"
                )
    runs = pd.Index(sorted(set(frame[_RUN])), name=_RUN)
    return pd.DataFrame(table, index=runs).assign(run_id=runs).reset_index(drop=True)


def _of_runs(groups: Any, name: str) -> tuple[pd.Series, pd.Series, pd.Series] | None:
    """How many values a column has in each run, the first and the last; None for cells that can't be compared."""
    try:
        return groups[name].nunique(), groups[name].first(), groups[name].last()
    except (TypeError, ValueError, NotImplementedError):
        return None


def _judged(
    summary: Summary, ends: pd.DataFrame, frame: pd.DataFrame, step: str | None, unknown: list[str]
) -> Summary:
    """Leaves out the runs whose log has no end that a fit may use."""
    runs = summary.frame
    loss, lowest, x, x_end = (column(ends, name) for name in ("loss", "lowest", "x", "x_end"))
    reasons: list[tuple[str, np.ndarray]] = []
    reasons.append(("no loss in the log", np.isnan(loss)))
    reasons.append(("diverged: the loss ends infinite", mask(ends, "infinite")))
    early = x + column(ends, "between") < ENDED * x_end
    reasons.append(
        ("no finite loss in the last 5 % of the log: it diverged, or was not measured", early)
    )
    words = "its last rows have no finite loss, though almost all before have: it diverged, or was not measured"
    _unless_all(summary, reasons, "no_last_loss", words, column(ends, "lacking") > AT_END)
    rose = loss > ROSE * lowest
    reasons.append(
        (f"diverged: the loss ends more than {ROSE - 1:.0%} above its own lowest level", rose)
    )
    planned = first_found(runs, PLANNED_STEPS)
    if (
        planned is not None and step is not None and not step.endswith("_step")
    ):  # W&B's _step counts calls
        steps = numbers(runs, planned, "the log")
        between = np.where(ends["by_step"], column(ends, "between"), 0.0)
        short = (column(ends, "step") + 1 + between < STOPPED * steps) & (steps > 0)
        _unless_all(
            summary,
            reasons,
            "stopped",
            f"stopped before its planned steps (column {planned!r})",
            short,
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = column(ends, "lr") / column(ends, "peak") > DECAYED
    words = f"its learning rate did not decay (it ends above {DECAYED:.0%} of its peak)"
    _unless_all(summary, reasons, "undecayed", words, flat)
    gone = np.zeros(len(runs), dtype=bool)
    for why, bad in reasons:
        if (bad & ~gone).any():
            names = [str(n) for n in ends["run"][bad & ~gone]]
            summary.dropped.append(Dropped(listed(names, "run"), why))
        gone |= bad
    if unknown:
        summary.dropped.append(Dropped(listed(unknown, "run"), "not in the table beside"))
    if (before := (x < x_end) & ~gone).any():
        which, share = (
            listed([str(n) for n in ends["run"][before]], "Run"),
            float((1.0 - x / x_end)[before].max()),
        )
        words = f"{which}: the last loss, which is taken, lies up to {share:.1%} of the run before its end."
        summary.findings.append(finding("early_loss", words))
    if repeated := int(column(ends, "repeated").sum()):
        words = f"{repeated} rows of the logs repeat a step of their run, as after a resumption; the later ones count."
        summary.findings.append(finding("log_repeats", words))
    summary.frame = cast(pd.DataFrame, runs.loc[~gone]).reset_index(drop=True)
    return summary


def _unless_all(
    summary: Summary, reasons: list[tuple[str, np.ndarray]], code: str, why: str, bad: np.ndarray
) -> None:
    """A reason to leave runs out, or a finding where it would leave out all: then the study was made so."""
    if bad.all():
        summary.findings.append(
            finding(code, f"All {len(bad)} runs: {why}. They are used all the same.")
        )
    else:
        reasons.append((why, bad))
