"""How runs become arrays of jobs: one array a resource shape, cut at the cluster's limit, longest runs first."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoflop.config.profile import Profile
from isoflop.planning.bill import time_limit_hours
from isoflop.planning.queue import Order
from isoflop.planning.runspec import RunSpec

ASKS_FOR_GPUS = {"gres", "gpus", "gpus_per_node", "gpus_per_task", "gpus_per_socket", "tres_per_task"}
ASKS_FOR_CPUS = {"cpus_per_task", "cpus_per_gpu", "exclusive"}
ASKS_FOR_MEMORY = {"mem", "mem_per_cpu", "mem_per_gpu", "exclusive"}
SAVE_BYTES_PER_S = 0.5e9
"""At least what a shared file system takes of a checkpoint; a prior."""


@dataclass(frozen=True)
class Array:
    """Runs that ask for the same resources, in the order in which they are to start.

    Attributes:
        runs: the task with index i is `runs[i]`.
        gpus: of a run, on all its nodes; 0 for CPUs.
        nodes: of a run.
        at_once: how many of its runs may run at the same time; 0 if it waits for all arrays before it to end.
        starts_processes: whether one process has all GPUs of a node, and starts others itself; else each has one.
    """

    runs: tuple[RunSpec, ...]
    gpus: int
    nodes: int
    at_once: int
    starts_processes: bool = False

    @property
    def tasks_per_node(self) -> int:
        """Processes that SLURM starts on each node of a run."""
        return 1 if self.starts_processes else max(1, self.gpus // self.nodes)


def group(
    runs: Sequence[RunSpec],
    profile: Profile,
    most_tasks: int,
    order: Order = "longest",
    *,
    starts_processes: bool = False,
) -> list[Array]:
    """The arrays in which runs are submitted; together they keep to `max_gpus` and `max_jobs`."""
    shapes: dict[tuple[int, int], list[RunSpec]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: _priority(run, order)):
        shapes[run.gpus or 0, run.nodes or 1].append(run)
    parts = [
        (shape, found[first : first + most_tasks])
        for shape, found in sorted(shapes.items(), key=lambda item: _priority(item[1][0], order))
        for first in range(0, len(found), most_tasks)
    ]
    arrays = [Array(tuple(found), gpus, nodes, 0, starts_processes) for (gpus, nodes), found in parts]
    return share(arrays, profile)


def share(arrays: Sequence[Array], profile: Profile, active: Sequence[Array] = ()) -> list[Array]:
    """Arrays with how many of their runs may be under way at once, so that all keep to the profile's limits.

    Args:
        arrays: to be queued; those that have to wait come last, since they wait for all before them.
        profile: the limits.
        active: arrays that are queued already, with their runs that are not over; they come back first, in order.
    """
    every = [*active, *arrays]
    at_once = _share([(array.gpus, len(array.runs), sum(map(_work, array.runs))) for array in every], profile)
    shared = [replace(array, at_once=most) for array, most in zip(every, at_once, strict=True)]
    return shared[: len(active)] + sorted(shared[len(active) :], key=lambda array: not array.at_once)


def most_at_once(array: Array, profile: Profile) -> int:
    """How many of an array's runs may run at the same time, once it need not wait any more."""
    by_gpus = profile.max_gpus // array.gpus if profile.max_gpus and array.gpus else len(array.runs)
    return array.at_once or max(1, min(len(array.runs), by_gpus, profile.max_jobs or len(array.runs)))


def _priority(run: RunSpec, order: Order) -> tuple[float, float]:
    return (-_hours(run), run.budget) if order == "longest" else (run.budget, -_hours(run))


def _hours(run: RunSpec) -> float:
    """Hours by the bill; without one, FLOPs do for the order."""
    return run.est_hours if run.est_hours is not None else float(run.train_flops)


def _work(run: RunSpec) -> float:
    return _hours(run) * max(1, run.gpus or 0)


def _share(parts: Sequence[tuple[int, int, float]], profile: Profile) -> list[int]:
    """How many jobs of each array may run at once, the larger share to those with more work.

    Args:
        parts: of each array the GPUs of a run, the number of runs, and the work.
        profile: the limits.
    """
    gpus_left, jobs_left = profile.max_gpus or math.inf, profile.max_jobs or math.inf
    at_once = [0] * len(parts)

    def add(number: int) -> bool:
        nonlocal gpus_left, jobs_left
        gpus, runs, _ = parts[number]
        if at_once[number] == runs or gpus > gpus_left or jobs_left < 1:
            return False
        at_once[number] += 1
        gpus_left, jobs_left = gpus_left - gpus, jobs_left - 1
        return True

    if gpus_left == jobs_left == math.inf:
        return [runs for _, runs, _ in parts]
    for number in range(len(parts)):
        add(number)
    while any(add(number) for number in sorted(range(len(parts)), key=lambda n: -parts[n][2] / (at_once[n] + 1))):
        pass
    return at_once


def sbatch_options(array: Array, profile: Profile) -> dict[str, Any]:
    """What sbatch is told: the profile's options as written, and what its nodes and the run's size ask for."""
    options: dict[str, Any] = {name.replace("-", "_"): value for name, value in profile.slurm.items()}
    gpus = array.gpus // array.nodes
    if profile.gpu is not None and gpus and not ASKS_FOR_GPUS & options.keys():
        options["gpus_per_node"] = f"{profile.gpu.slurm_name}:{gpus}" if profile.gpu.slurm_name else gpus
    if profile.gpu is not None and profile.node is not None and gpus:
        share = gpus / profile.gpu.per_node
        if not ASKS_FOR_CPUS & options.keys():
            options["cpus_per_task"] = max(1, profile.node.cpus // profile.gpu.per_node) * gpus // array.tasks_per_node
        if not ASKS_FOR_MEMORY & options.keys():
            options["mem"] = f"{max(1, int(profile.node.memory_gb * share * 1000))}M"
    if profile.preemptible and "no_requeue" not in options:  # some clusters cancel what they preempt
        options.setdefault("requeue", True)
    options.setdefault("nodes", array.nodes)
    options.setdefault("signal", f"USR2@{signal_lead_s(array, profile)}")
    return options


def signal_lead_s(array: Array, profile: Profile) -> int:
    """How long before its time limit a job is told to save: long enough to write its largest checkpoint."""
    lead = max(90.0, 60 + max((run.shape.checkpoint_bytes for run in array.runs), default=0) / SAVE_BYTES_PER_S)
    limit_s = 3600 * time_limit_hours(profile)
    return int(lead if math.isinf(limit_s) else max(10.0, min(lead, limit_s / 10)))


def setup_lines(profile: Profile, code: Path) -> list[str]:
    """Shell lines that run before the worker: the profile's, and where the study's code is."""
    lines = [*profile.setup, f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"']
    # From SLURM 22.05 on srun does not inherit it.
    lines.append('[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    return lines


def python_command(profile: Profile, default: str) -> str:
    """The worker's interpreter, as a command that a shell may read: one program, or a container's with arguments."""
    return shlex.join(shlex.split(profile.python)) if profile.python else shlex.quote(default)
