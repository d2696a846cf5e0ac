"""Time and memory of a piece of work in this process; needs no package, since peers are measured with it, too."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def measure(work: Callable[[], object], repeats: int) -> None:
    """Prints the medians of wall and CPU time in s, and the peak of memory beyond that before in MiB.

    With more than one repeat there is one before them that is not counted.
    """
    before = _peak_kib()
    times = []
    if repeats > 1:
        work()
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), _cpu()
        work()
        times.append((time.perf_counter() - wall, _cpu() - cpu))
    peak = _peak_kib() - before
    seconds, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mib": peak / 1024.0}))


def _peak_kib() -> int:
    """The most memory so far; Linux counts it anew for a program, `getrusage` goes on from the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(
        int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")
    )


def _cpu() -> float:
    """Of this process and of the ones it started and waited for."""
    of = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, of))
