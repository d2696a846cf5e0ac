"""Speed and memory of a sweep's models on one GPU: of each width the run of the smallest budget, on random tokens.

    python benchmarks/gpu.py [--widths 256,768] [--deterministic 768] [--most-sequences 16] [--json FILE]

The widths of `--deterministic` are measured once more with `train.deterministic=true`. Beside the memory that was
measured stands the planner's estimate, and beside the models' share of the GPU's peak that of one large bf16 product,
the most that this GPU gave on the day.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from isoflop.launching.calibrate import MANY_STEPS, write_tokens
from isoflop.launching.records.sweep_directory import run_config
from isoflop.planning.calibration import Measurement
from isoflop.planning.gpu_specs import find_gpu
from isoflop.planning.plan import Plan, plan
from isoflop.planning.run_spec import RunSpec
from isoflop.planning.sizing import estimate_memory_bytes
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.throughput import measure

SIDE = 8192


def product_share() -> float:
    """Share of the peak of a bf16 product of random square matrices."""
    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        _ = left @ right
    torch.cuda.synchronize()
    began, times = time.perf_counter(), 50
    for _ in range(times):
        _ = left @ right
    torch.cuda.synchronize()
    gpu = find_gpu(torch.cuda.get_device_name())
    return (
        times
        * 2
        * SIDE**3
        / (time.perf_counter() - began)
        / (gpu.peak_flops if gpu else float("nan"))
    )


def measured(
    study: Plan, spec: RunSpec, root: Path, sequences: int, seconds: float, deterministic: bool
) -> Measurement:
    """One class, its weights drawn on the GPU, which is quicker than on the CPU."""
    config = run_config(study.sweep, spec)
    config["deterministic"] = deterministic
    config["run"].update(steps=MANY_STEPS, batch_size=min(spec.batch_size, sequences))
    run = RunDirectory(root / f"{deterministic}" / spec.run_id)
    run.create(config)
    with torch.device("cuda"):
        return measure(run, root, seconds)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", default="soda")
    parser.add_argument("--widths", help="default: all of the sweep")
    parser.add_argument("--deterministic", default="", help="widths to measure so too")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="how long each class is timed, about"
    )
    parser.add_argument(
        "--most-sequences", type=int, default=16, help="in a step, of larger batches"
    )
    parser.add_argument("--json", type=Path, help="the measurements as a file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU here")
    study = plan(options.sweep)
    runs = {run.width: run for run in reversed(study.runs)}
    widths = numbers(options.widths) if options.widths else sorted(runs)
    wanted = [(width, False) for width in widths] + [
        (width, True) for width in numbers(options.deterministic)
    ]
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a large bf16 product: {product_share():.2f}"
    )
    heads = ("width", "params", "batch", "at once", "tokens/s", "MFU", "GB", "estimate", "s")
    print("".join(f"{head:>10}" for head in heads))
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(study.sweep, Path(folder), options.most_sequences)
        for width, deterministic in wanted:
            began, spec = time.perf_counter(), runs[width]
            one = measured(
                study, spec, Path(folder), options.most_sequences, options.seconds, deterministic
            )
            found.append(one)
            cells = (
                width,
                f"{spec.params_total / 1e6:.0f}M",
                one.batch_size,
                one.micro_batch,
                f"{one.tokens_per_second:,.0f}",
                f"{one.mfu or float('nan'):.3f}",
                f"{one.memory_bytes / 1e9:.1f}",
                f"{estimate_memory_bytes(one.shape, one.micro_batch, one.checkpointing) / 1e9:.1f}",
                f"{time.perf_counter() - began:.1f}",
            )
            print(
                "".join(f"{cell:>10}" for cell in cells),
                "deterministic" if deterministic else "",
                flush=True,
            )
            gc.collect()
    if options.json:
        options.json.write_text(
            json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
