"""Preparation of a sweep's data, made and checked before any run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from isoflop.config import Sweep
from isoflop.data.prepare import prepare
from isoflop.data.shards import Manifest, Windows
from isoflop.data.vocabulary import TokenKind
from isoflop.errors import DataError
from isoflop.launching.records.sweep_directory import sweep_directory
from isoflop.runs.run_directory import RunDirectory


def prepare_data(
    sweep: Sweep, root: Path, on_data: Callable[[int, float], None] | None = None
) -> None:
    """Make the data that a sweep's trainer reads, and check it before any run begins.

    Args:
        sweep: the sweep.
        root: folder of runs; the data goes into its subfolder `data`.
        on_data: called with the progress of the data.

    Raises:
        DataError: data that can't be made, damaged shards, splits that are too small, no target
            tokens of the metric's kind, or other data than the sweep's runs began with.
    """
    kind, argument = sweep.train.program
    if kind == "builtin" or (kind == "command" and "{data_dir}" in argument):
        folder = prepare(root, sweep.data, progress=on_data)
        if kind == "builtin":
            manifest, metric = Manifest.read(folder), sweep.metric
            _check_same_data(sweep_directory(sweep, root), folder, manifest)
            Windows(folder, "train", sweep.seq_len, manifest)
            heldout = Windows(folder, metric.set, sweep.seq_len, manifest)
            if metric.kind != "all":
                targets = heldout[heldout.spread(metric.tokens)][:, 1:]
                if not (manifest.vocabulary.kinds[targets] == TokenKind[metric.kind.upper()]).any():
                    raise DataError(
                        f"{folder}: no {metric.kind} tokens among the {targets.size:,} measured "
                        f"tokens of split {metric.set!r}; raise metric.tokens"
                    )


def _check_same_data(directory: Path, folder: Path, manifest: Manifest) -> None:
    """Raise DataError if runs of the sweep began with other tokens: their losses don't compare."""
    for file in sorted(directory.glob("[!.]*/state.json")):
        run = RunDirectory(file.parent)
        began_with = run.state().get("data_checksum", manifest.checksum)
        if began_with != manifest.checksum:
            raise DataError(
                f"{folder}: its checksum is {manifest.checksum[:12]}, {run.run_id} of this sweep "
                f"began with {began_with[:12]}; restore that data, or give the sweep another name "
                "(name=...)"
            )
