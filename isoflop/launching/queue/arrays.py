"""How runs become arrays of jobs: one array a resource shape, cut at the cluster's limit, longest runs first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.config.profile import Profile
from isoflop.config.sbatch import asking_for_gpus, plain_name, takes_whole_nodes
from isoflop.planning.array_limits import Share, in_turn, line_up, share_limits
from isoflop.planning.queue_simulation import Job, Order
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.wall_time import save_lead_s, time_limit_hours

ASKS_FOR_CPUS = {"cpus_per_task", "cpus_per_gpu"}
ASKS_FOR_MEMORY = {"mem", "mem_per_cpu", "mem_per_gpu"}


@dataclass(frozen=True)
class Array:
    """Runs that ask for the same resources, in the order in which they are to start.

    Attributes:
        runs: the task with index i is `runs[i]`.
        gpus: of a run, on all its nodes; 0 for CPUs.
        nodes: of a run.
        at_once: how many of its runs may run at the same time.
        starts_processes: whether one process has all GPUs of a node, and starts others itself; else each has one.
        after: places of the arrays, in the list that this one is in, that have to end before it starts.
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
class Active:
    """An array that is queued already.

    Attributes:
        job_id: SLURM's.
        jobs: its runs that are not over.
        waits: whether it waits for other arrays to end.
        running: how many of the runs run now.
    """

    job_id: str
    jobs: tuple[Job, ...]
    waits: bool = False
    running: int = 0


def group(
    runs: Sequence[RunSpec],
    profile: Profile,
    most_tasks: int,
    order: Order = "longest",
    *,
    starts_processes: bool = False,
    active: Sequence[Active] = (),
) -> list[Array]:
    """The arrays in which runs are submitted; with those that are queued they keep to `max_gpus` and `max_jobs`.

    Args:
        runs: to be queued.
        profile: the limits.
        most_tasks: of an array.
        order: which runs start first.
        starts_processes: as `Array`.
        active: arrays that are queued; they come first in the list that `Array.after` counts in.
    """
    jobs = [job_of(run) for run in runs]
    lines = line_up(jobs, order, most_tasks, limited=profile.limits != (None, None))
    shares = shares_beside(
        active, [[jobs[number] for number in line] for line in lines], profile, order
    )
    first = len(active)
    turns = [number - first for number in in_turn(shares) if number >= first]
    place = {
        **{number: number for number in range(first)},
        **{first + n: first + i for i, n in enumerate(turns)},
    }
    return [
        Array(
            tuple(runs[number] for number in lines[n]),
            jobs[lines[n][0]].gpus,
            jobs[lines[n][0]].nodes,
            shares[first + n].places,
            starts_processes,
            tuple(sorted(place[number] for number in shares[first + n].after)),
        )
        for n in turns
    ]


def shares_beside(
    active: Sequence[Active],
    lines: Sequence[Sequence[Job]],
    profile: Profile,
    order: Order = "longest",
) -> list[Share]:
    """The shares of the arrays that are queued and then of those to be; places 0 for one whose share should stay.

    Where an array waits already, for others to hand on what they hold, these shares stay, and what is new comes last.
    """
    if profile.limits == (None, None):
        return [Share(0)] * len(active) + share_limits(lines, profile)
    if any(array.waits for array in active):
        first, everything = len(active), tuple(range(len(active)))
        new = share_limits(lines, profile, order, running=())
        moved = [Share(one.places, (*everything, *(first + n for n in one.after))) for one in new]
        return [Share(0)] * first + moved
    running = [array.running for array in active] or None
    return share_limits(
        [*(array.jobs for array in active), *lines],
        profile,
        "longest" if active else order,
        running,
    )


def job_of(run: RunSpec) -> Job:
    """What a run asks of the queue; its FLOPs stand for the hours where there is no bill."""
    hours = run.est_hours if run.est_hours is not None else float(run.train_flops)
    return Job(run.run_id, run.gpus or 0, hours, run.budget, run.nodes or 1)


def sbatch_options(array: Array, profile: Profile) -> dict[str, Any]:
    """What sbatch is told: the profile's options as written, and what its nodes and the run's size ask for."""
    options: dict[str, Any] = {plain_name(name): value for name, value in profile.slurm.items()}
    gpus = array.gpus // array.nodes
    if profile.gpu is not None and gpus and not asking_for_gpus(options):
        options["gpus_per_node"] = (
            f"{profile.gpu.slurm_name}:{gpus}" if profile.gpu.slurm_name else gpus
        )
    if profile.gpu is not None and profile.node is not None and gpus:
        held = profile.held_gpus(array.gpus, array.nodes) // array.nodes
        if not ASKS_FOR_CPUS & options.keys():
            options["cpus_per_task"] = (
                max(1, profile.node.cpus // profile.gpu.per_node) * held // array.tasks_per_node
            )
        if not ASKS_FOR_MEMORY & options.keys():
            share_bytes = profile.node.memory_gb * 1e9 * held / profile.gpu.per_node
            whole = takes_whole_nodes(options)  # which holds the node's cores, but not its memory
            options["mem"] = 0 if whole else f"{max(1, int(share_bytes / 2**20))}M"
    if (
        profile.preemptible and "no_requeue" not in options
    ):  # some clusters cancel what they preempt
        options.setdefault("requeue", True)
    options.setdefault("nodes", array.nodes)
    options.setdefault("signal", f"USR2@{signal_lead_s(array, profile)}")
    return options


def signal_lead_s(array: Array, profile: Profile) -> int:
    """How long before its time limit a job is told to save, by the largest checkpoint of its array."""
    largest = max((run.shape.checkpoint_bytes for run in array.runs), default=0)
    return int(save_lead_s(largest, time_limit_hours(profile)))


def setup_lines(profile: Profile, code: Path) -> list[str]:
    """Shell lines that run before the worker: the profile's, and where the study's code is."""
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
    """The worker's interpreter, as a command that a shell may read: one program, or a container's with arguments."""
    return shlex.join(shlex.split(profile.python)) if profile.python else shlex.quote(default)
