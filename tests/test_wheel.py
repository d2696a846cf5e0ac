"""The wheel, built from the source distribution, in a separate environment and another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

import isoflop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHIPPED = {
    f"isoflop/shipped/{folder}/{path.name}"
    for folder in ("sweeps", "slurm")
    for path in (ROOT / folder).glob("*.yaml")
}


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command outside the checkout; return its stdout."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without network, from the source distribution of a copy of the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in ("isoflop", "sweeps", "slurm"):
        shutil.copytree(
            ROOT / folder,
            source / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source], target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment; return its folder of programs.

    The dependencies come from the tests' environment, by a line on the path, without network. That
    line does not add an editable install: Python reads .pth files only in site-packages itself.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--no-deps", "--no-index", wheel], environment)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    file = run([python, "-c", "import isoflop; print(isoflop.__file__)"], environment).strip()
    assert Path(file).is_relative_to(environment)
    return environment / "bin"


def test_the_wheel_holds_shipped_files_and_modules_only(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        assert {name for name in names if "/shipped/" in name} == SHIPPED
        for name in SHIPPED:
            source = ROOT / Path(name).relative_to("isoflop/shipped")
            assert archive.read(name) == source.read_bytes()
    assert "isoflop/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"isoflop", f"isoflop-{isoflop.__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "isoflop").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_it_plans_a_shipped_sweep_from_another_folder(programs: Path, tmp_path: Path) -> None:
    document = json.loads(run([programs / "sweep-plan", "soda", "--json"], tmp_path))
    assert document["runs"] == isoflop.plan("soda").rows()
    assert len(document["runs"]) == 64


def test_it_starts_a_study_in_another_folder(programs: Path, tmp_path: Path) -> None:
    run([programs / "isoflop", "init", "--from", "soda"], tmp_path)
    assert (tmp_path / "soda.yaml").read_bytes() == (ROOT / "sweeps" / "soda.yaml").read_bytes()
    assert "64 runs" in run([programs / "sweep-plan", "soda.yaml"], tmp_path)
