"""Write files that are complete or absent: written beside the target, synced and renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK_BYTES = 1 << 24
MAX_STALE_READS = 5


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which replaces it at the end of the block.

    The temporary file is removed if the block fails. If `path` is a link, its target is replaced. A
    device or a pipe stays, and the content is written into it. An OSError of the block without a
    file name gets that of `path`.
    """
    try:
        target = _resolve_links(path)
        with _renamed_to(target) if target else _copied_into(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno is not None and error.filename is None:  # e.g. a full disk
            error.filename = str(path)
        raise


def read_replaced(path: Path) -> str:
    """Read a file that other machines replace; a read of a replaced file (ESTALE) is repeated."""
    for _ in range(MAX_STALE_READS):
        try:
            return path.read_text()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_text()


def _resolve_links(path: Path) -> Path | None:
    """Return the path with its links resolved; None for a device, a pipe or other special file."""
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
    """Replace a file as `replace_file` does, then write its checksum, which makes it valid."""
    with replace_file(path) as temporary:
        yield temporary
        digest = _sha256(temporary)
    with replace_file(checksum_file(path)) as temporary:
        temporary.write_text(digest + "\n")


def checksum_file(path: Path) -> Path:
    """Return the path of the checksum of a file written by `replace_checked`."""
    return path.with_suffix(".sha256")


def has_valid_checksum(path: Path) -> bool:
    """Return True if a file of `replace_checked` is complete and unchanged.

    Raises:
        OSError: the file exists but can't be read.
    """
    try:
        return checksum_file(path).read_text().strip() == _sha256(path)
    except (FileNotFoundError, ValueError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that only this process uses."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
