"""Check of an installation: versions, imports, missing and broken packages."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.launching import installation
from isoflop.launching.installation import Requirement, check_installation, list_requirements


def add_package(folder: Path, name: str, code: str) -> Requirement:
    """Write an importable package with metadata."""
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-1.5.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    return Requirement(name, f"{name}>=1", "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder from which this process and its children import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_requirements_come_from_the_metadata() -> None:
    required = {requirement.name for requirement in list_requirements() if not requirement.extra}
    assert {"torch", "lightning", "submitit", "numpy", "pandas", "PyYAML"} <= required
    extras = {requirement.name: requirement.extra for requirement in list_requirements()}
    assert extras["wandb"] == "wandb"
    assert "pytest" not in extras


def test_each_package_is_imported_in_its_own_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements = [
        add_package(folder, "sound_package", ""),
        add_package(folder, "crashing_package", "import os, signal\nos.kill(os.getpid(), 9)"),
        add_package(folder, "failing_package", "raise OSError('libcuda.so: not found')"),
        Requirement("absent-package", "absent-package>=2", ""),
        Requirement("absent-extra", "absent-extra", "wandb"),
    ]
    monkeypatch.setattr(installation, "list_requirements", lambda: requirements)
    pip = f"{sys.executable} -m pip install"
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    python = sys.version.split()[0]
    assert lines[0].startswith(f"isoflop {version('isoflop')}, Python {python}, Linux ")
    assert lines[1:] == [
        f"interpreter: {sys.executable}",
        "ok      sound_package 1.5",
        "broken  crashing_package 1.5: import crashes (SIGKILL); "
        f"fix: {pip} --force-reinstall 'crashing_package>=1'",
        "broken  failing_package 1.5: OSError: libcuda.so: not found; "
        f"fix: {pip} --force-reinstall 'failing_package>=1'",
        f"missing absent-package; fix: {pip} 'absent-package>=2'",
        f"missing absent-extra (optional, for wandb); fix: {pip} absent-extra",
    ]


def test_an_import_that_hangs_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = add_package(folder, "hanging_package", "import time\ntime.sleep(600)")
    monkeypatch.setattr(installation, "list_requirements", lambda: [hanging])
    monkeypatch.setattr(installation, "IMPORT_TIMEOUT_S", 1.0)
    line = list(check_installation())[-1]
    assert line.startswith("broken  hanging_package 1.5: import takes more than 1 s; fix: ")


def test_packages_of_this_environment_import(monkeypatch: pytest.MonkeyPatch) -> None:
    light = [item for item in list_requirements() if item.name in ("PyYAML", "typer", "submitit")]
    monkeypatch.setattr(installation, "list_requirements", lambda: light)
    lines = list(check_installation())[2:]
    assert lines == [f"ok      {item.name} {version(item.name)}" for item in light]
