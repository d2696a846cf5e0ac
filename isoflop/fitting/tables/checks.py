"""What can't be right about a table of runs: units, losses, runs listed twice. Said by row and column, not mended."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.budgets import LABELLED
from isoflop.fitting.tables.columns import SETTINGS, SIX_ND
from isoflop.fitting.tables.rows import name_rows
from isoflop.fitting.terms import Finding, finding
from isoflop.frames import column, rows

Floats = np.ndarray

NEAR = 0.75  # decades; real C / 6ND lies between 1 and 10 (embeddings, attention), units are 3 decades apart
MAX_LOSS = 15.0  # nats: beyond the loss of a uniform guess among 3 million tokens
HIGH = 2.0  # times what is usual
MOST = 0.5  # of the rows: so many that are unlike the rest are no slips
FACTORS = {
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
"""Decades of the units that people use, the likeliest first."""
_SIX = math.log10(6.0)
_PLAUSIBLE = {
    "params": (3.0, 14.0),
    "tokens": (4.5, 16.0),
    "flops": (8.0, 29.0),
    "tokens per parameter": (-1.5, 5.5),
}
"""Decades."""


def refuse_mixed_units(frame: pd.DataFrame, names: dict[str, str], where: str) -> None:
    """Stops where some rows are in other units than the rest: C / 6ND of theirs is off by 1e3, 1e6, ...

    Raises:
        FitError: names the rows, the factor and the column that is off.
    """
    ratio = _ratio(frame)
    off = np.round((ratio - np.median(ratio)) / 3.0)
    mixed = (off != 0.0) & (np.abs(ratio - np.median(ratio) - 3.0 * off) < NEAR)
    if not mixed.any():
        return
    which = off[mixed][0]
    here = mixed & (off == which)
    key = _apart(frame, here, float(which) * 3.0)
    raise FitError(
        f"{where}: column {names[key]!r} has mixed units: in {name_rows(frame, here)}, C / 6ND is about "
        f"1e{3 * int(which):+d} times that of the other rows"
    )


def refuse_falling_flops(frame: pd.DataFrame, names: dict[str, str], where: str) -> None:
    """Stops where FLOPs don't rise with the budgets that label them.

    Raises:
        FitError: names both columns.
    """
    if names["flops"].startswith("(") or names["budget"].startswith("("):
        return
    budgets, flops = (
        np.unique(column(frame, key), return_inverse=True)[1] for key in ("budget", "flops")
    )  # ranks
    if budgets.any() and not (budgets - budgets.mean()) @ flops > 0.0:
        raise FitError(
            f"{where}: column {names['flops']!r} does not rise with column {names['budget']!r}"
        )


def doubts(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Findings about units, losses and rows.

    Args:
        frame: canonical columns, and `seed`, `run_id` and settings where there are any.
        names: canonical name -> column of the source.
    """
    return [
        *_units(frame, names),
        *_inconsistent(frame),
        *_losses(frame, names),
        *_budgets(frame),
        *_twice(frame),
    ]


def _ratio(frame: pd.DataFrame) -> Floats:
    """log10 of C / 6ND."""
    logs = {key: np.log10(column(frame, key)) for key in ("params", "tokens", "flops")}
    return logs["flops"] - logs["params"] - logs["tokens"] - _SIX


def _apart(frame: pd.DataFrame, here: Floats, decades: float) -> str:
    """The column whose values in some rows lie apart from the other rows' by about as many decades."""
    shifts = {}
    for key, sign in (("params", -1.0), ("tokens", -1.0), ("flops", 1.0)):
        logs = np.log10(column(frame, key))
        shifts[key] = abs(np.median(logs[here]) - np.median(logs[~here]) - sign * decades)
    return min(shifts, key=lambda key: shifts[key])


