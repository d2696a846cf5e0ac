"""A table of runs in canonical form: which columns, which units, which rows, which budget each run belongs to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.files import read_frame, refuse_duplicates
from isoflop.fitting.frames import column, rows

ParamCount = Literal["total", "one_embedding", "non_embedding"]
LossUnit = Literal["nats", "bits"]
Floats = np.ndarray

UNGROUPED = "(flops, in no groups)"
CANONICAL = ("params", "tokens", "loss", "flops", "budget")
# Two rows that differ in one of these are two configurations, not two seeds of one.
SETTINGS = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "seq_len", "batch_size", "lr", "beta2")
BUDGET_GAP = 0.05  # runs of one budget differ by the rounding of their steps (1 %); 1.8e19 and 2e19 differ by 11 %
BUDGET_SPREAD = 0.20
_SAME_BUDGET = 1e-6  # planned budgets that differ less than this differ by how they were printed


class Dropped(NamedTuple):
    """Rows that were left out."""

    what: str
    why: str


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
    """

    frame: pd.DataFrame
    source: str
    n: ParamCount
    columns: dict[str, str]
    loss_unit: LossUnit = "nats"
    dropped: tuple[Dropped, ...] = ()
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
    grouped: bool = True,
) -> RunsTable:
    """Reads runs and names their columns.

    Args:
        source: DataFrame, a sweep's directory, or a Parquet, CSV or JSONL file.
        params: column of parameter counts; default: the column that `n` names (`params` or `params_total`,
            `params_one_embedding`, `params_non_embedding`).
        tokens: column of training tokens; default `tokens`.
        loss: column of losses; default `loss`.
        flops: column of training FLOPs; default `flops` or `train_flops`, else the budget.
        budget: column of planned budgets; default `budget`, else the FLOPs, clustered in log space, never rounded.
        n: which parameter count the law is about; recorded in the result.
        loss_unit: bits are converted to nats.
        grouped: whether the runs must fall into budgets; else, where they don't, each row's budget is its FLOPs.

    Raises:
        FitError: one line that names file, column and rows.
    """
    if isinstance(source, RunsTable):
        return source
    raw, where = (source, "the table") if isinstance(source, pd.DataFrame) else (read_frame(source), str(source))
    raw = raw.reset_index(drop=True)
    refuse_duplicates(list(raw.columns), where)
    if loss_unit not in ("nats", "bits"):
        raise FitError(f"unknown loss unit {loss_unit!r}: nats or bits")
    names = _names(raw, where, params=params, tokens=tokens, loss=loss, flops=flops, budget=budget, n=n)
    raw, dropped = _finished(raw, where)
    frame = pd.DataFrame({key: _numbers(raw, name, where) for key, name in names.items()}, index=raw.index)
    if loss_unit == "bits":
        frame["loss"] *= math.log(2.0)
    names |= _fill_flops_and_budget(frame, where, grouped)
    frame, twice = _without_copies(_with_extras(frame, raw))
    frame = frame.sort_values([*CANONICAL, *(c for c in ("seed",) if c in frame)], kind="stable", ignore_index=True)
    return RunsTable(frame, where, n, names, loss_unit, tuple(dropped + twice))


def _names(raw: pd.DataFrame, where: str, *, n: ParamCount, **given: str | None) -> dict[str, str]:
    """Canonical name -> column of the source, for what is given or found."""
    counts = {"total": ("params", "params_total")}.get(n, (f"params_{n}",))
    if n not in ("total", "one_embedding", "non_embedding"):
        raise FitError(f"unknown parameter count {n!r}: total, one_embedding or non_embedding")
    defaults = {"params": counts, "tokens": ("tokens",), "loss": ("loss",)}
    optional = {"flops": ("flops", "train_flops"), "budget": ("budget",)}
    names = {}
    for key, candidates in (defaults | optional).items():
        chosen = given[key] or next((c for c in candidates if c in raw.columns), None)
        if chosen is None and key in defaults:
            raise FitError(_missing(raw, where, candidates[-1], key))
        if chosen is not None:
            if chosen not in raw.columns:
                raise FitError(_missing(raw, where, chosen, key))
            names[key] = chosen
    if not {"flops", "budget"} & set(names):
        raise FitError(f"{where}: no column of FLOPs; name it with --flops or --budget. {_there(raw)}")
    return names


