"""From a path to a raw DataFrame: sweep directory, Parquet, CSV, TSV or JSONL. No column is interpreted here."""

from __future__ import annotations

import codecs
import csv
import json
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd

from isoflop.errors import FitError

RUNS_FILE = "runs.parquet"


def read_frame(path: str | Path) -> pd.DataFrame:
    """The rows of a sweep's directory (its runs.parquet) or of a .parquet, .csv, .tsv, .jsonl or .ndjson file.

    Raises:
        FitError: missing, empty or unreadable file, an unknown kind of file, two columns of one name.
    """
    path = Path(path)
    if not path.exists():
        raise FitError(f"{path}: no such file or directory")
    if path.is_dir():
        path = _runs_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FitError(
            f"{path}: can't tell what kind of table this is; use one of {', '.join(_READERS)}"
        )
    if path.stat().st_size == 0:
        raise FitError(f"{path}: the file is empty")
    try:
        return reader(path)
    except FitError:
        raise
    except (
        OSError,
        ValueError,
        pd.errors.ParserError,
        pd.errors.ParserWarning,
        csv.Error,
    ) as error:
        raise FitError(f"{path}: can't be read: {_one_line(error)}") from error


def _runs_file(directory: Path) -> Path:
    path = directory / RUNS_FILE
    if not path.is_file():
        raise FitError(
            f"{directory}: has no {RUNS_FILE}; is it the directory of a sweep that was run?"
        )
    return path


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def _read_csv(path: Path) -> pd.DataFrame:
    """CSV with a header; UTF-8, with or without a byte order mark. Cells stay text, so no digit is lost here.

    Semicolons and tabs separate columns, too, where the header has more of them than commas.
    """
    _refuse_utf16(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        mark = max(",;\t", key=first.count)
        file.seek(0)
        header = next(csv.reader(file, delimiter=mark), [])
    refuse_duplicates([name for name in header if name], str(path))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", pd.errors.ParserWarning
        )  # a row longer than the header is cut otherwise
        return pd.read_csv(path, encoding="utf-8-sig", dtype=str, index_col=False, sep=mark)


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise FitError(
                f"{path}: is UTF-16, as Excel's 'Unicode text' is; save it as 'CSV UTF-8'"
            )


def _read_jsonl(path: Path) -> pd.DataFrame:
    _refuse_utf16(path)
    rows = []
    # A text in a line may hold U+2028, at which `splitlines` would cut it.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            rows.append(_json_row(line, f"{path}: line {number}"))
    return pd.DataFrame(rows)


def _json_row(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError) as error:
        raise FitError(f"{where}: not JSON: {_one_line(error)}") from error
    if not isinstance(row, dict):
        raise FitError(f"{where}: expected one JSON object a line")
    return row


def _unique(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    refuse_duplicates([key for key, _ in pairs], where)
    return dict(pairs)


def refuse_duplicates(names: list[str], where: str) -> None:
    """Stops where two columns have one name: which of them is meant can't be known."""
    twice = sorted(str(name) for name, count in Counter(names).items() if count > 1)
    if twice:
        raise FitError(
            f"{where}: column {', '.join(map(repr, twice))} is there more than once; rename one of them"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


_READERS = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
TABLES = tuple(_READERS)
"""Endings of the files that can be read."""
