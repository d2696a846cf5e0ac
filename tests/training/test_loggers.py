"""Loggers show the rows of the loss log, and their failures change no run."""

from __future__ import annotations

import json
import logging
import random
import struct
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pandas.testing import assert_frame_equal
from support.tiny_studies import (
    EVERY_STEP,
    SHORT,
    exact,
    final_weights,
    find_run,
    kill,
    small_disk,
    start,
    tiny_study,
    train_here,
    wait_for,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from isoflop.errors import ConfigError
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.planning.plan import Plan, plan
from isoflop.runs.loss_log import log_row
from isoflop.runs.run_directory import RunDirectory
from isoflop.studies import train_study
from isoflop.training import loggers
from isoflop.training.fabric import TensorBoardLogger
from isoflop.training.loggers import Loggers, WandB
from isoflop.training.loop import Trainer, train
from isoflop.training.run_config import RunConfig, read_run_config

BOTH = "train.loggers=[tensorboard, wandb]"
STEPS = 22
HParamsPluginData: Any = vars(plugin_data_pb2)["HParamsPluginData"]
Values = dict[tuple[str, int], float]
"""Logged values by name and step."""


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's settings of W&B, who may use it too."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


def expected_values(run: RunDirectory) -> Values:
    """Return the values of the loss log, all of which a logger must show."""
    values: Values = {}
    for row in run.log().to_dict("records"):
        split, step, is_total = row["split"], int(row["step"]), row["kind"] == "all"
        values[f"{split}/loss" if is_total else f"{split}/loss_{row['kind']}", step] = row["loss"]
        if split == "train" and is_total:  # not mfu: the peak FLOP/s of a CPU is not known
            values |= {
                (f"train/{name}", step): row[name]
                for name in ("lr", "grad_norm", "tokens_per_second")
            }
    return values


def tensorboard(run: RunDirectory) -> Values:
    """Return TensorBoard's values of a run, by its own reader; check that no step is repeated."""
    reader = EventAccumulator(
        str(run.path / "loggers" / "tensorboard"), size_guidance={"scalars": 0}
    )
    reader.Reload()
    points = [(tag, event) for tag in reader.Tags()["scalars"] for event in reader.Scalars(tag)]
    values = {(tag, event.step): event.value for tag, event in points}
    assert len(values) == len(points)
    return values


def offline_runs(run: RunDirectory) -> list[Path]:
    """Return W&B's files of a run, one for each start, the oldest first."""
    return sorted(
        (run.path / "loggers" / "wandb").glob("offline-run-*/*.wandb"),
        key=lambda path: path.stat().st_mtime,
    )


def wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: a LevelDB log of W&B's messages in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2  # a second to import

    record_type: Any = vars(wandb_internal_pb2)["Record"]
    content, offset, message = file.read_bytes(), 7, b""
    while offset + 7 <= len(content):
        if (remaining := 2**15 - offset % 2**15) < 7:
            offset += remaining
            continue
        _, size, kind = struct.unpack("<IHB", content[offset : offset + 7])
        offset += 7
        message, offset = message + content[offset : offset + size], offset + size
        if kind in (1, 4):  # a complete message, or its last fragment
            yield record_type.FromString(message)
            message = b""


def finished(file: Path) -> list[Any]:
    """Return the records of a finished offline run.

    W&B's process writes the last of them after it has reported the end.
    """

    def read() -> list[Any]:
        records = list(wandb_records(file))
        return records if records and records[-1].WhichOneof("record_type") == "exit" else []

    return wait_for(read)


def wandb(file: Path) -> Values:
    values: Values = {}
    for record in finished(file):
        items = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in items.items():
            if "/loss" in name or name.startswith("train/"):
                assert (name, items["_step"]) not in values
                assert items["trainer/global_step"] == items["_step"]
                values[name, items["_step"]] = value
    return values


def assert_values(values: Values, expected: Values, *, rel: float) -> None:
    assert values.keys() == expected.keys()
    assert values == pytest.approx(expected, rel=rel)


def assert_complete(run: RunDirectory) -> None:
    """Check that both loggers show every row of the log once, W&B in its newest file alone."""
    expected = expected_values(run)
    assert_values(tensorboard(run), expected, rel=1e-6)  # TensorBoard has single precision
    assert_values(wandb(offline_runs(run)[-1]), expected, rel=1e-12)


def assert_same_run(run: RunDirectory, other: RunDirectory) -> None:
    assert run.run_id == other.run_id
    assert_frame_equal(exact(run), exact(other), check_exact=True)
    weights, other_weights = final_weights(run), final_weights(other)
    assert all(weights[name].equal(other_weights[name]) for name in other_weights)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, RunDirectory]:
    """Train an undisturbed run with both loggers; return its plan and directory."""
    root, study = tiny_study(tmp_path_factory.mktemp("logged"), *SHORT, BOTH)
    run = find_run(root, study)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        assert train(run, root) == "done"
    torch.set_num_threads(before)
    return study, run


