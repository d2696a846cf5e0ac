"""Options of sbatch in a profile: checks, the time limit, and the GPUs that they request."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.config.validation import UNSET, SchemaError, format_value, join, require

RESERVED_OPTIONS = {"array", "job_name", "output", "error"}
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

FLAGS = {
    "contiguous", "exclusive", "hold", "no_requeue", "overcommit", "oversubscribe", "reboot",
    "requeue", "spread_job", "use_min_nodes",
}  # fmt: skip
"""Options without a value; `exclusive` may have one."""
YAML_1_1_BOOLEANS = {"y", "n", "yes", "no", "on", "off"}

_COUNT = re.compile(r"^(?:[^:,]+:)?(\d+)$")
_TYPE = r"[A-Za-z][^:=,(]*|\d[^:=,(]*[A-Za-z][^:=,(]*"
_IN_GRES = re.compile(rf"(?:^|,)(?:gres[/:])?gpu(?:[:=](?:{_TYPE}))?(?:[:=](\d+))?(?=\(|,|$)")
_NAMES_GPU = re.compile(r"(?:^|,)(?:gres[/:])?gpu(?=[:=(,]|$)")

GPU_OPTIONS: dict[str, re.Pattern[str] | None] = {
    "gpus": _COUNT,
    "gpus_per_node": _COUNT,
    "gres": _IN_GRES,
    "gpus_per_task": None,
    "gpus_per_socket": None,
    "tres_per_task": None,
}
"""Options that request GPUs, and the pattern of the number in their values.

None: the number depends on other options too. In gres, no number is one GPU.
"""

KNOWN_OPTIONS = {
    *RESERVED_OPTIONS, *GPU_OPTIONS, "exclusive", "time", "partition", "nodes", "ntasks",
    "ntasks_per_node", "tasks_per_node", "cpus_per_task", "cpus_per_gpu", "mem", "mem_per_cpu",
    "mem_per_gpu", "requeue", "no_requeue", "exclude",
}  # fmt: skip
"""Options that isoflop looks up by name. Abbreviations, which sbatch accepts, would be missed."""

LAYOUT_PREFIXES = ("nodes", "ntasks", "tasks_per_node")
"""First characters of the options that set a job's numbers of nodes and processes."""


def plain_name(option: object) -> str:
    """Return the name for look-up: `gpus_per_node` for sbatch's `gpus-per-node`."""
    return str(option).replace("-", "_")


def check_options(section: str, options: Mapping[str, Any]) -> None:
    """Check that every option has a possible name and one value.

    Raises:
        SchemaError: an option that can't be sent as it is written.
    """
    keys_by_name: dict[str, str] = {}
    for name, value in options.items():
        key = join(section, str(name))
        plain = plain_name(name)
        require(bool(OPTION.fullmatch(str(name))), key, "is not an sbatch option name")
        require(plain not in RESERVED_OPTIONS, key, "is set by isoflop; leave it out")
        # A known name sorts before those that it begins.
        full = next((known for known in sorted(KNOWN_OPTIONS) if known.startswith(plain)), plain)
        require(full == plain, key, f"abbreviates {join(section, full)}; write the full name")
        first_key = keys_by_name.setdefault(plain, key)
        require(first_key == key, key, f"is the same option as {first_key}; leave one out")
        require(value != UNSET, key, f"has no value yet ({UNSET}); put yours in its place")
        require(
            isinstance(value, str | int | float) and value is not False,
            key,
            f"expected text, a number or true, got {format_value(value)}",
        )
        require(
            not isinstance(value, float) or (math.isfinite(value) and "e" not in str(value)),
            key,
            f"expected a number in decimals, or text in quotes, got {format_value(value)}",
        )
        require(
            plain not in FLAGS or str(value).lower() not in YAML_1_1_BOOLEANS,
            key,
            f"{value} is text in YAML 1.2; write true, or leave the option out",
        )
        require(
            "\n" not in str(value),
            key,
            "has a line break in it, which sbatch would take for a command",
        )
    if (time := options.get("time")) is not None:
        # A program with YAML 1.1 rewrites 48:00:00 as 172800, which sbatch reads as minutes.
        key = join(section, "time")
        require(
            isinstance(time, str),
            key,
            f'expected text in quotes such as "48:00:00", got {format_value(time)}',
        )
        parse_time_limit(time, key)


