"""The command line: `isoflop` and its family, and `sweep-plan`, which is `isoflop plan`.

Parsing only: what is printed is in `reporting`. Data goes to stdout, all else to stderr. Each command imports what it
needs when it runs, so that help is instant. A new command is a function with `@app.command("name")` in the module of
its kind (`plan_commands`, `run_commands`, `cluster_commands`, `fit_commands`, `extend_commands`), and a place in `IN_HELP`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from isoflop.cli import (  # noqa: F401  the commands register themselves
    cluster_commands,
    extend_commands,
    fit_commands,
    plan_commands,
    run_commands,
)
from isoflop.cli.options import app, plan_app
from isoflop.errors import IsoflopError

IN_HELP = (
    "plan", "init", "prepare", "run", "submit", "status", "logs", "cancel", "retry", "doctor", "calibrate", "fit",
    "predict", "compare", "extend", "report",
)  # fmt: skip
INTERRUPTED = 130
PIPE_CLOSED = 1
"""Exit code where the reader, such as `head`, has seen enough; typer's own for what it sees of it."""
PLAIN_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EDQUOT, errno.ENOENT, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE,
)  # fmt: skip


app.registered_commands.sort(key=lambda command: IN_HELP.index(command.name or ""))


# Entry points


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `isoflop` program."""
    _run(app, "isoflop", arguments)


def sweep_plan(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `sweep-plan` program."""
    _run(plan_app, "sweep-plan", arguments)


def _run(program: typer.Typer, name: str, arguments: Sequence[str] | None) -> NoReturn:
    """Runs a program and turns what a user can cause into one line and an exit code."""
    try:
        try:
            code = program(args=arguments, prog_name=name, standalone_mode=True)
        finally:
            sys.stdout.flush()
    except IsoflopError as problem:
        print(f"isoflop: error: {' '.join(str(problem).split())}", file=sys.stderr)
        code = problem.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        code = PIPE_CLOSED
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            if not problem.filename:
                _silence_stdout()
            print(
                f"isoflop: error: {problem.filename or 'standard output'}: the disk is full",
                file=sys.stderr,
            )
        elif problem.errno in PLAIN_ERRORS and problem.filename:
            print(f"isoflop: error: {problem.filename}: {problem.strerror}", file=sys.stderr)
        else:
            raise
        code = IsoflopError.exit_code
    sys.exit(code or 0)


def _silence_stdout() -> None:
    """Keeps Python from complaining when it flushes, at exit, what can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("isoflop"))
        raise typer.Exit


@app.callback()
def isoflop(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Example: isoflop plan sweeps/soda.yaml

    How large a model to train, on how much data, for any compute budget: plans, runs and fits IsoFLOP studies.
    """


# Commands
