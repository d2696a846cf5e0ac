"""Leases: between processes of this machine, and with machines that share only the file."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.tiny_studies import small_disk, wait_for

from isoflop import lease as lease_module
from isoflop.lease import LEASE_TIMEOUT_S, LeaseLostError, is_leased, take_lease

HOLD = """
import sys
from pathlib import Path
from isoflop.lease import take_lease
with take_lease(Path(sys.argv[1])) as lease:
    print(bool(lease), flush=True)
    sys.stdin.read()
"""
"""Program that prints whether it has the lease, and holds it until its input ends."""

WITHOUT_LOCKS = """
import errno, fcntl

def no_locks(*_):
    raise OSError(errno.ENOLCK, "no locks")

fcntl.flock = no_locks
"""
"""Lines that simulate a file system without locks in a process."""

CONTEND = """
import sys, time
from pathlib import Path
from isoflop import lease

file, me, other, meeting = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = 0

def gethostname():
    global calls
    calls += 1
    if calls <= meeting:
        file.with_name(f"{me}-{calls}").touch()
        while not file.with_name(f"{other}-{calls}").exists():
            time.sleep(0.001)
    return host or me

host = sys.argv[5]
lease.socket.gethostname = gethostname
lease._lock = lambda descriptor: None if host else True
with lease.take_lease(file, settle_s=0.0 if host else 0.3) as taken:
    print(bool(taken), flush=True)
    sys.stdin.read()
"""
"""Program that takes the lease at the same moment as another one.

It acts as another machine on a file system that passes no locks on, or as a process of `host` on a
file system without locks. Each call of `gethostname` waits for that of the other program.
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts programs; end those that still run."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        started.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made" / "lease"


def answer(process: subprocess.Popen[str]) -> bool:
    """Return whether a program has the lease, from its output."""
    assert process.stdout is not None
    return {"True\n": True, "False\n": False}[process.stdout.readline()]


