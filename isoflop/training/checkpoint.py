"""Checkpoints: written beside and renamed, checksummed, the last two kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
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
        torch.save(state, temporary)
        digest = _sha256(temporary)
    with replace_file(_checksum_file(path)) as temporary:
        temporary.write_text(digest + "\n")
    for old in _newest_first(folder)[KEPT:]:
        _checksum_file(old).unlink(missing_ok=True)
        old.unlink()


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest valid checkpoint, on the CPU; None where there is none. A damaged one is passed over with a warning.

    Raises:
        RunError: checkpoints are there and all of them are damaged.
    """
    import torch

    found = _newest_first(folder)
    for path in _valid(found):
        return torch.load(path, map_location="cpu", weights_only=True)
    if any(_checksum_file(path).exists() for path in found):
        raise RunError(f"{folder}: every checkpoint is damaged; delete the run's directory to start it again")
    return None


def _valid(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        try:
            sound = _checksum_file(path).read_text().strip() == _sha256(path)
        except OSError:
            sound = False
        if sound:
            yield path
        else:
            log.warning("%s is damaged or was not finished; going back to the checkpoint before it", path)


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
