"""Measure submission, status and cancel on a cluster, for 64 and 5,000 runs with simulated losses.

    python benchmarks/submission.py --cluster slurm/testbed.yaml

Times each command once a size and, right after it, `python -c pass`: their ratio is comparable on a
busy machine. Much of a submission is disk time, a folder and three small files for each run; the
row `disk` times that alone. The goals: submitting 64 runs in 3 s and 5,000 in 20 s, status in 1 s
and 5 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (64, 5000)
WIDTHS = 20
ISOFLOP = [sys.executable, "-c", "from isoflop.cli import main; main()"]


def write_sweep(folder: Path, runs: int) -> Path:
    """Write a sweep of at least `runs` runs, without dropped ones; return its path."""
    budgets = ", ".join(f"{1e18 * 1.01**i:.6e}" for i in range(-(-runs // WIDTHS)))
    path = folder / f"runs-{runs}.yaml"
    path.write_text(
        f"recipe: soda\nseq_len: 4096\nbudgets: [{budgets}]\n"
        "widths: [{start: 256, stop: 1472, step: 64}]\n"
        "data:\n  codec: mimi\n  text_tokenizer: stanford-crfm/marin-tokenizer\n"
        "  mixture: {speech: 1.0}\n"
        "train: {trainer: {simulated: soda}}\n"
    )
    return path


def time_command(*command: str) -> float:
    """Return the wall time of a command in s; exit with its error if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def time_disk(folder: Path, runs: int) -> float:
    """Return the time in s to write the folders and files of a submission."""
    start = time.perf_counter()
    for run in range(runs):
        final, temporary = folder / f"disk-{runs}-{run}", folder / f".disk-{runs}-{run}.tmp"
        temporary.mkdir()
        for name, size in (("config.yaml", 1500), ("provenance.json", 800), ("state.json", 80)):
            (temporary / name).write_text("x" * size)
        temporary.rename(final)
    return time.perf_counter() - start


def print_row(name: str, runs: int, seconds: float) -> None:
    """Print a time and its ratio to that of `python -c pass`."""
    bare = time_command(sys.executable, "-c", "pass")
    print(f"{name:<10}{runs:>7,}{seconds:>8.2f}{seconds / bare:>18.0f}", flush=True)


def main() -> None:
    """Print the times of all commands for both sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cluster", required=True, help="cluster profile; its root is not used")
    cluster = parser.parse_args().cluster
    print(f"{'command':<10}{'runs':>7}{'s':>8}{'x python -c pass':>18}")
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "cluster.yaml"
        text = Path(cluster).read_text()
        profile.write_text(
            "\n".join(line for line in text.splitlines() if not line.startswith("root:"))
        )
        with profile.open("a") as file:
            file.write(f"\nroot: {folder}/runs\n")
        for runs in SIZES:
            sweep = write_sweep(Path(folder), runs)
            directory = f"{folder}/runs/{sweep.stem}"
            print_row("disk", runs, time_disk(Path(folder), runs))
            for command in (
                ["submit", str(sweep), "--cluster", str(profile), "--yes"],
                ["status", directory],
                ["submit", str(sweep), "--cluster", str(profile), "--yes"],
                ["cancel", directory],
            ):
                print_row(command[0], runs, time_command(*ISOFLOP, *command))


if __name__ == "__main__":
    main()
