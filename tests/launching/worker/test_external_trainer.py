"""Trainer `command`: studies trained by any program. The programs are real and tiny."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from support.tiny_studies import SWEEP, kill, meet_at, start, tiny_plan, wait_for

from isoflop.config import load_sweep
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import ConfigError, RunError
from isoflop.launching.control import newest_log
from isoflop.launching.records import code_snapshot
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker import external_trainer
from isoflop.launching.worker.attempt import attempt
from isoflop.launching.worker.external_losses import read_rows, write_loss_log
from isoflop.launching.worker.external_trainer import run_command, template_values
from isoflop.launching.worker.slurm_job import RunJob
from isoflop.lease import LeaseLostError
from isoflop.planning.plan import Plan
from isoflop.planning.trainers import RUN_FIELDS, TEMPLATE_FIELDS
from isoflop.runs.loss_log import LOG_COLUMNS, log_row
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.runs.runs_table import read_runs
from isoflop.shapes import ModelShape

STEPS = 71
"""Of the tiny study's first run."""

SHAPE = ModelShape(64, 2, 1, 1, 64, 256, 1000, 128)

WHOLE = """
import json, sys
steps, file = int(sys.argv[1]), sys.argv[2]
with open(file, "w") as losses:
    for step in (1, 10, steps):
        print(json.dumps({"step": step, "loss": 6 - step / 100, "lr": 0.5}), file=losses)
    for kind, loss in (("all", 5.25), ("text", 5.0)):
        row = {"step": steps, "split": "heldout", "kind": kind, "loss": loss}
        print(json.dumps(row), file=losses)
"""

TABLE = """
import csv, sys
steps, file = int(sys.argv[1]), sys.argv[2].replace(".jsonl", ".csv")
with open(file, "w", newline="") as losses:
    table = csv.writer(losses)
    table.writerow(["step", "loss", "split", "kind", "lr"])
    table.writerows([step, 6 - step / 100, "", "", 0.5] for step in (1, 10, steps))
    losses = (("all", 5.25), ("text", 5.0))
    table.writerows([steps, loss, "heldout", kind, ""] for kind, loss in losses)
"""

PARTS = """
import json, os, signal, sys, time
steps, file = int(sys.argv[1]), sys.argv[2]
begin = len(open(file).readlines()) if os.path.exists(file) else 0
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
with open(file, "a", buffering=1) as losses:
    for step in range(begin + 1, steps + 1):
        print(json.dumps({"step": step, "loss": 6.0, "wall_s": begin}), file=losses)
        while begin == 0 and step == 20 and not stop:
            time.sleep(0.001)
        if stop:
            print("saved", file=sys.stderr)
            sys.exit(0)
    print(json.dumps({"step": steps, "split": "heldout", "loss": 5.25}), file=losses)
"""
"""Resumes from its own losses; the first time it waits at step 20 to be stopped."""

DEAF = """
import os, signal, sys, time
child = os.fork()
if child == 0 or WHO == "both":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if child:
    open(os.environ["ISOFLOP_RUN_DIR"] + "/processes", "w").write(f"{os.getpid()} {child}")
    open(sys.argv[2], "w").write('{"step": 1, "loss": 6.0}\\n')
end = time.monotonic() + 20
while time.monotonic() < end:
    time.sleep(0.1)
"""
"""Two processes of which one does not listen to SIGTERM, or both."""


@dataclass(frozen=True)
class Trained:
    """Study whose trainer is a program in a file."""

    plan: Plan
    directory: Path

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.directory / self.plan.runs[0].run_id)

    def attempt(self, should_stop: Callable[[], bool] = lambda: False) -> State:
        return attempt(self.run, should_stop, None)


