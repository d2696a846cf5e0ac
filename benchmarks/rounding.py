"""Measure the effect of rounding on losses: small runs in one and two processes, fp32 and bf16.

    python benchmarks/rounding.py [--widths 12,24,40] [--budget 8e10] [--seeds 0,1] [--root runs]

Runs on CPUs. The tokens are those of the pocket corpus (`isoflop prepare sweeps/pocket.yaml`). Two
processes take the same batches as one and add gradients in another order. Compare their difference
at the end with the difference between seeds.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import pandas as pd

from isoflop.launching.records.sweep_directory import make_directory, runs_root
from isoflop.planning.plan import plan
from isoflop.runs.run_directory import RunDirectory


def train_rank(run: RunDirectory, root: Path, rank: int, size: int) -> None:
    """Train a run as process `rank` of `size`."""
    import torch
    import torch.distributed as dist

    from isoflop.training.distributed import connect
    from isoflop.training.loop import train

    torch.set_num_threads(1)
    store = dist.FileStore(str(run.path / "meeting"), size)
    train(run, root, ranks=connect(store, rank, size, rank))


def last_loss(run: RunDirectory, root: Path, size: int) -> float:
    """Train a run with `size` processes; return its held-out loss after the last step."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=train_rank, args=(run, root, rank, size)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"{run.run_id}: a process ended with {process.exitcode}")
    return float(run.log().query("split == 'heldout' and kind == 'all'")["loss"].iloc[-1])


def main() -> None:
    """Print the losses as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", default="12,24,40")
    parser.add_argument("--budget", default="8e10")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument(
        "--root", type=Path, default=runs_root(), help="folder of runs with the corpus"
    )
    options = parser.parse_args()
    grid = [f"budgets=[{options.budget}]", f"widths=[{options.widths}]", f"seeds=[{options.seeds}]"]
    more = ["train.batch_scale=2", "metric.tokens=131072"]  # an even batch, for two processes
    rows = []
    for precision in ("fp32", "bf16"):
        for size in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                (root / "data").symlink_to(options.root.resolve() / "data")
                study = plan("pocket", [*grid, *more, f"train.precision={precision}"])
                directory = make_directory(study, root)
                for spec in study.runs:
                    loss = last_loss(RunDirectory(directory / spec.run_id), root, size)
                    rows.append(
                        {
                            "width": spec.width,
                            "seed": spec.seed,
                            "batch": spec.batch_size,
                            "steps": spec.steps,
                            "how": f"{precision} x {size}",
                            "loss": loss,
                        }
                    )
    table = pd.DataFrame(rows).pivot(
        index=["width", "seed", "batch", "steps"], columns="how", values="loss"
    )
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
