"""The command line: `isoflop` and its family, and `sweep-plan`, which is `isoflop plan`.

Parsing only; `reporting` prints. Data goes to stdout, everything else to stderr. Each command
imports its modules when it runs, so that help is instant. To add a command, write a function with
`@app.command("name")` in the module of its kind (`plan_commands`, `run_commands`,
`cluster_commands`, `fit_commands`, `extend_commands`) and add its name to `HELP_ORDER`.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from isoflop.cli import (  # noqa: F401  importing them registers the commands
    cluster_commands,
    extend_commands,
    fit_commands,
    plan_commands,
    run_commands,
)
from isoflop.cli.options import app, plan_app
from isoflop.errors import IsoflopError

HELP_ORDER = (
    "plan", "init", "prepare", "run", "submit", "status", "logs", "cancel", "retry", "doctor",
    "calibrate", "fit", "predict", "compare", "extend", "report",
)  # fmt: skip
INTERRUPTED_EXIT_CODE = 130
CLOSED_PIPE_EXIT_CODE = 1
"""Exit code after the reader of stdout, such as `head`, closed it; typer uses the same."""

USER_ERRNOS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EDQUOT,
    errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE,
)  # fmt: skip


app.registered_commands.sort(key=lambda command: HELP_ORDER.index(command.name or ""))


# Entry points


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `isoflop` program and exit."""
    _run(app, "isoflop", arguments)


def sweep_plan(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `sweep-plan` program and exit."""
    _run(plan_app, "sweep-plan", arguments)


def _run(program: typer.Typer, name: str, arguments: Sequence[str] | None) -> NoReturn:
    """Run a program; turn errors that a user can cause into one line and an exit code."""
    try:
        try:
            code = _build_command(program)(args=arguments, prog_name=name, standalone_mode=True)
        finally:
            sys.stdout.flush()
    except IsoflopError as problem:
        print(f"isoflop: error: {' '.join(str(problem).split())}", file=sys.stderr)
        code = problem.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        _silence_stdout()
        code = CLOSED_PIPE_EXIT_CODE
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            if not problem.filename:
                _silence_stdout()
            print(
                f"isoflop: error: {problem.filename or 'standard output'}: the disk is full",
                file=sys.stderr,
            )
        elif problem.errno in USER_ERRNOS and problem.filename:
            print(f"isoflop: error: {problem.filename}: {problem.strerror}", file=sys.stderr)
        else:
            raise
        code = IsoflopError.exit_code
    sys.exit(code or 0)


@functools.cache
def _build_command(program: typer.Typer) -> Any:
    """Return the click command of a program; making it takes longer than most commands."""
    return typer.main.get_command(program)


def _silence_stdout() -> None:
    """Redirect stdout to nothing, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(requested: bool) -> None:
    if requested:
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

    Find how large a model to train, on how much data, for any compute budget: plan, run and fit
    IsoFLOP studies.
    """
