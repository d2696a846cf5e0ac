"""Fills .venv: the right build of torch, then isoflop, editable, at the versions of constraints.txt.

    make setup

makes .venv and runs this with its Python. Standard library only. A torch that is there already is kept. Without an
NVIDIA GPU only a build of torch for CPUs is taken, since those for CUDA are several GB.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "pocket,tensorboard,wandb,notebook,docs,dev"
OLDEST_TORCH = (2, 11)
OLDEST_PIP = (23, 3)
"""The first pip that can look at a wheel of several GB without fetching it."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BY_PATH = ("--config-settings", "editable_mode=compat")
"""An editable installation that puts this folder on Python's path. The finder that setuptools writes otherwise comes
after the path: where a folder `isoflop` lies beside a script, such as this clone, that folder is what it imports."""
BY_HAND = ".venv/bin/python -m pip install"

_OFFLINE = re.compile(
    r"NewConnectionError|Failed to establish|name resolution|Name or service not known|dns error|unreachable"
    r"|timed out|Connection (refused|reset|aborted)|ProxyError|error sending request",
    re.IGNORECASE,
)


class SetUpError(Exception):
    """Why set-up stopped, in one line with the mend."""


class Build(StrEnum):
    """What a wheel of torch is built for."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Way:
    """A place that may have torch: how to look at what it would give, and how to take that."""

    name: str
    look: tuple[str, ...]
    take: tuple[str, ...]


# Which torch


def ways(gpu: bool, torch: str, pip: Sequence[str], uv: Sequence[str] | None = None) -> list[Way]:
    """The places to try, in order.

    Args:
        gpu: whether this machine has an NVIDIA GPU.
        torch: the requirement, such as `torch==2.13.0`.
        pip, uv: how to call each for .venv; uv is asked only where there is a GPU, whose driver it matches.
    """
    ours = Way("pip's index", (*pip, *_LOOK, torch), (*pip, "install", "--no-deps", torch))
    if not gpu:
        index = ("--index-url", CPU_INDEX)
        look = (*pip, *_LOOK, *index, "--timeout", "5", "--retries", "0", torch)
        return [Way("PyTorch's index", look, (*pip, "install", "--no-deps", *index, torch)), ours]
    if uv is None:
        return [ours]
    take = (*uv, "pip", "install", "--python", sys.executable, "--torch-backend=auto", torch)
    return [Way("uv", (*take, "--dry-run"), take), ours]


_LOOK = ("install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-")


def choose(places: Sequence[Way], look: Callable[[Way], Build], gpu: bool) -> Way:
    """The first place that has a torch for this machine.

    Raises:
        SetUpError: there is none; the line says why, and the command for taking a CUDA build all the same.
    """
    problems: list[str] = []
    large = False
    for way in places:
        try:
            build = look(way)
        except SetUpError as problem:
            problems.append(str(problem))
            continue
        if gpu or build is Build.CPU:
            return way
        large = True
    torch = places[-1].take[-1]
    if large:
        raise SetUpError(
            "only builds of torch for CUDA (several GB) were found, and this machine has no NVIDIA GPU; "
            f"to take one all the same: {BY_HAND} {torch} && make setup"
        )
    raise SetUpError(f"no {torch} was found: {problems[-1]}")


def build_of(version: str, requirements: Sequence[str]) -> Build:
    """What a wheel is built for, by the label of its version or, without one, by what it requires on Linux."""
    label = version.partition("+")[2]
    if label:
        return Build.CPU if label.startswith("cpu") else Build.CUDA
    needs_cuda = any(
        re.match(r"(nvidia|cuda)-", text) and "extra ==" not in text for text in requirements
    )
    return Build.CUDA if needs_cuda and sys.platform == "linux" else Build.CPU


def is_recent(version: str | None, oldest: tuple[int, int]) -> bool:
    """Whether a version such as 2.13.0+cpu is at least `oldest`."""
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= oldest


def has_gpu() -> bool:
    if Path("/dev/nvidia0").exists():
        return True
    return shutil.which("nvidia-smi") is not None and _run(["nvidia-smi", "-L"]).returncode == 0


def look_at(way: Way) -> Build:
    """Asks a place what it would give."""
    done = _run(way.look)
    if done.returncode:
        raise SetUpError(explain(done.stderr))
    if way.name == "uv":
        return Build.CUDA
    item: dict[str, Any] = json.loads(done.stdout)["install"][0]["metadata"]
    return build_of(item["version"], item.get("requires_dist", []))


def explain(errors: str) -> str:
    """Why pip or uv failed, in one line."""
    if "No space left" in errors:
        return "the disk is full"
    if _OFFLINE.search(errors):
        return "no package index could be reached; check the network and pip's settings (pip config list)"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("ERROR:", "error:"))]
    return (said or lines or ["no reason was given"])[-1]


# What is installed


def constraints(pinned: str, torch: str) -> str:
    """The pinned versions, with torch held at the version that is installed."""
    others = [line for line in pinned.splitlines() if not line.startswith("torch==")]
    return "\n".join([*others, f"torch=={torch}", ""])


def pinned_torch(pinned: str) -> str:
    return next(line.strip() for line in pinned.splitlines() if line.startswith("torch=="))


def digest(project: dict[str, Any], pinned: str, place: str) -> str:
    """A text that changes when set-up has something to do: other needs, pins, Python, folder or way to install."""
    needs = [project["project"], project["build-system"], pinned, place, BY_PATH]
    return hashlib.sha256(json.dumps(needs, sort_keys=True).encode()).hexdigest()


def installed(package: str) -> str | None:
    importlib.invalidate_caches()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Doing it


def main() -> None:
    if sys.prefix == sys.base_prefix:
        stop("this Python is not that of .venv; run: make setup")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    stamp = Path(sys.prefix) / "isoflop-set-up"
    wanted = digest(project, pinned, f"{ROOT} {sys.version}")
    if (
        stamp.exists()
        and stamp.read_text() == wanted
        and installed("isoflop")
        and installed("torch")
    ):
        return
    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    try:
        torch = fill(pinned)
    except SetUpError as problem:
        stop(str(problem))
    stamp.write_text(wanted)
    say(f"done in {time.monotonic() - start:.0f} s, with torch {torch}")


def fill(pinned: str) -> str:
    """Installs everything; returns torch's version."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if util.find_spec("pip") is None:  # .venv was interrupted while it was made
        take([sys.executable, "-m", "ensurepip"])
    if not is_recent(installed("pip"), OLDEST_PIP):
        take([*pip, "install", "--constraint", str(ROOT / "constraints.txt"), "--upgrade", "pip"])
    torch = installed("torch")
    if torch is None or not is_recent(torch, OLDEST_TORCH):
        gpu = has_gpu()
        way = choose(
            ways(gpu, pinned_torch(pinned), pip, find_uv(pip) if gpu else None), look_at, gpu
        )
        say(f"fetching {way.take[-1]}" + ("" if gpu else ", a build for CPUs"))
        take(way.take, loud=True)
        torch = installed("torch")
        assert torch is not None
    say(f"installing isoflop and its tools, beside torch {torch}")
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        held.write_text(constraints(pinned, torch), encoding="utf-8")
        take(
            [
                *pip,
                "install",
                "--constraint",
                str(held),
                *BY_PATH,
                "--editable",
                f"{ROOT}[{EXTRAS}]",
            ]
        )
    return torch


def find_uv(pip: Sequence[str]) -> list[str] | None:
    """How to call uv, which is put into .venv where the machine has none."""
    program = shutil.which("uv")
    if program:
        return [program]
    return (
        None
        if _run([*pip, "install", "--quiet", "uv"]).returncode
        else [sys.executable, "-m", "uv"]
    )


def take(command: Sequence[str], loud: bool = False) -> None:
    """Runs an installation, with its progress on a terminal where it is a long one."""
    done = _run(command, capture_output=not (loud and sys.stdout.isatty()))
    if done.returncode:
        raise SetUpError(explain(done.stderr or "see above"))


def _run(command: Sequence[str], capture_output: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=capture_output, text=True, check=False, cwd=ROOT)


def say(line: str) -> None:
    print(f"isoflop set-up: {line}", flush=True)


def stop(line: str) -> NoReturn:
    print(f"isoflop set-up: {line}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
