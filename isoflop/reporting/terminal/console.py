"""Tables and warnings for a terminal; plain text when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

MAX_STYLED_ROWS = 1000
"""Longer tables are printed plain on a terminal too, because styling them takes seconds."""


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = ()
) -> None:
    """Print a table on stdout: columns named in `text` left-aligned, numbers right-aligned.

    On a terminal the header is bold, and so is the first column where its value changes. If the
    table is too wide its columns move together. NO_COLOR is respected.
    """
    if not sys.stdout.isatty() or len(rows) > MAX_STYLED_ROWS:
        sys.stdout.write("".join(line + "\n" for line in table_lines(headers, rows, text=text)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    lines = list(table_lines(headers, rows, text=text))
    if max(map(len, lines)) > console.width:
        lines = list(table_lines(headers, rows, text=text, gap=1))
    groups = [None, *(row[0] for row in rows)]
    group_width = max(map(len, (headers[0], *(row[0] for row in rows))))
    for i, line in enumerate(lines):
        styled = Text(line, style="bold" if i == 0 else "")
        if i > 0:
            styled.stylize("bold" if groups[i] != groups[i - 1] else "dim", 0, group_width)
        console.print(styled, soft_wrap=True)


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = (), gap: int = 2
) -> Iterator[str]:
    """Yield the lines of a table as plain aligned text, columns `gap` spaces apart."""
    lines = [headers, *rows]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_text = [header in text for header in headers]
    for line in lines:
        cells = (
            cell.ljust(size) if to_left else cell.rjust(size)
            for cell, size, to_left in zip(line, sizes, is_text, strict=True)
        )
        yield (" " * gap).join(cells).rstrip()


def warn(message: str) -> None:
    """Print a warning on stderr, one line."""
    print(f"isoflop: warning: {message}", file=sys.stderr)
