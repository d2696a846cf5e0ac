"""Times of submission, status and cancel on a cluster, for 64 and for 5,000 runs with simulated losses.

    python benchmarks/submission.py --cluster slurm/testbed.yaml

Each command is timed once a size, beside `python -c pass` timed right after, so that figures from a busy machine can
be compared; of a submission much is what the disk takes to make a folder and three small files for each run, which is
timed alone. The goals: submitting 64 runs in 3 s and 5,000 in 20 s, status in 1 s and 5 s.
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
    """A sweep of so many runs or a few more, none of which is dropped."""
    budgets = ", ".join(f"{1e18 * 1.01**i:.6e}" for i in range(-(-runs // WIDTHS)))
    path = folder / f"runs-{runs}.yaml"
    path.write_text(
        f"recipe: soda\nseq_len: 4096\nbudgets: [{budgets}]\nwidths: [{{start: 256, stop: 1472, step: 64}}]\n"
        "data:\n  codec: mimi\n  text_tokenizer: stanford-crfm/marin-tokenizer\n  mixture: {speech: 1.0}\n"
        "train: {trainer: {simulated: soda}}\n"
    )
    return path


def seconds(*command: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def seconds_of_disk(folder: Path, runs: int) -> float:
    """To make as many folders with as many files as a submission does."""
    start = time.perf_counter()
    for run in range(runs):
        made, part = folder / f"disk-{runs}-{run}", folder / f".disk-{runs}-{run}.tmp"
        part.mkdir()
        for name, size in (("config.yaml", 1500), ("provenance.json", 800), ("state.json", 80)):
            (part / name).write_text("x" * size)
        part.rename(made)
    return time.perf_counter() - start


def show(what: str, runs: int, took: float) -> None:
    bare = seconds(sys.executable, "-c", "pass")
    print(f"{what:<10}{runs:>7,}{took:>8.2f}{took / bare:>18.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cluster", required=True, help="a cluster profile; its root is not used")
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
            show("disk", runs, seconds_of_disk(Path(folder), runs))
            for command in (
                ["submit", str(sweep), "--cluster", str(profile), "--yes"],
                ["status", directory],
                ["submit", str(sweep), "--cluster", str(profile), "--yes"],
                ["cancel", directory],
            ):
                show(command[0], runs, seconds(*ISOFLOP, *command))


if __name__ == "__main__":
    main()
