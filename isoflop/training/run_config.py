"""Types of a run's `config.yaml`, which `launching.records.sweep_directory.run_config` writes."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, cast

from isoflop.runs.run_directory import RunDirectory


class RunSettings(TypedDict):
    """Settings of one run, as the plan has resolved them."""

    run_id: str
    sweep: str
    budget: float
    batch_size: int
    steps: int
    lr: float
    beta2: float
    seed: int


class OptimizerSettings(TypedDict):
    """`train.optimizer` of the sweep: `config.training_schema.Optimizer`."""

    name: str
    beta1: float
    eps: float
    weight_decay: float
    grad_clip: float


class ScheduleSettings(TypedDict):
    """`train.schedule` of the sweep: `config.training_schema.Schedule`."""

    name: str
    warmup: float
    decay: float
    min_lr_ratio: float


class MetricSettings(TypedDict):
    """`metric` of the sweep: `config.schema.Metric`."""

    set: str
    kind: str
    tokens: int


class RunIdentity(TypedDict):
    """Settings that change the result, of which the trainer reads these: `config.run_identity`."""

    shape: dict[str, Any]
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    z_loss: float


class RunConfig(TypedDict):
    """Contents of `config.yaml`; runs of older versions lack the keys that are not required."""

    run: RunSettings
    identity: RunIdentity
    data: str
    metric: MetricSettings
    precision: str
    deterministic: NotRequired[bool]
    evals: int
    log_points: int
    checkpoint_minutes: float
    loggers: NotRequired[list[str]]


def read_run_config(run: RunDirectory) -> RunConfig:
    """Return a run's configuration.

    Raises:
        RunError: a missing or unreadable file.
    """
    return cast(RunConfig, run.config())
