"""End of each run's log: its final loss, and the reasons to leave the run out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from isoflop.fitting.tables.columns import first_column, read_numbers
from isoflop.fitting.tables.final_loss import choose_rule, estimate_final_loss
from isoflop.fitting.tables.rows import DroppedRows, list_names
from isoflop.fitting.terms import FinalRule, Finding, finding
from isoflop.frames import Bools, Floats, column, mask
from isoflop.text import percent_text

PLANNED_STEPS_COLUMNS = (
    "steps",
    "max_steps",
    "total_steps",
    "train_steps",
    "num_steps",
    "planned_steps",
)

MIN_MEASURED_SHARE = 0.95  # of a run, before its last loss may count as its final one
MIN_DENSE_SHARE = 0.9  # of the rows have a loss: in such a log a missing one at the end is a sign
MAX_ROWS_AFTER_LOSS = 1  # at the end of such a log, as in a logger's summary
MIN_STEPS_SHARE = 0.99  # of the planned steps
MAX_LR_SHARE = 0.5  # of the peak at the end: decay to a tenth is common, to over half is none
MAX_LOSS_RISE = 1.2  # final loss relative to the lowest level of the run


def summarise_ends(log: pd.DataFrame, rule: FinalRule, held_out: bool) -> pd.DataFrame:
    """Return final loss and signs of an early end, a row a run, sorted by its name.

    Args:
        log: rows of all runs in the order of writing: `run, loss, in_split, step, tokens, lr`; NaN
            for a number that the log lacks.
        rule: rule of the final loss.
        held_out: the loss is held out.

    Returns:
        `run, rule, loss`; `rows` with a loss at a new x, and `repeated` ones; the largest `step`
        and `tokens`, the `peak` and the last `lr`; the median distance `between` losses in x, in
        steps if `by_step`; the `x` of the last loss and the last `x_end`; the `lowest` smoothed
        loss; whether an `infinite` loss follows the last loss; in a log with a dense loss, the
        number of x after it that are `lacking` one.
    """
    groups = log.groupby("run")
    return pd.DataFrame(
        [_summarise_run(str(name), group, rule, held_out) for name, group in groups]
    )


def check_ends(
    ends: pd.DataFrame, table: pd.DataFrame, step: str | None
) -> tuple[Bools, list[DroppedRows], list[Finding]]:
    """Find the runs whose log does not end in a final loss, and the doubtful ends.

    Args:
        ends: ends of the logs, see `summarise_ends`.
        table: settings of the runs, in the order of `ends`.
        step: column of steps in the log.

    Returns:
        A mask of the runs to leave out, (runs,); their names with the reasons; findings.
    """
    reasons, findings = _list_reasons(ends, table, step)
    gone, dropped = np.zeros(len(ends), dtype=bool), list[DroppedRows]()
    for reason, bad in reasons:
        if (bad & ~gone).any():
            names = [str(name) for name in ends["run"][bad & ~gone]]
            dropped.append(DroppedRows(list_names(names, "run"), reason))
        gone |= bad
    x, x_end = column(ends, "x"), column(ends, "x_end")
    if (before := (x < x_end) & ~gone).any():
        names = list_names([str(name) for name in ends["run"][before]], "Run")
        share = float((1.0 - x / x_end)[before].max())
        message = (
            f"{names}: the final loss is the last one logged, up to {percent_text(share)} of "
            "the run before its end."
        )
        findings.append(finding("early_loss", message))
    if repeated := int(column(ends, "repeated").sum()):
        message = (
            f"{repeated} rows of the logs repeat a step of their run, as after a restart; "
            "the later rows count."
        )
        findings.append(finding("log_repeats", message))
    return gone, dropped, findings


def _summarise_run(run: str, log: pd.DataFrame, rule: FinalRule, held_out: bool) -> dict[str, Any]:
    """Return the row of one run; see `summarise_ends`."""
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


def _list_reasons(
    ends: pd.DataFrame, table: pd.DataFrame, step: str | None
) -> tuple[list[tuple[str, Bools]], list[Finding]]:
    """Return the reasons to leave runs out, each with a mask of its runs, and findings.

    A reason that holds for all runs may be a finding instead, see `_add_reason`.
    """
    loss, lowest, x, x_end = (column(ends, name) for name in ("loss", "lowest", "x", "x_end"))
    cause = "it diverged, or its loss was not measured"
    early = x + column(ends, "between") < MIN_MEASURED_SHARE * x_end
    end_share = percent_text(1 - MIN_MEASURED_SHARE)
    reasons: list[tuple[str, Bools]] = [
        ("no loss in the log", np.isnan(loss)),
        ("diverged: the loss ends infinite", mask(ends, "infinite")),
        (f"no finite loss in the last {end_share} of the log: {cause}", early),
    ]
    findings: list[Finding] = []
    reason = f"its last rows have no finite loss, though almost all earlier rows have one: {cause}"
    lacks_last = column(ends, "lacking") > MAX_ROWS_AFTER_LOSS
    _add_reason(reasons, findings, "no_last_loss", reason, lacks_last)
    rise = percent_text(MAX_LOSS_RISE - 1)
    reason = f"diverged: the loss ends more than {rise} above its own lowest level"
    reasons.append((reason, loss > MAX_LOSS_RISE * lowest))
    planned = first_column(table, PLANNED_STEPS_COLUMNS)
    # W&B's _step counts calls of the logger, not steps.
    if planned is not None and step is not None and not step.endswith("_step"):
        steps = read_numbers(table, planned, "the log")
        between = np.where(ends["by_step"], column(ends, "between"), 0.0)
        stopped = (column(ends, "step") + 1 + between < MIN_STEPS_SHARE * steps) & (steps > 0)
        reason = f"stopped before its planned steps (column {planned!r})"
        _add_reason(reasons, findings, "stopped", reason, stopped)
    with np.errstate(divide="ignore", invalid="ignore"):
        undecayed = column(ends, "lr") / column(ends, "peak") > MAX_LR_SHARE
    lr_share = percent_text(MAX_LR_SHARE)
    reason = f"its learning rate did not decay (it ends above {lr_share} of its peak)"
    _add_reason(reasons, findings, "undecayed", reason, undecayed)
    return reasons, findings


def _add_reason(
    reasons: list[tuple[str, Bools]], findings: list[Finding], code: str, reason: str, bad: Bools
) -> None:
    """Add a reason to leave runs out; a finding if it holds for all, as the study's design."""
    if bad.all():
        message = f"All {len(bad)} runs: {reason}. They are still used."
        findings.append(finding(code, message))
    else:
        reasons.append((reason, bad))
