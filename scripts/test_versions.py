"""Run the tests that need no torch on other Pythons, or with the lowest declared versions.

    python scripts/test_versions.py                     this Python, lowest versions
    python scripts/test_versions.py --python python3.13 that Python, the pinned versions

Each makes a virtual environment in a temporary folder without torch and lightning: builds of them
for other Pythons are large. `tests/conftest.py` then leaves out the tests that train.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING = ("torch", "lightning", "lightning-utilities")
TOOLS = ("pytest", "pytest-xdist", "hypothesis")


def package_name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0]


def lowest(requirement: str) -> str:
    """Return the lowest version that a requirement admits, as an exact one."""
    match = re.search(r">=\s*([\w.]+)", requirement)
    return f"{package_name(requirement)}=={match[1]}" if match else requirement


def requirements() -> list[str]:
    """Return the package's own requirements without those of training."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [item for item in declared if package_name(item) not in TRAINING]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", help="an interpreter; its tests run with the pinned versions")
    parser.add_argument("tests", nargs="*", default=["-m", "not slow and not long", "-n", "2"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        python = Path(temporary, "venv", "bin", "python")
        interpreter = options.python or sys.executable
        subprocess.run([interpreter, "-m", "venv", python.parents[1]], check=True)
        install = [python, "-m", "pip", "install", "--quiet", *TOOLS]
        if options.python:
            install += [*requirements(), "--constraint", ROOT / "constraints.txt"]
        else:
            install += [lowest(item) for item in requirements()]
        subprocess.run(install, check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT], check=True
        )
        subprocess.run([python, "--version"], check=True)
        done = subprocess.run([python, "-m", "pytest", *options.tests], cwd=ROOT, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
