"""Leases: at most one process works in a directory, on one machine or on many that share a file system.

The kernel's file lock ends with its process and is all that is needed on one machine. Between machines some shared
file systems don't pass it on, so the holder also touches the file every few seconds: another machine takes a lease over
only once that heartbeat has stopped, and a holder that lost its lease that way (a machine that hung and came back)
finds out at its next heartbeat. Where a file system knows no locks at all, the heartbeat has to do, and on this machine
whether the holder's process is still there.
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

HEARTBEAT_S = 3.0
HEARTBEAT_TIMEOUT_S = 30.0
LOCK_RETRY_DELAYS_S = (0.001, 0.01, 0.1)
NO_LOCK_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems that know no locks answer, such as Lustre mounted without them."""

MIN_SETTLE_S = 0.1
"""How long a lease settles there at least."""


class LeaseLostError(RunError):
    """This process must not write any more: another one has its lease."""


@dataclass
class Lease:
    """A lease that was asked for; true while it is held.

    Attributes:
        held: whether it was free.
        lost: whether another process has taken it over since, so that this one must not write any more.
    """

    path: Path
    held: bool = False
    lost: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __bool__(self) -> bool:
        return self.held and not self.lost

    def is_current(self) -> bool:
        """Whether the file still names this lease."""
        return _Holder.from_file(self.path).token == self.token

    def check(self) -> None:
        """Raises LeaseLostError where another process has taken the lease over."""
        if self.lost:
            raise LeaseLostError(
                f"{self.path}: taken over by another process while this one did not answer"
            )


@dataclass(frozen=True)
class _Holder:
    host: str = ""
    process: int = 0
    token: str = ""

    @classmethod
    def from_file(cls, path: Path) -> _Holder:
        """Who the file names; nobody where it is empty, torn or absent."""
        try:
            last = path.read_text().splitlines()[
                -1
            ]  # two machines that took it at one moment have both added a line
            host, process, token = last.split()
            return cls(host, int(process), token)
        except (FileNotFoundError, IndexError, ValueError):
            return cls()
        except OSError as error:
            if error.errno != errno.ESTALE:  # another machine has replaced it
                raise
            return cls()


@contextmanager
def take_lease(path: Path, *, settle_s: float = 0.0) -> Iterator[Lease]:
    """A lease on `path` until the block ends; it is false where another process holds it.

    Args:
        path: the lease's file, which is made where it is missing and stays.
        settle_s: how long to wait before the lease counts, after which a process on another machine that took it at the
            same moment has either won or lost; for file systems that don't pass locks on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        lease = Lease(path)
        locked = _lock(file.fileno())
        settle_s = settle_s if locked else max(settle_s, MIN_SETTLE_S)
        if locked is not False and _is_free(path, bool(locked)):
            lease.held, line = (
                True,
                f"{socket.gethostname()} {os.getpid()} {lease.token}\n".encode(),
            )
            written = 0
            with contextlib.suppress(OSError):  # on a full disk the kernel's lock has to do
                file.truncate(0)
                written = file.write(line)
            if settle_s and written == len(line):
                time.sleep(settle_s)
                lease.held = lease.is_current()
        if not lease:
            yield lease
            return
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(lease, ended), daemon=True)
        beat.start()
        try:
            yield lease
        finally:
            ended.set()
            beat.join()
            if lease.is_current():
                with contextlib.suppress(OSError):
                    file.truncate(0)


def is_leased(path: Path) -> bool:
    """Whether some process holds the lease `path` now, as far as can be seen from here."""
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
    """Who has a lease, in words; empty where the file names nobody."""
    holder = _Holder.from_file(path)
    return f"process {holder.process} on {holder.host}" if holder.host else ""


def _is_free(path: Path, locks: bool) -> bool:
    """Whether a lease is held by nobody else; where the file system has `locks`, its lock was free here."""
    holder = _Holder.from_file(path)
    gone_here = holder.host == socket.gethostname() and (locks or start_time(holder.process) is None)
    # The heartbeat tells it too where a later process of this machine has the number of a holder that is gone.
    return holder.host == "" or gone_here or _age_s(path) > HEARTBEAT_TIMEOUT_S


def _age_s(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock that stamps the files, which may not be this machine's; by this
    machine's where this process may not write there.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    with path.open("rb") as file:
        return now - os.fstat(file.fileno()).st_mtime


def _beat(lease: Lease, ended: threading.Event) -> None:
    """Touches the lease until it ends or is lost."""
    written = time.monotonic()
    while not ended.wait(HEARTBEAT_S):
        try:
            if _Holder.from_file(lease.path).token not in (lease.token, ""):
                lease.lost = True
                return
            os.utime(lease.path)
            written = time.monotonic()
        except OSError:  # a file system that does not answer for a while
            if time.monotonic() - written > HEARTBEAT_TIMEOUT_S:
                lease.lost = True
                return


def _lock(descriptor: int) -> bool | None:
    """Takes the kernel's lock, in several tries: `is_leased` in another process holds it for an instant.

    Returns:
        Whether it has it; None where the file system knows no locks.
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
