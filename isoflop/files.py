"""Files that are whole or absent (written beside, synced and renamed), and locks that fall with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_TRIES_S = (0.001, 0.01, 0.1)


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


@contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock `path` until the block ends; it falls with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        held = _lock(file.fileno())
        if held:
            file.truncate(0)
            with contextlib.suppress(OSError):  # the line is for people: a full disk doesn't need it
                file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
        yield held


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock `path` now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock(descriptor: int) -> bool:
    """Takes a lock, in several tries: `is_locked` in another process holds it for an instant."""
    for pause in (*LOCK_TRIES_S, None):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if pause is not None:
                time.sleep(pause)
    return False
