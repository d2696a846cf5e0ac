"""Code blocks of the documentation: finding them, running them, comparing what they print.

A block marked `console` is run. Each line that starts with `$ ` is a command, and the lines under
it are its output, stdout and stderr; a line `...` stands for any lines, and nothing under a command
stands for any output. Of `make` only the existence of the target is checked. A block marked
`python` is run as a program; if a `text` block follows directly, it is the output. A block marked
with a file name, such as `yaml own.yaml`, is that file. `slow` after the language marks a block
that takes minutes, `slurm` one that needs a cluster. Other blocks, such as `sh` and `text`, are not
run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED_FOLDERS = ("sweeps", "slurm", "analysis/pocket-64")
_BLOCK = re.compile(
    r"^```(?P<kind>console|python)(?P<when> slow| slurm)?\n(?P<text>.*?)^```$"
    r"(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"^```\w+ (?P<name>\w+\.\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM_LINE = re.compile(
    r"(?P<program>(?:isoflop|sweep-plan)(?: (?!\d[<>])(?:'[^']*'|[^\s'\"();<>|&$])+)*)"
    r"(?: (?P<rest>(?:\d?[<>]|[|&]).*))?"
)


@dataclass(frozen=True)
class Block:
    """A block that can be run.

    Attributes:
        page: path in the repository.
        line: line of the fence.
        kind: `console` or `python`.
        when: empty, `slow` or `slurm`.
        output: expected output of a Python block, if the page has it.
    """

    page: str
    line: int
    kind: str
    when: str
    text: str
    output: str | None


def find_blocks(text: str, page: str = "") -> list[Block]:
    """Return the blocks of a page that can be run, in order."""
    return [
        Block(
            page,
            text.count("\n", 0, match.start()) + 1,
            match["kind"],
            (match["when"] or "").strip(),
            match["text"],
            match["output"] if match["kind"] == "python" else None,
        )
        for match in _BLOCK.finditer(text)
    ]


def find_files(text: str) -> dict[str, str]:
    """Return the files that a page contains, by name."""
    return {match["name"]: match["text"] for match in _FILE.finditer(text)}


def split_commands(text: str) -> list[tuple[str, str]]:
    """Return each command of a console block with its expected output."""
    first, *items = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first, f"a console block begins with a command, not with {first!r}"
    return [(command, output) for command, _, output in (item.partition("\n") for item in items)]


def matches(expected: str, output: str) -> bool:
    """Return true if an output is the expected one; `...` alone on a line matches any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r" *\n"
        for line in expected.rstrip("\n").split("\n")
    )
    return re.fullmatch(pattern, output) is not None


def make_page_folder(page: str, folder: Path) -> Path:
    """Fill a folder for the blocks of a page: the copied folders, and the page's own files."""
    for name in COPIED_FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    for name, text in find_files((ROOT / page).read_text(encoding="utf-8")).items():
        (folder / name).write_text(text)
    return folder


def run_block(block: Block, folder: Path, *, in_process: bool = False) -> None:
    """Run a block in a folder and compare its output.

    Args:
        in_process: call `isoflop`, `sweep-plan` and Python code in this process, whose working
            directory has to be `folder`. Of a line with more shell syntax, the rest goes to a
            shell with what the program printed. Other lines always get a process of their own.
    """
    where = f"{block.page}, line {block.line}"
    if block.kind == "python":
        command = [sys.executable, "-W", "error", "-c", block.text]
        code, output = call_python(block.text) if in_process else run_command(command, folder)
        assert code == 0, f"{where}:\n{output}"
        if block.output is not None:
            assert matches(block.output, output), f"{where} prints\n{output}"
        return
    for line, expected in split_commands(block.text):
        program = _PROGRAM_LINE.fullmatch(line) if in_process else None
        if line.startswith("make "):
            code, output = run_command(f"{line} --dry-run", ROOT)
        elif program is not None:
            code, output = call_line(program["program"], program["rest"], folder)
        else:
            code, output = run_command(line, folder)
        assert code == 0, f"{where}: {line}\n{output}"
        if expected.strip():
            assert matches(expected, output), f"{where}: {line} prints\n{output}"


def run_command(command: list[str] | str, folder: Path) -> tuple[int, str]:
    """Run a command in a folder; return its exit code and its output."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs}
    environment.pop("ISOFLOP_ROOT", None)
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def call_line(program: str, rest: str, folder: Path) -> tuple[int, str]:
    """Call a program of isoflop in this process, and run the rest of its line in a shell, whose
    first command prints and ends as the program did; return exit code and output.
    """
    if not rest:
        with _captured_output() as output:
            code = call_program(*shlex.split(program))
        return code, output.getvalue()
    streams = out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call_program(*shlex.split(program))
    with tempfile.TemporaryDirectory() as printed:
        files = [Path(printed, str(number)) for number in range(len(streams))]
        for file, stream in zip(files, streams, strict=True):
            file.write_text(stream.getvalue())
        replay = f"cat {files[0]}; cat {files[1]} >&2; exit {code}"
        return run_command(f"({replay}) {rest}", folder)


def call_program(name: str, *arguments: str) -> int:
    """Call a program of isoflop in this process; return its exit code."""
    from isoflop.cli import main, sweep_plan

    program = {"isoflop": main, "sweep-plan": sweep_plan}[name]
    try:
        program(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
    return 1


def call_python(text: str) -> tuple[int, str]:
    """Execute a program in this process; return 0 and its output, or 1 and its traceback."""
    from matplotlib import pyplot

    code = 0
    with _captured_output() as output:
        try:
            exec(compile(text, "<block>", "exec"), {"__name__": "__main__"})
        except Exception:
            code = 1
            traceback.print_exc()
        finally:
            pyplot.close("all")
    return code, output.getvalue()


@contextlib.contextmanager
def _captured_output() -> Iterator[io.StringIO]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output
