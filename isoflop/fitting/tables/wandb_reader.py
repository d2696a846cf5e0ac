"""Offline runs of Weights & Biases: `run-*.wandb` as rows of their history with their configuration.

The file is a log of records in LevelDB's framing (blocks of 32 KiB; each record with CRC-32, length and type), behind a
header of 7 bytes; the records are protocol buffers that the wandb library defines. The library has no reader in Python
any more (0.31 has none), so the framing is read here and the records by its classes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.tables.rows import Dropped

_HEADER = b":W&B"
_HEADER_BYTES = 7
_BLOCK = 32 * 1024
_FRAME = struct.Struct("<IHB")  # CRC-32, length, type
_FULL, _FIRST, _LAST = 1, 2, 4
_OWN = ("_wandb",)


def read_offline(paths: list[Path]) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row for each line of a run's history: `run`, `state`, the history's keys, `config.` and `summary.` keys.

    The state is `finished`, `failed`, or `crashed` for a run whose file has no end.

    Raises:
        FitError: the wandb library isn't installed; files of something else.
    """
    record = _record_class()
    found: list[dict[str, Any]] = []
    dropped: list[Dropped] = []
    for path in paths:
        run, rows = _read_run(path, record)
        if rows:
            found.extend({**row, **run} for row in rows)
        else:
            dropped.append(Dropped(f"run {run['run']}", "has no history"))
    if not found:
        raise FitError(f"{paths[0].parent}: none of the {len(paths)} W&B runs has a history")
    return pd.DataFrame(found), dropped


def _record_class() -> Any:
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore
    except ImportError as error:
        raise FitError(
            f"reading W&B runs needs wandb ({error}): pip install 'isoflop[wandb]'"
        ) from None
    return Record


def _read_run(path: Path, record_class: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What holds for the whole run, and a row a line of its history."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    name, state = path.stem.removeprefix("run-"), "crashed"
    for data in _records(path):
        try:
            record = record_class.FromString(data)
        except Exception as error:  # DecodeError of whichever protobuf is installed
            raise FitError(
                f"{path}: a record can't be read: {' '.join(str(error).split())}"
            ) from None
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.run_id or name
            config |= _items(record.run.config.update, "config")
        elif kind == "config":
            config |= _items(record.config.update, "config")
        elif kind == "summary":
            summary |= _items(record.summary.update, "summary")
        elif kind == "history":
            rows.append(_items(record.history.item, ""))
            if record.history.HasField("step"):
                rows[-1].setdefault("_step", record.history.step.num)
        elif kind == "exit":
            state = "failed" if record.exit.exit_code else "finished"
    return {"run": name, "state": state, **config, **summary}, rows


def _items(items: Iterable[Any], prefix: str) -> dict[str, Any]:
    """Dotted key -> value; dictionaries are opened."""
    found: dict[str, Any] = {}
    for item in items:
        parts = list(item.nested_key) or [item.key]
        if parts[0] in _OWN:
            continue
        try:
            value = json.loads(item.value_json)
        except ValueError:
            continue
        found |= _leaves(".".join([prefix, *parts] if prefix else parts), value)
    return found


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _leaves(f"{name}.{key}", item)
    return leaves


def _records(path: Path) -> Iterator[bytes]:
    """The records of a file; a torn one at its end, as a killed run leaves, ends it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FitError(f"{path}: can't be read: {error.strerror}") from None
    if not data.startswith(_HEADER):
        raise FitError(f"{path}: is no file of a W&B run")
    position, parts = _HEADER_BYTES, []
    while position + _FRAME.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _FRAME.size:
            position += left
            continue
        checksum, length, kind = _FRAME.unpack_from(data, position)
        body = data[position + _FRAME.size : position + _FRAME.size + length]
        if len(body) < length or zlib.crc32(bytes([kind]) + body) != checksum:
            return
        position += _FRAME.size + length
        parts = [body] if kind in (_FULL, _FIRST) else [*parts, body]
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