def write(file: Path, content: str | bytes, age_s: float = 0.0) -> None:
    """Write the file as another machine left it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(file, (0, time.time() - age_s))


def is_free(file: Path) -> bool:
    """Return whether the lease can be taken, after a check that `is_leased` agrees.

    A lease may end between the two looks; they then agree at the second.
    """
    for last in (False, True):
        free = not is_leased(file)
        with take_lease(file) as lease:
            taken = bool(lease)
        if taken == free or last:
            break
    assert taken == free
    return free


# On this machine


def test_one_process_holds_the_lease_until_it_is_killed(file: Path, start: Start) -> None:
    assert not is_leased(file)
    holder = start(HOLD, file)
    assert answer(holder)
    assert file.read_text().split()[:2] == [socket.gethostname(), str(holder.pid)]
    assert not is_free(file)
    assert not answer(start(HOLD, file))
    holder.kill()
    holder.wait()
    assert file.read_text() != ""
    assert answer(start(HOLD, file))


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_lease_is_released_at_the_end_of_the_block(
    file: Path, error: type[Exception] | None
) -> None:
    with suppress(ValueError), take_lease(file) as lease:
        assert lease
        assert is_leased(file)
        with take_lease(file) as second:
            assert not second
        assert lease.is_current()
        if error:
            raise error
    assert file.read_bytes() == b""
    assert is_free(file)


def test_a_check_does_not_keep_a_lease_from_others(file: Path) -> None:
    write(file, "")
    checking = file.open("rb")
    fcntl.flock(checking, fcntl.LOCK_SH)  # like `is_leased`, for an instant
    end = threading.Timer(0.03, checking.close)
    end.start()
    with take_lease(file) as lease:
        assert lease
    end.join()


@pytest.mark.parametrize("settle_s", [0.0, 0.01])
def test_on_a_full_disk_the_lock_suffices(tmp_path: Path, start: Start, settle_s: float) -> None:
    with small_disk(tmp_path, "64k") as disk:
        with pytest.raises(OSError, match="No space"):
            (disk / "rest").write_bytes(bytes(2**17))
        with take_lease(disk / "lease", settle_s=settle_s) as lease:
            assert lease
            assert is_leased(disk / "lease")
            assert start(HOLD, disk / "lease").communicate()[0] == "False\n"
        assert not is_leased(disk / "lease")


# Leases of other machines


@pytest.mark.parametrize(
    ("age_s", "free"),
    [
        (0.0, False),
        (LEASE_TIMEOUT_S - 5, False),
        (-3600.0, False),
        (LEASE_TIMEOUT_S + 5, True),
        (1e6, True),
    ],
)
def test_a_lease_of_another_machine_is_held_until_its_heartbeat_times_out(
    file: Path, age_s: float, free: bool
) -> None:
    write(file, "otherhost 123 token\n", age_s)
    assert is_free(file) == free
    if not free:
        assert file.read_text() == "otherhost 123 token\n"


def test_a_lease_of_this_machine_without_its_lock_is_free(file: Path) -> None:
    write(file, f"{socket.gethostname()} {os.getpid()} token\n")
    assert is_free(file)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "otherhost",
        "otherhost 123",
        "otherhost 1x3 token",
        "a b c d",
        b"\x00" * 40,
        b"\xff\xfe 1 a",
    ],
)
def test_a_file_without_a_holder_is_free(file: Path, content: str | bytes) -> None:
    write(file, content)
    assert is_free(file)


def test_the_holder_sends_heartbeats(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_HEARTBEAT_S", 0.01)
    with take_lease(file) as lease:
        os.utime(file, (0, 0))
        wait_for(lambda: time.time() - file.stat().st_mtime < LEASE_TIMEOUT_S, 5)
        lease.check()
        content = file.read_text()
    assert re.fullmatch(rf"\S+ {os.getpid()} {lease.token}\n", content)
    os.utime(file, (0, 0))
    time.sleep(0.05)
    assert file.stat().st_mtime == 0


def test_a_holder_that_lost_its_lease_leaves_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_HEARTBEAT_S", 0.01)
    with take_lease(file) as lease:
        lease.check()
        write(file, "otherhost 123 token\n", 7.0)
        wait_for(lambda: not lease, 5)
        assert (lease.held, lease.lost, lease.is_current()) == (True, True, False)
        with pytest.raises(LeaseLostError, match=f"{file}: taken over by another process"):
            lease.check()
    assert file.read_text() == "otherhost 123 token\n"
    assert time.time() - file.stat().st_mtime > 5


@pytest.mark.parametrize("meeting", [1, 2], ids=["both found it free", "both emptied it"])
def test_one_of_two_machines_at_the_same_moment_gets_the_lease(
    file: Path, start: Start, meeting: int
) -> None:
    file.parent.mkdir()
    machines = (
        start(CONTEND, file, "one", "two", meeting, ""),
        start(CONTEND, file, "two", "one", meeting, ""),
    )
    holds = {machine: answer(machine) for machine in machines}
    assert sorted(holds.values()) == [False, True]
    next(machine for machine in machines if not holds[machine]).communicate()
    assert not is_free(file)  # the other machine does not change the file
    next(machine for machine in machines if holds[machine]).communicate()
    assert is_free(file)


# File systems of clusters


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_heartbeat_suffices(
    file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(file, "elsewhere 1 abc\n")
    assert is_leased(file)
    with take_lease(file) as lease:
        assert not lease
    write(file, "")
    with take_lease(file) as lease:
        assert lease
        assert lease.is_current()


def test_without_locks_one_process_holds_the_lease_until_it_is_killed(
    file: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    holder = start(WITHOUT_LOCKS + HOLD, file)
    assert answer(holder)
    assert not is_free(file)
    assert not answer(start(WITHOUT_LOCKS + HOLD, file))
    os.utime(file, (0, 0))  # as if another process had the id of an ended holder
    assert not is_leased(file)
    os.utime(file)
    holder.kill()
    wait_for(lambda: is_free(file))  # the rest of it does not count
    assert answer(start(WITHOUT_LOCKS + HOLD, file))


def test_without_locks_one_of_two_processes_at_the_same_moment_gets_the_lease(
    file: Path, start: Start
) -> None:
    file.parent.mkdir()
    both = [
        start(CONTEND, file, me, other, 2, "same-host")
        for me, other in (("one", "two"), ("two", "one"))
    ]
    assert sorted(map(answer, both)) == [False, True]


def test_a_process_without_write_access_can_check(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, "elsewhere 1 abc\n")

    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "probe")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert is_leased(file)
    os.utime(file, (0, 0))
    assert not is_leased(file)
