"""The sweep file of an extension: the old definition with added points and their reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from isoflop.config.grid_schema import Point, Replicate
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import ConfigError
from isoflop.files import replace_file
from isoflop.followup.extend import Extension


def write_sweep(extension: Extension, path: str | PathLike[str], *, force: bool = False) -> Path:
    """Write the extended sweep atomically; its plan has the old runs by name, and the new ones.

    Args:
        extension: the selected runs.
        path: target file.
        force: replace an existing file.

    Returns:
        The target.

    Raises:
        ConfigError: the file exists, or can't be written.
    """
    target = Path(path)
    if target.exists() and not force:
        raise ConfigError(
            f"{target}: exists already; replace it with --force, or choose another with --output"
        )
    try:
        with replace_file(target) as temporary:
            temporary.write_text(sweep_text(extension), encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"{target}: can't be written ({problem.strerror or problem})") from None
    return target


def sweep_text(extension: Extension) -> str:
    """Return the text of the file: all keys, with a comment at each added point."""
    sweep = extension.after.sweep
    text = to_yaml(dataclasses.replace(sweep, extra=(), replicates=()))
    comments = {id(entry): extension.comment(pick) for entry, pick in extension.entries}
    for key, entries in (("extra", sweep.extra), ("replicates", sweep.replicates)):
        text = text.replace(f"\n{key}: []\n", f"\n{key}:{_block(entries, comments)}\n", 1)
    return f"# {extension.headline()}\n{text}"


def _block(entries: Sequence[Point | Replicate], comments: dict[int, str]) -> str:
    """Return a YAML list, one entry per line, with comments by identity of the entry."""
    if not entries:
        return " []"
    lines = []
    for entry in entries:
        comment = comments.get(id(entry))
        lines.append(f"\n- {_flow_mapping(entry)}" + (f"  # {comment}" if comment else ""))
    return "".join(lines)


def _flow_mapping(entry: Point | Replicate) -> str:
    mantissa, exponent = f"{entry.budget:.15e}".split("e")
    budget = f"{float(mantissa)!r}e{int(exponent)}"  # with a point: YAML 1.1 reads 3e18 as text
    budget = budget if float(budget) == entry.budget else repr(entry.budget)
    seeds = f", seeds: {list(entry.seeds)}" if isinstance(entry, Replicate) else ""
    return f"{{budget: {budget}, width: {entry.width}{seeds}}}"