def _missing(raw: pd.DataFrame, where: str, name: str, option: str) -> str:
    near = get_close_matches(name, map(str, raw.columns), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"name it with --{option}."
    return f"{where}: no column {name!r}; {hint} {_there(raw)}"


def _there(raw: pd.DataFrame) -> str:
    names = [str(c) for c in raw.columns]
    return f"Columns: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "It has no columns"


def _finished(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows that are done, where a `state` says so."""
    if len(raw) == 0:
        raise FitError(f"{where}: has no rows")
    if "state" not in raw.columns:
        return raw, []
    states = raw["state"].astype("string").fillna("unknown")
    keep = (states == "done").to_numpy(dtype=bool)
    if not keep.any():
        counts = ", ".join(f"{count} {state}" for state, count in states.value_counts(sort=True).items())
        raise FitError(f"{where}: no run is done ({counts})")
    left = list(dict.fromkeys(states[~keep]))
    dropped = [Dropped(_rows(raw, (states == s).to_numpy(dtype=bool)), f"state is {s}, not done") for s in left]
    return rows(raw, keep), dropped


def _numbers(raw: pd.DataFrame, name: str, where: str) -> Floats:
    """A column as positive, finite float64: products of integer columns can't overflow after this."""
    cells = cast(pd.Series, raw[name])
    kind = getattr(cells.dtype, "kind", "O")
    if kind in "mMcb":
        raise FitError(f"{where}: column {name!r} holds {cells.dtype}, not numbers")
    values = cells.map(_number).to_numpy(dtype=np.float64) if kind not in "iuf" else column(raw, name)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        shown = ", ".join(_short(v) for v in list(cells[bad])[:3])
        raise FitError(
            f"{where}: column {name!r} needs positive, finite numbers; not so in {_rows(raw, bad)} ({shown})"
        )
    return values


def _number(cell: object) -> float:
    """A cell of a text or mixed column; NaN where it isn't a number."""
    if isinstance(cell, bool) or cell is None:
        return math.nan
    try:
        return float(cell)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _short(cell: object) -> str:
    text = " ".join(repr(cell).split()) if isinstance(cell, str) else " ".join(str(cell).split())
    return text if len(text) <= 24 else text[:21] + "..."


def _rows(raw: pd.DataFrame, mask: Floats, most: int = 5) -> str:
    """Names rows: by run_id where there is one, else by number (1 is the first row below the header)."""
    if "run_id" in raw.columns:
        names, word = [str(v) for v in raw["run_id"][mask]], "run"
    else:
        names, word = [str(int(i) + 1) for i in raw.index[mask]], "row"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{word}{'s' if len(names) > 1 else ''} {', '.join(names[:most])}{more}"


def _fill_flops_and_budget(frame: pd.DataFrame, where: str, grouped: bool) -> dict[str, str]:
    """Groups runs into budgets; adds the column that the source doesn't have. Returns how it was made."""
    if "budget" in frame:
        groups = cluster(column(frame, "budget"), _SAME_BUDGET)
        made = {} if "flops" in frame else {"flops": "(budget)"}
        frame["budget"] = _first_of_group(column(frame, "budget"), groups)
        if made:
            frame["flops"] = frame["budget"]
        return made
    flops = column(frame, "flops")
    groups, logs = cluster(flops, BUDGET_GAP), np.log(flops)
    low, high = max(((g.min(), g.max()) for g in _split(flops, groups)), key=lambda ends: ends[1] / ends[0])
    if high / low > 1.0 + BUDGET_SPREAD:
        if not grouped:
            frame["budget"] = flops
            return {"budget": UNGROUPED}
        raise FitError(
            f"{where}: the FLOPs don't fall into budgets ({low:.3g} to {high:.3g} without a gap of {BUDGET_GAP:.0%}); "
            "name a column of budgets with --budget"
        )
    frame["budget"] = np.exp((np.bincount(groups, logs) / np.bincount(groups))[groups])
    return {"budget": "(flops, clustered)"}


def _split(values: Floats, groups: np.ndarray) -> list[Floats]:
    order = np.argsort(groups, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(groups[order])) + 1)


def _first_of_group(values: Floats, groups: np.ndarray) -> Floats:
    """The smallest value of each one's group."""
    return np.array([g.min() for g in _split(values, groups)])[groups]


def cluster(values: Floats | Sequence[float], gap: float) -> np.ndarray:
    """Numbers the groups of positive values that are separated by a gap in ln(value), from 0 upwards."""
    logs = np.log(np.asarray(values, dtype=np.float64))
    order = np.argsort(logs, kind="stable")
    labels = np.empty(len(logs), dtype=np.int64)
    labels[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > gap)])
    return labels


def _with_extras(frame: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """Adds the configuration's number and the columns that diagnostics and figures use."""
    key = frame[["budget", "params", "tokens"]].copy()
    for name in SETTINGS:
        if name in raw.columns:
            key[name] = raw[name].astype(str)
    frame = frame.loc[:, list(CANONICAL)].copy()
    frame["config"] = key.groupby(list(key.columns), sort=True, dropna=False).ngroup()
    for name in ("seed", "epochs"):
        if name in raw.columns:
            frame[name] = cast(pd.Series, raw[name]).map(_number).astype(np.float64)
    if "simulated" in raw.columns:  # true or false, or what a text file makes of them
        frame["simulated"] = raw["simulated"].astype(str).str.lower().isin(("true", "1", "1.0")).astype(np.float64)
    if "run_id" in raw.columns:
        frame["run_id"] = raw["run_id"].astype(str)
    return frame


def _without_copies(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row that repeats another in every column is the same run listed twice, not a second seed."""
    copies = frame.duplicated().to_numpy(dtype=bool)
    if not copies.any():
        return frame, []
    return rows(frame, ~copies), [Dropped(_rows(frame, copies), "repeats another row in every column")]


def _hash(frame: pd.DataFrame) -> str:
    """SHA-256 of the canonical columns, sorted by row, as little-endian float64: the order of rows doesn't matter."""
    rows = np.ascontiguousarray(frame[list(CANONICAL)].to_numpy(dtype="<f8"))
    rows = rows[np.lexsort(rows.T[::-1])]
    return hashlib.sha256(",".join(CANONICAL).encode() + rows.tobytes()).hexdigest()
