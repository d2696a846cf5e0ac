"""Options of sbatch in a profile: which it may have, and what they say of a job's GPUs and time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.config.validation import UNSET, SchemaError, join, require, show

OURS = {"array", "job_name", "output", "error"}
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

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
"""Options that ask for GPUs, and where they say how many; None: that depends on more than the option. In gres no number
means one."""

RECKONED_WITH = {
    *OURS, *GPU_OPTIONS, "exclusive", "time", "partition", "nodes", "ntasks", "ntasks_per_node", "tasks_per_node",
    "cpus_per_task", "cpus_per_gpu", "mem", "mem_per_cpu", "mem_per_gpu", "requeue", "no_requeue", "exclude",
}  # fmt: skip
"""Options that isoflop looks for by name; sbatch takes their beginnings too."""

LAYOUT_OPTIONS = ("nodes", "ntasks", "tasks_per_node")
"""Beginnings of options that say on how many nodes and by how many processes a job runs."""


def plain_name(option: object) -> str:
    """An option's name as isoflop looks it up: sbatch knows `gpus-per-node` only, YAML often has `gpus_per_node`."""
    return str(option).replace("-", "_")


def check_options(section: str, options: Mapping[str, Any]) -> None:
    """Free-form options need a name that sbatch could know, and one value each.

    Raises:
        SchemaError: an option that can't be sent as it is written.
    """
    names: dict[str, str] = {}
    for name, value in options.items():
        key = join(section, str(name))
        require(bool(OPTION.fullmatch(str(name))), key, "is no name of an option of sbatch")
        require(plain_name(name) not in OURS, key, "is for isoflop to say; leave it out")
        plain = plain_name(name)
        whole = next(
            (known for known in sorted(RECKONED_WITH) if known.startswith(plain)), plain
        )  # itself comes first
        require(
            whole == plain, key, f"is a beginning of {join(section, whole)}; write the option out"
        )
        twice = names.setdefault(plain_name(name), key)
        require(twice == key, key, f"is the same option as {twice}; leave one out")
        require(value != UNSET, key, f"has no value yet ({UNSET}); put yours in its place")
        require(
            isinstance(value, str | int | float) and value is not False,
            key,
            f"expected text, a number or true, got {show(value)}",
        )
        written = not isinstance(value, float) or (math.isfinite(value) and "e" not in str(value))
        require(
            written, key, f"expected a number in decimals, or text in quotes, got {show(value)}"
        )
        require(
            "\n" not in str(value),
            key,
            "has a line break in it, which sbatch would take for a command",
        )
    if (time := options.get("time")) is not None:
        # YAML 1.1 reads an unquoted 48:00:00 as 172800, which sbatch would take for that many minutes.
        key = join(section, "time")
        require(
            isinstance(time, str),
            key,
            f'expected text in quotes such as "48:00:00", got {show(time)}',
        )
        hours_of(time, key)


def hours_of(limit: str, key: str = "slurm.time") -> float:
    """A time limit as sbatch reads it, and as SLURM prints it, in hours; seconds count as a whole minute.

    Raises:
        SchemaError: a text that sbatch would not take as a time.
    """
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    found = re.fullmatch(r"(?:(?P<days>\d{1,9})-)?(?P<clock>\d{1,9}(?::\d{1,9}){0,2})", limit)
    if found is None:
        raise SchemaError(
            key, f'expected a time such as "48:00:00" or "2-00:00:00", got {show(limit)}'
        )
    parts = [int(part) for part in found["clock"].split(":")]
    # sbatch reads minutes, minutes:seconds or hours:minutes:seconds, but after days hours come first.
    units = (3600, 60, 1) if found["days"] or len(parts) == 3 else (60, 1)
    seconds = 86400 * int(found["days"] or 0) + sum(
        part * unit for part, unit in zip(parts, units, strict=False)
    )
    return -(-seconds // 60) / 60 if seconds else math.inf  # as sbatch reads 0


# GPUs


@dataclass(frozen=True)
class FixedGpus:
    """How many GPUs an option of sbatch gives a job, in all or on each node."""

    option: str
    gpus: int
    on_each_node: bool


def asking_for_gpus(options: Mapping[str, Any]) -> list[str]:
    """The options, as they are written, that ask for GPUs: gres and tres ask for much else too."""
    return [
        name
        for name, value in options.items()
        if (plain := plain_name(name)) in GPU_OPTIONS
        and (plain.startswith("gpus") or _NAMES_GPU.search(str(value)))
    ]


def fixed_gpus(options: Mapping[str, Any]) -> FixedGpus | None:
    """What a profile's own options say of the GPUs of a job.

    Raises:
        SchemaError: options from which the number can't be told.
    """
    names = asking_for_gpus(options)
    if not names:
        return None
    name, key = names[0], join("slurm", names[0])
    mend = "leave it out: a run asks for its own number, of the type gpu.slurm_name"
    require(
        len(names) == 1,
        key,
        f"slurm.{names[-1]} says how many GPUs a job gets too; leave one of them out",
    )
    pattern = GPU_OPTIONS[plain_name(name)]
    require(
        pattern is not None,
        key,
        f"gives GPUs by tasks or sockets, which a bill can't count; {mend}",
    )
    text = str(options[name])
    counts = pattern.findall(text) if pattern else []
    once = len(counts) == 1 and len(_NAMES_GPU.findall(text)) <= 1
    require(once, key, f"can't tell how many GPUs {show(options[name])} are; {mend}")
    return FixedGpus(name, int(counts[0] or 1), plain_name(name) != "gpus")


def check_gpu_options(options: Mapping[str, Any]) -> None:
    """Of a profile with GPUs: nothing may change how many a run gets but what can be counted.

    Raises:
        SchemaError: an option by which SLURM would give other GPUs than the bill counts.
    """
    for name in options:
        ours = plain_name(name).startswith(LAYOUT_OPTIONS)
        key = join("slurm", name)
        require(
            not ours, key, "with `gpu` it is for isoflop to say, by each run's size; leave it out"
        )
    fixed_gpus(options)


def takes_whole_nodes(options: Mapping[str, Any]) -> bool:
    """Whether a job holds all of its nodes (`--exclusive`), not only against other users."""
    value = next(
        (value for name, value in options.items() if plain_name(name) == "exclusive"), "user"
    )
    return value not in ("user", "mcs")
