"""Arrays of jobs: one per resource shape, split at the cluster's limit, longest runs first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.config.profile import Profile
from isoflop.config.sbatch import list_gpu_options, plain_name, takes_whole_nodes
from isoflop.planning.array_limits import allocate_concurrency
from isoflop.planning.job_arrays import Concurrency, group_into_arrays, topological_order
from isoflop.planning.queue_simulation import Order, SimulatedJob
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.wall_time import max_job_hours, save_lead_s

CPU_OPTIONS = {"cpus_per_task", "cpus_per_gpu"}
MEMORY_OPTIONS = {"mem", "mem_per_cpu", "mem_per_gpu"}


@dataclass(frozen=True)
class Array:
    """Runs with the same resources, in the order of their start.

    Attributes:
        runs: `runs[i]` is the task with index i.
        gpus: GPUs of a run, on all its nodes; 0 for CPUs.
        nodes: nodes of a run.
        at_once: maximal number of its runs at the same time.
        starts_processes: True if one process per node has all its GPUs and starts others; else
            each process has one GPU.
        after: indices, in the list with this array, of arrays that must end before it starts.
    """

    runs: tuple[RunSpec, ...]
    gpus: int
    nodes: int
    at_once: int
    starts_processes: bool = False
    after: tuple[int, ...] = ()

    @property
    def tasks_per_node(self) -> int:
        """Processes that SLURM starts on each node of a run."""
        return 1 if self.starts_processes else max(1, self.gpus // self.nodes)


@dataclass(frozen=True)
class ActiveArray:
    """An array that is already queued.

    Attributes:
        job_id: SLURM's id.
        jobs: its unfinished runs.
        waits: True if it waits for other arrays to end.
        running: number of its runs that run now.
    """

    job_id: str
    jobs: tuple[SimulatedJob, ...]
    waits: bool = False
    running: int = 0


def make_arrays(
    runs: Sequence[RunSpec],
    profile: Profile,
    max_tasks: int,
    order: Order = "longest",
    *,
    starts_processes: bool = False,
    active: Sequence[ActiveArray] = (),
) -> list[Array]:
    """Split runs into arrays; with the queued ones these keep to `max_gpus` and `max_jobs`.

    Args:
        runs: runs to be queued.
        profile: the cluster, with its limits.
        max_tasks: maximal number of tasks of an array.
        order: order in which runs start.
        starts_processes: as in `Array`.
        active: queued arrays; they come first in the list that `Array.after` indexes.
    """
    jobs = [make_job(run) for run in runs]
    groups = group_into_arrays(jobs, order, max_tasks, limited=profile.limits != (None, None))
    grouped_jobs = [[jobs[index] for index in group] for group in groups]
    limits = share_limits(active, grouped_jobs, profile, order)
    first = len(active)
    ordered = [number - first for number in topological_order(limits) if number >= first]
    positions = {
        **{number: number for number in range(first)},
        **{first + n: first + i for i, n in enumerate(ordered)},
    }
    return [
        Array(
            tuple(runs[index] for index in groups[n]),
            grouped_jobs[n][0].gpus,
            grouped_jobs[n][0].nodes,
            limits[first + n].max_jobs,
            starts_processes,
            tuple(sorted(positions[number] for number in limits[first + n].after)),
        )
        for n in ordered
    ]


def share_limits(
    active: Sequence[ActiveArray],
    groups: Sequence[Sequence[SimulatedJob]],
    profile: Profile,
    order: Order = "longest",
) -> list[Concurrency]:
    """Return the concurrency of queued arrays and then of new ones; 0 leaves an array as it is.

    If a queued array waits for the GPUs of others, all queued arrays stay as they are and the new
    ones come last.
    """
    if profile.limits == (None, None):
        return [Concurrency(0)] * len(active) + allocate_concurrency(groups, profile)
    if any(array.waits for array in active):
        first, queued = len(active), tuple(range(len(active)))
        shifted = [
            Concurrency(limit.max_jobs, (*queued, *(first + n for n in limit.after)))
            for limit in allocate_concurrency(groups, profile, order, running=())
        ]
        return [Concurrency(0)] * first + shifted
    running = [array.running for array in active] or None
    return allocate_concurrency(
        [*(array.jobs for array in active), *groups],
        profile,
        "longest" if active else order,
        running,
    )


def make_job(run: RunSpec) -> SimulatedJob:
    """Return a run's resources and hours; without a bill its FLOPs replace the hours."""
    hours = run.est_hours if run.est_hours is not None else float(run.train_flops)
    return SimulatedJob(run.run_id, run.gpus or 0, hours, run.budget, run.nodes or 1)


def sbatch_options(array: Array, profile: Profile) -> dict[str, Any]:
    """Return options of sbatch: the profile's as written, and those derived from node and run."""
    options: dict[str, Any] = {plain_name(name): value for name, value in profile.slurm.items()}
    gpus = array.gpus // array.nodes
    if profile.gpu is not None and gpus and not list_gpu_options(options):
        options["gpus_per_node"] = (
            f"{profile.gpu.slurm_name}:{gpus}" if profile.gpu.slurm_name else gpus
        )
    if profile.gpu is not None and profile.node is not None and gpus:
        held = profile.held_gpus(array.gpus, array.nodes) // array.nodes
        if not CPU_OPTIONS & options.keys():
            options["cpus_per_task"] = (
                max(1, profile.node.cpus // profile.gpu.per_node) * held // array.tasks_per_node
            )
        if not MEMORY_OPTIONS & options.keys():
            share_bytes = profile.node.memory_gb * 1e9 * held / profile.gpu.per_node
            whole = takes_whole_nodes(options)  # that reserves all cores, but not the memory
            options["mem"] = 0 if whole else f"{max(1, int(share_bytes / 2**20))}M"
    if profile.preemptible and "no_requeue" not in options:
        options.setdefault("requeue", True)  # some clusters cancel preempted jobs
    options.setdefault("nodes", array.nodes)
    options.setdefault("signal", f"USR2@{signal_lead_s(array, profile)}")
    return options


def signal_lead_s(array: Array, profile: Profile) -> int:
    """Return seconds between the signal to save and the time limit.

    They depend on the largest checkpoint of the array.
    """
    largest = max((run.shape.checkpoint_bytes for run in array.runs), default=0)
    return int(save_lead_s(largest, max_job_hours(profile)))


def setup_lines(profile: Profile, code: Path) -> list[str]:
    """Return shell lines that run before the worker: the profile's, and the path to the code."""
    lines = [
        *profile.setup,
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]
    # From SLURM 22.05 on srun does not inherit it.
    lines.append(
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
    )
    return lines


def python_command(profile: Profile, default: str) -> str:
    """Return the worker's interpreter, quoted for a shell.

    It is a program, or a container's command with arguments.
    """
    return shlex.join(shlex.split(profile.python)) if profile.python else shlex.quote(default)
