"""Files that are whole or absent: written beside, synced and renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 24
STALE_TRIES = 5


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place when the block ends, and is removed if it fails.

    Where `path` is a link, the file that it leads to is replaced; a device or a pipe stays, and is written into. An
    OSError of the block names `path` where it named no file.
    """
    try:
        target = _behind_links(path)
        with _renamed_to(target) if target else _copied_into(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno is not None and error.filename is None:  # so it is with a full disk
            error.filename = str(path)
        raise


def read_replaced(path: Path) -> str:
    """The text of a file that other machines replace again and again: one that was read may be gone meanwhile."""
    for _ in range(STALE_TRIES):
        try:
            return path.read_text()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_text()


def _behind_links(path: Path) -> Path | None:
    """The ordinary file at a path or at the end of its links, there or not; None for a device, a pipe and the like."""
    target = path
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = Path(os.path.realpath(path))
            mode = path.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return target if stat.S_ISREG(mode) else None


@contextmanager
def _renamed_to(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _copied_into(path: Path) -> Iterator[Path]:
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        yield temporary
        with temporary.open("rb") as content, open(os.open(path, os.O_WRONLY), "wb") as file:
            shutil.copyfileobj(content, file)


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
    """Whether a file of `replace_checked` was finished, and is what it was then.

    Raises:
        OSError: a file that is there and can't be read.
    """
    try:
        return checksum_file(path).read_text().strip() == _sha256(path)
    except (FileNotFoundError, ValueError):
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
