"""Checkpoints: written to a temporary file, renamed, checksummed; the last two are kept."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.files import checksum_file, has_valid_checksum, replace_checked
from isoflop.node import node_name

KEPT_CHECKPOINTS = 2
"""Checkpoints of a run that is not done."""

VISIBILITY_TIMEOUT_S = 90.0
"""Longest wait for a file of another node: shared file systems show new files late."""

log = logging.getLogger("isoflop")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `step-<step>.pt` and then its checksum; remove all checkpoints but the last two.

    A checkpoint without a checksum does not count.
    """
    write_tensors(_checkpoint_path(folder, step), state)
    _remove(_list_newest_first(folder)[KEPT_CHECKPOINTS:])


def load_checkpoint(
    folder: Path, warn: Callable[[str], None] = log.warning
) -> dict[str, Any] | None:
    """Return the newest valid checkpoint, on the CPU; None if there is none.

    Newer damaged ones are reported by `warn` and removed, so that they are none of the two that are
    kept.

    Raises:
        OSError: a file that can't be read at present, which is no reason to remove it.
    """
    import torch

    paths = _list_newest_first(folder)
    damaged = list(itertools.takewhile(lambda path: not has_valid_checksum(path), paths))
    sound = paths[len(damaged) :]
    if damaged:
        warn(_damage_text(folder, damaged, sound))
    _remove(damaged)
    return torch.load(sound[0], map_location="cpu", weights_only=True) if sound else None


def _damage_text(folder: Path, damaged: list[Path], sound: list[Path]) -> str:
    names = f"{' and '.join(path.name for path in damaged)} in {folder}"
    if not sound:
        names = f"{'the only checkpoint' if len(damaged) == 1 else 'all checkpoints'}, {names},"
    verb = "is" if len(damaged) == 1 else "are"
    start = f"resumes from {sound[0].name}" if sound else "restarts from step 0"
    return f"{names} {verb} damaged or incomplete; the run {start}"


def load_checkpoint_at(folder: Path, step: int) -> dict[str, Any]:
    """Return the checkpoint of a step that another process has chosen, on the CPU.

    Raises:
        RunError: a file that stays invisible on this machine for `VISIBILITY_TIMEOUT_S`.
    """
    import torch

    path, limit = _checkpoint_path(folder, step), time.monotonic() + VISIBILITY_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > limit:
            raise RunError(
                f"{path}: not visible on {node_name()}, although another node of this job has read "
                "it; check that all nodes share the profile's root"
            )
        time.sleep(1.0)
    return torch.load(path, map_location="cpu", weights_only=True)


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write a file of torch, and then its checksum."""
    import torch

    with replace_checked(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch hides the system's error, e.g. of a full disk, behind its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _remove(paths: list[Path]) -> None:
    for path in paths:
        checksum_file(path).unlink(missing_ok=True)
        path.unlink()


def _checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pt"


def _list_newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