# Contents


def test_loggers_change_no_result(
    logged: tuple[Plan, RunDirectory], short_run: tuple[Path, Plan, RunDirectory]
) -> None:
    assert_same_run(logged[1], short_run[2])


def test_they_show_the_rows_of_the_log(logged: tuple[Plan, RunDirectory]) -> None:
    assert ("heldout/loss_text", STEPS) in expected_values(logged[1])
    assert_complete(logged[1])


def test_they_have_the_settings_of_the_run(logged: tuple[Plan, RunDirectory]) -> None:
    study, run = logged
    spec = study.runs[0]
    reader = EventAccumulator(str(run.path / "loggers" / "tensorboard"))
    reader.Reload()
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["lr"].number_value == spec.lr
    assert settings["shape/width"].number_value == spec.width
    experiment = reader.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["heldout/loss"]

    (file,) = offline_runs(run)
    records = finished(file)
    (made,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (made.run_id, made.display_name, made.project) == (run.run_id, run.run_id, "tiny")
    config = {
        item.key: json.loads(item.value_json) for record in records for item in record.config.update
    }
    assert (config["lr"], config["shape"]["width"], config["budget"]) == (
        spec.lr,
        spec.width,
        spec.budget,
    )


def with_both(run: RunDirectory) -> RunConfig:
    """Return a run's configuration with both loggers."""
    return {**read_run_config(run), "loggers": ["tensorboard", "wandb"]}


def test_only_the_first_process_has_loggers(study: tuple[Path, Plan]) -> None:
    run = find_run(*study)
    with Loggers(run, with_both(run), first=False) as inactive:
        inactive.log([{"step": 1}])
    assert not (run.path / "loggers").exists()


def test_the_first_process_has_loggers_whatever_its_rank_in_slurm(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    run = find_run(*study)
    row = log_row(study[1].runs[0].shape, 1, 7, split="heldout", kind="all", loss=2.5)
    with Loggers(run, with_both(run)) as both:
        both.log([row])
    expected = {("heldout/loss", 7): 2.5}
    assert (tensorboard(run), wandb(offline_runs(run)[0])) == (expected, expected)


def test_the_user_decides_whether_wandb_is_offline(
    tmp_path: Path, short_run: tuple[Path, Plan, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    root, study = tiny_study(tmp_path, *SHORT, "train.loggers=[wandb]")
    run = find_run(root, study)
    assert train(run, root) == "done"
    assert not offline_runs(run)
    assert_same_run(run, short_run[2])


# Stopped, killed, resumed


def test_a_resumed_run_has_every_step_once(
    tmp_path: Path, short_run: tuple[Path, Plan, RunDirectory]
) -> None:
    root, study = tiny_study(tmp_path, *SHORT, BOTH)
    run = find_run(root, study)
    for stop in (6, 12):
        trainer = Trainer(run, root)
        assert trainer.train(lambda trainer=trainer, stop=stop: trainer.step == stop) == "pending"
        assert_complete(run)
    assert train(run, root) == "done"
    assert_complete(run)
    assert_same_run(run, short_run[2])
    ids = {
        record.run.run_id
        for file in offline_runs(run)
        for record in wandb_records(file)
        if record.run.run_id
    }
    assert len(offline_runs(run)) == 3
    assert len(list((run.path / "loggers" / "tensorboard").iterdir())) == 1
    assert ids == {run.run_id}


@pytest.mark.slow
def test_a_killed_run_has_every_step_once(
    tmp_path: Path, whole_run: tuple[Path, Plan, RunDirectory]
) -> None:
    root, study = tiny_study(tmp_path, EVERY_STEP, BOTH)
    run, moments = find_run(root, study), random.Random(0)
    for step in (5, 40):
        process = start(train_here, run, root)
        wait_for(lambda step=step: run.checkpointed_step() >= step)
        time.sleep(moments.uniform(0, 0.05))
        kill(process)
        assert not run.done
    assert train(run, root) == "done"
    assert_complete(run)
    assert_same_run(run, whole_run[2])


def test_a_logger_that_is_added_later_shows_earlier_rows(tmp_path: Path) -> None:
    root, study = tiny_study(tmp_path, *SHORT)
    run = find_run(root, study)
    trainer = Trainer(run, root)
    assert trainer.train(lambda: trainer.step == 12) == "pending"
    assert not (run.path / "loggers").exists()
    make_directory(plan(tmp_path / "tiny.yaml", [*SHORT, BOTH]), root)
    assert train(run, root) == "done"
    assert_complete(run)


# Failing


def fail_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    def log_metrics(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", log_metrics)


def fail_later(monkeypatch: pytest.MonkeyPatch) -> None:
    log = WandB.log

    def log_until(self: WandB, step: int, metrics: dict[str, float]) -> None:
        if step > 9:
            raise ConnectionError("the network\nis down")
        log(self, step, metrics)

    monkeypatch.setattr(WandB, "log", log_until)


def fail_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "somehow")


def fail_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(_: WandB) -> None:
        raise TimeoutError("too slow")

    monkeypatch.setattr(WandB, "close", close)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (
            fail_tensorboard,
            "tensorboard failed and is disabled until the run starts again; training continues "
            "(OSError: ",
        ),
        (fail_later, "(ConnectionError: the network is down)"),
        (fail_at_the_start, "wandb failed and is disabled"),
        (
            fail_at_the_end,
            "wandb failed and is disabled until the run starts again; training continues "
            "(TimeoutError: ",
        ),
    ],
)
def test_a_failing_logger_is_reported_once_and_disabled(
    tmp_path: Path,
    short_run: tuple[Path, Plan, RunDirectory],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fail: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    root, study = tiny_study(tmp_path, *SHORT, BOTH)
    run, other = find_run(root, study), find_run(root, study, 1)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="isoflop"):
        fail(patch)
        assert train(run, root) == "done"
    (warning,) = caplog.messages
    assert message in warning
    assert "\n" not in warning
    assert_same_run(run, short_run[2])
    assert train(other, root) == "done"  # in the same process, as in a worker
    assert_complete(other)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_of_the_loggers_stops_no_run(
    tmp_path: Path, short_run: tuple[Path, Plan, RunDirectory]
) -> None:
    root, study = tiny_study(tmp_path, *SHORT, "train.loggers=[tensorboard]")
    run = find_run(root, study)
    with small_disk(tmp_path, "4k") as disk:
        (run.path / "loggers").symlink_to(disk)
        assert train(run, root) == "done"
        assert not tensorboard(run).keys() & {("heldout/loss", STEPS)}
    assert_same_run(run, short_run[2])


# Missing


@pytest.fixture(params=[None, "0.9.7"])
def without_wandb(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Hide W&B, or give it an old version; return the word for that in messages."""

    def installed_version(package: str) -> str:
        if package != "wandb":
            return version(package)
        if request.param is None:
            raise PackageNotFoundError(package)
        return request.param

    monkeypatch.setattr(loggers, "version", installed_version)
    return "not installed" if request.param is None else "too old"


def test_a_missing_package_is_reported_before_any_training(
    tmp_path: Path, study: tuple[Path, Plan], without_wandb: str
) -> None:
    root, made = study
    run = find_run(root, made)
    problem = rf"^train\.loggers: wandb is {without_wandb}; leave it out, or run: "
    command = r"\S+ -m pip install 'wandb>=0\.28'$"
    changed = plan(tmp_path / "tiny.yaml", [BOTH])
    with pytest.raises(ConfigError, match=problem + command):
        train_study(changed, root)
    assert run.config()["loggers"] == []
    make_directory(changed, root)
    for first in (True, False):  # else the others would wait for the first
        with pytest.raises(ConfigError, match=problem + command):
            Loggers(run, read_run_config(run), first)
    assert not (run.path / "loggers").exists()
