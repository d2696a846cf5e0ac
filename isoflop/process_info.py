"""Processes of this machine, from the kernel's `/proc`."""

from __future__ import annotations

from pathlib import Path


def start_time(process: int) -> str | None:
    """Return the start of a process in clock ticks since boot; None if it has ended.

    It distinguishes a process from a later one with the same id.
    """
    fields = _stat(process)
    return fields[19] if fields and fields[0] not in "ZX" else None


def list_children(process: int) -> list[int]:
    """Return the ids of a process's direct children."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [number for number in numbers if (fields := _stat(number)) and int(fields[1]) == process]


def _stat(process: int) -> list[str] | None:
    """Return the fields of a process's `stat` after its name (state, parent, ...); None if gone."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
