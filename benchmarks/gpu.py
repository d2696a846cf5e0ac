"""Measure speed and memory of a sweep's models on one GPU, on random tokens.

    python benchmarks/gpu.py [--widths 256,768] [--deterministic 768] [--most-sequences 16]
                             [--json FILE]

Each width is measured by its run of the smallest budget, and those of `--deterministic` once more
with `train.deterministic=true`. The table has the planner's estimate beside the measured memory.
The first line has the share of the GPU's peak that one large bf16 product reaches, as a bound for
the models' MFU.
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

MATRIX_SIZE = 8192


def measure_product_mfu() -> float:
    """Return the share of the GPU's peak that a bf16 product of square matrices reaches."""
    shape, options = (MATRIX_SIZE, MATRIX_SIZE), {"device": "cuda", "dtype": torch.bfloat16}
    a, b = (torch.randn(shape, **options) for _ in range(2))
    for _ in range(5):
        _ = a @ b
    torch.cuda.synchronize()
    start, repeats = time.perf_counter(), 50
    for _ in range(repeats):
        _ = a @ b
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    gpu = find_gpu(torch.cuda.get_device_name())
    return repeats * 2 * MATRIX_SIZE**3 / seconds / (gpu.peak_flops if gpu else float("nan"))


def measure_model(
    study: Plan, spec: RunSpec, root: Path, sequences: int, seconds: float, deterministic: bool
) -> Measurement:
    """Measure a run's model; its weights are drawn on the GPU, faster than on the CPU."""
    config = run_config(study.sweep, spec)
    config["deterministic"] = deterministic
    config["run"].update(steps=MANY_STEPS, batch_size=min(spec.batch_size, sequences))
    run = RunDirectory(root / f"{deterministic}" / spec.run_id)
    run.create(config)
    with torch.device("cuda"):
        return measure(run, root, seconds)


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of a list with commas."""
    return [int(number) for number in text.split(",") if number]


def main() -> None:
    """Print a row for each width."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", default="soda")
    parser.add_argument("--widths", help="default: all of the sweep")
    parser.add_argument(
        "--deterministic", default="", help="widths to measure with deterministic kernels too"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="approximate time of each measurement"
    )
    parser.add_argument(
        "--most-sequences", type=int, default=16, help="largest batch of a measured step"
    )
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no GPU")
    study = plan(options.sweep)
    runs = {run.width: run for run in reversed(study.runs)}
    widths = parse_numbers(options.widths) if options.widths else sorted(runs)
    cases = [(width, False) for width in widths]
    cases += [(width, True) for width in parse_numbers(options.deterministic)]
    product = f"a large bf16 product: {measure_product_mfu():.2f}"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {product}")
    heads = ("width", "params", "batch", "at once", "tokens/s", "MFU", "GB", "estimate", "s")
    print("".join(f"{head:>10}" for head in heads))
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(study.sweep, Path(folder), options.most_sequences)
        for width, deterministic in cases:
            start, spec = time.perf_counter(), runs[width]
            row = measure_model(
                study, spec, Path(folder), options.most_sequences, options.seconds, deterministic
            )
            measurements.append(row)
            cells = (
                width,
                f"{spec.params_total / 1e6:.0f}M",
                row.batch_size,
                row.micro_batch,
                f"{row.tokens_per_second:,.0f}",
                f"{row.mfu or float('nan'):.3f}",
                f"{row.memory_bytes / 1e9:.1f}",
                f"{estimate_memory_bytes(row.shape, row.micro_batch, row.checkpointing) / 1e9:.1f}",
                f"{time.perf_counter() - start:.1f}",
            )
            print(
                "".join(f"{cell:>10}" for cell in cells),
                "deterministic" if deterministic else "",
                flush=True,
            )
            gc.collect()
    if options.json:
        rows = [dataclasses.asdict(row) for row in measurements]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
