"""TensorBoard event files: the scalars of a folder of runs as rows, and the hyperparameters of the hparams plugin."""

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
from isoflop.fitting.tables.rows import Dropped

_HPARAMS = "_hparams_/session_start_info"
_OURS = ("run", "step")  # names that the rows have anyway


def read_events(paths: list[Path], root: Path) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row for each step of a run: `run` (its folder), `step`, a column a scalar's tag, hyperparameters.

    Hyperparameters hold for the run in whose folder they are, in a folder of it (which torch's `add_hparams` makes), or
    above it.

    Raises:
        FitError: the tensorboard library isn't installed; no scalars anywhere.
    """
    accumulate, hparams_class, to_array = _library()
    scalars: dict[Path, pd.DataFrame] = {}
    hparams: dict[Path, dict[str, Any]] = {}
    folders = sorted({path.parent for path in paths})
    for folder in folders:
        with _quiet():
            events = accumulate(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
            scalars[folder] = _scalars(events, to_array)
            hparams[folder] = _hparams(events, hparams_class)
    below: dict[Path, list[Path]] = defaultdict(list)
    for folder in folders:
        for parent in folder.parents if hparams[folder] else ():
            below[parent].append(folder)
    frames: list[pd.DataFrame] = []
    dropped: list[Dropped] = []
    for folder in folders:
        name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
        above = [parent for parent in folder.parents if len(scalars.get(parent, ()))]
        if hparams[folder] and above:  # its scalars are the metrics of the plugin's table
            continue
        if not len(scalars[folder]):
            if not hparams[folder]:
                dropped.append(Dropped(f"run {name}", "has no scalars"))
            continue
        found: dict[str, Any] = {}
        for other in (*reversed(folder.parents), folder, *below[folder]):
            found |= hparams.get(other, {})
        new = {key: value for key, value in found.items() if key not in scalars[folder].columns}
        frames.append(scalars[folder].assign(run=name, **new))
    if not frames:
        raise FitError(f"{root}: the event files have no scalars")
    return pd.concat(frames, ignore_index=True), dropped


def _library() -> tuple[Any, Any, Any]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore
        from tensorboard.util.tensor_util import make_ndarray  # pyright: ignore
    except ImportError as error:
        raise FitError(
            f"reading event files needs tensorboard ({error}): pip install 'isoflop[tensorboard]'"
        ) from None
    return EventAccumulator, HParamsPluginData, make_ndarray


@contextmanager
def _quiet() -> Iterator[None]:
    """Without tensorboard's log of every restart; what it can't read has no scalars, and that is said."""
    logger = logging.getLogger("tensorboard")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _scalars(events: Any, to_array: Any) -> pd.DataFrame:
    """A row a step, a column a tag; torch writes values, TensorFlow 2 tensors."""
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
        if tag not in _OURS
    }
    return pd.DataFrame(unique).rename_axis("step").reset_index() if unique else pd.DataFrame()


def _hparams(events: Any, hparams_class: Any) -> dict[str, Any]:
    try:
        content = events.SummaryMetadata(_HPARAMS).plugin_data.content
    except KeyError:
        return {}
    fields = hparams_class.FromString(content).session_start_info.hparams
    return {
        key: getattr(value, kind)
        for key, value in fields.items()
        if (kind := value.WhichOneof("kind"))
    }
