"""Final weights: the only part of a run's model that is kept once the run is done.

They can be evaluated, exported and fine-tuned, but the run can't be trained further. Its learning
rate has decayed over a number of steps that was fixed at its start, and another number is another
run. The state of the optimizer, three times their size on disk, is therefore not kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import RunError
from isoflop.files import has_valid_checksum
from isoflop.runs.run_directory import RunDirectory
from isoflop.shapes import ModelShape

if TYPE_CHECKING:
    from torch import nn

    from isoflop.training.model import Decoder


def save_weights(run: RunDirectory, model: nn.Module) -> None:
    """Write `weights.pt`, fp32, with the run's configuration, and then its checksum."""
    from isoflop.training.checkpoint import write_tensors

    write_tensors(run.weights, {"config": run.config(), "model": model.state_dict()})


def load_weights(run: str | os.PathLike[str]) -> Decoder:
    """Return the model of a run that is done, on the CPU, in fp32, in evaluation mode.

    Args:
        run: directory of the run.

    Raises:
        RunError: a run that is not done, whose trainer kept no weights, or with damaged weights.
    """
    import torch

    from isoflop.training.model import Decoder

    directory = RunDirectory(Path(run))
    if not directory.done:
        raise RunError(f"{directory.path}: this run is not done, so it has no final weights")
    if not directory.weights.exists():
        raise RunError(
            f"{directory.weights}: missing; only the builtin trainer keeps the final weights of "
            "its runs"
        )
    if not has_valid_checksum(directory.weights):
        raise RunError(
            f"{directory.weights}: damaged; delete {directory.path} to train the run again"
        )
    saved = torch.load(directory.weights, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=()):  # a new model draws its initial weights
        model = Decoder(ModelShape(**saved["config"]["identity"]["shape"]))
    model.load_state_dict(saved["model"])
    return model.eval()
