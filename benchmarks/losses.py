"""Measure losses of SODA's smallest models for some hundred steps on real tokens.

    python benchmarks/losses.py [--widths 256,384,512] [--seeds 0] [--steps 300]
                                [--data FOLDER] [--csv FILE]

Trains on this machine's GPU, or else on its CPU. The tokens are those of the pocket corpus
(`isoflop prepare sweeps/pocket.yaml`), as ids of SODA's vocabulary of 144,644. Steps are short
(2 windows of 256 tokens) for the sake of CPUs. Run it on both kinds of machine: weights, batches
and schedule are the same.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from isoflop.data.prepare import data_folder
from isoflop.data.shards import Manifest, write_shard
from isoflop.data.vocabulary import Vocabulary, build_vocabulary
from isoflop.launching.records.sweep_directory import run_config, runs_root
from isoflop.planning.plan import Plan, plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.loop import train

SEQUENCES, SEQ_LEN, LEARNING_RATE = 2, 256, 1e-3


def convert_ids(ids: np.ndarray, before: Vocabulary, after: Vocabulary) -> np.ndarray:
    """Return ids of one vocabulary as ids of a larger one.

    Each keeps its byte or special token, or its codebook and code.
    """
    book, code = np.divmod(np.arange(before.codebooks * before.codebook_size), before.codebook_size)
    table = np.arange(before.size)
    table[[before.bos, before.eos]] = after.bos, after.eos
    table[before.text_size : before.first_audio] = np.arange(after.text_size, after.first_audio)
    table[before.first_audio :] = after.first_audio + book * after.codebook_size + code
    return table[ids]


def write_corpus(study: Plan, source: Path, root: Path) -> None:
    """Write the corpus in `source` with the study's vocabulary."""
    manifest = Manifest.read(source)
    folder = data_folder(root, study.sweep.data)
    ids = build_vocabulary(study.sweep.data.codec, study.sweep.data.text_tokenizer)
    shards = []
    for shard in manifest.shards:
        tokens = np.fromfile(source / shard.file, manifest.vocabulary.dtype)
        tokens = convert_ids(tokens, manifest.vocabulary, ids)
        name = shard.file.removesuffix(".bin")
        shards.append(write_shard(folder, name, shard.split, [tokens], 0.0, ids))
    Manifest(ids, tuple(shards), {}, {}).write(folder)


def main() -> None:
    """Train the models and print their last losses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", default="256,384,512")
    parser.add_argument("--seeds", default="0", help="of weights and batches")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--precision", default="auto", help="fp32, bf16, or auto: bf16 on a GPU")
    parser.add_argument(
        "--data", type=Path, help="default: the pocket sweep's corpus in the folder of runs"
    )
    parser.add_argument("--csv", type=Path, help="file for all rows of the loss logs")
    options = parser.parse_args()
    source = options.data or data_folder(runs_root(), plan("pocket").sweep.data)
    study = plan("soda", [f"metric.tokens={16 * SEQ_LEN}", f"train.precision={options.precision}"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(study, source, Path(folder))
        cases = itertools.product(
            map(int, options.widths.split(",")), map(int, options.seeds.split(","))
        )
        for width, seed in cases:
            spec = next(run for run in study.runs if run.width == width)
            config = run_config(study.sweep, spec)
            config["run"].update(
                steps=options.steps, batch_size=SEQUENCES, lr=LEARNING_RATE, seed=seed
            )
            config["identity"]["shape"]["seq_len"] = SEQ_LEN
            config["metric"]["set"] = "heldout"
            run = RunDirectory(Path(folder) / study.sweep.name / f"{spec.run_id}-{seed}")
            run.create(config)
            train(run, Path(folder))
            log = run.log().assign(width=width, seed=seed)
            rows.append(log)
            last_rows = log[(log["kind"] == "all") & (log["step"] == options.steps)]
            last = last_rows.set_index("split")["loss"]
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            losses = f"train {last['train']:.4f}, held-out {last['heldout']:.4f}"
            label = f"width {width}, seed {seed} on {device}, {options.steps} steps"
            print(f"{label}: {losses}", flush=True)
    if options.csv:
        pd.concat(rows).to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
