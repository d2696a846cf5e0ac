"""Reader of TensorBoard event files: scalars as rows, hyperparameters of the hparams plugin."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.rows import DroppedRows

_HPARAMS_TAG = "_hparams_/session_start_info"
_RESERVED_COLUMNS = ("run", "step")  # the reader's own columns, never taken from a tag


def read_event_files(paths: list[Path], root: Path) -> tuple[pd.DataFrame, list[DroppedRows]]:
    """Return a row for each step of a run, and the runs without scalars.

    Columns are `run` (the run's folder), `step`, one for each scalar's tag, and hyperparameters.
    Hyperparameters hold for the run in their folder, in a folder above (torch's `add_hparams` makes
    a folder in that of the run) or in a folder below.

    Args:
        paths: event files.
        root: folder that runs are named relative to.

    Raises:
        FitError: the tensorboard library is not installed, or no file has scalars.
    """
    accumulator_class, hparams_class, to_array = _import_library()
    scalars: dict[Path, pd.DataFrame] = {}
    hparams: dict[Path, dict[str, Any]] = {}
    folders = sorted({path.parent for path in paths})
    for folder in folders:
        with _quiet():
            guidance = {"scalars": 0, "tensors": 0}
            events = accumulator_class(str(folder), size_guidance=guidance).Reload()
            scalars[folder] = _read_scalars(events, to_array)
            hparams[folder] = _read_hparams(events, hparams_class)
    below: dict[Path, list[Path]] = defaultdict(list)
    for folder in folders:
        for parent in folder.parents if hparams[folder] else ():
            below[parent].append(folder)
    frames: list[pd.DataFrame] = []
    dropped: list[DroppedRows] = []
    for folder in folders:
        name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
        above = [parent for parent in folder.parents if len(scalars.get(parent, ()))]
        if hparams[folder] and above:  # its scalars are the metrics of the plugin's table
            continue
        if not len(scalars[folder]):
            if not hparams[folder]:
                dropped.append(DroppedRows(f"run {name}", "has no scalars"))
            continue
        settings: dict[str, Any] = {}
        for other in (*reversed(folder.parents), folder, *below[folder]):
            settings |= hparams.get(other, {})
        tags = scalars[folder].columns
        new = {key: value for key, value in settings.items() if key not in tags}
        frames.append(scalars[folder].assign(run=name, **new))
    if not frames:
        raise FitError(f"{root}: the event files have no scalars")
    return pd.concat(frames, ignore_index=True), dropped


def _import_library() -> tuple[Any, Any, Any]:
    """Return the accumulator of events, the message of hyperparameters, and a tensor converter."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore
            EventAccumulator,
        )
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore
        from tensorboard.util.tensor_util import make_ndarray  # pyright: ignore
    except ImportError as error:
        raise FitError(
            f"reading event files needs tensorboard ({error}): pip install 'isoflop[tensorboard]'"
        ) from None
    return EventAccumulator, HParamsPluginData, make_ndarray


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence tensorboard's log of every restart.

    Unreadable files have no scalars, and the caller reports that.
    """
    logger = logging.getLogger("tensorboard")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read_scalars(events: Any, to_array: Any) -> pd.DataFrame:
    """Return a row a step and a column a tag, from torch's values or TensorFlow 2's tensors."""
    series: dict[str, pd.Series] = {}
    tags = events.Tags()
    for tag in tags["scalars"]:
        points = events.Scalars(tag)
        series[tag] = pd.Series(
            [p.value for p in points], index=[p.step for p in points], dtype=np.float64
        )
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            points = events.Tensors(tag)
            values = [float(to_array(p.tensor_proto).item()) for p in points]
            series[tag] = pd.Series(values, index=[p.step for p in points], dtype=np.float64)
    unique = {
        tag: values[~values.index.duplicated(keep="last")]
        for tag, values in series.items()
        if tag not in _RESERVED_COLUMNS
    }
    return pd.DataFrame(unique).rename_axis("step").reset_index() if unique else pd.DataFrame()


def _read_hparams(events: Any, hparams_class: Any) -> dict[str, Any]:
    """Return hyperparameters by name; empty if the events have none."""
    try:
        content = events.SummaryMetadata(_HPARAMS_TAG).plugin_data.content
    except KeyError:
        return {}
    fields = hparams_class.FromString(content).session_start_info.hparams
    return {
        key: getattr(value, kind)
        for key, value in fields.items()
        if (kind := value.WhichOneof("kind"))
    }
