"""Files that are whole or absent: written beside, synced and renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 24


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place when the block ends, and is removed if it fails.

    An OSError of the block names `path` where it named no file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # so it is with a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_checked(path: Path) -> Iterator[Path]:
    """As `replace_file`, and then writes the file's checksum, without which it does not count."""
    with replace_file(path) as temporary:
        yield temporary
        digest = _sha256(temporary)
    with replace_file(checksum_file(path)) as temporary:
        temporary.write_text(digest + "\n")


def checksum_file(path: Path) -> Path:
    """Where the checksum of a file of `replace_checked` is."""
    return path.with_suffix(".sha256")


def is_sound(path: Path) -> bool:
    """Whether a file of `replace_checked` was finished, and is what it was then."""
    try:
        return checksum_file(path).read_text().strip() == _sha256(path)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left of `replace_file` in a folder that only this process writes to."""
    for stray in folder.glob(".*.tmp"):
        stray.unlink(missing_ok=True)
