"""The dependencies that `pyproject.toml` declares."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
REQUIRED = {Requirement(text).name: Requirement(text) for text in PROJECT["dependencies"]}


@pytest.mark.parametrize(
    ("release", "allowed"),
    [("2.5.6", False), ("2.6.1", True), ("2.6.2", False), ("2.6.3", False), ("2.6.6", True)],
)
@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
def test_the_withdrawn_releases_of_lightning_are_excluded(
    package: str, release: str, allowed: bool
) -> None:
    assert (release in REQUIRED[package].specifier) is allowed


@pytest.mark.parametrize("name", REQUIRED)
def test_the_installed_release_is_one_that_is_allowed(name: str) -> None:
    assert version(name) in REQUIRED[name].specifier
