"""The schema of a cluster profile, and its reading. The fields are its keys."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from isoflop.config.config_file import Overrides, find, read
from isoflop.config.sbatch import check_gpu_options, check_options, takes_whole_nodes
from isoflop.config.validation import UNSET, SchemaError, require, require_name, show

GPU_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NOT_GIVEN = "(not given)"
"""The root of a profile that is only planned with and names none yet."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """GPUs of a node: their type, such as `h100-sxm`, and how many there are.

    A type that isoflop doesn't know needs `peak_tflops` (dense bf16) and `memory_gb`, by which the known ones can be
    corrected too. With `slurm_name`, such as `h100`, SLURM is asked for GPUs of that type: h100:4.
    """

    type: str
    per_node: int
    slurm_name: str | None = None
    peak_tflops: float | None = None
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.type.strip()), "type", "empty; give the GPU's type, e.g. h100-sxm")
        require(1 <= self.per_node <= 1024, "per_node", f"expected 1 to 1024, got {self.per_node}")
        named = self.slurm_name is None or bool(GPU_NAME.fullmatch(self.slurm_name))
        require(
            named,
            "slurm_name",
            f"expected a type as sinfo shows it, e.g. h100, got {show(self.slurm_name)}",
        )
        for key in ("peak_tflops", "memory_gb"):
            value = getattr(self, key)
            require(value is None or value > 0, key, f"expected a number above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Node:
    """CPU cores of a node and its memory in GB."""

    cpus: int
    memory_gb: float

    def __post_init__(self) -> None:
        require(self.cpus >= 1, "cpus", f"expected 1 or more, got {self.cpus}")
        require(
            self.memory_gb > 0, "memory_gb", f"expected a number above 0, got {self.memory_gb:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where jobs run.

    Attributes:
        name: by default the stem of the file.
        executor: `slurm`, or `local` for this machine.
        gpu: GPUs of a node; none for training on CPUs.
        node: cores and memory of a node.
        slurm: options that are sent to sbatch as written; nothing else is.
        preemptible: whether the cluster may stop a job at any time to run another; its jobs ask to be requeued, and
            bills reckon with interruptions.
        max_gpus: most GPUs that the study's jobs hold at once.
        max_jobs: most jobs of the study that run at once.
        retries: how often a run that failed is started again, unless it got further in between.
        price_per_gpu_hour: for the bill, in the currency of your choice.
        disk_gb: most that the study's checkpoints and weights may take, such as a quota.
        notify: a command or URL that is told when the study is done, stuck, or a run has failed for good.
        supervisor: options of sbatch for the job of `submit --supervise`, instead of those in `slurm`.
        setup: shell lines that run before the worker.
        python: interpreter on the nodes; by default the one that submits.
        root: the folder of runs, which all nodes share; by default $ISOFLOP_ROOT, else ./runs.
    """

    name: str
    executor: Literal["slurm", "local"]
    schema: Literal[1] = 1
    gpu: Gpu | None = None
    node: Node | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    preemptible: bool = False
    max_gpus: int | None = None
    max_jobs: int | None = None
    retries: int = 2
    price_per_gpu_hour: float | None = None
    disk_gb: float | None = None
    notify: str | None = None
    supervisor: dict[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    python: str | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        require_name("name", self.name)
        if self.executor == "slurm":
            require(
                bool(self.root),
                "root",
                "missing; a cluster needs a folder that all its nodes share",
            )
        else:
            require(not self.slurm, "slurm", "these options need executor: slurm")
        for key in ("max_gpus", "max_jobs"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, f"expected 1 or more, got {value}")
        require(self.retries >= 0, "retries", f"expected 0 or more, got {self.retries}")
        if self.price_per_gpu_hour is not None:
            price = self.price_per_gpu_hour
            require(price >= 0, "price_per_gpu_hour", f"expected 0 or more, got {price:g}")
        require(
            self.disk_gb is None or self.disk_gb > 0,
            "disk_gb",
            f"expected a number above 0, got {self.disk_gb}",
        )
        require(
            "%" not in (self.root or ""),
            "root",
            "has a % in it, which SLURM would replace; take another folder",
        )
        require(
            "\n" not in (self.root or ""), "root", "has a line break in it; take another folder"
        )
        require(
            "\0" not in (self.root or ""), "root", "has a NUL character in it; take another folder"
        )
        _check_home(self.root or "")
        _check_command(self.python)
        require(
            not any("\n" in line for line in self.setup),
            "setup",
            "a line has a line break in it; make it two lines",
        )
        check_options("slurm", self.slurm)
        check_options("supervisor", self.supervisor)
        if self.gpu is not None:
            check_gpu_options(self.slurm)

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Most GPUs and most jobs of a study at once on a cluster; None where nothing limits them."""
        return (None if self.gpu is None else self.max_gpus), self.max_jobs

    def held_gpus(self, gpus: int, nodes: int) -> int:
        """GPUs that a run on so many keeps from others: its own, or with `slurm.exclusive` all of its nodes."""
        return (
            nodes * self.gpu.per_node
            if gpus and self.gpu and takes_whole_nodes(self.slurm)
            else gpus
        )


def load_profile(
    source: str | PathLike[str], overrides: Overrides = (), *, to_plan: bool = False
) -> Profile:
    """Reads and checks a cluster profile: a path, or the name of a shipped one such as `local`.

    Args:
        source: path or name.
        overrides: `key=value` texts, or a mapping of dotted keys to values.
        to_plan: take a profile in which sbatch's options or the root still have no value (???): a bill needs neither.

    Raises:
        ConfigError: a file, key or value that can't be used, in one line with the mend.
    """
    found = find(source, "slurm")

    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        named = {"name": found.stem, **values}
        return _without_unset(named) if to_plan else named

    return read(found, overrides, Profile, prepare, verbatim=("slurm", "supervisor"))


def _without_unset(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("root") == UNSET:
        values["root"] = NOT_GIVEN
    if isinstance(options := values.get("slurm"), dict):
        values["slurm"] = {name: option for name, option in options.items() if option != UNSET}
    return values


def _check_home(root: str) -> None:
    try:
        Path(root).expanduser()
    except RuntimeError:
        raise SchemaError(
            "root", f"{root.partition('/')[0]} is no user of this machine; write the whole path"
        ) from None


def _check_command(python: str | None) -> None:
    try:
        words = ["python"] if python is None else shlex.split(python)
    except ValueError as problem:
        raise SchemaError(
            "python", f"can't be read as a command ({problem}), got {show(python)}"
        ) from None
    require(bool(words), "python", "is empty; leave it out, or name an interpreter")
