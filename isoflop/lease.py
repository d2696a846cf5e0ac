"""Leases: at most one process works in a directory, on one machine or on many that share files.

The kernel's file lock ends with its process, and suffices on one machine. Some shared file systems
do not pass it on to other machines, so the holder also touches the file every few seconds. Another
machine takes a lease over only after that heartbeat has stopped. A holder that lost its lease that
way (a machine that hung and came back) finds out at its next heartbeat. On a file system without
any locks, only the heartbeat counts, and on the holder's machine whether its process still exists.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.errors import RunError
from isoflop.process_info import start_time

LEASE_HEARTBEAT_S = 3.0
LEASE_TIMEOUT_S = 30.0
"""Age of the last heartbeat above which another process may take a lease over."""

LOCK_RETRY_DELAYS_S = (0.001, 0.01, 0.1)
NO_LOCK_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of file systems without locks, such as Lustre mounted without them."""

MIN_SETTLE_S = 0.1
"""Least time that a lease settles on such a file system."""


class LeaseLostError(RunError):
    """Loss of a lease to another process: this process must not write any more."""


@dataclass
class Lease:
    """A requested lease; true while it is held.

    Attributes:
        path: file of the lease.
        held: True if the lease was free.
        lost: True if another process has taken it over since; this one must not write any more.
        token: random identity of this lease.
    """

    path: Path
    held: bool = False
    lost: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __bool__(self) -> bool:
        return self.held and not self.lost

    def is_current(self) -> bool:
        """Return whether the file still names this lease."""
        return _Holder.from_file(self.path).token == self.token

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken the lease over."""
        if self.lost:
            raise LeaseLostError(
                f"{self.path}: taken over by another process while this one did not respond"
            )


@dataclass(frozen=True)
class _Holder:
    host: str = ""
    process: int = 0
    token: str = ""

    @classmethod
    def from_file(cls, path: Path) -> _Holder:
        """Read the holder from a lease's file; an empty holder if it is empty, torn or absent."""
        try:
            # Two machines that took it at the same moment have both added a line.
            host, process, token = path.read_text().splitlines()[-1].split()
            return cls(host, int(process), token)
        except (FileNotFoundError, IndexError, ValueError):
            return cls()
        except OSError as error:
            if error.errno != errno.ESTALE:  # another machine has replaced it
                raise
            return cls()


@contextmanager
def take_lease(path: Path, *, settle_s: float = 0.0) -> Iterator[Lease]:
    """Take a lease until the block ends; it is false if another process holds it.

    Args:
        path: file of the lease; it is made if it is missing, and stays.
        settle_s: seconds before the lease counts, for file systems that do not pass locks on. After
            them a process on another machine that took it at the same moment has won or lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        lease = Lease(path)
        locked = _lock(file.fileno())
        settle_s = settle_s if locked else max(settle_s, MIN_SETTLE_S)
        if locked is not False and _is_free(path, bool(locked)):
            lease.held, written = True, 0
            line = f"{socket.gethostname()} {os.getpid()} {lease.token}\n".encode()
            with contextlib.suppress(OSError):  # on a full disk the kernel's lock must suffice
                file.truncate(0)
                written = file.write(line)
            if settle_s and written == len(line):
                time.sleep(settle_s)
                lease.held = lease.is_current()
        if not lease:
            yield lease
            return
        ended = threading.Event()
        heartbeat = threading.Thread(target=_send_heartbeats, args=(lease, ended), daemon=True)
        heartbeat.start()
        try:
            yield lease
        finally:
            ended.set()
            heartbeat.join()
            if lease.is_current():
                with contextlib.suppress(OSError):
                    file.truncate(0)


def is_leased(path: Path) -> bool:
    """Return whether a process holds the lease `path`, as far as this machine can detect it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCK_ERRNOS:
            raise
        return not _is_free(path, False)
    return not _is_free(path, True)


def describe_holder(path: Path) -> str:
    """Return the holder of a lease, e.g. `process 12 on host`; empty if the file names none."""
    holder = _Holder.from_file(path)
    return f"process {holder.process} on {holder.host}" if holder.host else ""


def _is_free(path: Path, locks: bool) -> bool:
    """Return whether no other process holds a lease.

    If the file system has `locks`, the lease's lock was free on this machine.
    """
    holder = _Holder.from_file(path)
    has_ended = holder.host == socket.gethostname() and (
        locks or start_time(holder.process) is None
    )
    # The heartbeat also stops if a later process of this machine has the id of an ended holder.
    return holder.host == "" or has_ended or _age_s(path) > LEASE_TIMEOUT_S


def _age_s(path: Path) -> float:
    """Return the seconds since the last heartbeat, by the clock that stamps the files.

    It may not be this machine's clock, which counts only if this process may not write there.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    with path.open("rb") as file:
        return now - os.fstat(file.fileno()).st_mtime


def _send_heartbeats(lease: Lease, ended: threading.Event) -> None:
    """Touch the lease until it ends or is lost."""
    written = time.monotonic()
    while not ended.wait(LEASE_HEARTBEAT_S):
        try:
            if _Holder.from_file(lease.path).token not in (lease.token, ""):
                lease.lost = True
                return
            os.utime(lease.path)
            written = time.monotonic()
        except OSError:  # a file system that does not respond for a while
            if time.monotonic() - written > LEASE_TIMEOUT_S:
                lease.lost = True
                return


def _lock(descriptor: int) -> bool | None:
    """Take the kernel's lock; return whether it was free, None on a file system without locks.

    There are several tries, because `is_leased` in another process holds it for an instant.
    """
    for pause in (*LOCK_RETRY_DELAYS_S, None):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if pause is not None:
                time.sleep(pause)
        except OSError as error:
            if error.errno not in NO_LOCK_ERRNOS:
                raise
            return None
    return False