Program = Callable[..., Trained]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a maker of studies of a program, called with its steps and its file of losses."""
    monkeypatch.setattr(external_trainer, "PROGRAM_POLL_S", 0.005)
    monkeypatch.setattr(external_trainer, "LATE_SIGNAL_S", 0.1)
    monkeypatch.setattr(code_snapshot, "PACKAGE", tmp_path)  # without a checkout for git to compare

    def program(text: str, arguments: str = "{steps} {losses}", root: str = "runs") -> Trained:
        (tmp_path / "program.py").write_text(text)
        command = f"{shlex.join([sys.executable, '-IS', str(tmp_path / 'program.py')])} {arguments}"
        plan = tiny_plan(tmp_path, f"train.trainer=command: {command}")
        return Trained(plan, make_directory(plan, tmp_path / root))

    return program


def writes(*lines: str) -> str:
    """Return a program that writes these lines to its losses."""
    return f"import sys\nopen(sys.argv[2], 'w').write({''.join(lines)!r})\n"


def tabulates(*lines: str) -> str:
    """Return a program that writes these lines to its table of losses."""
    return writes(*lines).replace("sys.argv[2]", "sys.argv[2][:-5] + 'csv'")


def loss(step: object = STEPS, value: object = 5.25, **more: object) -> str:
    return json.dumps({"step": step, "loss": value, **more}) + "\n"


HELDOUT = loss(split="heldout")


def alive(run: RunDirectory) -> list[str]:
    """Return the running processes of a program."""
    processes = []
    for process in (run.path / "processes").read_text().split():
        stat = Path("/proc", process, "stat")
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends while it is looked at
            if stat.read_text().rpartition(")")[2].split()[0] != "Z":
                processes.append(str(stat))
    return processes


WITHOUT = "the program ended without a loss of split heldout, kind all, step 71"


# The program's losses


@pytest.mark.parametrize("text", [WHOLE, TABLE], ids=["JSONL", "CSV"])
def test_what_a_program_writes_is_the_run_s_loss_log(program: Program, text: str) -> None:
    study = program(text)
    assert study.attempt() == "done"
    log, spec = study.run.log(), study.plan.runs[0]
    assert list(log.columns) == list(LOG_COLUMNS)
    rows = log[["step", "split", "kind", "loss"]].to_numpy().tolist()
    assert sorted(rows) == sorted(
        [
            [1, "train", "all", 5.99],
            [10, "train", "all", 5.9],
            [STEPS, "train", "all", 5.29],
            [STEPS, "heldout", "all", 5.25],
            [STEPS, "heldout", "text", 5.0],
        ]
    )
    assert log["step"].is_monotonic_increasing
    np.testing.assert_array_equal(log["tokens"], log["step"] * spec.batch_size * 32)
    np.testing.assert_allclose(
        log["train_flops"] / spec.train_flops, log["step"] / STEPS, rtol=1e-12
    )
    assert log.query("split == 'train'")["lr"].tolist() == [0.5] * 3
    assert log.query("split == 'heldout'")["lr"].isna().tolist() == [True] * 2
    table = read_runs(study.directory)
    assert table["state"].tolist() == ["done", "pending", "pending"]
    assert table.loc[0, ["loss", "loss_text"]].tolist() == [5.25, 5.0]
    assert table["simulated"].tolist() == [False] * 3
    assert (study.run.state()["loss"], study.run.state()["loss_split"]) == (5.29, "train")


def test_a_loss_that_is_written_again_counts_as_it_was_written_last(program: Program) -> None:
    study = program(
        writes(loss(1, 7.0), loss(2, 6.0), HELDOUT, loss(1, 8.0), loss(split="heldout", value=5.0))
    )
    assert study.attempt() == "done"
    assert study.run.log()["loss"].tolist() == [8.0, 6.0, 5.0]


def test_a_loss_after_the_last_step_does_not_hide_the_last(program: Program) -> None:
    study = program(writes(HELDOUT, loss(STEPS + 1, 5.0, split="heldout")))
    assert study.attempt() == "done", study.run.state()["reason"]
    assert study.run.state()["loss_split"] == "heldout"
    assert read_runs(study.directory)["loss"].tolist()[0] == 5.25


@pytest.mark.parametrize("end", ['{"step": 71, "lo', "\n\n", ""])
def test_a_torn_last_line_does_not_count(program: Program, end: str) -> None:
    study = program(writes(loss(1), HELDOUT, end))
    assert study.attempt() == "done"
    assert len(study.run.log()) == 2


def test_a_last_row_of_a_table_may_be_torn_too(program: Program) -> None:
    study = program(
        tabulates("step,loss,split\n", "1,6.5,train\n", f"{STEPS},5.25,heldout\n", "72,5.")
    )
    assert study.attempt() == "done"
    assert study.run.log()["loss"].tolist() == [6.5, 5.25]


@pytest.mark.parametrize(
    "text",
    [
        writes(loss(1), HELDOUT.rstrip()),
        writes(loss(1), "\n", HELDOUT.rstrip() + " "),
        writes(loss(1), HELDOUT.rstrip()).replace("write(", "write('\\ufeff' + "),
        tabulates("step,loss,split\n", "1,5.25,\n", f"{STEPS},5.25,heldout"),
    ],
)
def test_a_whole_last_line_counts_without_its_end_where_the_program_ended_well(
    program: Program, text: str
) -> None:
    study = program(text)
    assert study.attempt() == "done", study.run.state()["reason"]
    assert study.run.log()["step"].tolist() == [1, STEPS]


@pytest.mark.parametrize(
    "end", ["sys.exit(1)", "import os; os.kill(os.getpid(), 9)"], ids=["failed", "killed"]
)
@pytest.mark.parametrize(
    "text",
    [writes(loss(1), loss(20).rstrip()), tabulates("step,loss\n", "1,5.25\n", "20,5.25")],
    ids=["JSONL", "CSV"],
)
def test_it_is_torn_where_the_program_did_not_end_well(
    program: Program, text: str, end: str
) -> None:
    study = program(text + end)
    assert study.attempt() == "failed"
    assert study.run.resume_step() == 1


ENDS = """
import os, signal, sys, time
stop, file = [], sys.argv[2]
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
if not os.path.exists(file):
    with open(file, "w") as losses:
        losses.write(HELDOUT)
    while not stop:
        time.sleep(0.001)
