"""README.md does what it says: its commands print what stands under them, its tables are those of the code.

A block marked `console` is run: each line that starts with `$ ` is a command, the lines under it are what it prints
(stdout and stderr), and a line `...` stands for any lines. Nothing under a command means that its output is free. A
block marked `python` is run as a program. One that is marked with a name, such as `yaml own.yaml`, is that file. Blocks
share one folder that holds copies of `sweeps`, `slurm` and `analysis/pocket-64`. One that takes minutes is marked
`console slow` or `python slow`, one that needs a cluster `console slurm`. Of `make` only that the target exists is
checked. Other blocks, such as `sh` and `text`, are not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from support.clusters import open_bed
from support.studies import exact, wait_for

from isoflop.config import Sweep
from isoflop.config.profile import Profile
from isoflop.planning.run_spec import COLUMNS
from isoflop.planning.trainers import NAMES
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(
    r"^```(?P<kind>console|python)(?P<when> slow| slurm)?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"^```\w+ (?P<name>\w+\.\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    kind: str
    when: str
    line: int
    text: str


def blocks(readme: str) -> list[Block]:
    return [
        Block(
            found["kind"],
            (found["when"] or "").strip(),
            readme.count("\n", 0, found.start()) + 1,
            found["text"],
        )
        for found in _BLOCK.finditer(readme)
    ]


def files(readme: str) -> dict[str, str]:
    return {found["name"]: found["text"] for found in _FILE.finditer(readme)}


def commands(text: str) -> list[tuple[str, str]]:
    """Each command of a console block with what stands under it."""
    first, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first, f"a console block begins with a command, not with {first!r}"
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def prints(expected: str, output: str) -> bool:
    """Whether an output is the expected one, where `...` alone on a line stands for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r" *\n"
        for line in expected.rstrip("\n").split("\n")
    )
    return re.fullmatch(pattern, output) is not None


def execute(command: list[str] | str, folder: Path) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs}
    environment.pop("ISOFLOP_ROOT", None)
    return subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def check(block: Block, folder: Path) -> None:
    if block.kind == "python":
        done = execute([sys.executable, "-W", "error", "-c", block.text], folder)
        assert done.returncode == 0, f"README.md, line {block.line}:\n{done.stdout}"
        return
    for command, expected in commands(block.text):
        make = command.startswith("make ")
        done = execute(f"{command} --dry-run" if make else command, ROOT if make else folder)
        assert done.returncode == 0, f"README.md, line {block.line}: {command}\n{done.stdout}"
        if expected.strip():
            assert prints(expected, done.stdout), (
                f"README.md, line {block.line}: {command} prints\n{done.stdout}"
            )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sweeps", "slurm", "analysis/pocket-64"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name, text in files(README).items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_quick_blocks(folder: Path) -> None:
    quick = [block for block in blocks(README) if not block.when]
    assert {"console", "python"} == {block.kind for block in quick}
    for block in quick:
        check(block, folder)


@pytest.mark.slow
def test_all_blocks(folder: Path) -> None:
    for block in blocks(README):
        if block.when != "slurm":
            check(block, folder)


@pytest.mark.slow
def test_the_blocks_for_a_cluster(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bed(tmp_path / "bed", 17600, accounting=True) as bed:
        monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
        for block in blocks(README):
            if block.when == "slurm":
                check(block, folder)
        execute("isoflop cancel runs/pocket", folder)


@pytest.mark.slow
def test_the_trainer_of_one_s_own_on_a_cluster(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped and goes on, and its losses are those of runs that nothing stopped."""
    small = (
        "name=own 'budgets=[3.0e10]' 'widths=[8, 16]' data.tokens.pocket=1.0e5 data.max_epochs=99"
    )
    here = execute(f"isoflop run own.yaml {small.replace('name=own', 'name=here')}", folder)
    assert "2 of 2 runs done" in here.stdout, here.stdout
    with open_bed(tmp_path / "bed", 17600, accounting=False) as bed:
        monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
        submitted = execute(
            f"isoflop submit own.yaml {small} --cluster slurm/testbed.yaml --yes", folder
        )
        assert submitted.returncode == 0, submitted.stdout
        runs = [
            RunDirectory(path.parent) for path in (folder / "runs" / "own").glob("*/config.yaml")
        ]
        for run in runs:
            losses = run.path / "losses.jsonl"
            wait_for(
                lambda losses=losses: losses.exists() and losses.read_text().count("\n") > 5, 90
            )
            bed.run("scontrol", "requeue", run.state()["job_id"])
        wait_for(lambda: all(run.done for run in runs), 180)
    for run in runs:
        (other,) = (folder / "runs" / "here").glob(f"{run.run_id.rpartition('-')[0]}-*")
        assert exact(run).equals(exact(RunDirectory(other)))
        assert run.state()["attempt"] == 2


# Tables


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the table under a heading, header left out, as cells."""
    section = README.partition(f"\n{heading}\n")[2]
    section = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a schema, dotted, with its default."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        if is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{prefix}{field.name}.")
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield f"{prefix}{field.name}", list(default) if isinstance(default, tuple) else default


def test_every_key_of_a_sweep_with_its_default() -> None:
    told = {names(key)[0]: default for key, default, _ in table("## Keys of a sweep file")}
    known = dict(keys(Sweep))
    assert set(told) == set(known)
    assert told.pop("name") == "the file's stem"
    for key, default in told.items():
        assert (MISSING if default == "required" else yaml.safe_load(default.strip("`"))) == known[
            key
        ], key


def test_every_key_of_a_profile_with_its_default() -> None:
    told = {
        key: default
        for keys, default, _ in table("## Keys of a cluster profile")
        for key in names(keys)
    }
    assert set(told) == {field.name for field in fields(Profile)}
    for field in fields(Profile):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name == "name":
            assert told.pop("name") == "the file's stem"
        elif default is MISSING:
            assert told[field.name] == "required"
        else:
            wanted = list(default) if isinstance(default, tuple) else default
            assert yaml.safe_load(told[field.name].strip("`")) == wanted, field.name


@pytest.mark.parametrize(
    ("heading", "columns"), [("### plan.parquet", COLUMNS), ("### loss/*.parquet", LOG_COLUMNS)]
)
def test_every_column(heading: str, columns: dict[str, Any]) -> None:
    assert [name for row in table(heading) for name in names(row[0])] == list(columns)


def test_every_name_of_a_command() -> None:
    assert {name for row in table("### Another trainer, or none") for name in names(row[0])} == set(
        NAMES
    )


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
def test_what_counts_as_printed(expected: str, output: str, same: bool) -> None:
    assert prints(expected, output) is same


def test_blocks_and_commands_are_found() -> None:
    text = "x\n```console\n$ a b\nout\n\nmore\n$ c\n```\n```sh\n$ d\n```\n```python slow\ne\n```\n```yaml f.yaml\ng\n```\n"
    console, python = blocks(text)
    assert (console.kind, console.when, console.line) == ("console", "", 2)
    assert commands(console.text) == [("a b", "out\n\nmore\n"), ("c", "")]
    assert (python.kind, python.when, python.text) == ("python", "slow", "e\n")
    assert files(text) == {"f.yaml": "g\n"}
