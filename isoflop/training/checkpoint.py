"""Checkpoints: written beside and renamed, checksummed, the last two kept."""

from __future__ import annotations

import hashlib
import itertools
import logging
from pathlib import Path
from typing import Any

from isoflop.errors import RunError
from isoflop.files import replace_file

KEPT = 2
BLOCK = 1 << 24
log = logging.getLogger("isoflop")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `step-<step>.pt` and then its checksum, without which it does not count; removes all but the last two."""
    import torch

    path = folder / f"step-{step:09d}.pt"
    with replace_file(path) as temporary:
        with temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's own, over the system's, e.g. of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        digest = _sha256(temporary)
    with replace_file(_checksum_file(path)) as temporary:
        temporary.write_text(digest + "\n")
    _remove(_newest_first(folder)[KEPT:])


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest valid checkpoint, on the CPU; None where there is none.

    A damaged one is passed over with a warning, and removed, so that it is not one of the two that are kept.

    Raises:
        RunError: checkpoints are there and all of them are damaged.
    """
    import torch

    found = _newest_first(folder)
    damaged = list(itertools.takewhile(lambda path: not _is_sound(path), found))
    for path in damaged:
        log.warning("%s is damaged or was not finished; going back to the checkpoint before it", path)
    if damaged == found and any(_checksum_file(path).exists() for path in found):
        raise RunError(f"{folder}: every checkpoint is damaged; delete the run's directory to start it again")
    _remove(damaged)
    return None if damaged == found else torch.load(found[len(damaged)], map_location="cpu", weights_only=True)


def _is_sound(path: Path) -> bool:
    try:
        return _checksum_file(path).read_text().strip() == _sha256(path)
    except (OSError, ValueError):
        return False


def _remove(paths: list[Path]) -> None:
    for path in paths:
        _checksum_file(path).unlink(missing_ok=True)
        path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
