"""Losses that a program of `trainer: command` writes: JSONL or CSV, torn or repeated by stops."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.runs.loss_log import LOG_COLUMNS, log_row
from isoflop.runs.run_directory import RunDirectory
from isoflop.shapes import ModelShape

MAX_LOG_NUMBERS = {"step": 10**9 - 1, "tokens": 2**53, "targets": 2**53}
"""Largest values accepted: nine digits for part-file names, 2^53 for exact float64."""


def losses_file(run: RunDirectory) -> Path:
    """Return the file of the program's losses: `losses.csv` if it exists, else `losses.jsonl`."""
    table = run.path / "losses.csv"
    return table if table.exists() else run.path / "losses.jsonl"


def read_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the losses so far, by step, split and kind; the last of repeated ones.

    A last line without its newline is ignored.

    Raises:
        RunError: a line that is not a loss.
    """
    file = losses_file(run)
    if not file.exists():
        return []
    text, _, _ = _read_text(file).rpartition("\n")
    rows = {(row["step"], row["split"], row["kind"]): row for row in _parse_rows(file, text)}
    return [rows[key] for key in sorted(rows)]


def are_finite(rows: list[dict[str, Any]]) -> bool:
    """Return whether all losses are finite; otherwise the run has diverged."""
    return all(math.isfinite(row["loss"]) for row in rows)


def _read_text(file: Path) -> str:
    """Return the text without byte order marks: pandas writes one each time that it appends."""
    return file.read_text(encoding="utf-8", errors="replace").replace("\ufeff", "")


def _parse_rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    """Yield the loss log's columns of each line, without the program's other columns."""
    parse = _parse_csv if file.suffix == ".csv" else _parse_jsonl
    for number, record in parse(file, text):
        row: dict[str, Any] = {"split": "train", "kind": "all"}
        for column in filter(record.__contains__, LOG_COLUMNS):
            try:
                value = _parse_value(column, record[column])
            except (TypeError, ValueError, OverflowError):
                value_text = repr(record[column])[:100]
                problem = f"{column} is {value_text}, not {_expected_type(column)}"
                raise _line_error(file, number, problem) from None
            if value is not None:
                row[column] = value
        if not {"step", "loss"} <= row.keys():
            raise _line_error(file, number, f"a line without step and loss: {str(record)[:100]}")
        yield row


def _parse_jsonl(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and JSON objects.

    Lines end at newlines only: `splitlines` would cut a string at U+2028.
    """
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise _line_error(file, number, f"not a JSON object: {line[:100]}")
        yield number, record


def _parse_csv(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and rows of a table, without headers that a restarted program repeats."""
    header: list[str] = []
    lines = csv.reader(text.split("\n"), skipinitialspace=True)
    try:
        for cells in lines:
            row = [cell.strip() for cell in cells]
            header = header or row
            if any(row) and row != header:
                yield lines.line_num, dict(zip(header, row, strict=False))
    except csv.Error as problem:
        raise _line_error(file, lines.line_num, f"not CSV ({problem})") from None


def _parse_value(column: str, value: Any) -> int | float | str | None:
    """Return a value in the loss log's type, or None if it is unknown.

    Raises:
        TypeError, ValueError, OverflowError: a value of another type or range.
    """
    kind = LOG_COLUMNS[column]
    if value is None or value == "":
        return None
    if isinstance(value, bool) or (kind == "str" and not isinstance(value, str)):
        raise TypeError
    if kind == "str":
        value.encode()  # raises UnicodeEncodeError for half a pair of surrogates
        return value
    number = float(value)
    if kind == "float64":
        return number
    if math.isnan(number) and column != "step":
        return None
    if not number.is_integer() or not 0 <= number <= MAX_LOG_NUMBERS[column]:
        raise ValueError
    return int(number)


def _expected_type(column: str) -> str:
    if column in MAX_LOG_NUMBERS:
        return f"a whole number from 0 to {MAX_LOG_NUMBERS[column]}"
    return "a text" if LOG_COLUMNS[column] == "str" else "a number"


def _line_error(file: Path, number: int, problem: str) -> RunError:
    return RunError(f"{file}: line {number}: {problem}; fix the line, or delete it")


def complete_last_line(file: Path) -> None:
    """Add the newline to a complete last line; leave an incomplete line unchanged.

    For a program that exited with 0.
    """
    if not file.exists():
        return
    before, _, last = _read_text(file).rpartition("\n")
    header = before.partition("\n")[0] if file.suffix == ".csv" else ""
    if file.suffix == ".csv" and last.count(",") < header.count(","):
        return
    with suppress(RunError):
        if any(_parse_rows(file, f"{header}\n{last}")):
            with file.open("a") as losses:
                losses.write("\n")


def cut_torn_line(file: Path) -> None:
    """Cut an incomplete last line of a killed program, so that the next attempt can append."""
    if file.exists():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def write_loss_log(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Write the program's losses as the run's loss log."""
    config = run.config()
    plan, shape = config["run"], ModelShape(**config["identity"]["shape"])
    run.truncate_log(-1)  # programs may have a loss before the first step
    run.append_log([log_row(shape, plan["batch_size"], **row) for row in rows])