"""
"""Writes its last loss, is stopped then, and has nothing to add."""


def test_a_whole_last_line_of_a_program_that_was_stopped_is_kept(program: Program) -> None:
    study = program(ENDS.replace("HELDOUT", repr(HELDOUT.rstrip())))
    losses = study.run.path / "losses.jsonl"
    assert study.attempt(losses.exists) == "pending"
    assert study.attempt() == "done", study.run.state()["reason"]


MARK = "\ufeff"  # of the byte order, as Excel writes it


@pytest.mark.parametrize(
    "text",
    [
        "step,loss,split\n0,6.5,\n71,5.25,heldout\n",
        "step,loss,split\r\n0,6.5,\r\n71,5.25,heldout\r\n",
        "step,loss,split\n0.0,6.5,\n71.0,5.25,heldout\n",
        "step,loss,split\n0,65e-1,\n7.1e1,5.25,heldout\n",
        MARK + "step,loss,split\n0,6.5,\n" + MARK + "step,loss,split\n71,5.25,heldout\n",
        'step, loss, split\n0, 6.5, \n71 , 5.25 , "heldout" \n',
        "\nstep,loss,split\n\n0,6.5,\n,,\n71,5.25,heldout\n\n",
        "step,loss,split\n0,6.5\n71,5.25,heldout,9,more\n",
        ',step,loss,split,batch_size,shape\n0,0,6.5,,8,"(1, 2)"\n1,71,5.25,heldout,8,"(1, 2)"\n',
        'note,loss,split,step\n"two\nlines",6.5,train,0\n,5.25,heldout,71\n',
        "step,loss,split,lr,tokens,kind\n0,6.5,,,nan,\n71,5.25,heldout,,,all\n",
    ],
)
def test_a_table_may_be_spelt_as_programs_spell_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "losses.csv").write_bytes(text.encode())
    assert [
        list(map(row.get, ("step", "split", "kind", "loss")))
        for row in read_rows(RunDirectory(tmp_path))
    ] == [
        [0, "train", "all", 6.5],
        [71, "heldout", "all", 5.25],
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 71.0, "loss": 5.25}',
        '{"step": "71", "loss": "5.25"}',
        MARK + '{"step": 71, "loss": 5.25}\r',
        '{"step": 71, "loss": 5.25, "batch_size": 8, "shape": [1], "run": {}, "self": null, "": 1}',
        '{"step": 71, "loss": 5.25, "note": "\u2028 \u2029 \x85"}',
        '{"step": 71, "loss": 5.25, "lr": null, "tokens": null, "targets": NaN, "split": '
        '"", "kind": null}',
    ],
)
def test_a_line_of_json_may_be_spelt_as_programs_spell_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "losses.jsonl").write_bytes(f"{line}\n".encode())
    assert read_rows(RunDirectory(tmp_path)) == [
        {"step": 71, "split": "train", "kind": "all", "loss": 5.25}
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"step": -1, "loss": 6.5}', "step is -1, not a whole number from 0 to 999999999"),
        (
            '{"step": 1e9, "loss": 6.5}',
            "step is 1000000000.0, not a whole number from 0 to 999999999",
        ),
        ('{"step": 1.5, "loss": 6.5}', "step is 1.5, not a whole number"),
        ('{"step": true, "loss": 6.5}', "step is True, not a whole number"),
        ('{"step": Infinity, "loss": 6.5}', "step is inf, not a whole number"),
        ('{"step": NaN, "loss": 6.5}', "step is nan, not a whole number"),
        ('{"step": "one", "loss": 6.5}', "step is 'one', not a whole number"),
        ('{"step": 1, "loss": [6.5]}', "loss is [6.5], not a number"),
        ('{"step": 1, "loss": 1' + 400 * "0" + "}", "loss is 1000"),
        ('{"step": 1, "loss": 6.5, "lr": "warm"}', "lr is 'warm', not a number"),
        (
            '{"step": 1, "loss": 6.5, "tokens": 1e30}',
            "tokens is 1e+30, not a whole number from 0 to 9007199254740992",
        ),
        ('{"step": 1, "loss": 6.5, "split": ["a"]}', "split is ['a'], not a text"),
        ('{"step": 1, "loss": 6.5, "kind": 7}', "kind is 7, not a text"),
        ('{"step": 1, "loss": 6.5, "kind": "\\ud800"}', "kind is '\\ud800', not a text"),
        ('{"step": 1}', "a line without step and loss: {'step': 1}"),
        ('{"step": 1, "loss": null}', "a line without step and loss: {'step': 1, 'loss': None}"),
        ("7", "not a JSON object: 7"),
        ("[" * 100_000, "not a JSON object: [[["),
    ],
)
def test_a_line_that_is_no_loss_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "losses.jsonl"
    file.write_text(loss(0) + "\n" + line + "\n")
    with pytest.raises(RunError) as problem:
        read_rows(RunDirectory(tmp_path))
    assert str(problem.value).startswith(f"{file}: line 3: {says}")
    assert str(problem.value).endswith("; fix the line, or delete it")
    assert len(str(problem.value)) < len(str(file)) + 250


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-1,6.5,", "step is '-1', not a whole number from 0 to 999999999"),
        ("loss,step,lr", "step is 'loss', not a whole number"),
        ("1,6.5,warm", "lr is 'warm', not a number"),
        ("1,,0.5", "a line without step and loss: {'step': '1', 'loss': '', 'lr': '0.5'}"),
        ("1,6.5," + 200_000 * "x", "not CSV (field larger than field limit (131072))"),
    ],
)
def test_a_row_of_a_table_that_is_no_loss_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "losses.csv"
    file.write_text(f"step,loss,lr\n0,6.5,\n{line}\n")
    with pytest.raises(RunError, match=re.escape(f"{file}: line 3: {says}")):
        read_rows(RunDirectory(tmp_path))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["1", "1.0", "heldout", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
numbers = st.integers(0, 99) | st.integers(0, 99).map(float)
losses = st.fixed_dictionaries(
    {"step": numbers, "loss": st.floats()},
    optional={
        "lr": st.floats() | st.none(),
        "split": st.text(),
        "targets": numbers,
        "batch_size": values,
    },
)
records = (
    st.dictionaries(st.sampled_from([*LOG_COLUMNS, "shape"]) | st.text(), values)
    | values
    | st.text()
)


def spelt(lines: list[object], table: bool) -> str:
    """Write a table like a program without a CSV library."""
    if not table:
        return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    rows = [line.values() if isinstance(line, dict) else [line] for line in lines]
    return "step,loss,lr,split\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)


@drawn(st.lists(losses, min_size=1), st.lists(records, max_size=1), st.booleans())
def test_whatever_a_program_writes_is_a_loss_log_or_one_line(
    good: list[object], more: list[object], table: bool
) -> None:
    with TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        file = run.path / ("losses.csv" if table else "losses.jsonl")
        file.write_bytes(spelt([*good, *more], table).encode(errors="surrogatepass"))
        try:
            rows, refusal = read_rows(run), ""
        except RunError as problem:
            rows, refusal = [], str(problem)
        assert not refusal or re.fullmatch(
            r"\S+: line \d+: .*; fix the line, or delete it", refusal
        )
        assert rows or refusal
        run.append_log([log_row(SHAPE, 8, **row) for row in rows])
        log = run.log()
        assert log["step"].tolist() == [row["step"] for row in rows]
        np.testing.assert_array_equal(log["loss"], [row["loss"] for row in rows])


def test_losses_that_are_kept_again_replace_those_before(program: Program) -> None:
    run = program(WHOLE).run
    for value in (7.0, 8.0):  # killed in between, before it was marked as done
        (run.path / "losses.jsonl").write_text(loss(0, value) + loss(1, 6.5))
        write_loss_log(run, read_rows(run))
    assert run.log()["loss"].tolist() == [8.0, 6.5]


@pytest.mark.parametrize("write", [writes, tabulates], ids=["JSONL", "CSV"])
def test_a_program_s_own_columns_are_left_out(program: Program, write: Callable[..., str]) -> None:
    more = {"batch_size": 8, "shape": "8x2", "epoch": 0.5}
    table = [
        f"step,loss,split,{','.join(more)}\n",
        f"{STEPS}.0,5.25,heldout,{','.join(map(str, more.values()))},9\n",
    ]
    study = program(write(*table) if write is tabulates else write(loss(split="heldout", **more)))
    assert study.attempt() == "done", study.run.state()["reason"]
    assert list(study.run.log().columns) == list(LOG_COLUMNS)


@pytest.mark.parametrize("row", [loss(1, 6.5, split=None), loss(1, 6.5, split="", kind=None)])
def test_what_is_empty_is_the_default(program: Program, row: str) -> None:
    study = program(writes(row, loss(2, 6.25), HELDOUT))
    assert study.attempt() == "done", study.run.state()["reason"]
    assert study.run.log()["split"].tolist() == ["train", "train", "heldout"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("end", ["", "sys.exit(1)"], ids=["and it goes on", "and it fails"])
def test_a_loss_that_is_not_finite_is_a_run_that_diverged(
    program: Program, value: str, end: str
) -> None:
    study = program(writes(loss(1), f'{{"step": 2, "loss": {value}}}\n', HELDOUT) + end)
    assert study.attempt() == "diverged"
    state = study.run.state()
    assert (state["state"], state["reason"]) == ("diverged", "a loss in losses.jsonl is not finite")
    assert study.run.log()["step"].tolist() == [1, 2, STEPS]
    assert not study.run.done


GOES_ON = """
import signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
with open(sys.argv[2], "w", buffering=1) as losses:
    losses.write('{"step": 1, "loss": 6.0}\\n{"step": 2, "loss": NaN}\\n')
    while not stop:
        time.sleep(0.01)
    print("saved", flush=True)
