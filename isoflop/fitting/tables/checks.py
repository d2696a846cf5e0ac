"""Checks of a table of runs: units, FLOPs, losses, runs listed twice.

Findings name rows and columns; nothing is corrected.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.budgets import MAX_LABEL_RATIO
from isoflop.fitting.tables.columns import SETTING_COLUMNS, SIX_ND
from isoflop.fitting.tables.rows import list_names, name_rows
from isoflop.fitting.terms import Finding, finding
from isoflop.frames import Bools, Floats, column, rows

MAX_RATIO_DECADES = 0.75
"""Tolerance of log10(C / 6ND). True ratios lie between 1 and 10 (embeddings, attention); units are
3 decades apart."""
MAX_ROW_RATIO_DECADES = 1.25
"""Largest distance of a row's log10(C / 6ND) from the median of all rows."""
MAX_LOSS_NATS = 15.0  # more than the loss of a uniform guess among 3 million tokens
OUTLYING_FACTOR = 2.0  # by which a loss or FLOPs differ from those of the same budget
MAX_OUTLYING_SHARE = 0.5  # of the rows; beyond it the labels differ in kind, not by slips
UNIT_DECADES = {
    "params": {0.0: "", 6.0: "millions", 9.0: "billions", 3.0: "thousands"},
    "tokens": {0.0: "", 9.0: "billions", 6.0: "millions", 12.0: "trillions", 3.0: "thousands"},
    "flops": {
        0.0: "",
        18.0: "EFLOPs",
        19.94: "PF-days",
        15.0: "PFLOPs",
        12.0: "TFLOPs",
        9.0: "GFLOPs",
    },
}
"""Common units by their size in decades, the likeliest first."""
_LOG_SIX = math.log10(6.0)
_PLAUSIBLE_DECADES = {
    "params": (3.0, 14.0),
    "tokens": (4.5, 16.0),
    "flops": (8.0, 29.0),
    "tokens per parameter": (-1.5, 5.5),
}
"""Ranges of log10 for language models."""


def refuse_mixed_units(frame: pd.DataFrame, names: dict[str, str], where: str) -> None:
    """Refuse a table in which C / 6ND of some rows is off that of the rest by 1e3, 1e6, ...

    Args:
        frame: canonical columns.
        names: canonical name -> column of the source.
        where: name of the source in messages.

    Raises:
        FitError: names the rows, the factor and the column with mixed units.
    """
    ratio = _log_flops_ratio(frame)
    off = np.round((ratio - np.median(ratio)) / 3.0)
    mixed = (off != 0.0) & (np.abs(ratio - np.median(ratio) - 3.0 * off) < MAX_RATIO_DECADES)
    if not mixed.any():
        return
    thousands = off[mixed][0]
    shifted = mixed & (off == thousands)
    key = _most_shifted_column(frame, shifted, float(thousands) * 3.0)
    raise FitError(
        f"{where}: column {names[key]!r} has mixed units: in {name_rows(frame, shifted)}, "
        f"C / 6ND is about 1e{3 * int(thousands)} times that of the other rows"
    )


def refuse_falling_flops(frame: pd.DataFrame, names: dict[str, str], where: str) -> None:
    """Refuse a table whose FLOPs do not rise with the budgets that label them.

    Raises:
        FitError: names both columns.
    """
    if names["flops"].startswith("(") or names["budget"].startswith("("):
        return
    budget_ranks, flops_ranks = (
        np.unique(column(frame, key), return_inverse=True)[1] for key in ("budget", "flops")
    )
    if budget_ranks.any() and not (budget_ranks - budget_ranks.mean()) @ flops_ranks > 0.0:
        raise FitError(
            f"{where}: column {names['flops']!r} does not rise with column {names['budget']!r}"
        )


