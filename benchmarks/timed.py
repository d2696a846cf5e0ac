"""Time and memory of a function in this process; needs no package, since it measures peers too."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def measure(work: Callable[[], object], repeats: int) -> None:
    """Print the medians of wall and CPU time in s, and the growth of peak memory in MiB, as JSON.

    With more than one repeat, a first call does not count.
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
    """Return the peak memory so far in KiB.

    Linux's /proc counts from the start of a program; `getrusage` includes the parent's peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(
        int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")
    )


def _cpu() -> float:
    """Return the CPU time in s of this process and of its ended children."""
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, processes))
