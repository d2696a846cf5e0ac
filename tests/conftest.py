from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.studies import tiny_study, write_sweep

from isoflop.cli import main
from isoflop.planning.plan import Plan


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no GPU but those that are for one: the others' figures are those of fp32 on a CPU."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Plan]:
    """A root with a corpus and the untrained run directories of a tiny plan."""
    return tiny_study(tmp_path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs, in a working folder with a tiny sweep; reports are made without their figures."""
    monkeypatch.setenv("ISOFLOP_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr(  # test_html.py draws
        "isoflop.reporting.report_page.write_figures",
        lambda _, figures: dict.fromkeys(figures, "<svg></svg>"),
    )
    write_sweep(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def isoflop(capsys: pytest.CaptureFixture[str], root: Path) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process, beside `root`: exit code, stdout and stderr."""

    def isoflop(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return isoflop
