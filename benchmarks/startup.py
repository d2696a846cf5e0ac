"""Measure start-up: `isoflop --help`, SODA's plan, a plan of 10,000 runs with and without a bill.

    python benchmarks/startup.py

Prints the median of five and its ratio to the median of `python -c pass`, timed in turn with it:
the ratio is comparable on a busy machine. The goals are 0.3 s, 1 s and, for 10,000 runs, 3 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
RUN = "import sys; from isoflop.cli import {0}; {0}(sys.argv[1:])"


def time_command(command: list[str]) -> float:
    """Return the wall time of a command in s."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def write_large_sweep(folder: Path) -> Path:
    """Write a sweep of 400 budgets and 25 widths, without dropped runs; return its path."""
    budgets = ", ".join(f"{1e18 * 1.012**i:.6e}" for i in range(400))
    path = folder / "large.yaml"
    path.write_text(
        f"recipe: soda\nseq_len: 4096\nbudgets: [{budgets}]\n"
        "widths: [{start: 256, stop: 1792, step: 64}]\n"
        "data:\n  codec: mimi\n  text_tokenizer: stanford-crfm/marin-tokenizer\n"
        "  mixture: {speech: 1.0}\n"
    )
    return path


def main() -> None:
    """Print the times of all commands."""
    with tempfile.TemporaryDirectory() as folder:
        large = str(write_large_sweep(Path(folder)))
        commands = {
            "isoflop --help": (RUN.format("main"), "--help"),
            "sweep-plan soda": (RUN.format("sweep_plan"), "soda"),
            "sweep-plan soda, bill": (RUN.format("sweep_plan"), "soda", "--cluster", "h100"),
            "sweep-plan, 10,000 runs": (RUN.format("sweep_plan"), large),
            "10,000 runs, bill": (RUN.format("sweep_plan"), large, "--cluster", "h100"),
        }
        print(f"{'command':<24}{'median s':>10}{'x python -c pass':>18}")
        for name, arguments in commands.items():
            times, bare = [], []
            for _ in range(REPEATS):
                bare.append(time_command([sys.executable, "-c", "pass"]))
                times.append(time_command([sys.executable, "-c", *arguments]))
            median = statistics.median(times)
            print(f"{name:<24}{median:>10.3f}{median / statistics.median(bare):>18.1f}")


if __name__ == "__main__":
    main()
