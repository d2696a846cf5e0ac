"""Reader of files: sweep directory, Parquet, CSV, TSV or JSONL to a raw DataFrame.

No column is interpreted here.
"""

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
    """Return the rows of a sweep's directory (its runs.parquet) or of a file.

    Args:
        path: directory, or a .parquet, .csv, .tsv, .jsonl or .ndjson file.

    Raises:
        FitError: missing, empty or unreadable file, an unknown kind of file, two columns with one
            name.
    """
    path = Path(path)
    if not path.exists():
        raise FitError(f"{path}: no such file or directory")
    if path.is_dir():
        path = _find_runs_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FitError(f"{path}: unknown kind of table; use one of {', '.join(_READERS)}")
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


def _find_runs_file(directory: Path) -> Path:
    path = directory / RUNS_FILE
    if not path.is_file():
        raise FitError(
            f"{directory}: has no {RUNS_FILE}; is it the directory of a sweep that was run?"
        )
    return path


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV with a header, in UTF-8 with or without a byte order mark.

    Cells stay text, so no digit is lost. The separator is a semicolon or a tab if the header has
    more of them than commas.
    """
    _refuse_utf16(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first_line = file.readline()
        separator = max(",;\t", key=first_line.count)
        file.seek(0)
        header = next(csv.reader(file, delimiter=separator), [])
    refuse_duplicates([name for name in header if name], str(path))
    with warnings.catch_warnings():
        # A row longer than the header would be cut with a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, encoding="utf-8-sig", dtype=str, index_col=False, sep=separator)


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise FitError(
                f"{path}: is UTF-16, as Excel's 'Unicode text' is; save it as 'CSV UTF-8'"
            )


def _read_jsonl(path: Path) -> pd.DataFrame:
    """Read a file with one JSON object a line; blank lines are skipped."""
    _refuse_utf16(path)
    rows = []
    # A line may contain U+2028 in a string, where `splitlines` would cut it.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            rows.append(_parse_json_row(line, f"{path}: line {number}"))
    return pd.DataFrame(rows)


def _parse_json_row(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line, object_pairs_hook=lambda pairs: _make_dict(pairs, where))
    except (ValueError, RecursionError) as error:
        raise FitError(f"{where}: not JSON: {_one_line(error)}") from error
    if not isinstance(row, dict):
        raise FitError(f"{where}: expected one JSON object a line")
    return row


def _make_dict(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    """Return the dictionary of a JSON object; refuse repeated keys."""
    refuse_duplicates([key for key, _ in pairs], where)
    return dict(pairs)


def refuse_duplicates(names: list[str], where: str) -> None:
    """Refuse two columns with one name, since the intended one is unknown.

    Raises:
        FitError: names the columns.
    """
    repeated = sorted(str(name) for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise FitError(
            f"{where}: column {', '.join(map(repr, repeated))} appears more than once; "
            "rename one of them"
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
TABLE_SUFFIXES = tuple(_READERS)
"""Suffixes of the files that can be read."""
