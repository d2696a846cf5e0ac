"""The schema of a cluster profile, and its reader. The fields are its keys.

`scripts/reference_pages.py` makes `docs/reference/profile.md` from the `Attributes` of the classes.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from isoflop.config.config_file import Overrides, find_source, read_config
from isoflop.config.sbatch import check_gpu_options, check_options, takes_whole_nodes
from isoflop.config.validation import UNSET, SchemaError, format_value, require, require_name

GPU_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ROOT_NOT_GIVEN = "(not given)"
"""Root of a profile for plans that names none yet."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """GPUs of a node.

    Attributes:
        type: type of the GPUs, such as `h100-sxm`.
        per_node: number of GPUs in a node.
        slurm_name: type of the GPUs in requests to SLURM, such as `h100` in `h100:4`; requests
            without it name no type.
        peak_tflops: peak speed at dense bf16 in TFLOP/s. A type that isoflop does not know needs
            it; for a known type it replaces the built-in value.
        memory_gb: memory of one GPU in GB; needed and replaced as `peak_tflops`.
    """

    type: str
    per_node: int
    slurm_name: str | None = None
    peak_tflops: float | None = None
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.type.strip()), "type", "empty; give the GPU's type, e.g. h100-sxm")
        require(1 <= self.per_node <= 1024, "per_node", f"expected 1 to 1024, got {self.per_node}")
        is_name = self.slurm_name is None or bool(GPU_NAME.fullmatch(self.slurm_name))
        require(
            is_name,
            "slurm_name",
            "expected a type as in the output of sinfo, e.g. h100, got"
            f" {format_value(self.slurm_name)}",
        )
        for key in ("peak_tflops", "memory_gb"):
            value = getattr(self, key)
            require(value is None or value > 0, key, f"expected a number above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Node:
    """Resources of a node.

    Attributes:
        cpus: CPU cores of a node.
        memory_gb: memory of a node in GB.
    """

    cpus: int
    memory_gb: float

    def __post_init__(self) -> None:
        require(self.cpus >= 1, "cpus", f"expected 1 or more, got {self.cpus}")
        require(
            self.memory_gb > 0, "memory_gb", f"expected a number above 0, got {self.memory_gb:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A cluster, or this machine, that jobs run on.

    Attributes:
        name: name of the profile.
        executor: `slurm`, or `local` for this machine.
        schema: version of the file format.
        gpu: GPUs of a node; `null` trains on CPUs.
        node: CPU cores and memory of a node. A run requests the share that its GPUs are of the
            node's GPUs.
        slurm: options of sbatch, sent as written. Nothing else is sent, except the requests that
            follow from `gpu`, `node` and `preemptible`. With `gpu`, isoflop sets nodes and tasks;
            `gres`, `gpus` and `gpus_per_node` fix the GPUs of every run; with `exclusive`, a run
            holds all GPUs of its nodes, and is charged for all.
        preemptible: `true` if the cluster may stop jobs at any time. The jobs then ask to be
            requeued, and cost estimates include two interruptions a day.
        max_gpus: largest number of GPUs that the study holds at a time.
        max_jobs: largest number of jobs of the study at a time.
        retries: number of times that a failed run is started again. The count restarts if the run
            made progress in between.
        price_per_gpu_hour: price for the cost estimate, in the currency of your choice.
        disk_gb: largest size of checkpoints and weights at a time in GB, such as a quota.
        notify: a command, or a URL that receives JSON. It is called when the study is done or
            stuck, or a run has failed permanently. It has 20 s; a failed call is repeated at
            growing intervals.
        supervisor: options of sbatch for the job of `submit --supervise`, instead of those in
            `slurm`. The job takes 0.3 GB for its reports, and requests 1 GB if runs request memory.
        setup: shell lines that run before the worker, such as `module load cuda`.
        python: the nodes' interpreter, or a command such as `apptainer exec image.sif python`; by
            default the interpreter that submits.
        root: folder of runs that all nodes share; a cluster needs one. By default `$ISOFLOP_ROOT`,
            else `./runs`.
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
            "has a % in it, which SLURM would replace; choose another folder",
        )
        require(
            "\n" not in (self.root or ""), "root", "has a line break in it; choose another folder"
        )
        require(
            "\0" not in (self.root or ""),
            "root",
            "has a NUL character in it; choose another folder",
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
        """Return the largest numbers of GPUs and jobs of a study at a time; None for no limit."""
        return (None if self.gpu is None else self.max_gpus), self.max_jobs

    def held_gpus(self, gpus: int, nodes: int) -> int:
        """Return the GPUs that a run reserves: its own, or with `slurm.exclusive` its nodes'."""
        return (
            nodes * self.gpu.per_node
            if gpus and self.gpu and takes_whole_nodes(self.slurm)
            else gpus
        )


def load_profile(
    source: str | PathLike[str], overrides: Overrides = (), *, to_plan: bool = False
) -> Profile:
    """Read and check a cluster profile.

    Args:
        source: path of a YAML file, or the name of a shipped profile such as `local`.
        overrides: `key=value` texts, or a mapping of dotted keys to values.
        to_plan: accept a profile whose root or options of sbatch have no value yet (`???`), because
            a bill needs neither.

    Raises:
        ConfigError: an unusable file, key or value, in one line with the fix.
    """
    file = find_source(source, "slurm")

    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        named = {"name": file.stem, **values}
        return _without_unset(named) if to_plan else named

    return read_config(file, overrides, Profile, prepare, as_written=("slurm", "supervisor"))


def _without_unset(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("root") == UNSET:
        values["root"] = ROOT_NOT_GIVEN
    if isinstance(options := values.get("slurm"), dict):
        values["slurm"] = {name: option for name, option in options.items() if option != UNSET}
    return values


def _check_home(root: str) -> None:
    try:
        Path(root).expanduser()
    except RuntimeError:
        raise SchemaError(
            "root", f"{root.partition('/')[0]} is no user of this machine; write the full path"
        ) from None


def _check_command(python: str | None) -> None:
    try:
        command = ["python"] if python is None else shlex.split(python)
    except ValueError as problem:
        raise SchemaError(
            "python", f"can't be read as a command ({problem}), got {format_value(python)}"
        ) from None
    require(bool(command), "python", "is empty; leave it out, or name an interpreter")
