"""The losses that a program of `trainer: command` writes: JSONL or CSV, torn and repeated as its stops leave them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.runs import RunDirectory, log_row
from isoflop.shapes import ModelShape


def losses_file(run: RunDirectory) -> Path:
    """Where the program writes its losses: `losses.csv` where it has made that, else `losses.jsonl`."""
    table = run.path / "losses.csv"
    return table if table.exists() else run.path / "losses.jsonl"


def read_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The losses written so far, in order of steps, the last of each; a torn last line does not count."""
    file = losses_file(run)
    if not file.exists():
        return []
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    for record in _records(file):
        try:
            row = {
                "split": "train",
                "kind": "all",
                **{key: value for key, value in record.items() if value not in ("", None)},
            }
            row |= {"step": int(row["step"]), "loss": float(row["loss"])}
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{file}: a line without step and loss: {str(record)[:100]}") from None
        found[row["step"], row["split"], row["kind"]] = row
    return [found[key] for key in sorted(found)]


def _records(file: Path) -> Iterable[dict[str, Any]]:
    whole, _, _ = file.read_text(errors="replace").rpartition("\n")
    if file.suffix == ".csv":
        yield from csv.DictReader(whole.splitlines())
        return
    for line in filter(None, map(str.strip, whole.splitlines())):
        try:
            record = json.loads(line)
        except ValueError:
            raise RunError(f"{file}: not JSON: {line[:100]}") from None
        yield record if isinstance(record, dict) else {"step": record}


def cut_torn_line(file: Path) -> None:
    """Ends the losses of a program that was killed while it wrote a line with the line before, to be written on."""
    if file.exists():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def keep_rows(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Writes the program's losses as the run's loss log."""
    config = run.config()
    plan, shape = config["run"], ModelShape(**config["identity"]["shape"])
    run.cut_log(0)
    run.append_log([log_row(shape, plan["batch_size"], **row) for row in rows])
