"""From a data specification to a folder of shards: found if it is there, else made whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.config import Data, data_hash
from isoflop.config.identity import canonical_hash, data_identity
from isoflop.data.shards import MANIFEST, Manifest
from isoflop.errors import DataError
from isoflop.files import sync

Progress = Callable[[int, float], None]
"""Called with the tokens made so far and those wanted."""


def data_folder(root: Path, data: Data) -> Path:
    """Where the shards of a data specification lie under the root of all runs."""
    return root / "data" / data_hash(data)


def prepare(
    root: Path, data: Data, *, processes: int | None = None, progress: Progress | None = None
) -> Path:
    """The folder of a data specification's shards, which is made if it is not there.

    Raises:
        DataError: a source or codec that can't be prepared here, or a damaged manifest.
    """
    folder = data_folder(root, data)
    if folder.exists():
        _check(folder, data)
        return folder
    make = _maker(data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        cores = len(os.sched_getaffinity(0))
        make(temporary, data_identity(data), processes or cores, progress).write(temporary)
        _claim(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check(folder: Path, data: Data) -> None:
    """Refuses a folder that holds other data than its name says."""
    made_from, wanted = Manifest.read(folder).data, data_identity(data)
    if canonical_hash(made_from) != canonical_hash(wanted):
        differ = (
            [key for key in wanted if made_from.get(key) != wanted[key]]
            if isinstance(made_from, dict)
            else []
        )
        raise DataError(
            f"{folder}: made from another data section ({', '.join(differ) or 'edited'} differ); move it away, and "
            "prepare again"
        )


def _maker(data: Data) -> Callable[[Path, dict[str, Any], int, Progress | None], Manifest]:
    from isoflop.data.pocket import prepare_pocket

    if data.codec != "pocket" or data.text_tokenizer != "bytes" or set(data.mixture) != {"pocket"}:
        raise DataError(
            "only the pocket corpus can be prepared by this version: data.codec pocket, data.text_tokenizer bytes, "
            f"data.mixture {{pocket: 1.0}} (given: {data.codec}, {data.text_tokenizer}, {', '.join(data.mixture)})"
        )
    if "pocket" not in data.tokens:
        raise DataError(
            "data.tokens.pocket: missing; it says how many tokens to make, e.g. tokens: {pocket: 3.0e6}"
        )
    return prepare_pocket


def _claim(temporary: Path, folder: Path) -> None:
    """Renames into place; where another process was first, its result stays."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise
    sync(folder.parent)


def _remove_abandoned(folder: Path) -> None:
    """Removes what a killed preparation on this machine left behind; another machine's may still be at work."""
    for stray in folder.parent.glob(f".{folder.name}.{socket.gethostname()}.*.tmp"):
        process = stray.name.split(".")[-2]
        if process == str(os.getpid()) or not Path("/proc", process).exists():
            shutil.rmtree(stray, ignore_errors=True)
