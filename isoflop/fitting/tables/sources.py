"""Sources of runs as raw rows: a table, a sweep's directory, or a folder written by a logger."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.rows import RUN_COLUMNS, DroppedRows
from isoflop.fitting.tables.table_files import RUNS_FILE, TABLE_SUFFIXES, read_frame

PLAN_FILE = "plan.parquet"
EVENT_FILE_PREFIX = "events.out.tfevents."
WANDB_SUFFIX = ".wandb"
_MAX_TABLE_DEPTH = 2  # a folder of tables, or of folders with one table each


class RunsSource(NamedTuple):
    """Raw rows of a source.

    Attributes:
        frame: rows as they were read, no column interpreted.
        where: name of the source in messages.
        kind: kind of the source, such as `CSV`.
        log: whether it has many rows a run; None if the columns decide it.
        dropped: runs without anything to read.
    """

    frame: pd.DataFrame
    where: str
    kind: str
    log: bool | None = None
    dropped: tuple[DroppedRows, ...] = ()


def read_source(source: pd.DataFrame | str | Path) -> RunsSource:
    """Read a source of runs.

    Args:
        source: DataFrame, file of a table, directory of a sweep, or folder of event files, W&B
            runs or tables.

    Raises:
        FitError: nothing that can be read; names the files that were expected.
    """
    if isinstance(source, pd.DataFrame):
        return RunsSource(source, "the table", "DataFrame")
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise FitError(
            f"runs must be a DataFrame, or the path of a table or of a sweep, not a {kind}; "
            "try pd.DataFrame(runs)"
        )
    path = Path(source)
    if path.is_dir() and not (path / RUNS_FILE).exists() and not (path / PLAN_FILE).exists():
        return _read_folder(path)
    if path.is_file() and path.suffix == WANDB_SUFFIX:
        return _read_wandb([path], path)
    if path.is_file() and path.name.startswith(EVENT_FILE_PREFIX):
        return _read_tensorboard([path], path)
    frame = read_frame(path)
    return RunsSource(
        frame, str(path), "sweep" if path.is_dir() else path.suffix[1:].lower().upper()
    )


def _read_folder(folder: Path) -> RunsSource:
    """Read a folder of W&B runs, of event files or of tables."""
    offline = sorted(folder.rglob(f"*{WANDB_SUFFIX}"))
    runs = {path.parent for path in offline}
    events = [
        path
        for path in sorted(folder.rglob(f"{EVENT_FILE_PREFIX}*"))
        if runs.isdisjoint(path.parents)
    ]
    if offline and events:
        raise FitError(
            f"{folder}: has W&B runs and TensorBoard event files; name the folder of one of them"
        )
    if offline:
        return _read_wandb(offline, folder)
    if events:
        return _read_tensorboard(events, folder)
    tables = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()
    ]
    tables = [path for path in tables if len(path.relative_to(folder).parts) <= _MAX_TABLE_DEPTH]
    if not tables:
        raise FitError(
            f"{folder}: has no {RUNS_FILE}, tables, event files of TensorBoard or runs of W&B; "
            "is it the directory of a sweep that was run?"
        )
    return _read_tables(tables, folder)


def _read_tables(paths: list[Path], folder: Path) -> RunsSource:
    """Read a file a run into one table.

    If no column names the run, its name is the path of the file, or of its folder if all files
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
            reason = str(problem).removeprefix(f"{path}: ")
            dropped.append(DroppedRows(str(path.relative_to(folder)), reason))
            continue
        if not any(name in frame.columns for name in RUN_COLUMNS):
            named = path.parent if by_folder else path.with_suffix("")
            frame = frame.assign(run=named.relative_to(folder).as_posix())
        frames.append(frame.dropna(axis=1, how="all"))
    if not frames:
        first = dropped[0]
        raise FitError(
            f"{folder}: none of its {len(paths)} tables can be read; {first.what}: {first.why}"
        )
    rows = pd.concat(frames, ignore_index=True)
    return RunsSource(rows, str(folder), f"{len(frames)} tables", None, tuple(dropped))


def _read_wandb(paths: list[Path], where: Path) -> RunsSource:
    from isoflop.fitting.tables.wandb_reader import read_offline_runs

    frame, dropped = read_offline_runs(paths)
    return RunsSource(frame, str(where), f"{len(paths)} W&B runs", True, tuple(dropped))


def _read_tensorboard(paths: list[Path], where: Path) -> RunsSource:
    from isoflop.fitting.tables.tensorboard_reader import read_event_files

    frame, dropped = read_event_files(paths, where if where.is_dir() else where.parent)
    return RunsSource(frame, str(where), "TensorBoard event files", True, tuple(dropped))
