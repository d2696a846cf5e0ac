"""Preparation of a data specification's shards: their folder is found, or made completely."""

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
"""Function that takes the tokens made so far and the tokens to make."""


def data_folder(root: Path, data: Data) -> Path:
    """Return the folder of a data specification's shards under the root of all runs."""
    return root / "data" / data_hash(data)


def prepare(
    root: Path, data: Data, *, processes: int | None = None, progress: Progress | None = None
) -> Path:
    """Return the folder of a data specification's shards; make it if it does not exist.

    Raises:
        DataError: a source or codec that this version can't prepare, or a damaged manifest.
    """
    folder = data_folder(root, data)
    if folder.exists():
        _check(folder, data)
        return folder
    make = _find_maker(data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        cores = len(os.sched_getaffinity(0))
        make(temporary, data_identity(data), processes or cores, progress).write(temporary)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check(folder: Path, data: Data) -> None:
    """Raise DataError if a folder holds the data of another specification."""
    stored, expected = Manifest.read(folder).data, data_identity(data)
    if canonical_hash(stored) != canonical_hash(expected):
        keys = []
        if isinstance(stored, dict):
            keys = [key for key in expected if stored.get(key) != expected[key]]
        difference = f"different {', '.join(keys)}" if keys else "its manifest was edited"
        raise DataError(
            f"{folder}: made from another data section ({difference}); move it away, and prepare "
            "again"
        )


def _find_maker(data: Data) -> Callable[[Path, dict[str, Any], int, Progress | None], Manifest]:
    from isoflop.data.pocket import prepare_pocket

    if data.codec != "pocket" or data.text_tokenizer != "bytes" or set(data.mixture) != {"pocket"}:
        raise DataError(
            "this version can prepare only the pocket corpus: data.codec pocket, "
            "data.text_tokenizer bytes, data.mixture {pocket: 1.0} (the sweep has "
            f"{data.codec}, {data.text_tokenizer}, {', '.join(data.mixture)})"
        )
    if "pocket" not in data.tokens:
        raise DataError(
            "data.tokens.pocket: missing; give the number of tokens to make, "
            "e.g. tokens: {pocket: 3.0e6}"
        )
    return prepare_pocket


def _publish(temporary: Path, folder: Path) -> None:
    """Rename into place; if another process was first, its result stays."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise
    sync(folder.parent)


def _remove_abandoned(folder: Path) -> None:
    """Remove folders of killed preparations on this machine; others may be in use elsewhere."""
    for stray in folder.parent.glob(f".{folder.name}.{socket.gethostname()}.*.tmp"):
        process = stray.name.split(".")[-2]
        if process == str(os.getpid()) or not Path("/proc", process).exists():
            shutil.rmtree(stray, ignore_errors=True)
