"""Losses of SODA's smallest models on this machine's GPU, or else its CPU, for some hundred steps on real tokens.

    python benchmarks/losses.py [--widths 256,384,512] [--seeds 0] [--steps 300] [--data FOLDER] [--csv FILE]

The tokens are those of the pocket corpus (`isoflop prepare sweeps/pocket.yaml`), its bytes and codes at their places in
SODA's vocabulary of 144,644. Steps are short (2 windows of 256 tokens), so that a CPU ends some day. Run it on both
kinds of machine: weights, batches and schedule are the same.
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


def moved(ids: np.ndarray, before: Vocabulary, after: Vocabulary) -> np.ndarray:
    """Ids of one vocabulary as those of a larger one: each keeps its byte or special, or its codebook and code."""
    book, code = np.divmod(np.arange(before.codebooks * before.codebook_size), before.codebook_size)
    places = np.arange(before.size)
    places[[before.bos, before.eos]] = after.bos, after.eos
    places[before.text_size : before.first_audio] = np.arange(after.text_size, after.first_audio)
    places[before.first_audio :] = after.first_audio + book * after.codebook_size + code
    return places[ids]


def write_corpus(study: Plan, source: Path, root: Path) -> None:
    """The corpus in `source`, moved into the study's vocabulary."""
    found = Manifest.read(source)
    ids = build_vocabulary(study.sweep.data.codec, study.sweep.data.text_tokenizer)
    shards = []
    for shard in found.shards:
        tokens = moved(
            np.fromfile(source / shard.file, found.vocabulary.dtype), found.vocabulary, ids
        )
        name = shard.file.removesuffix(".bin")
        shards.append(
            write_shard(data_folder(root, study.sweep.data), name, shard.split, [tokens], 0.0, ids)
        )
    Manifest(ids, tuple(shards), {}, {}).write(data_folder(root, study.sweep.data))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", default="256,384,512")
    parser.add_argument("--seeds", default="0", help="of weights and batches")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--precision", default="auto", help="fp32, bf16, or auto: bf16 on a GPU")
    parser.add_argument(
        "--data", type=Path, help="default: what the pocket sweep has in the folder of runs"
    )
    parser.add_argument("--csv", type=Path, help="all rows of the loss logs as a file")
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
            last = (
                log[(log["kind"] == "all") & (log["step"] == options.steps)]
                .set_index("split")["loss"]
                .to_dict()
            )
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            losses = f"train {last['train']:.4f}, held-out {last['heldout']:.4f}"
            print(
                f"width {width}, seed {seed} on {device}, {options.steps} steps: {losses}",
                flush=True,
            )
    if options.csv:
        pd.concat(rows).to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
