"""Tables and short numbers for a terminal: the header bold and groups marked on one, plain text when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

STYLED_ROWS = 1000
"""Above this a table is printed plain on a terminal too, since styling each line takes seconds."""


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = ()
) -> None:
    """Prints a table to stdout; numbers to the right, columns named in `text` to the left.

    On a terminal the header is bold, and so is the first column where its value changes; a table that is too wide has
    its columns moved together. NO_COLOR is respected.
    """
    if not sys.stdout.isatty() or len(rows) > STYLED_ROWS:
        sys.stdout.write("".join(line + "\n" for line in table_lines(headers, rows, text=text)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    lines = list(table_lines(headers, rows, text=text))
    if max(map(len, lines)) > console.width:
        lines = list(table_lines(headers, rows, text=text, gap=1))
    first = max(map(len, (headers[0], *(row[0] for row in rows))))
    firsts = [None, *(row[0] for row in rows)]
    for i, line in enumerate(lines):
        styled = Text(line, style="bold" if i == 0 else "")
        if i > 0:
            styled.stylize("bold" if firsts[i] != firsts[i - 1] else "dim", 0, first)
        console.print(styled, soft_wrap=True)


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = (), gap: int = 2
) -> Iterator[str]:
    """Lines of a table as plain aligned text, columns `gap` spaces apart."""
    lines = [headers, *rows]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [header in text for header in headers]
    for line in lines:
        cells = zip(line, sizes, left, strict=True)
        yield (
            (" " * gap)
            .join(cell.ljust(size) if keep else cell.rjust(size) for cell, size, keep in cells)
            .rstrip()
        )


def short(value: float) -> str:
    """A count in three digits: 37.6M, 2.11B, 812."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            scaled = value / limit
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def flops(value: float) -> str:
    """FLOPs in three digits: 5.15e21."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float) -> str:
    """40 s, 12 min, 3.4 h or 5.1 days."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


def clock(seconds: float) -> str:
    """The local time after so many seconds: Thu 14:05, with the date where it is more than six days away."""
    then = time.localtime(time.time() + seconds)
    return time.strftime("%a %H:%M" if seconds < 6 * 86400 else "%Y-%m-%d %H:%M", then)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"isoflop: warning: {message}", file=sys.stderr)
