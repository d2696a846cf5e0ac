"""Write docs/reference/cli.md from the commands themselves: `python scripts/cli_reference.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from isoflop.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
_INTRODUCTION = """\
# Commands

`sweep-plan` is `isoflop plan` under its own name. Data goes to stdout, everything else to stderr.
[Exit codes](../explanation/guarantees.md#exit-codes-have-one-meaning) have one meaning. Each list
below is what `--help` of the command prints; this page is made from it.
"""


def cli_page() -> str:
    """Return the page: a section for each command, with its usage, arguments and options."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("isoflop", [], resilient_parsing=True)
    sections = [
        _section(command, type(context)(command, info_name=name, parent=context))
        for name, command in group.commands.items()
    ]
    return "\n".join([_INTRODUCTION, *sections])


def _section(command: Any, context: Any) -> str:
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    records = [
        (parameter.param_type_name, record)
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    lists = [
        f"{title}:\n\n{_bullets(chosen)}"
        for title, kind in (("Arguments", "argument"), ("Options", "option"))
        if (chosen := [record for record_kind, record in records if record_kind == kind])
    ]
    example, text = _split_example(command.help or "")
    fence = f"```text\nusage:   {usage}\nexample: {example}\n```"
    return "\n\n".join([f"## isoflop {context.info_name}", fence, _escaped(text), *lists]) + "\n"


def _split_example(text: str) -> tuple[str, str]:
    """Return the example that begins a help text, and the paragraphs after it, a line each."""
    example, *paragraphs = (
        " ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip())
    )
    return example.removeprefix("Example: "), "\n\n".join(paragraphs)


def _bullets(records: Any) -> str:
    return "\n".join(f"* `{name}`: {_escaped(' '.join(text.split()))}" for name, text in records)


def _escaped(text: str) -> str:
    return re.sub(r"([*<])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
    print(f"wrote {PAGE}")
