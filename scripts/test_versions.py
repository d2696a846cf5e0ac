"""Run the tests that need no torch with the lowest declared versions, and on other Pythons.

    make test-versions PYTHONS="python3.12 python3.13"

Each run has a temporary environment, on other Pythons with the versions of constraints.txt. Builds
of torch are large: instead of torch there is only a version, 0, which runs record as provenance.
`tests/conftest.py` leaves out and skips the tests that need more, and prints their numbers.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOWEST = "lowest"
EXTRAS = ("pocket", "tensorboard", "wandb")
TOOLS = (
    "build",
    "grimp",
    "hypothesis",
    "ipykernel",
    "nbclient",
    "nbformat",
    "pytest",
    "pytest-xdist",
    "setuptools",
)
"""Packages that tests import, at the versions of constraints.txt in every environment."""
TORCH = "torch"
NEEDS_TORCH = ("lightning", "pytorch-lightning")
PYTEST = ("-m", "not slow and not long", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider")
TORCH_VERSION_TEST = (
    "tests/test_dependencies.py::test_the_installed_release_is_one_that_is_allowed[torch]"
)


def package_name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0]


def lowest_version(requirement: str) -> str:
    """Return the requirement of exactly the lowest version that a requirement allows.

    Raises:
        ValueError: it has no lower bound.
    """
    bound = re.search(r">=\s*([\w.]+)", requirement)
    if bound is None:
        raise ValueError(f"pyproject.toml: {requirement}: add a lower bound, such as >=1.0")
    return f"{package_name(requirement)}=={bound[1]}"


def read_requirements() -> dict[str, str]:
    """Return the requirements of the package and of the extras that users install, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(item for name in EXTRAS for item in extras[name])]
    return {package_name(requirement): requirement for requirement in requirements}


def make_environment(folder: Path, interpreter: str, *, lowest: bool) -> Path:
    """Make an environment in `folder` that imports the package from the checkout.

    Args:
        folder: new folder.
        interpreter: Python of the environment.
        lowest: install the lowest declared versions, not those of constraints.txt.

    Returns:
        Python of the environment.

    Raises:
        subprocess.CalledProcessError: an installation failed.
    """
    run(interpreter, "-m", "venv", folder)
    python = folder / "bin" / "python"
    requirements = read_requirements()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if lowest:
        pins = [pin for pin in pins if package_name(pin) not in requirements]
        requirements = {name: lowest_version(text) for name, text in requirements.items()}
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*pins, ""]), encoding="utf-8")
    install = (python, "-m", "pip", "install", "--no-compile", "--quiet", "-c", constraints)
    del requirements[TORCH]
    without_torch = [requirements.pop(name) for name in NEEDS_TORCH]
    run(*install, *TOOLS, *requirements.values())
    run(*install, "--no-deps", *without_torch)
    run(*install, "--no-deps", "--no-build-isolation", copy_metadata(folder / "isoflop"))
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "isoflop.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    torch = packages / f"{TORCH}-0.dist-info"
    torch.mkdir()
    (torch / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {TORCH}\nVersion: 0\n")
    return python


def copy_metadata(folder: Path) -> Path:
    """Copy what the package's metadata and programs are built from, without its modules.

    An editable installation would write into the checkout.
    """
    (folder / "isoflop").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_tests(interpreter: str, options: str, *, lowest: bool) -> int:
    """Run the tests in a temporary environment; return pytest's exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = make_environment(folder / "venv", interpreter, lowest=lowest)
        environment = os.environ | {
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
            "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
        }
        arguments = [*PYTEST, "--deselect", TORCH_VERSION_TEST, *shlex.split(options)]
        command = [python, "-m", "pytest", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def python_version(interpreter: str) -> str:
    """Return the version of an interpreter; empty if none of this name starts."""
    command = [interpreter, "-c", "import platform; print(platform.python_version())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def run_one(name: str, options: str) -> tuple[str, bool]:
    """Run the tests once; return the result in a line, and whether they failed."""
    lowest = name == LOWEST
    interpreter = sys.executable if lowest else name
    version = python_version(interpreter)
    if not version:
        return f"{name}: skipped, no Python of this name starts", False
    print(f"test-versions: {name}: Python {version}", flush=True)
    start = time.monotonic()
    try:
        code = run_tests(interpreter, options, lowest=lowest)
        result = f"failed, pytest ended with {code}" if code else "passed"
    except subprocess.CalledProcessError as error:
        code, result = 1, f"failed, cannot install: {shlex.join(map(str, error.cmd))}"
    return f"{name}: Python {version}: {result}, {time.monotonic() - start:.0f} s", code != 0


def main() -> None:
    """Run the tests once for each argument; print the results at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", help=f"`{LOWEST}` (this Python, lowest versions) or an interpreter"
    )
    parser.add_argument("--pytest", default="", help="further options of pytest: --pytest='-n 1'")
    options = parser.parse_args()
    results = [run_one(name, options.pytest) for name in options.runs]
    for line, _ in results:
        print(f"test-versions: {line}")
    sys.exit(any(failed for _, failed in results))


if __name__ == "__main__":
    main()
