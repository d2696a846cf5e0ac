"""A planned run, and the columns of `plan.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isoflop.recipes import Candidate
from isoflop.shapes import ModelShape

PLAN_COLUMNS: dict[str, type] = {
    "run_id": str,
    "sweep": str,
    "budget": float,
    "width": int,
    "layers": int,
    "heads": int,
    "kv_heads": int,
    "head_dim": int,
    "mlp_width": int,
    "vocab_size": int,
    "seq_len": int,
    "batch_size": int,
    "steps": int,
    "lr": float,
    "beta2": float,
    "seed": int,
    "check": str,
    "tokens": int,
    "train_flops": float,
    "params_total": int,
    "params_one_embedding": int,
    "params_non_embedding": int,
    "epochs": float,
    "gpus": int,
    "nodes": int,
    "est_hours": float,
    "est_gpu_hours": float,
    "est_source": str,
}
"""Columns of `plan.parquet` in order, with their types; `epochs` and the last five may be empty."""


@dataclass(frozen=True)
class RunSpec:
    """One run of a plan: every column of `plan.parquet` is an attribute.

    Attributes:
        run_id: readable prefix and hash of what changes the result (`isoflop.config.identity`).
        sweep: name of the study.
        budget: requested training FLOPs (3 x forward); `train_flops` is that of whole steps.
        shape: the model.
        batch_size: sequences in a step.
        steps: optimizer updates.
        lr: peak learning rate.
        beta2: the optimizer's second decay rate.
        seed: seed of the weights and of the order of samples.
        check: difference from the recipe that the run checks, such as `lr x 0.5`; empty for all
            other runs. The loss of such a run is no point of a profile, and fits leave it out.
        epochs: passes over the source that is repeated most; None if no source's size is known.
        gpus, nodes, est_hours, est_gpu_hours, est_source: set by a bill, else None.
    """

    run_id: str
    sweep: str
    budget: float
    shape: ModelShape
    batch_size: int
    steps: int
    lr: float
    beta2: float
    seed: int
    check: str = ""
    epochs: float | None = None
    gpus: int | None = None
    nodes: int | None = None
    est_hours: float | None = None
    est_gpu_hours: float | None = None
    est_source: str | None = None

    @property
    def width(self) -> int:
        """Return the width of the model."""
        return self.shape.width

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return self.shape.layers

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return self.shape.heads

    @property
    def kv_heads(self) -> int:
        """Return the number of key-value heads."""
        return self.shape.kv_heads

    @property
    def head_dim(self) -> int:
        """Return the size of a head."""
        return self.shape.head_dim

    @property
    def mlp_width(self) -> int:
        """Return the width of the MLP."""
        return self.shape.mlp_width

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.shape.vocab_size

    @property
    def seq_len(self) -> int:
        """Return the tokens in a training window."""
        return self.shape.seq_len

    @property
    def candidate(self) -> Candidate:
        """Training configuration, without budget and seed."""
        return Candidate(self.shape, self.batch_size, self.steps, self.lr, self.beta2)

    @property
    def tokens(self) -> int:
        """Return the training tokens: batch x seq_len x steps."""
        return self.candidate.tokens

    @property
    def train_flops(self) -> int:
        """Training FLOPs of the whole run (3 x forward).

        Exact; a float in tables, because it can exceed 2^63.
        """
        return self.candidate.train_flops

    @property
    def params_total(self) -> int:
        """Return the number of all parameters."""
        return self.shape.params_total

    @property
    def params_one_embedding(self) -> int:
        """Return the number of weights without the head, with one embedding."""
        return self.shape.params_one_embedding

    @property
    def params_non_embedding(self) -> int:
        """Return the number of weights without embedding and head."""
        return self.shape.params_non_embedding

    def row(self) -> dict[str, Any]:
        """Return the run as a row of `plan.parquet`, in the order of PLAN_COLUMNS."""
        row = {name: getattr(self, name) for name in PLAN_COLUMNS}
        row["train_flops"] = float(row["train_flops"])
        return row
