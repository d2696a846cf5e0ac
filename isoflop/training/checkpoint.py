"""Checkpoints: written beside and renamed, checksummed, the last two kept until the run is done."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.files import checksum_file, is_sound, replace_checked
from isoflop.node import node_name

KEPT = 2
LATE_S = 90.0
log = logging.getLogger("isoflop")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `step-<step>.pt` and then its checksum, without which it does not count; removes all but the last two."""
    write_tensors(_checkpoint(folder, step), state)
    _remove(_newest_first(folder)[KEPT:])


def load_checkpoint(
    folder: Path, warn: Callable[[str], None] = log.warning
) -> dict[str, Any] | None:
    """The newest valid checkpoint, on the CPU; None where there is none.

    Damaged ones are passed over with a warning, and removed, so that they are none of the two that are kept.

    Raises:
        OSError: one that can't be read for now, which is no reason to remove it.
    """
    import torch

    found = _newest_first(folder)
    damaged = list(itertools.takewhile(lambda path: not is_sound(path), found))
    sound = found[len(damaged) :]
    if damaged:
        one = len(damaged) == 1
        what = "" if sound else "the only checkpoint, " if one else "all checkpoints, "
        what += f"{' and '.join(path.name for path in damaged)} in {folder}"
        back = f"went back to {sound[0].name}" if sound else "began anew"
        warn(f"{what}, {'is' if one else 'are'} damaged or not finished; the run {back}")
    _remove(damaged)
    return torch.load(sound[0], map_location="cpu", weights_only=True) if sound else None


def load_same(folder: Path, step: int) -> dict[str, Any]:
    """The checkpoint of a step that another process has chosen, on the CPU.

    Raises:
        RunError: this machine does not see it, even after a while: shared file systems show new files late.
    """
    import torch

    path, limit = _checkpoint(folder, step), time.monotonic() + LATE_S
    while not path.exists():
        if time.monotonic() > limit:
            raise RunError(
                f"{path}: not seen on {node_name()}, though another node of this job has read it; "
                "do all nodes share the profile's root?"
            )
        time.sleep(1.0)
    return torch.load(path, map_location="cpu", weights_only=True)


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Writes a file of torch, and then its checksum."""
    import torch

    with replace_checked(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own, over the system's, e.g. of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _remove(paths: list[Path]) -> None:
    for path in paths:
        checksum_file(path).unlink(missing_ok=True)
        path.unlink()


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pt"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
