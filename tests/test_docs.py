"""README.md and the pages of docs/: blocks run, names and links exist, lists are complete.

The convention of the blocks is in `support/page_blocks.py`. Each page has a folder of its own.
Quick blocks run in this process; the slow test of a page runs all of its blocks as a reader does,
each command in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from cli_reference import cli_page
from docs_hooks import on_page_markdown
from support.finding_codes import produced_codes
from support.page_blocks import (
    ROOT,
    Block,
    call_line,
    find_blocks,
    find_files,
    make_page_folder,
    matches,
    run_block,
    run_command,
    split_commands,
)
from support.slurm_bed import Bed, open_bed
from support.tiny_studies import exact, tiny_plan, wait_for, write_corpus

import isoflop
import isoflop.fitting
from isoflop.config.profile import load_profile
from isoflop.fitting.estimators.parabola import Status
from isoflop.launching.queue.sweep_status import RunStatus, SweepStatus
from isoflop.planning.calibration import Calibration, write_calibration
from isoflop.planning.run_spec import PLAN_COLUMNS
from isoflop.planning.trainers import TEMPLATE_FIELDS
from isoflop.reporting.terminal.status_text import RunRow, StatusTable, print_status_json
from isoflop.runs.run_directory import RunDirectory

DOCS = ROOT / "docs"
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")),
]
PROSE = ["CHANGELOG.md", *PAGES]
FILES = [
    f"/{path.relative_to(ROOT)}"
    for top in ("isoflop", "tests", "scripts", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
]
MAX_README_LINES = 150
SMALL_STUDY = "isoflop run pocket name=deep"
SMALL_STUDY_OVERRIDES = (
    "'budgets=[2.0e9, 4.0e9]' 'widths=[8, 12, 16, 24]' data.tokens.pocket=1.2e6 data.max_epochs=9"
)
"""Command of a page, and what makes its study small in the test."""


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of_kind(page: str, *when: str) -> list[Block]:
    return [block for block in find_blocks(read(page), page) if block.when in when]


QUICK_PAGES = [page for page in PAGES if blocks_of_kind(page, "")]
SLOW_PAGES = [page for page in PAGES if blocks_of_kind(page, "slow")]
SLURM_PAGES = [page for page in PAGES if blocks_of_kind(page, "slurm")]


# Blocks


def test_pages_have_blocks_of_every_kind() -> None:
    blocks = [block for page in PAGES for block in find_blocks(read(page), page)]
    assert {block.kind for block in blocks} == {"console", "python"}
    assert {block.when for block in blocks} == {"", "slow", "slurm"}
    assert {block.kind for block in blocks_of_kind("README.md", "")} == {"console", "python"}


@pytest.mark.parametrize("page", QUICK_PAGES)
def test_quick_blocks(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISOFLOP_ROOT", raising=False)
    monkeypatch.chdir(make_page_folder(page, tmp_path))
    for block in blocks_of_kind(page, ""):
        run_block(block, tmp_path, in_process=True)


def make_reduced_folder(page: str, folder: Path) -> Path:
    """Fill a folder for the blocks of a page, with a smaller corpus for its studies."""
    make_page_folder(page, folder)
    for sweep in (folder / "sweeps" / "pocket.yaml", folder / "own.yaml"):
        if sweep.exists():
            text = sweep.read_text()
            assert text.count("{pocket: 3.0e6}") == 1
            text = text.replace("{pocket: 3.0e6}", "{pocket: 1.2e6}")
            sweep.write_text(text.replace("max_epochs: 4\n", "max_epochs: 9\n"))
    return folder


@pytest.fixture(scope="session")
def pocket_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `runs` with the reduced corpus of the study `pocket`, which `own.yaml` has too."""
    folder = make_reduced_folder("README.md", tmp_path_factory.mktemp("pocket"))
    code, output = run_command("isoflop prepare sweeps/pocket.yaml", folder)
    assert code == 0, output
    return folder / "runs"


