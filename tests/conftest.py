"""Fixtures for all tests, and settings of pytest and Hypothesis."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.missing_packages import (
    TESTS,
    cannot_import,
    find_left_out,
    find_missing,
    missing_packages,
)
from support.slurm_bed import ACCOUNTING, NO_ACCOUNTING, Bed, open_bed
from support.tiny_studies import LAW, finish_all, tiny_plan, tiny_study, write_sweep

from isoflop.cli import main
from isoflop.planning.plan import Plan

settings.register_profile("no-deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no-deadline")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests without the mark `gpu`, whose figures are those of fp32 on a CPU."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first: the tests on a cluster, then those of the documentation."""
    first = {"launching": 0, "test_docs.py": 1}
    items.sort(key=lambda item: min((first.get(part, 2) for part in item.path.parts), default=2))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests by file and group under `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from support.scheduling import GroupScheduling

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


# Without torch (scripts/test_versions.py)

NEEDS = "needs a package that is not installed: "


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out test modules and folders that cannot be imported without torch."""
    return cannot_import(collection_path, missing_packages()) or None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests with the mark `torch` where torch is not installed."""
    if item.get_closest_marker("torch") and missing_packages():
        pytest.skip(f"{NEEDS}torch")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test that fails for want of torch or a package for it as skipped."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if report.failed and (package := find_missing(error, missing_packages())):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), (item.location[1] or 0) + 1, NEEDS + package)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the number of modules left out and tests skipped for want of torch."""
    if missing := missing_packages():
        left_out = [str(path.relative_to(TESTS)) for path in find_left_out(missing)]
        reasons = [str(report.longrepr) for report in terminalreporter.getreports("skipped")]
        skipped = sum(NEEDS in reason for reason in reasons)
        terminalreporter.write_sep("=", "without torch")
        terminalreporter.write_line(f"skipped tests: {skipped}")
        terminalreporter.write_line(f"modules left out: {len(left_out)}: {', '.join(left_out)}")


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Plan]:
    """Return a root with a corpus and the untrained runs of a tiny plan, and the plan."""
    return tiny_study(tmp_path)


@pytest.fixture(scope="session", params=[ACCOUNTING, NO_ACCOUNTING])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Start a real SLURM for the session; SLURM_CONF names its configuration."""
    folder, port = tmp_path_factory.mktemp("bed") / "bed", 17100 + 100 * request.param
    with open_bed(folder, port, accounting=request.param) as opened:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = opened.environment["SLURM_CONF"]
        yield opened
        del os.environ["SLURM_CONF"]
        if before:
            os.environ["SLURM_CONF"] = before


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of runs, in a working folder with a tiny sweep.

    Reports are made without their figures, and nothing waits for the disk.
    """
    from isoflop.reporting.figures import FIGURE_NAMES

    monkeypatch.setenv("ISOFLOP_ROOT", str(tmp_path / "runs"))
    page = "isoflop.reporting.report_page"  # test_report_page.py draws
    monkeypatch.setattr(f"{page}.study_figures", lambda *_: dict.fromkeys(FIGURE_NAMES))
    monkeypatch.setattr(
        f"{page}.write_figures", lambda _, figures: dict.fromkeys(figures, "<svg></svg>")
    )
    monkeypatch.setattr(os, "sync", lambda: None)
    write_sweep(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def done_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs with the study of `LAW`, all of whose runs are done; read only."""
    folder = tmp_path_factory.mktemp("done")
    finish_all(tiny_plan(folder, *LAW), folder / "runs")
    return folder / "runs"


@pytest.fixture
def done_study(done_runs: Path, root: Path) -> Path:
    """Return the directory of a study by `LAW` whose runs are done."""
    shutil.copytree(done_runs, root)
    return root / "tiny"


@pytest.fixture
def isoflop(capsys: pytest.CaptureFixture[str], root: Path) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `isoflop` in this process, beside `root`.

    It returns exit code, stdout and stderr.
    """

    def isoflop(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return isoflop