def _units(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """One unit for the whole column that isn't one: params in millions, tokens in billions, PF-days."""
    middle = {key: float(np.median(np.log10(column(frame, key)))) for key in FACTORS}
    derived = names["flops"] == SIX_ND
    off = middle["flops"] - middle["params"] - middle["tokens"] - _SIX
    if abs(off) < 3.0 - NEAR and _is_plausible(middle):
        return []
    source = names | ({"flops": names["budget"]} if names["flops"].startswith("(") else {})
    words = [
        " and ".join(f"column {source[k]!r} in {FACTORS[k][f]}" for k, f in guess.items() if f)
        for guess in _guesses(middle, derived)
    ]
    if not words:
        return []
    ratio = "" if abs(off) < 3.0 - NEAR else f"C is about 1e{round(off):+d} times 6ND: "
    text = f"{ratio}{', or '.join(words[:2])}? Exponents stay, coefficients and N*, D* don't. "
    return [finding("units", f"{text}A factor can be given with the column's name, as in COL*1e6.")]


def _guesses(middle: dict[str, float], derived: bool) -> list[dict[str, float]]:
    """Units that would make the table plausible: those that change the fewest columns, the likeliest first."""
    found: list[tuple[int, float, dict[str, float]]] = []
    for factors in product(*FACTORS.values()):
        guess = dict(zip(FACTORS, factors, strict=True))
        logs = {key: middle[key] + guess[key] for key in guess}
        if derived:
            logs["flops"] = logs["params"] + logs["tokens"] + _SIX
        off = logs["flops"] - logs["params"] - logs["tokens"] - _SIX
        if -NEAR <= off <= 1.0 + NEAR and not (derived and guess["flops"]) and _is_plausible(logs):
            rank = sum(list(FACTORS[key]).index(factor) for key, factor in guess.items())
            found.append((sum(bool(f) for f in factors), rank + abs(off), guess))
    fewest = min((changed for changed, _, _ in found), default=0)
    return [
        guess
        for changed, _, guess in sorted(found, key=lambda item: item[:2])
        if 0 < changed == fewest
    ]


def _is_plausible(logs: dict[str, float]) -> bool:
    """Whether decades of parameters, tokens and FLOPs are those of language models."""
    logs = logs | {"tokens per parameter": logs["tokens"] - logs["params"]}
    return all(low <= logs[key] <= high for key, (low, high) in _PLAUSIBLE.items())


def _inconsistent(frame: pd.DataFrame) -> list[Finding]:
    """Rows whose C / 6ND lies more than a decade from the other rows'."""
    ratio = _ratio(frame)
    far = np.abs(ratio - np.median(ratio)) > 1.0 + NEAR / 3.0
    if not far.any():
        return []
    words = f"In {name_rows(frame, far)}, C / 6ND is more than 10 times off that of most rows."
    return [
        finding("flops_inconsistent", f"{words} Are parameters, tokens and FLOPs of the same run?")
    ]


def _losses(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Losses that no training leaves behind: a perplexity, or a run far from the others of its budget."""
    loss = column(frame, "loss")
    if np.median(loss) > MAX_LOSS:
        words = f"Column {names['loss']!r} is {np.median(loss):.4g} in the middle: no loss in nats. Is it a perplexity?"
        return [finding("loss_high", words)]
    middle = frame["loss"].groupby(frame["budget"]).transform("median").to_numpy(dtype=np.float64)
    found = []
    for code, far, words in (
        (
            "diverged",
            loss / HIGH > middle,
            f"more than {HIGH:g} times the middle of its budget: did it diverge",
        ),
        (
            "loss_low",
            loss < middle / HIGH,
            f"less than 1/{HIGH:g} of the middle of its budget: is it of another kind",
        ),
    ):
        if far.any():
            found.append(
                finding(
                    code,
                    f"The loss of {name_rows(frame, far)} is {words}? It is used all the same.",
                )
            )
    return found


def _budgets(frame: pd.DataFrame) -> list[Finding]:
    """Labels that are not the FLOPs of their runs, and rows whose FLOPs are not those of most of their budget."""
    labels = column(frame, "budget")
    off = np.log(column(frame, "flops")) - np.log(labels)
    far = np.abs(off - np.median(off)) > math.log(HIGH)
    if far.mean() > MOST:
        words = f"The budgets' labels are no FLOPs: the runs' are {_span(off)} times them. The laws use the FLOPs."
        off = off - pd.Series(off).groupby(labels).transform("median").to_numpy(dtype=np.float64)
        return [finding("budget_off", words), *_mismatch(frame, np.abs(off) > math.log(HIGH))]
    group = np.unique(labels[~far], return_inverse=True)[1]
    means = np.bincount(group, off[~far]) / np.bincount(group)
    if np.max(np.abs(means)) <= math.log(LABELLED):
        return _mismatch(frame, far)
    words = f"The runs' FLOPs are {_span(means)} times the budget that labels them; the laws use the FLOPs."
    return [finding("budget_off", words), *_mismatch(frame, far)]


def _mismatch(frame: pd.DataFrame, far: np.ndarray) -> list[Finding]:
    if not far.any():
        return []
    words = f"The FLOPs of {name_rows(frame, far)} are more than {HIGH:g} times off the budget that labels it"
    return [
        finding("budget_mismatch", f"{words}, unlike those of most rows. It is used all the same.")
    ]


def _span(logs: Floats) -> str:
    return " to ".join(_times(float(np.exp(end))) for end in (logs.min(), logs.max()))


def _times(factor: float) -> str:
    return f"{factor:.2f}" if 0.1 <= factor < 1000.0 else f"{factor:.3g}".replace("e+", "e")


def _twice(frame: pd.DataFrame) -> list[Finding]:
    """Runs of one name, or of one configuration and seed, with different losses."""
    found = []
    if (
        "run_id" in frame
        and (named := frame.duplicated("run_id", keep=False).to_numpy(dtype=bool)).any()
    ):
        some = sorted(set(rows(frame, named)["run_id"]))
        words = f"{', '.join(some[:5])}{f' and {len(some) - 5} more' if len(some) > 5 else ''}"
        found.append(
            finding(
                "duplicates", f"More than one row, not alike, for the run {words}. All are used."
            )
        )
    if "seed" not in frame:
        return found
    same = (
        frame.duplicated(["config", "seed"], keep=False).to_numpy(dtype=bool)
        & frame["seed"].notna().to_numpy()
    )
    if same.any() and not found:
        words = f"{name_rows(frame, same)} are of one configuration and seed with different losses, and count as seeds"
        found.append(
            finding(
                "duplicates",
                f"{words}. What tells them apart needs a column of: {', '.join(SETTINGS)}.",
            )
        )
    return found
