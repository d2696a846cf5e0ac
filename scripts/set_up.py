"""Fill .venv: the right build of torch, then isoflop, editable, at the versions of constraints.txt.

    make setup

makes .venv and runs this with its Python. Needs the standard library only. An installed torch is
kept. Without an NVIDIA GPU only a CPU build of torch is installed: CUDA builds are several GB.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
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
"""First pip that reads the metadata of a wheel of several GB without fetching it."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EDITABLE_BY_PATH = ("--config-settings", "editable_mode=compat")
"""Options of an editable installation that puts this folder on Python's path.

The default of setuptools is a finder that comes after the path. A folder `isoflop` beside a script,
such as this clone, would then hide the package.
"""
INSTALL = ("install", "--no-compile")
"""Pip compiles modules on one core, for two thirds of its CPU time; `compile_packages` uses all."""
RARELY_IMPORTED = r"/(tests?|testing|transformers/models)/"
"""Pattern of paths with half of all code, which Python compiles at its first import."""
PIP_INSTALL_COMMAND = ".venv/bin/python -m pip install"

_OFFLINE = re.compile(
    r"NewConnectionError|Failed to establish|name resolution|Name or service not known"
    r"|dns error|unreachable|timed out|Connection (refused|reset|aborted)|ProxyError"
    r"|error sending request",
    re.IGNORECASE,
)


class SetUpError(Exception):
    """Reason of a stop of set-up, in one line with the fix."""


class Build(StrEnum):
    """Hardware of a build of torch."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class TorchSource:
    """A source of torch builds, with its commands.

    Attributes:
        name: name of the source.
        probe: command that reports the build on offer, without fetching it.
        install: command that installs that build.
    """

    name: str
    probe: tuple[str, ...]
    install: tuple[str, ...]


# The build of torch


def list_sources(
    gpu: bool, torch: str, pip: Sequence[str], uv: Sequence[str] | None = None
) -> list[TorchSource]:
    """Return the sources to try, in order.

    Args:
        gpu: True if this machine has an NVIDIA GPU.
        torch: requirement, such as `torch==2.13.0`.
        pip: command that runs pip for .venv.
        uv: command that runs uv for .venv, used only with a GPU: uv picks the build for its driver.
    """
    default = TorchSource(
        "pip's index", (*pip, *_PROBE, torch), (*pip, *INSTALL, "--no-deps", torch)
    )
    if not gpu:
        index = ("--index-url", CPU_INDEX)
        probe = (*pip, *_PROBE, *index, "--timeout", "5", "--retries", "0", torch)
        install = (*pip, *INSTALL, "--no-deps", *index, torch)
        return [TorchSource("PyTorch's index", probe, install), default]
    if uv is None:
        return [default]
    install = (*uv, "pip", "install", "--python", sys.executable, "--torch-backend=auto", torch)
    return [TorchSource("uv", (*install, "--dry-run"), install), default]


_PROBE = (*INSTALL, "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-")


def choose_source(
    sources: Sequence[TorchSource], probe: Callable[[TorchSource], Build], gpu: bool
) -> TorchSource:
    """Return the first source with a torch for this machine.

    Raises:
        SetUpError: no source has one. The message gives the reason and, if there are CUDA builds,
            the command that installs one.
    """
    problems: list[str] = []
    only_cuda = False
    for source in sources:
        try:
            build = probe(source)
        except SetUpError as problem:
            problems.append(str(problem))
            continue
        if gpu or build is Build.CPU:
            return source
        only_cuda = True
    torch = sources[-1].install[-1]
    if only_cuda:
        raise SetUpError(
            "only CUDA builds of torch (several GB) are available, and this machine has no "
            f"NVIDIA GPU; to install one anyway: {PIP_INSTALL_COMMAND} {torch} && make setup"
        )
    raise SetUpError(f"no {torch} is available: {problems[-1]}")


def detect_build(version: str, requirements: Sequence[str]) -> Build:
    """Return the hardware of a wheel's build.

    The label of the version decides; without a label, the wheel's requirements on Linux do.
    """
    label = version.partition("+")[2]
    if label:
        return Build.CPU if label.startswith("cpu") else Build.CUDA
    needs_cuda = any(
        re.match(r"(nvidia|cuda)-", text) and "extra ==" not in text for text in requirements
    )
    return Build.CUDA if needs_cuda and sys.platform == "linux" else Build.CPU


def is_recent(version: str | None, oldest: tuple[int, int]) -> bool:
    """Return whether a version such as 2.13.0+cpu is at least `oldest`."""
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= oldest


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU."""
    if Path("/dev/nvidia0").exists():
        return True
    return shutil.which("nvidia-smi") is not None and _run(["nvidia-smi", "-L"]).returncode == 0


def probe_build(source: TorchSource) -> Build:
    """Return the build on offer at a source.

    Raises:
        SetUpError: the command failed.
    """
    done = _run(source.probe)
    if done.returncode:
        raise SetUpError(explain(done.stderr))
    if source.name == "uv":
        return Build.CUDA
    item: dict[str, Any] = json.loads(done.stdout)["install"][0]["metadata"]
    return detect_build(item["version"], item.get("requires_dist", []))


