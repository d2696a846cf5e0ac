"""Check of this installation: versions of isoflop's packages, and which of them import.

Imports nothing but the standard library, so that it works in a broken installation.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from isoflop.errors import MAX_MESSAGE_CHARACTERS

IMPORT_TIMEOUT_S = 120.0
OPTIONAL_EXTRAS = ("pocket", "tensorboard", "wandb")
"""Extras whose packages are checked; those of `docs`, `dev` and `notebook` are not isoflop's."""

MODULES = {"PyYAML": "yaml"}
"""Modules of packages that are not the package's name with underscores."""


class Requirement(NamedTuple):
    """Package that isoflop imports.

    Attributes:
        name: name of the package, such as `torch`.
        text: requirement as pip takes it, such as `torch>=2.11`.
        extra: extra that asks for it; empty if isoflop needs it.
    """

    name: str
    text: str
    extra: str


def check_installation() -> Iterator[str]:
    """Yield a line with the versions of isoflop, Python and the system, then a line per package.

    A package line begins with `ok`, `missing` or `broken` (installed, but its import fails), and
    gives the version, the problem and the fix. Each package is imported in a process of its own,
    so that a crash is reported too.
    """
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield f"isoflop {version('isoflop')}, Python {platform.python_version()}, {system}"
    yield f"interpreter: {sys.executable}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_check_package, list_requirements())


def list_requirements() -> list[Requirement]:
    """Return the packages that isoflop imports, by its own metadata; optional ones last."""
    requirements = []
    for line in requires("isoflop") or ():
        text, _, marker = (field.strip() for field in line.partition(";"))
        match = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == ['\"](.+?)['\"]", marker)
        if match and (not extra or extra[1] in OPTIONAL_EXTRAS):
            requirements.append(Requirement(match[0], text, extra[1] if extra else ""))
    return sorted(requirements, key=lambda requirement: (requirement.extra, requirement.name))


def _check_package(requirement: Requirement) -> str:
    """Return the line of a package."""
    install = f"{shlex.quote(sys.executable)} -m pip install"
    try:
        label = f"{requirement.name} {version(requirement.name)}"
    except PackageNotFoundError:
        use = f" (optional, for {requirement.extra})" if requirement.extra else ""
        fix = f"{install} {shlex.quote(requirement.text)}"
        return f"missing {requirement.name}{use}; fix: {fix}"
    module = MODULES.get(requirement.name, requirement.name.replace("-", "_"))
    if problem := _import_problem(module):
        fix = f"{install} --force-reinstall {shlex.quote(requirement.text)}"
        return f"broken  {label}: {problem}; fix: {fix}"
    return f"ok      {label}"


def _import_problem(module: str) -> str:
    """Return the reason why a module can't be imported in a new process, empty if it can."""
    command = [sys.executable, "-P", "-c", f"import {module}"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"import takes more than {IMPORT_TIMEOUT_S:.0f} s"
    if not process.returncode:
        return ""
    if process.returncode < 0:
        return f"import crashes ({signal.Signals(-process.returncode).name})"
    lines = process.stderr.strip().splitlines() or [f"import ends with {process.returncode}"]
    return lines[-1][:MAX_MESSAGE_CHARACTERS]
