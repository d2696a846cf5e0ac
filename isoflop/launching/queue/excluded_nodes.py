"""Nodes that a study's jobs are kept from: runs failed there and nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from isoflop.config.profile import Profile
from isoflop.launching.queue.sweep_status import Picture

BAD_NODE_RUNS = 3
"""Different runs that failed on a node before it is left out."""


def bad_nodes(picture: Picture) -> tuple[str, ...]:
    """Nodes on which several different runs failed, each of which failed nowhere else, while others get on: where all
    fail everywhere it is not the nodes.
    """
    failed, works = defaultdict[str, list[float]](list), dict[str, float]()
    for where in picture.runs.values():
        at, nodes = where.stored.get("heartbeat", 0.0), set(where.stored.get("failed_on", ()))
        if len(nodes) == 1:
            failed[min(nodes)].append(where.stored.get("failed_time", at))
        gets_on = where.state == "done" or (where.state == "running" and where.node not in nodes)
        if gets_on and where.node:
            works[where.node] = max(at, works.get(where.node, 0.0))
    if not works.keys() - failed.keys():
        return ()
    bad = (
        node
        for node, times in failed.items()
        if len(times) >= BAD_NODE_RUNS and works.get(node, 0.0) < max(times)
    )
    return tuple(sorted(bad))


def with_excluded(profile: Profile, nodes: Sequence[str]) -> Profile:
    """The profile with some nodes left out, beside those that it leaves out itself."""
    if not nodes:
        return profile
    given = str(profile.slurm.get("exclude", ""))
    return replace(
        profile, slurm={**profile.slurm, "exclude": ",".join(filter(None, (given, *nodes)))}
    )
