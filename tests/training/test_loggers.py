"""Loggers: they show what the loss log has, and nothing that happens to them changes a run."""

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
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from pandas.testing import assert_frame_equal
from support.studies import (
    EVERY_STEP,
    exact,
    final_weights,
    kill,
    run_of,
    small_disk,
    start,
    tiny_study,
    train_here,
    wait_for,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from wandb.proto import wandb_internal_pb2

from isoflop.errors import ConfigError
from isoflop.launching.prepare_data import train_study
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.planning.plan import Plan, plan
from isoflop.runs.loss_log import log_row
from isoflop.runs.run_directory import RunDirectory
from isoflop.training import loggers
from isoflop.training.loggers import Loggers, WandB
from isoflop.training.loop import Trainer, train

BOTH = "train.loggers=[tensorboard, wandb]"
STEPS = 71
HParamsPluginData: Any = vars(plugin_data_pb2)["HParamsPluginData"]
Record: Any = vars(wandb_internal_pb2)["Record"]
Shown = dict[tuple[str, int], float]
"""Values by name and step."""


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may use W&B too."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


def rows_of(run: RunDirectory) -> Shown:
    """What a logger has to show: the rows of the loss log."""
    wanted: Shown = {}
    for row in run.log().to_dict("records"):
        split, step, whole = row["split"], int(row["step"]), row["kind"] == "all"
        wanted[f"{split}/loss" if whole else f"{split}/loss_{row['kind']}", step] = row["loss"]
        if split == "train" and whole:  # the peak of a CPU, of which mfu is a share, is not known
            wanted |= {
                (f"train/{name}", step): row[name]
                for name in ("lr", "grad_norm", "tokens_per_second")
            }
    return wanted


def tensorboard(run: RunDirectory) -> Shown:
    """What TensorBoard shows of a run, by its own reader; no step may be there twice."""
    reader = EventAccumulator(
        str(run.path / "loggers" / "tensorboard"), size_guidance={"scalars": 0}
    )
    reader.Reload()
    points = [(tag, event) for tag in reader.Tags()["scalars"] for event in reader.Scalars(tag)]
    shown = {(tag, event.step): event.value for tag, event in points}
    assert len(shown) == len(points)
    return shown


def offline_runs(run: RunDirectory) -> list[Path]:
    """What W&B wrote of a run, a file each start, the oldest first."""
    return sorted(
        (run.path / "loggers" / "wandb").glob("offline-run-*/*.wandb"),
        key=lambda path: path.stat().st_mtime,
    )


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log of W&B's messages, in blocks of 32 KiB."""
    content, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        message, at = message + content[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def finished(file: Path) -> list[Any]:
    """The records of an offline run that is over; its process writes the last of them after it has said so."""

    def read() -> list[Any]:
        records = list(wandb_records(file))
        return records if records and records[-1].WhichOneof("record_type") == "exit" else []

    return wait_for(read)


def wandb(file: Path) -> Shown:
    shown: Shown = {}
    for record in finished(file):
        items = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in items.items():
            if "/loss" in name or name.startswith("train/"):
                assert (name, items["_step"]) not in shown
                assert items["trainer/global_step"] == items["_step"]
                shown[name, items["_step"]] = value
    return shown


def assert_shows(shown: Shown, wanted: Shown, *, rel: float) -> None:
    assert shown.keys() == wanted.keys()
    assert shown == pytest.approx(wanted, rel=rel)


def assert_shown(run: RunDirectory) -> None:
    """Both loggers show every row of the log once, the newest of W&B's files alone."""
    assert_shows(tensorboard(run), rows_of(run), rel=1e-6)  # which keeps single precision
    assert_shows(wandb(offline_runs(run)[-1]), rows_of(run), rel=1e-12)


def assert_same_run(run: RunDirectory, other: RunDirectory) -> None:
    assert run.run_id == other.run_id
    assert_frame_equal(exact(run), exact(other), check_exact=True)
    ours, theirs = final_weights(run), final_weights(other)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, RunDirectory]:
    """A run with both loggers that nothing disturbed."""
    root, study = tiny_study(tmp_path_factory.mktemp("logged"), BOTH)
    run = run_of(root, study)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        assert train(run, root) == "done"
    torch.set_num_threads(before)
    return study, run


# What they show


def test_a_run_with_loggers_is_the_run_without(
    logged: tuple[Plan, RunDirectory], whole: tuple[Path, Plan, RunDirectory]
) -> None:
    assert_same_run(logged[1], whole[2])


def test_they_show_the_rows_of_the_log(logged: tuple[Plan, RunDirectory]) -> None:
    assert ("heldout/loss_text", STEPS) in rows_of(logged[1])
    assert_shown(logged[1])


def test_they_know_what_the_run_is(logged: tuple[Plan, RunDirectory]) -> None:
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


def test_only_the_first_process_has_them(study: tuple[Path, Plan]) -> None:
    run = run_of(*study)
    with Loggers(run, run.config() | {"loggers": ["tensorboard", "wandb"]}, first=False) as none:
        none.log([{"step": 1}])
    assert not (run.path / "loggers").exists()


def test_the_first_process_has_them_whatever_its_number_in_slurm(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    run = run_of(*study)
    row = log_row(study[1].runs[0].shape, 1, 7, split="heldout", kind="all", loss=2.5)
    with Loggers(run, run.config() | {"loggers": ["tensorboard", "wandb"]}) as both:
        both.log([row])
    wanted = {("heldout/loss", 7): 2.5}
    assert (tensorboard(run), wandb(offline_runs(run)[0])) == (wanted, wanted)


def test_the_user_decides_whether_wandb_is_offline(
    tmp_path: Path, whole: tuple[Path, Plan, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    root, study = tiny_study(tmp_path, "train.loggers=[wandb]")
    run = run_of(root, study)
    assert train(run, root) == "done"
    assert not offline_runs(run)
    assert_same_run(run, whole[2])


# Stopped, killed, resumed


def test_a_run_that_goes_on_has_every_step_once(
    tmp_path: Path, whole: tuple[Path, Plan, RunDirectory]
) -> None:
    root, study = tiny_study(tmp_path, BOTH)
    run = run_of(root, study)
    for stop in (20, 40):
        trainer = Trainer(run, root)
        assert trainer.train(lambda trainer=trainer, stop=stop: trainer.step == stop) == "pending"
        assert_shown(run)
    assert train(run, root) == "done"
    assert_shown(run)
    assert_same_run(run, whole[2])
    ids = {
        record.run.run_id
        for file in offline_runs(run)
        for record in wandb_records(file)
        if record.run.run_id
    }
    assert len(offline_runs(run)) == 3
    assert len(list((run.path / "loggers" / "tensorboard").iterdir())) == 1
    assert ids == {run.run_id}


def test_a_run_that_is_killed_has_every_step_once(
    tmp_path: Path, whole: tuple[Path, Plan, RunDirectory]
) -> None:
    root, study = tiny_study(tmp_path, EVERY_STEP, BOTH)
    run, moments = run_of(root, study), random.Random(0)
    for step in (5, 40):
        process = start(train_here, run, root)
        wait_for(lambda step=step: run.checkpointed_step() >= step)
        time.sleep(moments.uniform(0, 0.05))
        kill(process)
        assert not run.done
    assert train(run, root) == "done"
    assert_shown(run)
    assert_same_run(run, whole[2])


def test_what_was_logged_before_there_was_a_logger_is_shown_too(tmp_path: Path) -> None:
    root, study = tiny_study(tmp_path)
    run = run_of(root, study)
    trainer = Trainer(run, root)
    assert trainer.train(lambda: trainer.step == 40) == "pending"
    assert not (run.path / "loggers").exists()
    make_directory(plan(tmp_path / "tiny.yaml", [BOTH]), root)
    assert train(run, root) == "done"
    assert_shown(run)


# Failing


def fail_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    def log_metrics(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", log_metrics)


def fail_later(monkeypatch: pytest.MonkeyPatch) -> None:
    log = WandB.log

    def log_until(self: WandB, step: int, metrics: dict[str, float]) -> None:
        if step > 30:
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
    ("fail", "says"),
    [
        (
            fail_tensorboard,
            "tensorboard failed and is left out until the run starts again; training goes on (OSError: ",
        ),
        (fail_later, "(ConnectionError: the network is down)"),
        (fail_at_the_start, "wandb failed and is left out"),
        (
            fail_at_the_end,
            "wandb failed and is left out until the run starts again; training goes on (TimeoutError: ",
        ),
    ],
)
def test_a_logger_that_fails_is_warned_of_once_and_left_out(
    tmp_path: Path,
    whole: tuple[Path, Plan, RunDirectory],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fail: Callable[[pytest.MonkeyPatch], None],
    says: str,
) -> None:
    root, study = tiny_study(tmp_path, BOTH)
    run, other = run_of(root, study), run_of(root, study, 1)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="isoflop"):
        fail(patch)
        assert train(run, root) == "done"
    (warning,) = caplog.messages
    assert says in warning
    assert "\n" not in warning
    assert_same_run(run, whole[2])
    assert train(other, root) == "done"  # in the same process, as a worker does
    assert_shown(other)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_of_loggers_stops_no_run(
    tmp_path: Path, whole: tuple[Path, Plan, RunDirectory]
) -> None:
    root, study = tiny_study(tmp_path, "train.loggers=[tensorboard]")
    run = run_of(root, study)
    with small_disk(tmp_path, "8k") as disk:
        (run.path / "loggers").symlink_to(disk)
        assert train(run, root) == "done"
        assert not tensorboard(run).keys() & {("heldout/loss", STEPS)}
    assert_same_run(run, whole[2])


# Missing


@pytest.fixture(params=[None, "0.9.7"])
def without_wandb(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """W&B is not installed, or in an old version; what that is called."""

    def found(package: str) -> str:
        if package != "wandb":
            return version(package)
        if request.param is None:
            raise PackageNotFoundError(package)
        return request.param

    monkeypatch.setattr(loggers, "version", found)
    return "not installed" if request.param is None else "too old"


def test_a_package_that_is_missing_is_said_before_anything_is_trained(
    tmp_path: Path, study: tuple[Path, Plan], without_wandb: str
) -> None:
    root, made = study
    run = run_of(root, made)
    says = rf"^train\.loggers: wandb is {without_wandb}; leave it out, or: \S+ -m pip install 'wandb>=0\.28'$"
    asked = plan(tmp_path / "tiny.yaml", [BOTH])
    with pytest.raises(ConfigError, match=says):
        train_study(asked, root)
    assert run.config()["loggers"] == []
    make_directory(asked, root)
    for first in (True, False):  # else the others would wait for the first
        with pytest.raises(ConfigError, match=says):
            Loggers(run, run.config(), first)
    assert not (run.path / "loggers").exists()
