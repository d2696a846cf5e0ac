"""Nodes excluded from a study's jobs: several runs failed there and nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from isoflop.config.profile import Profile
from isoflop.launching.queue.sweep_status import SweepStatus

MIN_FAILED_RUNS = 3
"""Number of different runs that must fail on a node before the node is excluded."""


def find_bad_nodes(sweep: SweepStatus) -> tuple[str, ...]:
    """Return nodes on which several different runs failed that failed on no other node.

    A node counts only if runs progress on another one: if runs fail everywhere, the nodes are not
    the cause. Progress on the node after its last failure clears it.
    """
    failed, works = defaultdict[str, list[float]](list), dict[str, float]()
    for run in sweep.runs.values():
        at, nodes = run.stored.get("heartbeat", 0.0), set(run.stored.get("failed_on", ()))
        if len(nodes) == 1:
            failed[min(nodes)].append(run.stored.get("failed_time", at))
        progresses = run.state == "done" or (run.state == "running" and run.node not in nodes)
        if progresses and run.node:
            works[run.node] = max(at, works.get(run.node, 0.0))
    if not works.keys() - failed.keys():
        return ()
    bad = (
        node
        for node, times in failed.items()
        if len(times) >= MIN_FAILED_RUNS and works.get(node, 0.0) < max(times)
    )
    return tuple(sorted(bad))


def exclude_nodes(profile: Profile, nodes: Sequence[str]) -> Profile:
    """Return the profile with `nodes` added to its own excluded nodes."""
    if not nodes:
        return profile
    configured = str(profile.slurm.get("exclude", ""))
    exclude = ",".join(filter(None, (configured, *nodes)))
    return replace(profile, slurm={**profile.slurm, "exclude": exclude})