def check_table(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Return findings about units, FLOPs, losses, budgets and duplicate rows.

    Args:
        frame: canonical columns; `seed`, `run_id` and settings where the source has them.
        names: canonical name -> column of the source.
    """
    return [
        *_check_units(frame, names),
        *_check_flops_ratio(frame),
        *_check_losses(frame, names),
        *_check_budgets(frame),
        *_check_duplicates(frame),
    ]


def _log_flops_ratio(frame: pd.DataFrame) -> Floats:
    """Return log10(C / 6ND) of each row."""
    logs = {key: np.log10(column(frame, key)) for key in ("params", "tokens", "flops")}
    return logs["flops"] - logs["params"] - logs["tokens"] - _LOG_SIX


def _most_shifted_column(frame: pd.DataFrame, selected: Bools, decades: float) -> str:
    """Return the canonical column that explains the ratio of the selected rows best.

    Args:
        frame: canonical columns.
        selected: mask of rows.
        decades: difference of log10(C / 6ND) between these rows and the others.
    """
    shifts = {}
    for key, sign in (("params", -1.0), ("tokens", -1.0), ("flops", 1.0)):
        logs = np.log10(column(frame, key))
        shifts[key] = abs(np.median(logs[selected]) - np.median(logs[~selected]) - sign * decades)
    return min(shifts, key=lambda key: shifts[key])


def _check_units(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Return a finding for a whole column in another unit, such as params in millions."""
    medians = {key: float(np.median(np.log10(column(frame, key)))) for key in UNIT_DECADES}
    is_six_nd = names["flops"] == SIX_ND
    off = medians["flops"] - medians["params"] - medians["tokens"] - _LOG_SIX
    is_near = abs(off) < 3.0 - MAX_RATIO_DECADES
    if is_near and _is_plausible(medians):
        return []
    sources = names | ({"flops": names["budget"]} if names["flops"].startswith("(") else {})
    guesses = [
        " and ".join(
            f"column {sources[key]!r} in {UNIT_DECADES[key][decades]}"
            for key, decades in guess.items()
            if decades
        )
        for guess in _guess_units(medians, is_six_nd)
    ]
    if not guesses:
        return []
    ratio = (
        "The values are unlike those of language models"
        if is_near
        else f"C is about 1e{round(off)} times 6ND"
    )
    message = (
        f"{ratio}: {', or '.join(guesses[:2])}? A wrong unit changes the coefficients, N* and D*, "
        "not the exponents. Give the factor with the column's name, as in COL*1e6."
    )
    return [finding("units", message)]


def _guess_units(medians: dict[str, float], is_six_nd: bool) -> list[dict[str, float]]:
    """Return the sets of units that make a table plausible with the fewest columns changed.

    Args:
        medians: median log10 of each column.
        is_six_nd: the FLOPs are 6ND, so their unit follows from N and D.

    Returns:
        Decades to add by column, the likeliest set first.
    """
    candidates: list[tuple[int, float, dict[str, float]]] = []
    for decades in product(*UNIT_DECADES.values()):
        guess = dict(zip(UNIT_DECADES, decades, strict=True))
        logs = {key: medians[key] + guess[key] for key in guess}
        if is_six_nd:
            logs["flops"] = logs["params"] + logs["tokens"] + _LOG_SIX
        off = logs["flops"] - logs["params"] - logs["tokens"] - _LOG_SIX
        is_near = -MAX_RATIO_DECADES <= off <= 1.0 + MAX_RATIO_DECADES
        if is_near and not (is_six_nd and guess["flops"]) and _is_plausible(logs):
            rank = sum(list(UNIT_DECADES[key]).index(unit) for key, unit in guess.items())
            candidates.append((sum(bool(unit) for unit in decades), rank + abs(off), guess))
    fewest = min((changes for changes, _, _ in candidates), default=0)
    return [
        guess
        for changes, _, guess in sorted(candidates, key=lambda item: item[:2])
        if 0 < changes == fewest
    ]


def _is_plausible(logs: dict[str, float]) -> bool:
    """Return whether log10 of parameters, tokens and FLOPs are those of language models."""
    logs = logs | {"tokens per parameter": logs["tokens"] - logs["params"]}
    return all(low <= logs[key] <= high for key, (low, high) in _PLAUSIBLE_DECADES.items())


def _check_flops_ratio(frame: pd.DataFrame) -> list[Finding]:
    """Return a finding for rows whose C / 6ND is far from that of the other rows."""
    ratio = _log_flops_ratio(frame)
    far = np.abs(ratio - np.median(ratio)) > MAX_ROW_RATIO_DECADES
    if not far.any():
        return []
    message = (
        f"In {name_rows(frame, far)}, C / 6ND differs from that of most rows by a factor of more "
        f"than {10**MAX_ROW_RATIO_DECADES:.0f}. Are parameters, tokens and FLOPs of the same run?"
    )
    return [finding("flops_inconsistent", message)]


def _check_losses(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Return findings for losses that are no final loss in nats, or far from their budget's."""
    loss = column(frame, "loss")
    if np.median(loss) > MAX_LOSS_NATS:
        message = (
            f"The median of column {names['loss']!r} is {np.median(loss):.4g}, too high for a loss "
            "in nats. Is it a perplexity?"
        )
        return [finding("loss_high", message)]
    medians = frame["loss"].groupby(frame["budget"]).transform("median").to_numpy(dtype=np.float64)
    high = f"more than {OUTLYING_FACTOR:g} times the median of its budget: did it diverge"
    low = f"less than 1/{OUTLYING_FACTOR:g} of the median of its budget: is it another kind of loss"
    cases = (
        ("diverged", loss / OUTLYING_FACTOR > medians, high),
        ("loss_low", loss < medians / OUTLYING_FACTOR, low),
    )
    return [
        finding(code, f"The loss of {name_rows(frame, far)} is {doubt}? It is still used.")
        for code, far, doubt in cases
        if far.any()
    ]


def _check_budgets(frame: pd.DataFrame) -> list[Finding]:
    """Return findings for labels of budgets that are not the FLOPs of their runs."""
    labels = column(frame, "budget")
    off = np.log(column(frame, "flops")) - np.log(labels)
    far = np.abs(off - np.median(off)) > math.log(OUTLYING_FACTOR)
    if far.mean() > MAX_OUTLYING_SHARE:
        message = (
            f"The budgets' labels are no FLOPs: the runs' FLOPs are {_range_text(off)} times the "
            "labels. The laws use the FLOPs."
        )
        off = off - pd.Series(off).groupby(labels).transform("median").to_numpy(dtype=np.float64)
        far = np.abs(off) > math.log(OUTLYING_FACTOR)
        return [finding("budget_off", message), *_mismatch_findings(frame, far)]
    group = np.unique(labels[~far], return_inverse=True)[1]
    means = np.bincount(group, off[~far]) / np.bincount(group)
    if np.max(np.abs(means)) <= math.log(MAX_LABEL_RATIO):
        return _mismatch_findings(frame, far)
    message = (
        f"The runs' FLOPs are {_range_text(means)} times the budget that labels them; "
        "the laws use the FLOPs."
    )
    return [finding("budget_off", message), *_mismatch_findings(frame, far)]


def _mismatch_findings(frame: pd.DataFrame, far: Bools) -> list[Finding]:
    """Return a finding for rows whose FLOPs are far from their budget."""
    if not far.any():
        return []
    message = (
        f"The FLOPs of {name_rows(frame, far)} differ from the labelled budget by a factor of more "
        f"than {OUTLYING_FACTOR:g}, unlike those of most rows. They are still used."
    )
    return [finding("budget_mismatch", message)]


def _range_text(logs: Floats) -> str:
    """Return the smallest and the largest factor, given as natural logarithms."""
    return " to ".join(_factor_text(float(np.exp(end))) for end in (logs.min(), logs.max()))


def _factor_text(factor: float) -> str:
    return f"{factor:.2f}" if 0.1 <= factor < 1000.0 else f"{factor:.3g}".replace("e+", "e")


def _check_duplicates(frame: pd.DataFrame) -> list[Finding]:
    """Return a finding for runs with one name, or one configuration and seed, but other losses."""
    if "run_id" in frame:
        repeated = frame.duplicated("run_id", keep=False).to_numpy(dtype=bool)
        if repeated.any():
            names = sorted(set(rows(frame, repeated)["run_id"]))
            message = f"More than one row, with different values, for {list_names(names, 'run')}."
            return [finding("duplicates", f"{message} All are used.")]
    if "seed" not in frame:
        return []
    repeated = frame.duplicated(["config", "seed"], keep=False).to_numpy(dtype=bool)
    repeated = repeated & frame["seed"].notna().to_numpy()
    if not repeated.any():
        return []
    message = (
        f"Different losses for one configuration and seed: {name_rows(frame, repeated)}. They "
        "count as seeds. If they differ in a setting, add its column: "
        f"{', '.join(SETTING_COLUMNS)}."
    )
    return [finding("duplicates", message)]
