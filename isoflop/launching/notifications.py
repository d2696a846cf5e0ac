"""Telling people what happened to a study: a command or a URL of the profile, once for each thing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.files import replace_file
from isoflop.launching.records.submissions import submissions_folder

TIMEOUT_S = 20.0
AGAIN_S, LONGEST_S = 60.0, 3600.0
"""Until something that could not be told is tried again: twice as long after each try, up to the second."""

Thing = tuple[str, str]
"""An event (`done`, `stuck` or `failed`) and its message."""


@dataclass
class Teller:
    """Tells people of a study, whatever their hook does.

    A hook that fails is reported on stderr, and tried again at a later look, ever later. One that hangs takes
    `TIMEOUT_S`, and no other is called before the next look.

    Attributes:
        directory: of the sweep.
        must_stop: asked before each hook; then nothing more is told.
        untold: what of this look could not be told.
    """

    directory: Path
    must_stop: Callable[[], bool] = lambda: False
    untold: list[Thing] = field(default_factory=list)
    _told: set[Thing] = field(default_factory=set)
    _tries: dict[Thing, tuple[int, float]] = field(default_factory=dict)
    _hook: str | None = None
    _hangs: bool = False

    def begin(self) -> None:
        """Begins a look."""
        self.untold, self._hangs = [], False

    def tell(self, profile: Profile, event: str, message: str) -> bool:
        """Tells of `done`, `stuck` or `failed`; whether it was told, which it is once.

        A URL is sent a JSON document with `sweep, directory, event, message`; a command is called with event, directory
        and message as its last words.
        """
        if profile.notify != self._hook:
            self._hook, self._tries = profile.notify, {}
        return self._tell((event, message))

    def again(self) -> None:
        """Tries what could not be told, where it is time."""
        things = self.untold
        self.begin()
        for thing in things:
            self._tell(thing)

    def _tell(self, thing: Thing) -> bool:
        if not self._hook or thing in self._told | set(self._kept()):
            return False
        tries, next_try = self._tries.get(thing, (0, 0.0))
        if self._hangs or self.must_stop() or time.monotonic() < next_try:
            self.untold.append(thing)
            return False
        began = time.monotonic()
        try:
            _send(self._hook, self.directory, *thing)
        except Exception as problem:  # a server that answers garbage has many ways to
            self._hangs = time.monotonic() - began >= 0.9 * TIMEOUT_S
            self._tries[thing] = (tries + 1, time.monotonic() + min(LONGEST_S, AGAIN_S * 2**tries))
            self.untold.append(thing)
            _warn(problem)
            return False
        self._told.add(thing)
        try:
            with replace_file(self._file) as temporary:
                temporary.write_text(json.dumps([*self._kept(), thing]) + "\n")
        except (
            OSError
        ) as problem:  # on a full disk: what comes after this process may tell it again
            _warn(problem)
        return True

    @property
    def _file(self) -> Path:
        return (
            submissions_folder(self.directory) / "supervisor" / "notified.json"
        )  # not among the submissions' records

    def _kept(self) -> list[Thing]:
        """What was told, by earlier processes too."""
        try:
            return [(event, message) for event, message in json.loads(self._file.read_text())]
        except (OSError, ValueError, TypeError):
            return []


def _warn(problem: Exception) -> None:
    with suppress(OSError):  # the log may be on the disk that is full
        print(
            f"isoflop: warning: notify: {' '.join(str(problem).split())}",
            file=sys.stderr,
            flush=True,
        )


def _send(hook: str, directory: Path, event: str, message: str) -> None:
    if hook.startswith(("http://", "https://")):
        document = {
            "sweep": directory.name,
            "directory": str(directory),
            "event": event,
            "message": message,
        }
        _post(hook, json.dumps(document).encode())
        return
    command = [*shlex.split(hook), event, str(directory), message]
    subprocess.run(
        command, check=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def _post(url: str, body: bytes) -> None:
    """Sends a document, in a thread that can be left: a socket's timeout is that of each piece of an answer."""
    problems: list[Exception] = []

    def post() -> None:
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                pass
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if thread.is_alive():
        raise TimeoutError(f"{url}: no answer in {TIMEOUT_S:.0f} s")
    if problems:
        raise problems[0]
