"""From what a user names to raw rows: a table, a sweep's directory, or a folder that a logger filled."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.readers import RUNS_FILE, TABLES, read_frame
from isoflop.fitting.tables.rows import RUN_COLUMNS, Dropped

PLAN_FILE = "plan.parquet"
EVENTS = "events.out.tfevents."
OFFLINE = ".wandb"
_DEPTH = 2  # a folder of tables, or of folders with one each


class Source(NamedTuple):
    """Raw rows, and how they were had.

    Attributes:
        frame: as it was read, no column interpreted.
        where: for messages.
        words: what it is, such as `CSV`.
        log: whether it has many rows a run; None where the columns have to tell.
        dropped: runs that had nothing to read.
    """

    frame: pd.DataFrame
    where: str
    words: str
    log: bool | None = None
    dropped: tuple[Dropped, ...] = ()


def read_source(source: pd.DataFrame | str | Path) -> Source:
    """Reads a DataFrame, a table's file, a sweep's directory, or a folder of event files, W&B runs or tables.

    Raises:
        FitError: nothing there that can be read, with what was looked for.
    """
    if isinstance(source, pd.DataFrame):
        return Source(source, "the table", "DataFrame")
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise FitError(
            f"runs are a DataFrame, or the path of a table or of a sweep, not a {kind}: pd.DataFrame(runs)?"
        )
    path = Path(source)
    if path.is_dir() and not (path / RUNS_FILE).exists() and not (path / PLAN_FILE).exists():
        return _folder(path)
    if path.is_file() and path.suffix == OFFLINE:
        return _offline([path], path)
    if path.is_file() and path.name.startswith(EVENTS):
        return _events([path], path)
    frame = read_frame(path)
    return Source(frame, str(path), "sweep" if path.is_dir() else path.suffix[1:].lower().upper())


def _folder(folder: Path) -> Source:
    offline = sorted(folder.rglob(f"*{OFFLINE}"))
    runs = {path.parent for path in offline}
    events = [path for path in sorted(folder.rglob(f"{EVENTS}*")) if runs.isdisjoint(path.parents)]
    if offline and events:
        raise FitError(
            f"{folder}: has W&B runs and TensorBoard event files; name the folder of one of them"
        )
    if offline:
        return _offline(offline, folder)
    if events:
        return _events(events, folder)
    tables = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in TABLES and path.is_file()
    ]
    tables = [path for path in tables if len(path.relative_to(folder).parts) <= _DEPTH]
    if not tables:
        raise FitError(
            f"{folder}: has no {RUNS_FILE}, tables, event files of TensorBoard or runs of W&B; "
            "is it the directory of a sweep that was run?"
        )
    return _tables(tables, folder)


def _tables(paths: list[Path], folder: Path) -> Source:
    """One table from a file a run; where no column names the run, the file's path does, or its folder's where all files
    have one name.
    """
    frames = []
    dropped = []
    by_folder = len(paths) > 1 and len({path.name for path in paths}) == 1
    for path in paths:
        try:
            frame = read_frame(path)
        except FitError as problem:
            if len(paths) == 1:
                raise
            dropped.append(
                Dropped(str(path.relative_to(folder)), str(problem).removeprefix(f"{path}: "))
            )
            continue
        if not any(name in frame.columns for name in RUN_COLUMNS):
            frame = frame.assign(
                run=(path.parent if by_folder else path.with_suffix(""))
                .relative_to(folder)
                .as_posix()
            )
        frames.append(frame.dropna(axis=1, how="all"))
    if not frames:
        raise FitError(
            f"{folder}: none of its {len(paths)} tables can be read; {dropped[0].what}: {dropped[0].why}"
        )
    return Source(
        pd.concat(frames, ignore_index=True),
        str(folder),
        f"{len(frames)} tables",
        None,
        tuple(dropped),
    )


def _offline(paths: list[Path], where: Path) -> Source:
    from isoflop.fitting.tables.wandb_reader import read_offline

    frame, dropped = read_offline(paths)
    return Source(frame, str(where), f"{len(paths)} W&B runs", True, tuple(dropped))


def _events(paths: list[Path], where: Path) -> Source:
    from isoflop.fitting.tables.tensorboard_reader import read_events

    frame, dropped = read_events(paths, where if where.is_dir() else where.parent)
    return Source(frame, str(where), "TensorBoard event files", True, tuple(dropped))
