"""Checkpoints: written beside and renamed, checksummed, the last two kept until the run is done."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.files import checksum_file, is_sound, replace_checked

KEPT = 2
log = logging.getLogger("isoflop")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `step-<step>.pt` and then its checksum, without which it does not count; removes all but the last two."""
    write_tensors(folder / f"step-{step:09d}.pt", state)
    _remove(_newest_first(folder)[KEPT:])


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest valid checkpoint, on the CPU; None where there is none.

    A damaged one is passed over with a warning, and removed, so that it is not one of the two that are kept.

    Raises:
        RunError: checkpoints are there and all of them are damaged.
    """
    import torch

    found = _newest_first(folder)
    damaged = list(itertools.takewhile(lambda path: not is_sound(path), found))
    for path in damaged:
        log.warning("%s is damaged or was not finished; going back to the checkpoint before it", path)
    if damaged == found and any(checksum_file(path).exists() for path in found):
        raise RunError(f"{folder}: every checkpoint is damaged; delete the run's directory to start it again")
    _remove(damaged)
    return None if damaged == found else torch.load(found[len(damaged)], map_location="cpu", weights_only=True)


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


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
