"""The losses that a program of `trainer: command` writes: JSONL or CSV, torn and repeated as its stops leave them."""

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

MOST = {"step": 10**9 - 1, "tokens": 2**53, "targets": 2**53}
"""Of a whole number: what a part of the loss log can be named by, and what is exact however it is written."""


def losses_file(run: RunDirectory) -> Path:
    """Where the program writes its losses: `losses.csv` where it has made that, else `losses.jsonl`."""
    table = run.path / "losses.csv"
    return table if table.exists() else run.path / "losses.jsonl"


def read_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The losses written so far, in order of steps, the last of each; a last line without its end does not count.

    Raises:
        RunError: a line that is no loss.
    """
    file = losses_file(run)
    if not file.exists():
        return []
    whole, _, _ = _text(file).rpartition("\n")
    found = {(row["step"], row["split"], row["kind"]): row for row in _rows(file, whole)}
    return [found[key] for key in sorted(found)]


def are_finite(rows: list[dict[str, Any]]) -> bool:
    """Whether all losses are; a run with another has diverged."""
    return all(math.isfinite(row["loss"]) for row in rows)


def _text(file: Path) -> str:
    """Without byte order marks: pandas writes one each time that it appends."""
    return file.read_text(encoding="utf-8", errors="replace").replace("\ufeff", "")


def _rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    """What each line has for the loss log; the program's other columns are its own."""
    for number, record in _cells(file, text) if file.suffix == ".csv" else _objects(file, text):
        row: dict[str, Any] = {"split": "train", "kind": "all"}
        for column in filter(record.__contains__, LOG_COLUMNS):
            try:
                value = _value(column, record[column])
            except (TypeError, ValueError, OverflowError):
                wrong = f"{column} is {repr(record[column])[:100]}, not {_wanted(column)}"
                raise _refusal(file, number, wrong) from None
            if value is not None:
                row[column] = value
        if not {"step", "loss"} <= row.keys():
            raise _refusal(file, number, f"a line without step and loss: {str(record)[:100]}")
        yield row


def _objects(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of JSON with their numbers; a text in them may hold U+2028, at which `splitlines` would cut it."""
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise _refusal(file, number, f"not a JSON object: {line[:100]}")
        yield number, record


def _cells(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their lines; a program that was started again may have repeated its header."""
    header: list[str] = []
    lines = csv.reader(text.split("\n"), skipinitialspace=True)
    try:
        for cells in lines:
            row = [cell.strip() for cell in cells]
            header = header or row
            if any(row) and row != header:
                yield lines.line_num, dict(zip(header, row, strict=False))
    except csv.Error as problem:
        raise _refusal(file, lines.line_num, f"not CSV ({problem})") from None


def _value(column: str, value: Any) -> int | float | str | None:
    """As the loss log has it, None where it is not known; raises what Python does where it can't be."""
    kind = LOG_COLUMNS[column]
    if value is None or value == "":
        return None
    if isinstance(value, bool) or (kind == "str" and not isinstance(value, str)):
        raise TypeError
    if kind == "str":
        value.encode()  # half a pair of surrogates is no text
        return value
    number = float(value)
    if kind == "float64":
        return number
    if math.isnan(number) and column != "step":
        return None
    if not number.is_integer() or not 0 <= number <= MOST[column]:
        raise ValueError
    return int(number)


def _wanted(column: str) -> str:
    if column in MOST:
        return f"a whole number from 0 to {MOST[column]}"
    return "a text" if LOG_COLUMNS[column] == "str" else "a number"


def _refusal(file: Path, number: int, what: str) -> RunError:
    return RunError(f"{file}: line {number}: {what}; mend the line, or delete it")


def end_last_line(file: Path) -> None:
    """Ends the last line of a program that ended well, where only that is missing; what is not whole stays torn."""
    if not file.exists():
        return
    before, _, last = _text(file).rpartition("\n")
    header = before.partition("\n")[0] if file.suffix == ".csv" else ""
    if file.suffix == ".csv" and last.count(",") < header.count(","):
        return
    with suppress(RunError):
        if any(_rows(file, f"{header}\n{last}")):
            with file.open("a") as ended:
                ended.write("\n")


def cut_torn_line(file: Path) -> None:
    """Ends the losses of a program that was killed while it wrote a line with the line before, to be written on."""
    if file.exists():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def keep_rows(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Writes the program's losses as the run's loss log."""
    config = run.config()
    plan, shape = config["run"], ModelShape(**config["identity"]["shape"])
    run.cut_log(-1)  # programs may have a loss before the first step
    run.append_log([log_row(shape, plan["batch_size"], **row) for row in rows])