"""


def test_a_program_that_goes_on_after_it_diverged_is_ended(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_trainer, "REPORT_S", 0.0)
    study = program(GOES_ON)
    assert study.attempt() == "diverged"
    assert study.run.state()["reason"] == "a loss in losses.jsonl is not finite"
    assert study.run.log()["step"].tolist() == [1, 2]
    assert newest_log(study.directory, study.run.run_id).read_text().startswith("saved\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "print('no room')\nraise SystemExit(3)",
            r"failed with 3: no room; see \S+/attempts/1/log\.txt",
        ),
        ("print('no room\\n', '=' * 60)\nraise SystemExit(3)", "failed with 3: no room; see"),
        (writes(HELDOUT) + "sys.exit(3)", "failed with 3: it wrote nothing"),
        (
            "import nothing_like_it",
            "failed with 1: ModuleNotFoundError: No module named 'nothing_like_it'",
        ),
        ("import os\nos.kill(os.getpid(), 9)", "failed with -9: "),
        ("pass", rf"losses\.jsonl: {WITHOUT}: it wrote none there$"),
        (writes(HELDOUT.rstrip()[:-1]), f"{WITHOUT}: it wrote none there$"),
        (writes(loss()), f"{WITHOUT}: its splits are train; write heldout, or set metric.set$"),
        (
            writes(loss(), loss(split="validation")),
            f"{WITHOUT}: its splits are train, validation; write heldout, or set metric.set$",
        ),
        (
            writes(loss(split="heldout", kind="text"), loss()),
            f"{WITHOUT}: heldout losses are of kind text; write all, or set metric.kind$",
        ),
        (
            writes(loss(9, split="heldout"), loss(70, split="heldout"), loss()),
            rf"{WITHOUT}: heldout losses go up to step 70; the last must be at 71 \(steps "
            rf"count from 1\)$",
        ),
        (
            writes(loss(70, split="heldout"), loss(72, split="heldout")),
            rf"{WITHOUT}: heldout losses go on to step 72, without one at 71; the last "
            rf"must be at 71 \(steps",
        ),
        (writes(HELDOUT.rstrip()) + "sys.exit(3)", "failed with 3: it wrote nothing"),
        (
            writes("step 1\n", HELDOUT),
            r"losses\.jsonl: line 1: not a JSON object: step 1; fix the line, or delete it",
        ),
        (
            writes(loss(1), loss(-1), HELDOUT),
            r"losses\.jsonl: line 2: step is -1, not a whole number from 0 to",
        ),
        (
            writes(loss(1), loss(2, lr="warm"), HELDOUT),
            r"losses\.jsonl: line 2: lr is 'warm', not a number",
        ),
    ],
)
def test_a_program_that_failed_is_a_run_that_failed(
    program: Program, text: str, reason: str
) -> None:
    study = program(text)
    assert study.attempt() == "failed"
    state = study.run.state()
    assert re.search(reason, state["reason"]), state["reason"]
    assert "\n" not in state["reason"]
    assert (state["failures"], study.run.done) == (1, False)
    with pytest.raises(RunError, match=reason):
        run_command(study.run, study.plan.sweep.train.program[1], lambda: False)


FAILS = """
import sys
file, most = sys.argv[2], int(sys.argv[3])
with open(file, "a+") as losses:
    losses.seek(0)
    written = len(losses.readlines())
    for step in range(written + 1, min(written + 10, most) + 1):
        losses.write('{"step": %d, "loss": 6.0}\\n' % step)
