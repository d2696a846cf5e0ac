"""Notifications about a study: a command or a URL of the profile, called once per event."""

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

NOTIFY_TIMEOUT_S = 20.0
NOTIFY_RETRY_S, MAX_NOTIFY_RETRY_S = 60.0, 3600.0
"""Delay before an event is sent again: doubled after each failure, up to the second value."""

Event = tuple[str, str]
"""Kind of an event (`done`, `stuck` or `failed`) and its message."""


@dataclass
class Notifier:
    """Sender of a study's events to the profile's hook.

    A failing hook is reported on stderr and called again in a later cycle, after ever longer
    delays. A hanging hook takes `NOTIFY_TIMEOUT_S`; then no event is sent before the next cycle.

    Attributes:
        directory: directory of the sweep.
        must_stop: called before each hook; once it returns True no event is sent.
        pending: events of this cycle that could not be sent.
    """

    directory: Path
    must_stop: Callable[[], bool] = lambda: False
    pending: list[Event] = field(default_factory=list)
    _sent: set[Event] = field(default_factory=set)
    _failures: dict[Event, tuple[int, float]] = field(default_factory=dict)
    _hook: str | None = None
    _hangs: bool = False

    def begin(self) -> None:
        """Begin a cycle: clear the pending events."""
        self.pending, self._hangs = [], False

    def send(self, profile: Profile, kind: str, message: str) -> bool:
        """Send an event at most once; return whether this call sent it.

        A URL receives a JSON document with `sweep, directory, event, message`. A command receives
        kind, directory and message as its last arguments.
        """
        if profile.notify != self._hook:
            self._hook, self._failures = profile.notify, {}
        return self._send((kind, message))

    def retry(self) -> None:
        """Send the pending events whose delay has passed."""
        events = self.pending
        self.begin()
        for event in events:
            self._send(event)

    def _send(self, event: Event) -> bool:
        if not self._hook or event in self._sent | set(self._recorded()):
            return False
        failures, next_try = self._failures.get(event, (0, 0.0))
        if self._hangs or self.must_stop() or time.monotonic() < next_try:
            self.pending.append(event)
            return False
        start = time.monotonic()
        try:
            _call_hook(self._hook, self.directory, *event)
        except Exception as problem:  # an invalid answer of a server raises many types
            self._hangs = time.monotonic() - start >= 0.9 * NOTIFY_TIMEOUT_S
            delay = min(MAX_NOTIFY_RETRY_S, NOTIFY_RETRY_S * 2**failures)
            self._failures[event] = (failures + 1, time.monotonic() + delay)
            self.pending.append(event)
            _warn(problem)
            return False
        self._sent.add(event)
        try:
            with replace_file(self._file) as temporary:
                temporary.write_text(json.dumps([*self._recorded(), event]) + "\n")
        except OSError as problem:  # on a full disk a later process may send the event twice
            _warn(problem)
        return True

    @property
    def _file(self) -> Path:
        """Return the file of sent events, outside the records of submissions."""
        return submissions_folder(self.directory) / "supervisor" / "notified.json"

    def _recorded(self) -> list[Event]:
        """Return the events recorded as sent, by earlier processes too."""
        try:
            return [(kind, message) for kind, message in json.loads(self._file.read_text())]
        except (OSError, ValueError, TypeError):
            return []


def _warn(problem: Exception) -> None:
    message = " ".join(str(problem).split())
    with suppress(OSError):  # the log may be on the full disk
        print(f"isoflop: warning: notify: {message}", file=sys.stderr, flush=True)


def _call_hook(hook: str, directory: Path, kind: str, message: str) -> None:
    if hook.startswith(("http://", "https://")):
        document = {
            "sweep": directory.name,
            "directory": str(directory),
            "event": kind,
            "message": message,
        }
        _post(hook, json.dumps(document).encode())
        return
    command = [*shlex.split(hook), kind, str(directory), message]
    subprocess.run(
        command,
        check=True,
        timeout=NOTIFY_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _post(url: str, body: bytes) -> None:
    """Post a document from a thread that can be abandoned.

    A socket's timeout limits each part of an answer, not the whole.
    """
    problems: list[Exception] = []

    def post() -> None:
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=NOTIFY_TIMEOUT_S):
                pass
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(NOTIFY_TIMEOUT_S)
    if thread.is_alive():
        raise TimeoutError(f"{url}: no answer in {NOTIFY_TIMEOUT_S:.0f} s")
    if problems:
        raise problems[0]
