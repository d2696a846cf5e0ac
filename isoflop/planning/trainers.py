"""Checks of a sweep's `train.trainer`, and the template of an external trainer's command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from isoflop.config.schema import Sweep
from isoflop.errors import ConfigError
from isoflop.planning.run_spec import PLAN_COLUMNS

if TYPE_CHECKING:
    from isoflop.laws import Surface

RUN_FIELDS = (
    "run_id", "sweep", "budget", "batch_size", "steps", "lr", "beta2", "seed", "width", "layers",
    "heads", "kv_heads", "head_dim", "mlp_width", "vocab_size", "seq_len", "tokens", "params_total",
)  # fmt: skip
PATH_FIELDS = ("run_dir", "data_dir", "losses")
JOB_FIELDS = ("nodes", "node_rank", "gpus_per_node", "main_address", "main_port")
"""Number of nodes, rank of this node, GPUs of a node, and address and port of the first node."""

TEMPLATE_FIELDS = (*RUN_FIELDS, *PATH_FIELDS, *JOB_FIELDS)
"""Names that a template may have in braces."""

EXAMPLE_VALUES: dict[str, Any] = {
    **{name: {str: "x", int: 1, float: 1.5}[PLAN_COLUMNS[name]] for name in RUN_FIELDS},
    **dict.fromkeys(PATH_FIELDS, Path("x")),
    **dict.fromkeys(JOB_FIELDS, 1),
    "main_address": "x",
}
"""A value of each field's type, to test formats such as `{lr:.3g}`."""

POCKET_SPLITS = ("train", "heldout")
"""Splits of the data that isoflop makes."""

_SHELL_OPERATOR = re.compile(r"\|{1,2}|&{1,2}|;|<{1,3}|[0-9&]?>{1,2}\S*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def check_trainer(sweep: Sweep) -> None:
    """Refuse a trainer or a metric's split that no run of a sweep could use.

    Some of these faults would otherwise appear only at the end of a run.

    Raises:
        ConfigError: the fault of `train.trainer` or `metric.set`, and the fix.
    """
    kind, argument = sweep.train.program
    if kind == "simulated":
        find_law(argument)
    elif kind == "command":
        _check_command(argument)
    elif sweep.data.codec == "pocket" and sweep.metric.set not in POCKET_SPLITS:
        raise ConfigError(
            f"metric.set: the pocket data have no split {sweep.metric.set!r}; "
            f"set metric.set={POCKET_SPLITS[-1]}"
        )


def find_law(name: str) -> Surface:
    """Return the law that `train.trainer: {simulated: LAW}` names.

    Raises:
        ConfigError: an unknown name.
    """
    from isoflop.laws import SURFACES

    if name not in SURFACES:
        raise ConfigError(
            f"train.trainer: simulated: {name!r} is no known law; use {' or '.join(SURFACES)}"
        )
    return SURFACES[name]


def _check_command(template: str) -> None:
    fill_template(template, EXAMPLE_VALUES)
    program, *arguments = shlex.split(template)
    if _ASSIGNMENT.match(program):
        shell_syntax = [program]
    else:
        shell_syntax = [text for text in arguments if _SHELL_OPERATOR.fullmatch(text)]
    if shell_syntax:
        raise ConfigError(
            f"train.trainer: {shell_syntax[0]!r} has no effect: no shell runs the command; "
            "use bash -c '...'"
        )
    if not _fields(template) & {"losses", "run_dir"} and "ISOFLOP_RUN_DIR" not in template:
        raise ConfigError(
            "train.trainer: the command does not name the file for the program's losses; "
            "give it {losses}, e.g. --losses {losses}"
        )


def _fields(template: str) -> set[str]:
    """Return the names in braces."""
    fields = (
        field
        for argument in shlex.split(template)
        for _, field, _, _ in Formatter().parse(argument)
        if field
    )
    return {re.split(r"[.\[]", field)[0] for field in fields}


def fill_template(template: str, values: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a command, with values in the place of names in braces.

    Raises:
        ConfigError: an unknown name, or quotes that don't close.
    """
    try:
        return [argument.format_map(values) for argument in shlex.split(template)]
    except (KeyError, IndexError, AttributeError) as problem:
        raise ConfigError(
            f"train.trainer: {{{problem.args[0]}}} is not known; names in braces are "
            f"{', '.join(values)} (write {{{{ for a brace)"
        ) from None
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"train.trainer: can't be read as a command ({problem})") from None
