"""Reader of offline W&B runs: `run-*.wandb` as rows of their history with their configuration.

The file is a log of records in LevelDB's framing (blocks of 32 KiB; each record with CRC-32, length
and type), behind a header of 7 bytes. The records are protocol buffers that the wandb library
defines. The library no longer has a reader in Python (0.31 has none), so the framing is read here
and the records by its classes.
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
from isoflop.fitting.tables.rows import DroppedRows

_HEADER = b":W&B"
_HEADER_BYTES = 7
_LOG_BLOCK_BYTES = 32 * 1024
_FRAME = struct.Struct("<IHB")  # CRC-32, length, type
_FULL, _FIRST, _LAST = 1, 2, 4  # types of a frame
_INTERNAL_KEYS = ("_wandb",)


def read_offline_runs(paths: list[Path]) -> tuple[pd.DataFrame, list[DroppedRows]]:
    """Return a row for each line of a run's history, and the runs without a history.

    Columns are `run`, `state`, the history's keys, and `config.` and `summary.` keys. The state is
    `finished`, `failed`, or `crashed` for a run whose file has no end.

    Raises:
        FitError: the wandb library is not installed, or a file is no run.
    """
    record_class = _import_record_class()
    rows: list[dict[str, Any]] = []
    dropped: list[DroppedRows] = []
    for path in paths:
        run, history = _read_run(path, record_class)
        if history:
            rows.extend({**row, **run} for row in history)
        else:
            dropped.append(DroppedRows(f"run {run['run']}", "has no history"))
    if not rows:
        raise FitError(f"{paths[0].parent}: none of the {len(paths)} W&B runs has a history")
    return pd.DataFrame(rows), dropped


def _import_record_class() -> Any:
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore
    except ImportError as error:
        raise FitError(
            f"reading W&B runs needs wandb ({error}): pip install 'isoflop[wandb]'"
        ) from None
    return Record


def _read_run(path: Path, record_class: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the values of the whole run (name, state, configuration), and its history's rows."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    name, state = path.stem.removeprefix("run-"), "crashed"
    for data in _read_records(path):
        try:
            record = record_class.FromString(data)
        except Exception as error:  # DecodeError of the installed protobuf, whichever it is
            raise FitError(
                f"{path}: a record can't be read: {' '.join(str(error).split())}"
            ) from None
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.run_id or name
            config |= _parse_items(record.run.config.update, "config")
        elif kind == "config":
            config |= _parse_items(record.config.update, "config")
        elif kind == "summary":
            summary |= _parse_items(record.summary.update, "summary")
        elif kind == "history":
            rows.append(_parse_items(record.history.item, ""))
            if record.history.HasField("step"):
                rows[-1].setdefault("_step", record.history.step.num)
        elif kind == "exit":
            state = "failed" if record.exit.exit_code else "finished"
    return {"run": name, "state": state, **config, **summary}, rows


def _parse_items(items: Iterable[Any], prefix: str) -> dict[str, Any]:
    """Return the values of items by dotted key; dictionaries are flattened."""
    values: dict[str, Any] = {}
    for item in items:
        keys = list(item.nested_key) or [item.key]
        if keys[0] in _INTERNAL_KEYS:
            continue
        try:
            value = json.loads(item.value_json)
        except ValueError:
            continue
        values |= _flatten(".".join([prefix, *keys] if prefix else keys), value)
    return values


def _flatten(name: str, value: Any) -> dict[str, Any]:
    """Return the leaves of a value by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _flatten(f"{name}.{key}", item)
    return leaves


def _read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file, up to a torn record as a killed run leaves at the end."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FitError(f"{path}: can't be read: {error.strerror}") from None
    if not data.startswith(_HEADER):
        raise FitError(f"{path}: is not a file of a W&B run")
    position, bodies = _HEADER_BYTES, []
    while position + _FRAME.size <= len(data):
        block_bytes = _LOG_BLOCK_BYTES - position % _LOG_BLOCK_BYTES
        if block_bytes < _FRAME.size:
            position += block_bytes
            continue
        checksum, length, kind = _FRAME.unpack_from(data, position)
        body = data[position + _FRAME.size : position + _FRAME.size + length]
        if len(body) < length or zlib.crc32(bytes([kind]) + body) != checksum:
            return
        position += _FRAME.size + length
        bodies = [body] if kind in (_FULL, _FIRST) else [*bodies, body]
        if kind in (_FULL, _LAST):
            yield b"".join(bodies)
            bodies = []