sys.exit("no room")
"""
"""Gets ten steps further, up to a limit, and fails."""


def test_failures_count_where_a_program_gets_no_further(program: Program) -> None:
    study = program(FAILS, "{steps} {losses} 20")
    counts = []
    for _ in range(4):
        assert study.attempt() == "failed"
        counts.append((study.run.resume_step(), study.run.state()["failures"]))
    assert counts == [(10, 1), (20, 1), (20, 2), (20, 3)]


def test_a_program_that_is_not_there(program: Program, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, 'train.trainer={command: "no-such-program {losses}"}')
    study = Trained(plan, make_directory(plan, tmp_path / "runs"))
    assert study.attempt() == "failed"
    message = "no-such-program: can't be started (No such file or directory); see train.trainer"
    assert study.run.state()["reason"] == message


# Its command line


def test_values_reach_the_program_as_they_are(program: Program) -> None:
    says = "import json, sys\njson.dump(sys.argv[1:], open(sys.argv[1] + '/said', 'w'))\n"
    arguments = (
        "{run_dir} 'two words' --batch={batch_size} {lr:.3f} {{steps}} $HOME "
        "{seed}/{width}x{layers}"
    )
    root = "a $(touch made) `touch made`; touch made 'b\" *"
    study = program(says, arguments, root)
    study.attempt()
    spec = study.plan.runs[0]
    assert json.loads((study.run.path / "said").read_text()) == [
        str(study.run.path),
        "two words",
        f"--batch={spec.batch_size}",
        f"{spec.lr:.3f}",
        "{steps}",
        "$HOME",
        f"0/{spec.width}x{spec.shape.layers}",
    ]
    assert study.run.path.parents[1].name == root
    assert not Path("made").exists()


def test_the_names_are_those_that_have_values(program: Program) -> None:
    study = program(WHOLE)
    values, spec = template_values(study.run), study.plan.runs[0]
    assert set(TEMPLATE_FIELDS) == values.keys()
    assert len(set(TEMPLATE_FIELDS)) == len(TEMPLATE_FIELDS)
    row = study.plan.rows()[0]
    assert {name: values[name] for name in RUN_FIELDS if name in row} == {
        name: row[name] for name in RUN_FIELDS if name in row
    }
    assert (values["losses"], values["run_dir"]) == (
        study.run.path / "losses.jsonl",
        study.run.path,
    )
    assert (values["tokens"], values["steps"]) == (spec.tokens, STEPS)


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        (
            {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "3"},
            1,
        ),  # a shell in an allocation
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_GPUS_ON_NODE": "2", "SLURM_NNODES": "3"}, 2),
    ],
)
def test_a_program_is_told_what_it_has(
    program: Program, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], gpus: int
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "SLURM_NNODES", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    says = WHOLE + "json.dump(sys.argv[3:], open(file.replace('losses.jsonl', 'said'), 'w'))\n"
    study = program(says, "{steps} {losses} {nodes} {node_rank} {gpus_per_node}")
    assert study.attempt() == "done", study.run.state()["reason"]
    assert json.loads((study.run.path / "said").read_text()) == ["1", "0", str(gpus)]
    state = study.run.state()
    assert state["gpus"] == gpus * (3 if "SUBMITIT_EXECUTOR" in environment else 1)
    (row,) = read_runs(study.directory).query("state == 'done'").to_dict("records")
    assert row["wall_s"] == state["wall_s"] > 0
    assert row["gpu_hours"] == state["gpus"] * state["wall_s"] / 3600


def test_the_place_to_meet_is_free(program: Program) -> None:
    says = "import socket, sys\nsocket.create_server((sys.argv[3], int(sys.argv[4])))\n" + WHOLE
    study = program(says, "{steps} {losses} {main_address} {main_port}")
    assert study.attempt() == "done", study.run.state()["reason"]


# Stopped


def test_a_program_that_is_stopped_saves_and_goes_on_from_there(program: Program) -> None:
    study = program(PARTS)
    losses = study.run.path / "losses.jsonl"

    def at_step_20() -> bool:
        return losses.exists() and losses.read_text().count("\n") >= 20

    assert study.attempt(at_step_20) == "pending"
    state = study.run.state()
    assert (state["state"], state["step"], state["attempt"]) == ("pending", 20, 1)
    assert study.run.resume_step() == 20
    assert (
        newest_log(study.directory, study.run.run_id).read_text().startswith("saved\n")
    )  # as `isoflop logs` has it
    assert len(study.run.log()) == 0
    assert study.attempt() == "done"
    log = study.run.log().query("split == 'train'")
    assert log["step"].tolist() == list(range(1, STEPS + 1))
    assert log["wall_s"].tolist() == [0.0] * 20 + [20.0] * (STEPS - 20)
    assert study.run.state()["attempt"] == 2


DIES = """
import os, signal
open(os.environ["ISOFLOP_RUN_DIR"] + "/processes", "w").write(str(os.getpid()))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("late", [0, 1], ids=["told at once", "told later"])
def test_a_program_that_dies_of_what_stops_it_has_not_failed(program: Program, late: int) -> None:
    study = program(DIES)
    looks = []

    def stopped() -> bool:
        if (study.run.path / "processes").exists() and not alive(study.run):
            looks.append(True)
        return len(looks) > late

    assert study.attempt(stopped) == "pending"
    assert "failures" not in study.run.state()


