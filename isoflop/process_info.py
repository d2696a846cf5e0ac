"""Processes of this machine, as the kernel tells of them."""

from __future__ import annotations

from pathlib import Path


def began(process: int) -> str | None:
    """When a process began, in the kernel's count: it tells it from a later one with its number. None if it ended."""
    fields = _stat(process)
    return fields[19] if fields and fields[0] not in "ZX" else None


def children_of(process: int) -> list[int]:
    """The processes that a process has started itself."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [number for number in numbers if (fields := _stat(number)) and int(fields[1]) == process]


def _stat(process: int) -> list[str] | None:
    """What the kernel tells of a process after its name: its state, its parent, ...; None where it is not there."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
