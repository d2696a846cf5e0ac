"""What a sweep's `train.trainer` may be, as far as the sweep alone tells; the words of a command of one's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from isoflop.config.schema import Sweep
from isoflop.errors import ConfigError
from isoflop.planning import run_spec as runspec

if TYPE_CHECKING:
    from isoflop.laws import Surface

COLUMNS = (
    "run_id", "sweep", "budget", "batch_size", "steps", "lr", "beta2", "seed", "width", "layers", "heads", "kv_heads",
    "head_dim", "mlp_width", "vocab_size", "seq_len", "tokens", "params_total",
)  # fmt: skip
PATHS = ("run_dir", "data_dir", "losses")
PLACES = ("nodes", "node_rank", "gpus_per_node", "main_address", "main_port")
"""Of the job: how often the program is started, and which of them this is; its GPUs; where the first can be met."""
NAMES = (*COLUMNS, *PATHS, *PLACES)
"""What can stand in braces."""

EXAMPLES: dict[str, Any] = {
    **{name: {str: "x", int: 1, float: 1.5}[runspec.COLUMNS[name]] for name in COLUMNS},
    **dict.fromkeys(PATHS, Path("x")),
    **dict.fromkeys(PLACES, 1),
    "main_address": "x",
}
"""A value for each, of its type, by which a format such as `{lr:.3g}` is tried."""

MADE_SPLITS = ("train", "heldout")
"""Of the data that are made here."""

_OF_SHELLS = re.compile(r"\|{1,2}|&{1,2}|;|<{1,3}|[0-9&]?>{1,2}\S*")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")


def check_trainer(sweep: Sweep) -> None:
    """Finds what no run of a sweep could use: before any is planned, since some of it shows at the end of a run only.

    Raises:
        ConfigError: what is wrong with `train.trainer` or `metric.set`, and the mend.
    """
    kind, argument = sweep.train.program
    if kind == "simulated":
        find_law(argument)
    elif kind == "command":
        _check_command(argument)
    elif sweep.data.codec == "pocket" and sweep.metric.set not in MADE_SPLITS:
        raise ConfigError(
            f"metric.set: the pocket data have no split {sweep.metric.set!r}; set metric.set={MADE_SPLITS[-1]}"
        )


def find_law(name: str) -> Surface:
    """The law that `train.trainer: {simulated: LAW}` names.

    Raises:
        ConfigError: a name that is not known.
    """
    from isoflop.laws import SURFACES

    if name not in SURFACES:
        raise ConfigError(
            f"train.trainer: simulated: {name!r} is no law that is known; take {' or '.join(SURFACES)}"
        )
    return SURFACES[name]


def _check_command(template: str) -> None:
    fill(template, EXAMPLES)
    program, *words = shlex.split(template)
    of_shell = (
        [program]
        if _VARIABLE.match(program)
        else [word for word in words if _OF_SHELLS.fullmatch(word)]
    )
    if of_shell:
        raise ConfigError(
            f"train.trainer: {of_shell[0]!r} has no effect: the command is no shell; use bash -c '...'"
        )
    if not _fields(template) & {"losses", "run_dir"} and "ISOFLOP_RUN_DIR" not in template:
        raise ConfigError(
            "train.trainer: the command does not say where the program is to write its losses; "
            "give it {losses}, e.g. --losses {losses}"
        )


def _fields(template: str) -> set[str]:
    """The names in braces."""
    words = (
        name for word in shlex.split(template) for _, name, _, _ in Formatter().parse(word) if name
    )
    return {re.split(r"[.\[]", name)[0] for name in words}


def fill(template: str, values: Mapping[str, Any]) -> list[str]:
    """The words of a command, with the values in their places.

    Raises:
        ConfigError: a name that is not known, or quotes that don't close.
    """
    try:
        return [word.format_map(values) for word in shlex.split(template)]
    except (KeyError, IndexError, AttributeError) as problem:
        raise ConfigError(
            f"train.trainer: {{{problem.args[0]}}} is not known; in braces can stand {', '.join(values)} "
            "(write {{ for a brace)"
        ) from None
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"train.trainer: can't be read as a command ({problem})") from None