def explain(errors: str) -> str:
    """Return the reason of a failure of pip or uv, in one line."""
    if "No space left" in errors:
        return "the disk is full"
    if _OFFLINE.search(errors):
        return (
            "no package index could be reached; check the network and pip's settings "
            "(pip config list)"
        )
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    error_lines = [line for line in lines if line.startswith(("ERROR:", "error:"))]
    return (error_lines or lines or ["no reason was given"])[-1]


# Installed versions


def constraints(pinned: str, torch: str) -> str:
    """Return the pinned versions, with torch held at its installed version."""
    others = [line for line in pinned.splitlines() if not line.startswith("torch==")]
    return "\n".join([*others, f"torch=={torch}", ""])


def pinned_torch(pinned: str) -> str:
    """Return the pinned requirement of torch."""
    return next(line.strip() for line in pinned.splitlines() if line.startswith("torch=="))


def digest(project: dict[str, Any], pinned: str, location: str) -> str:
    """Return a hash of the requirements, pins, Python, folder and kind of installation.

    Set-up has nothing to do while it stays the same.
    """
    inputs = [project["project"], project["build-system"], pinned, location, EDITABLE_BY_PATH]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def installed_version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    importlib.invalidate_caches()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Installation


def main() -> None:
    """Fill .venv, unless nothing has changed since the last time."""
    if sys.prefix == sys.base_prefix:
        stop("this Python is not the one in .venv; run: make setup")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    stamp = Path(sys.prefix) / "isoflop-set-up"
    state = digest(project, pinned, f"{ROOT} {sys.version}")
    up_to_date = stamp.exists() and stamp.read_text() == state
    if up_to_date and installed_version("isoflop") and installed_version("torch"):
        return
    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    try:
        torch = fill(pinned)
    except SetUpError as problem:
        stop(str(problem))
    stamp.write_text(state)
    log(f"done in {time.monotonic() - start:.0f} s, with torch {torch}")


def fill(pinned: str) -> str:
    """Install everything and return torch's version.

    Raises:
        SetUpError: an installation failed, or no source has a torch for this machine.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pip_install = [*pip, *INSTALL, "--constraint"]
    if util.find_spec("pip") is None:  # the making of .venv was interrupted
        run_installer([sys.executable, "-m", "ensurepip"])
    if not is_recent(installed_version("pip"), OLDEST_PIP):
        run_installer([*pip_install, str(ROOT / "constraints.txt"), "--upgrade", "pip"])
    torch = installed_version("torch")
    if torch is None or not is_recent(torch, OLDEST_TORCH):
        gpu = has_gpu()
        sources = list_sources(gpu, pinned_torch(pinned), pip, find_uv(pip) if gpu else None)
        source = choose_source(sources, probe_build, gpu)
        log(f"fetching {source.install[-1]}" + ("" if gpu else ", a build for CPUs"))
        run_installer(source.install, show_progress=True)
        torch = installed_version("torch")
        assert torch is not None
    log(f"installing isoflop and its tools, beside torch {torch}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text(constraints(pinned, torch), encoding="utf-8")
        package = ("--editable", f"{ROOT}[{EXTRAS}]")
        run_installer([*pip_install, str(file), *EDITABLE_BY_PATH, *package])
    compile_packages()
    return torch


def compile_packages() -> None:
    """Compile isoflop and its packages to bytecode on all cores, but for rarely imported parts.

    Where PYTHONDONTWRITEBYTECODE is set, every process would else compile PyTorch at its start.
    Files with invalid syntax, such as templates, are skipped.
    """
    options = ("-qq", "-j", "0", "-x", RARELY_IMPORTED)
    folders = (sysconfig.get_path("purelib"), str(ROOT / "isoflop"))
    _run([sys.executable, "-m", "compileall", *options, *folders])


def find_uv(pip: Sequence[str]) -> list[str] | None:
    """Return the command that runs uv; install uv into .venv if the machine has none.

    Returns None if that fails.
    """
    program = shutil.which("uv")
    if program:
        return [program]
    failed = _run([*pip, "install", "--quiet", "uv"]).returncode
    return None if failed else [sys.executable, "-m", "uv"]


def run_installer(command: Sequence[str], show_progress: bool = False) -> None:
    """Run an installation; `show_progress` shows its output on a terminal.

    Raises:
        SetUpError: it failed.
    """
    done = _run(command, capture_output=not (show_progress and sys.stdout.isatty()))
    if done.returncode:
        raise SetUpError(explain(done.stderr or "see above"))


def _run(command: Sequence[str], capture_output: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=capture_output, text=True, check=False, cwd=ROOT)


def log(line: str) -> None:
    """Print a line of progress."""
    print(f"isoflop set-up: {line}", flush=True)


def stop(line: str) -> NoReturn:
    """Print an error and exit with code 1."""
    print(f"isoflop set-up: {line}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