RECORDS = """
import os, sys
file = os.environ["ISOFLOP_RUN_DIR"] + "/processes"
open(file + ".new", "w").write(f"{os.getpid()} {os.getppid()}")
os.rename(file + ".new", file)
"""
"""Names its process and its guard; what a test adds is how it ends."""


@pytest.mark.parametrize("looks", [2, 5], ids=["at the look that finds it", "at a later look"])
@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ("", "pending"),
        (writes(loss(20)), "pending"),
        ("sys.exit(1)", "pending"),
        (writes(loss(20)) + "sys.exit(143)", "pending"),
        (writes(HELDOUT), "done"),
        (writes(HELDOUT.rstrip()), "done"),
        (writes(HELDOUT) + "sys.exit(1)", "pending"),
    ],
    ids=["0", "0, with a loss", "1", "143", "done", "done, torn", "1, with the last loss"],
)
def test_a_program_that_ends_at_a_signal_has_not_failed(
    program: Program, ends: str, state: State, looks: int
) -> None:
    study, signals = program(RECORDS + ends), list[bool]()

    def stopped() -> bool:
        """The signal reaches the worker after the program has ended."""
        if (study.run.path / "processes").exists() and not alive(study.run):
            signals.append(True)
        return len(signals) >= looks

    assert study.attempt(stopped) == state
    stored = study.run.state()
    assert (stored["state"], stored.get("failures", 0)) == (state, 0)
    assert study.run.done == (state == "done")


