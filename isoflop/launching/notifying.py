"""Telling people what happened to a study: a command or a URL of the profile, once for each thing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

from isoflop.config.profile import Profile
from isoflop.files import replace_file
from isoflop.launching.submission import submissions_folder

TIMEOUT_S = 20.0


def notify(profile: Profile, directory: Path, event: str, message: str) -> bool:
    """Tells of `done`, `stuck` or `failed`; whether it was told, which it is once.

    A URL is sent a JSON document with `sweep, directory, event, message`; a command is called with event, directory and
    message as its last words. A hook that fails is reported on stderr, and tried again at the next look.
    """
    if not profile.notify:
        return False
    file = submissions_folder(directory) / "supervisor" / "notified.json"  # not among the records of submissions
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError):
        told = []
    if [event, message] in told:
        return False
    try:
        _send(profile.notify, directory, event, message)
    except (OSError, ValueError, subprocess.SubprocessError) as problem:
        print(f"isoflop: warning: notify: {' '.join(str(problem).split())}", file=sys.stderr)
        return False
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps([*told, [event, message]]) + "\n")
    return True


def _send(hook: str, directory: Path, event: str, message: str) -> None:
    if hook.startswith(("http://", "https://")):
        document = {"sweep": directory.name, "directory": str(directory), "event": event, "message": message}
        body = json.dumps(document).encode()
        request = urllib.request.Request(hook, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return
    command = [*shlex.split(hook), event, str(directory), message]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