def reduce_pocket_study(sweep: Path) -> None:
    """Leave of the study `pocket` three budgets in larger steps, a fifth of its steps in all.

    Each profile has its minimum inside with each of the seeds 0 to 3.
    """
    replace_key(sweep, "budgets", "[3.4e10, 4.5e10, 6.0e10]")
    replace_key(sweep, "  evals", "1\n  batch_scale: 4")


def reduce_own_study(sweep: Path) -> None:
    """Leave of the study `own` seven small runs, the fewest that a law can be fitted to."""
    replace_key(sweep, "budgets", "[2.0e9, 4.0e9]")
    replace_key(sweep, "widths", "[12, 16, 24, 40]")


def replace_key(sweep: Path, key: str, value: str) -> None:
    text, count = re.subn(rf"^{key}: .*$", f"{key}: {value}", sweep.read_text(), flags=re.M)
    assert count == 1
    sweep.write_text(text)


@pytest.fixture(scope="session")
def pocket_runs(pocket_corpus: Path) -> Path:
    """The same folder with the reduced study trained, for all pages that train it."""
    folder = pocket_corpus.parent
    reduce_pocket_study(folder / "sweeps" / "pocket.yaml")
    code, output = run_command("isoflop run sweeps/pocket.yaml", folder)
    assert code == 0, output
    return pocket_corpus


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES)
def test_slow_blocks(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = make_reduced_folder(page, tmp_path)
    blocks = blocks_of_kind(page, "slow")
    text = "".join(block.text for block in blocks)
    if "runs/pocket" in text or "isoflop run sweeps/pocket.yaml" in text:
        reduce_pocket_study(folder / "sweeps" / "pocket.yaml")
        shutil.copytree(request.getfixturevalue("pocket_runs"), folder / "runs")
    elif "isoflop run own.yaml" in text or SMALL_STUDY in text:
        corpus: Path = request.getfixturevalue("pocket_corpus")
        shutil.copytree(corpus / "data", folder / "runs" / "data")
    if "isoflop run own.yaml" in text:
        reduce_own_study(folder / "own.yaml")
    for block in blocks:
        text = block.text.replace(SMALL_STUDY, f"{SMALL_STUDY} {SMALL_STUDY_OVERRIDES}")
        run_block(dataclasses.replace(block, text=text), folder)


@pytest.mark.long
def test_the_demo(tmp_path: Path) -> None:
    """The study of `make demo` as it is: a minimum inside each budget, and a law."""
    folder = make_page_folder("README.md", tmp_path)
    code, output = run_command("isoflop run sweeps/pocket.yaml", folder)
    assert code == 0, output
    assert "20 of 20 runs done" in output
    law = isoflop.fit_isoflop(isoflop.read_runs(folder / "runs" / "pocket"))
    assert law.profiles["status"].tolist() == ["interior"] * 4
    assert 0.2 < law.exponents.loc["a", "value"] < 0.8


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with open_bed(tmp_path_factory.mktemp("bed"), 17600, accounting=True) as bed:
        yield bed


@pytest.mark.slow
@pytest.mark.parametrize("page", SLURM_PAGES)
def test_blocks_for_a_cluster(
    page: str, tmp_path: Path, bed: Bed, pocket_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
    folder = make_reduced_folder(page, tmp_path)
    shutil.copytree(pocket_corpus / "data", folder / "runs" / "data")
    for block in blocks_of_kind(page, "slurm"):
        run_block(block, folder)
    run_command("isoflop cancel runs/pocket", folder)


@pytest.mark.slow
def test_own_trainer_on_a_cluster(
    tmp_path: Path, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that are stopped resume, and have the losses of runs that nothing stopped."""
    folder = make_page_folder("docs/tutorials/own-trainer.md", tmp_path)
    small = "'budgets=[2.0e10]' 'widths=[16]' data.tokens.pocket=1.0e5 data.max_epochs=99"
    _, output = run_command(f"isoflop run own.yaml name=undisturbed {small}", folder)
    assert "1 of 1 runs done" in output, output
    monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
    code, output = run_command(
        f"isoflop submit own.yaml name=own {small} --cluster slurm/testbed.yaml --yes", folder
    )
    assert code == 0, output
    runs = [RunDirectory(path.parent) for path in (folder / "runs" / "own").glob("*/config.yaml")]
    for run in runs:
        losses = run.path / "losses.jsonl"
        wait_for(lambda losses=losses: losses.exists() and losses.read_text().count("\n") > 5, 300)
        bed.run("scontrol", "requeue", run.state()["job_id"])
    wait_for(lambda: all(run.done for run in runs), 400)
    for run in runs:
        name = run.run_id.rpartition("-")[0]
        (undisturbed,) = (folder / "runs" / "undisturbed").glob(f"{name}-*")
        assert exact(run).equals(exact(RunDirectory(undisturbed)))
        assert run.state()["attempt"] == 2


# Lists that are complete


def test_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= MAX_README_LINES


def test_every_finding_has_an_entry() -> None:
    page = read("docs/findings.md")
    entries = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert set(entries) == produced_codes() | set(get_args(Status))
    assert re.findall(r"^\| \[`(\w+)`\]\(#\w+\)", page, re.MULTILINE) == entries


def test_every_placeholder_of_a_command() -> None:
    section = read("docs/tutorials/own-trainer.md").partition("\n## Placeholders\n")[2]
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == sorted(TEMPLATE_FIELDS)


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^::: (\S+)$", read("docs/reference/api.md"), re.MULTILINE)
    daily = {f"isoflop.{name}" for name in dir(isoflop) if name != "__version__"}
    fits = {
        f"isoflop.fitting.{name}" for name in dir(isoflop.fitting) if f"isoflop.{name}" not in daily
    }
    assert sorted(listed) == sorted([*daily, *fits, "isoflop.fitting.results.base.Fit"])


def names_listed(heading: str) -> list[str]:
    """Return the names in the first column of the tables of a section of files.md."""
    page = read("docs/reference/files.md")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return sorted(name for cell in cells for name in re.findall(r"`([^`]+)`", cell))


def test_every_key_of_a_fit_file() -> None:
    document = json.loads(read("analysis/pocket-64/fit.json"))
    assert names_listed("fit.json") == sorted(document)
    envelope = isoflop.fit_envelope(ROOT / "analysis" / "pocket-64").to_dict()
    assert names_listed("Entries of fits") == sorted(set().union(*document["fits"], envelope))


def test_every_key_of_a_plan(tmp_path: Path) -> None:
    code, output = call_line("sweep-plan soda --dropped --expect soda --json", "", tmp_path)
    assert code == 0, output
    document = json.loads(output)
    assert names_listed("sweep-plan --json") == sorted(document)
    assert [*document["runs"][0]] == [*PLAN_COLUMNS]


def test_every_key_of_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunRow(RunStatus("a", "pending", "", None, "", {}), 1, 1.0, None)
    print_status_json(StatusTable(Path("pocket"), SweepStatus({"a": run.status}, ()), (run,)))
    document = json.loads(capsys.readouterr().out)
    names = names_listed("status --json")
    assert names == sorted(document)
    section = read("docs/reference/files.md").partition("\n## status --json\n")[2]
    (row,) = re.findall(r"^\| `runs` \| one entry per run: (.*) \|$", section, re.MULTILINE)[:1]
    assert re.findall(r"`(\w+)`", row) == [*document["runs"][0]]


def test_every_key_of_a_manifest_and_of_a_calibration(tmp_path: Path) -> None:
    study = tiny_plan(tmp_path)
    manifest = json.loads((write_corpus(tmp_path, study) / "manifest.json").read_text())
    assert names_listed("manifest.json") == sorted(manifest)
    file = write_calibration(tmp_path, study.sweep, load_profile("local"), Calibration(()))
    assert names_listed("Files of calibrations") == sorted(json.loads(file.read_text()))


def test_the_page_of_commands_is_up_to_date() -> None:
    message = f"run: {sys.executable} scripts/cli_reference.py"
    assert read("docs/reference/cli.md") == cli_page(), message


def test_every_room_is_in_the_tree() -> None:
    tree = read("docs/architecture.md").partition("```text\n")[2].partition("```")[0]
    package = ROOT / "isoflop"
    rooms = [
        path.parent.name
        for folder in (package, package / "fitting", package / "launching")
        for path in folder.glob("*/__init__.py")
    ]
    modules = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    assert not [name for name in (*(f"{room}/" for room in rooms), *modules) if name not in tree]


# Names and links


@pytest.mark.parametrize("page", PROSE)
def test_named_files_exist(page: str) -> None:
    """Paths in code marks exist: from the root of the repository, or the end of a module's path."""
    roots = "isoflop|tests|docs|scripts|benchmarks|analysis|sweeps|slurm"
    paths = re.findall(rf"`((?:{roots})/[\w./-]*)`", read(page))
    assert not [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"`([\w/]+/\w+\.py)`", read(page))
    assert not [
        module for module in modules if not any(path.endswith(f"/{module}") for path in FILES)
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page: str) -> None:
    """The build of the site checks the links between its own pages."""
    links = re.findall(
        r"\]\(([^)#]+)(?:#[\w-]+)?\)", re.sub(r"```.*?```", "", read(page), flags=re.S)
    )
    files = [link for link in links if not link.startswith("https://")]
    assert files
    assert not [link for link in files if not (ROOT / link).exists()]


# The convention itself


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\n", "a\nb\nc\n", True),
        ("...\nc\n", "a\nb\nc\n", True),
        ("...\nb\n", "a\nb\nc\n", False),
        ("a\n...\nc\n", "a\nc\n", True),
        ("a.c\n", "abc\n", False),
    ],
)
def test_matching(expected: str, output: str, same: bool) -> None:
    assert matches(expected, output) is same


def test_blocks_and_commands_are_found() -> None:
    text = (
        "x\n```console\n$ a b\nout\n\nmore\n$ c\n```\n```sh\n$ d\n```\n```python slow\ne\n```\n\n"
        "```text\nf\n```\n```yaml f.yaml\ng\n```\n"
    )
    console, python = find_blocks(text)
    assert (console.kind, console.when, console.line) == ("console", "", 2)
    assert split_commands(console.text) == [("a b", "out\n\nmore\n"), ("c", "")]
    assert (python.kind, python.when, python.text, python.output) == (
        "python",
        "slow",
        "e\n",
        "f\n",
    )
    assert find_files(text) == {"f.yaml": "g\n"}


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ isoflop --version\n0.0.0\n```\n",
        "```console\n$ isoflop fit absent.csv\n```\n",
        "```console\n$ echo out | cat\nother\n```\n",
        '```console\n$ isoflop fit absent.csv || echo "exit code $?"\n...\nexit code 3\n```\n',
        "```console\n$ make nothing-of-this-name\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nraise ValueError\n```\n",
    ],
)
def test_a_wrong_block_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = find_blocks(text)
    with pytest.raises(AssertionError, match="line 1"):
        run_block(block, tmp_path, in_process=True)
    if "python" in text or "--version" in text:
        with pytest.raises(AssertionError, match="line 1"):
            run_block(block, tmp_path)


def test_a_line_with_shell_syntax_prints_what_it_does_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "sweep-plan absent.yaml 2> error.txt || (echo failed with $?; cat error.txt)"
    code, output = run_command(line, tmp_path)
    assert (code, output.partition("\n")[0]) == (0, "failed with 2")
    monkeypatch.chdir(tmp_path)
    (block,) = find_blocks(f"```console\n$ {line}\n{output}```\n")
    run_block(block, tmp_path, in_process=True)


def test_every_fence_is_of_the_convention() -> None:
    """A misspelt mark, such as `console slwo`, would never run."""
    plain = r"(console|python)( slow| slurm)?|(yaml|python) \w+\.\w+|sh|text|yaml|json"
    for page in PROSE:
        for mark in re.findall(r"^```(.+)$", read(page), re.MULTILINE):
            assert re.fullmatch(plain, mark), f"{page}: ```{mark}"


def test_marks_of_fences_are_kept_from_the_site() -> None:
    page = "```console slow\n$ a\n```\n```python train.py\nb\n```\n```sh\nc\n```\n"
    assert on_page_markdown(page) == (
        '```console\n$ a\n```\n```python title="train.py"\nb\n```\n```sh\nc\n```\n'
    )
