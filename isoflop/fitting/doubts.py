"""What can't be right about a table of runs: units, losses, runs listed twice. Said by row and column, not mended."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.columns import SETTINGS
from isoflop.fitting.frames import column, rows
from isoflop.fitting.notes import Finding, name_rows

Floats = np.ndarray

NEAR = 0.75  # decades; real C / 6ND lies between 1 and 10 (embeddings, attention), units are 3 decades apart
MAX_LOSS = 15.0  # nats: beyond the loss of a uniform guess among 3 million tokens
HIGH = 2.0  # times the median loss of its budget
FACTORS = {
    "params": {0: "", 3: "thousands", 6: "millions", 9: "billions"},
    "tokens": {0: "", 3: "thousands", 6: "millions", 9: "billions", 12: "trillions"},
    "flops": {0: "", 9: "GFLOPs", 12: "TFLOPs", 15: "PFLOPs", 18: "EFLOPs", 19.94: "PF-days", 21: "ZFLOPs"},
}
_PLAUSIBLE = {"params": (3.0, 14.0), "tokens": (4.5, 16.0), "flops": (8.0, 29.0)}  # decades


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


def doubts(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Findings about units, losses and rows.

    Args:
        frame: canonical columns, and `seed`, `run_id` and settings where there are any.
        names: canonical name -> column of the source.
    """
    return [*_units(frame, names), *_inconsistent(frame), *_high(frame, names), *_twice(frame)]


def _ratio(frame: pd.DataFrame) -> Floats:
    """log10 of C / 6ND."""
    logs = {key: np.log10(column(frame, key)) for key in ("params", "tokens", "flops")}
    return logs["flops"] - logs["params"] - logs["tokens"] - math.log10(6.0)


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
    derived = names["flops"].startswith("6") and "ND" in names["flops"].upper()
    off = middle["flops"] - middle["params"] - middle["tokens"] - math.log10(6.0)
    plausible = all(low <= middle[k] <= high for k, (low, high) in _PLAUSIBLE.items() if not (derived and k == "flops"))
    if plausible and abs(off) < 3.0 - NEAR:
        return []
    words = [
        " and ".join(f"column {names[k]!r} in {FACTORS[k][f]}" for k, f in guess.items() if f)
        for guess in _guesses(middle, derived)
    ]
    if not words:
        return []
    ratio = "" if derived or abs(off) < 3.0 - NEAR else f"C is about 1e{round(off):+d} times 6ND: "
    text = f"{ratio}{', or '.join(words[:3])}? Exponents stay, coefficients and N*, D* don't. "
    return [Finding("units", f"{text}A factor can be given with the column's name, as in COL*1e6.")]


def _guesses(middle: dict[str, float], derived: bool) -> list[dict[str, float]]:
    """Units that would make the table plausible: those that change the fewest columns."""
    found: list[dict[str, float]] = []
    for p, t, f in product(*(FACTORS[key] for key in ("params", "tokens", "flops"))):
        guess = {"params": p, "tokens": t, "flops": f}
        logs = {key: middle[key] + guess[key] for key in guess}
        if derived:
            logs["flops"] = logs["params"] + logs["tokens"] + math.log10(6.0)
        right = -NEAR <= logs["flops"] - logs["params"] - logs["tokens"] - math.log10(6.0) <= 1.0 + NEAR
        if right and not (derived and f) and all(low <= logs[k] <= high for k, (low, high) in _PLAUSIBLE.items()):
            found.append(guess)
    changed = [sum(bool(v) for v in guess.values()) for guess in found]
    return [guess for guess, count in zip(found, changed, strict=True) if 0 < count == min(changed)]


def _inconsistent(frame: pd.DataFrame) -> list[Finding]:
    """Rows whose C / 6ND lies more than a decade from the other rows'."""
    ratio = _ratio(frame)
    far = np.abs(ratio - np.median(ratio)) > 1.0 + NEAR / 3.0
    if not far.any():
        return []
    words = f"In {name_rows(frame, far)}, C / 6ND is more than 10 times off that of most rows."
    return [Finding("flops_inconsistent", f"{words} Are parameters, tokens and FLOPs of the same run?")]


def _high(frame: pd.DataFrame, names: dict[str, str]) -> list[Finding]:
    """Losses that no training leaves behind: a perplexity, or a run that diverged."""
    loss = column(frame, "loss")
    if np.median(loss) > MAX_LOSS:
        words = f"Column {names['loss']!r} is {np.median(loss):.4g} in the middle: no loss in nats. Is it a perplexity?"
        return [Finding("loss_high", words)]
    middle = frame["loss"].groupby(frame["budget"]).transform("median").to_numpy(dtype=np.float64)
    high = loss > HIGH * middle
    if not high.any():
        return []
    words = f"The loss of {name_rows(frame, high)} is more than {HIGH:g} times the middle of its budget"
    return [Finding("diverged", f"{words}: did it diverge? It is used all the same.")]


def _twice(frame: pd.DataFrame) -> list[Finding]:
    """Runs of one name, or of one configuration and seed, with different losses."""
    found = []
    if "run_id" in frame and (named := frame.duplicated("run_id", keep=False).to_numpy(dtype=bool)).any():
        some = sorted(set(rows(frame, named)["run_id"]))
        words = f"{', '.join(some[:5])}{f' and {len(some) - 5} more' if len(some) > 5 else ''}"
        found.append(Finding("duplicates", f"More than one row, not alike, for the run {words}. All are used."))
    if "seed" not in frame:
        return found
    same = frame.duplicated(["config", "seed"], keep=False).to_numpy(dtype=bool) & frame["seed"].notna().to_numpy()
    if same.any() and not found:
        words = f"{name_rows(frame, same)} are of one configuration and seed with different losses, and count as seeds"
        found.append(Finding("duplicates", f"{words}. What tells them apart needs a column of: {', '.join(SETTINGS)}."))
    return found