@pytest.mark.parametrize("ends", ["", "sys.exit(1)"])
def test_a_program_that_ends_without_a_signal_has_failed(program: Program, ends: str) -> None:
    study = program(RECORDS + writes(loss(20)) + ends)
    assert study.attempt() == "failed"
    assert study.run.state()["failures"] == 1


SAVES = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
file = f"{os.environ['ISOFLOP_RUN_DIR']}/processes-{sys.argv[3]}"
open(file + ".new", "w").write(f"{os.getpid()} {os.getppid()}")
os.rename(file + ".new", file)
while True:
    signal.pause()
"""
"""Saves at SIGTERM, which takes no time, and exits with 0."""

STOPS = 6


def attempt_as_job(run: RunDirectory, rank: int, size: int, meeting: str) -> None:
    """Attempt a run repeatedly, in a process that gets signals like a job of SLURM."""
    external_trainer.PROGRAM_POLL_S = 0.02
    os.environ["MASTER_ADDR"] = "localhost"
    ranks = meet_at(meeting, rank, size) if size > 1 else None
    for number in range(STOPS):
        wait_for((run.path / f"go-{number}").exists)
        job = RunJob(str(run.path))
        job.listen()
        attempt(run, job.must_stop, None, ranks)
        if rank == 0:
            with (run.path / "states").open("a") as file:
                print(run.state()["state"], run.state().get("failures", 0), file=file)
        if ranks:
            ranks.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, id="one process"),
        pytest.param(2, id="two processes", marks=pytest.mark.torch),
    ],
)
def test_a_program_that_saves_at_the_signal_of_its_worker_is_stopped_each_time(
    program: Program, size: int
) -> None:
    """SLURM signals all processes of a job at once, in any order."""
    study, order = program(SAVES, "{steps} {losses} {node_rank}"), random.Random(0)
    run, meeting = study.run, str(study.run.path / "meeting")
    workers = [start(attempt_as_job, run, rank, size, meeting) for rank in range(size)]
    records = [run.path / f"processes-{rank}" for rank in range(size)]
    for number in range(STOPS):
        (run.path / f"go-{number}").touch()
        wait_for(lambda: all(record.exists() for record in records))
        programs = [int(pid) for record in records for pid in record.read_text().split()]
        processes = [worker.pid or 0 for worker in workers] + programs
        order.shuffle(processes)
        for record in records:
            record.unlink()
        for process in processes:
            time.sleep(order.choice([0.0, 0.0, 0.01]))
            with suppress(ProcessLookupError):  # its guard was told before
                os.kill(process, signal.SIGTERM)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * size
    assert (run.path / "states").read_text().splitlines() == ["pending 0"] * STOPS


@pytest.mark.parametrize("code", [0, 1])
def test_a_program_whose_group_gets_a_signal_that_its_worker_does_not_is_stopped(
    program: Program, code: int
) -> None:
    saves = SAVES.replace("sys.exit(0)", f"sys.exit({code})")
    study = program(saves, "{steps} {losses} {node_rank}")
    record = study.run.path / "processes-0"

    def send_signal() -> bool:
        if record.exists():
            with suppress(ProcessLookupError):
                os.killpg(int(record.read_text().split()[1]), signal.SIGTERM)
        return False

    assert study.attempt(send_signal) == "pending"
    assert study.run.state().get("failures", 0) == 0


@pytest.mark.parametrize("who", ["both", "child"])
def test_what_does_not_stop_is_killed(
    program: Program, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(external_trainer, "GRACE_S", 0.1)
    study = program(DEAF.replace("WHO", repr(who)))
    losses = study.run.path / "losses.jsonl"
    assert study.attempt(losses.exists) == "pending"
    assert study.run.state()["reason"] == "stopped; the program resumes when it is restarted"
    wait_for(lambda: not alive(study.run), 5)


def test_where_another_process_has_taken_the_run_the_program_is_killed_at_once(
    program: Program,
) -> None:
    study = program(DEAF.replace("WHO", "'both'"))
    losses = study.run.path / "losses.jsonl"

    def lost() -> bool:
        if losses.exists():
            raise LeaseLostError("taken over")
        return False

    start = time.monotonic()
    assert study.attempt(lost) == "pending"
    wait_for(lambda: not alive(study.run), 5)
    assert time.monotonic() - start < external_trainer.GRACE_S / 2
    assert study.run.state()["state"] == "running"  # as the other process says


WRITES_ON = """
import os, sys, time
child = os.fork()
if child:
    with open(os.environ["ISOFLOP_RUN_DIR"] + "/processes", "w") as file:
        file.write(f"{os.getpid()} {child} {os.getppid()}")
while True:
    with open(sys.argv[2], "a") as losses:
        losses.write('{"step": 1, "loss": 6.0}\\n')
    time.sleep(0.01)