def parse_time_limit(limit: str, key: str = "slurm.time") -> float:
    """Return the hours of a time limit in the notation of sbatch and of SLURM's output.

    Seconds are rounded up to a whole minute, as by sbatch.

    Raises:
        SchemaError: a text that sbatch would not accept as a time.
    """
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = re.fullmatch(r"(?:(?P<days>\d{1,9})-)?(?P<clock>\d{1,9}(?::\d{1,9}){0,2})", limit)
    if match is None:
        raise SchemaError(
            key, f'expected a time such as "48:00:00" or "2-00:00:00", got {format_value(limit)}'
        )
    numbers = [int(number) for number in match["clock"].split(":")]
    # sbatch reads minutes, minutes:seconds or hours:minutes:seconds, but hours first after days.
    units = (3600, 60, 1) if match["days"] or len(numbers) == 3 else (60, 1)
    seconds = 86400 * int(match["days"] or 0) + sum(
        number * unit for number, unit in zip(numbers, units, strict=False)
    )
    return math.ceil(seconds / 60) / 60 if seconds else math.inf  # sbatch reads 0 as no limit


# GPUs


@dataclass(frozen=True)
class FixedGpus:
    """GPUs that an option of sbatch gives a job, in total or on each node."""

    option: str
    gpus: int
    on_each_node: bool


def list_gpu_options(options: Mapping[str, Any]) -> list[str]:
    """Return the options, as written, that request GPUs; gres and tres may request other things."""
    return [
        name
        for name, value in options.items()
        if (plain := plain_name(name)) in GPU_OPTIONS
        and (plain.startswith("gpus") or _NAMES_GPU.search(str(value)))
    ]


def fixed_gpus(options: Mapping[str, Any]) -> FixedGpus | None:
    """Return the GPUs that a profile's own options give a job; None if they request none.

    Raises:
        SchemaError: options that leave the number open.
    """
    names = list_gpu_options(options)
    if not names:
        return None
    name, key = names[0], join("slurm", names[0])
    fix = "leave it out: a run requests its own number, of the type gpu.slurm_name"
    require(
        len(names) == 1,
        key,
        f"slurm.{names[-1]} sets the GPUs of a job too; leave one of them out",
    )
    pattern = GPU_OPTIONS[plain_name(name)]
    require(
        pattern is not None,
        key,
        f"gives GPUs per task or socket, which a cost estimate can't count; {fix}",
    )
    text = str(options[name])
    counts = pattern.findall(text) if pattern else []
    is_unique = len(counts) == 1 and len(_NAMES_GPU.findall(text)) <= 1
    require(
        is_unique, key, f"the number of GPUs in {format_value(options[name])} is unclear; {fix}"
    )
    return FixedGpus(name, int(counts[0] or 1), plain_name(name) != "gpus")


def check_gpu_options(options: Mapping[str, Any]) -> None:
    """Check the options of a profile with GPUs: the GPUs of every job have to be countable.

    Raises:
        SchemaError: an option by which SLURM would give other GPUs than the bill counts.
    """
    for name in options:
        require(
            not plain_name(name).startswith(LAYOUT_PREFIXES),
            join("slurm", name),
            "with `gpu`, isoflop sets it by each run's size; leave it out",
        )
    fixed_gpus(options)


def takes_whole_nodes(options: Mapping[str, Any]) -> bool:
    """Return True if a job holds its nodes against all other jobs (`--exclusive`)."""
    value = next(
        (value for name, value in options.items() if plain_name(name) == "exclusive"), "user"
    )
    return value not in ("user", "mcs")
