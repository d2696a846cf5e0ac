"""The final weights of a run: all that is kept of its model once it is done.

They can be evaluated, exported and fine-tuned, but the run can't be trained further: its learning rate has decayed over
a number of steps that was set at its start, and another number is another run. So the optimizer's state, three times
their size on disk, is not kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import RunError
from isoflop.files import is_sound
from isoflop.runs.run_directory import RunDirectory
from isoflop.shapes import ModelShape

if TYPE_CHECKING:
    from torch import nn

    from isoflop.training.model import Decoder


def save_weights(run: RunDirectory, model: nn.Module) -> None:
    """Writes `weights.pt`, fp32, with the run's configuration beside them, and then its checksum."""
    from isoflop.training.checkpoint import write_tensors

    write_tensors(run.weights, {"config": run.config(), "model": model.state_dict()})


def load_weights(run: str | os.PathLike[str]) -> Decoder:
    """The model of a run that is done, on the CPU, in fp32, to evaluate.

    Args:
        run: the run's directory.

    Raises:
        RunError: a run that is not done, whose trainer kept no weights, or whose weights are damaged.
    """
    import torch

    from isoflop.training.model import Decoder

    directory = RunDirectory(Path(run))
    if not directory.done:
        raise RunError(f"{directory.path}: no run that is done, so it has no final weights")
    if not directory.weights.exists():
        raise RunError(
            f"{directory.weights}: not there; only the builtin trainer keeps the weights of its runs"
        )
    if not is_sound(directory.weights):
        raise RunError(
            f"{directory.weights}: damaged; delete {directory.path} to train the run again"
        )
    saved = torch.load(directory.weights, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=()):  # a model draws its first weights
        model = Decoder(ModelShape(**saved["config"]["identity"]["shape"]))
    model.load_state_dict(saved["model"])
    return model.eval()
