"""The sweep file of an extension: the old definition with points added, each with a comment that says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from isoflop.config.schema import Point, Replicate
from isoflop.config.sweep_definition import to_yaml
from isoflop.errors import ConfigError
from isoflop.files import replace_file
from isoflop.followup.extend import Extension


def write_sweep(extension: Extension, path: str | PathLike[str], *, force: bool = False) -> Path:
    """Writes the extended sweep, beside and renamed. Laid out, it has the old runs under their names, and the new.

    Raises:
        ConfigError: a file in the way, or a folder that can't be written to.
    """
    target = Path(path)
    if target.exists() and not force:
        raise ConfigError(
            f"{target}: exists already; replace it with --force, or name another with --output"
        )
    try:
        with replace_file(target) as temporary:
            temporary.write_text(sweep_text(extension), encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"{target}: can't be written ({problem.strerror or problem})") from None
    return target


def sweep_text(extension: Extension) -> str:
    """The file's text: all keys, and a comment at each added point."""
    sweep = extension.after.sweep
    text = to_yaml(dataclasses.replace(sweep, extra=(), replicates=()))
    whys = {id(entry): extension.why(pick) for entry, pick in extension.entries}
    for key, entries in (("extra", sweep.extra), ("replicates", sweep.replicates)):
        text = text.replace(f"\n{key}: []\n", f"\n{key}:{_block(entries, whys)}\n", 1)
    return f"# {extension.headline()}\n{text}"


def _block(entries: Sequence[Point | Replicate], whys: dict[int, str]) -> str:
    """A YAML list, an entry a line, with comments."""
    if not entries:
        return " []"
    comments = (f"  # {whys[id(entry)]}" if id(entry) in whys else "" for entry in entries)
    return "".join(
        f"\n- {_flow(entry)}{comment}" for entry, comment in zip(entries, comments, strict=True)
    )


def _flow(entry: Point | Replicate) -> str:
    mantissa, exponent = f"{entry.budget:.15e}".split("e")
    budget = f"{float(mantissa)!r}e{int(exponent)}"  # with a point: YAML takes 3e18 for text
    budget = budget if float(budget) == entry.budget else repr(entry.budget)
    seeds = f", seeds: {list(entry.seeds)}" if isinstance(entry, Replicate) else ""
    return f"{{budget: {budget}, width: {entry.width}{seeds}}}"