"""
"""Two processes that write losses for ever."""


def attempt_here(run: RunDirectory) -> None:
    with run.lease() as lease:
        assert lease
        attempt(run, lambda: False, None)


def test_nothing_of_a_program_outlives_a_killed_worker(program: Program) -> None:
    study = program(WRITES_ON)
    losses, processes = study.run.path / "losses.jsonl", study.run.path / "processes"
    worker = start(attempt_here, study.run)
    wait_for(lambda: losses.exists() and processes.exists() and len(alive(study.run)) == 3)
    kill(worker)
    wait_for(lambda: not alive(study.run), 10)
    written = losses.read_bytes()
    assert not study.run.is_leased()
    time.sleep(0.1)
    assert losses.read_bytes() == written


@pytest.mark.slow
def test_a_program_ends_with_its_guard_too_and_the_run_has_failed(program: Program) -> None:
    study = program(WRITES_ON)
    processes = study.run.path / "processes"
    worker = start(attempt_here, study.run)
    wait_for(lambda: processes.exists() and len(processes.read_text().split()) == 3)
    first, _, guard = processes.read_text().split()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    try:
        os.kill(int(guard), signal.SIGKILL)
        wait_for(
            lambda: f"/proc/{first}/stat" not in alive(study.run), 10
        )  # by the kernel: the worker can't now
    finally:
        os.kill(worker.pid or 0, signal.SIGCONT)
    wait_for(lambda: not alive(study.run), 10)
    worker.join()
    state = study.run.state()
    assert (state["state"], worker.exitcode) == ("failed", 0)
    assert " failed with -9: " in state["reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGINT, signal.SIGUSR1])
def test_a_program_s_signal_is_told(program: Program, number: signal.Signals) -> None:
    study = program(
        f"import os, signal\nsignal.signal({int(number)}, 0)\nos.kill(os.getpid(), {int(number)})"
    )
    assert study.attempt() == "failed"
    assert f" failed with -{int(number)}: it wrote nothing" in study.run.state()["reason"]


def test_a_program_has_no_input_to_wait_for(program: Program) -> None:
    study = program("import sys\nassert sys.stdin.read() == ''\n" + writes(HELDOUT))
    assert study.attempt() == "done", study.run.state()["reason"]


def test_a_program_goes_on_after_a_line_that_was_torn_when_it_was_killed(program: Program) -> None:
    study = program(PARTS)
    (study.run.path / "losses.jsonl").write_text(loss(1, 6.5) + loss(2, 6.5)[:9])
    assert study.attempt() == "done", study.run.state()["reason"]
    assert study.run.log().query("split == 'train'")["step"].tolist() == list(range(1, STEPS + 1))


def test_the_state_tells_how_far_it_is(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_trainer, "REPORT_S", 0.0)
    study = program(PARTS)
    assert study.attempt(lambda: study.run.state()["step"] == 20) == "pending"


# In a sweep


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        ("simulated", "soda"),
        ("command", "python train.py --name 'a: b' {losses}"),
        ("command", "train {steps} # {lr}"),
    ],
)
def test_a_trainer_is_a_text_or_a_mapping(tmp_path: Path, kind: str, argument: str) -> None:
    text, mapping = tmp_path / "text.yaml", tmp_path / "mapping.yaml"
    text.write_text(
        SWEEP.replace("train: {", f"train: {{trainer: {json.dumps(f'{kind}: {argument}')}, ")
    )
    mapping.write_text(
        SWEEP.replace("train: {", f"train: {{trainer: {{{kind}: {json.dumps(argument)}}}, ")
    )
    assert load_sweep(text) == load_sweep(mapping)
    assert load_sweep(text).train.program == (kind, argument)
    second = tmp_path / "again.yaml"
    second.write_text(to_yaml(load_sweep(text)))
    assert load_sweep(second) == load_sweep(text)


def test_runs_of_another_trainer_are_other_runs(tmp_path: Path) -> None:
    trainers = (
        "builtin",
        "simulated: soda",
        "simulated: chinchilla",
        "command: train {losses}",
        "command: t {losses}",
    )
    plans = [tiny_plan(tmp_path, f"train.trainer='{trainer}'") for trainer in trainers]
    assert len({run.run_id for plan in plans for run in plan.runs}) == 3 * len(trainers)
    assert [run.run_id for run in plans[0].runs] == [run.run_id for run in tiny_plan(tmp_path).runs]


@pytest.mark.parametrize(
    "trainer",
    [
        "built-in",
        "soda",
        "command",
        "'command:'",
        "'simulated: '",
        "{command: ''}",
        "{command: null}",
        "{simulated: [soda]}",
        "{builtin: soda}",
        "{simulated: soda, command: train}",
        "{}",
        "null",
        "7",
    ],
)
def test_a_trainer_that_is_none_is_one_line(tmp_path: Path, trainer: str) -> None:
    with pytest.raises(
        ConfigError, match=r"override train\.trainer=.*: train\.trainer: expected"
    ) as problem:
        tiny_plan(tmp_path, f"train.trainer={trainer}")
    assert "\n" not in str(problem.value)
