"""`trainer: command`: a study trained by any program; the plan fills in its command line, its losses are read back.

The command is split as a shell would, then `{name}` is replaced in each word by a column of the plan or by one of
`run_dir`, `data_dir` and `losses` (the file to write), so that no value ever reaches a shell. The program writes a
line (JSONL) or row (CSV) for each loss that it wants kept: `step` and `loss`, and where they are not those of training
`split` (default `train`) and `kind` (default `all`). It resumes by itself: it is started again with the same command.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from isoflop.errors import ConfigError, RunError
from isoflop.launching import keeper
from isoflop.runs import RunDirectory, State, log_row
from isoflop.shapes import ModelShape

NAMES = (
    "run_id", "sweep", "budget", "batch_size", "steps", "lr", "beta2", "seed", "width", "layers", "heads", "kv_heads",
    "head_dim", "mlp_width", "vocab_size", "seq_len", "tokens", "params_total", "run_dir", "data_dir", "losses",
)  # fmt: skip
"""What can stand in braces."""

POLL_S = 0.5
GRACE_S = 60.0
HEARTBEAT_S = 5.0
LAST_WORDS = 300


def run_command(run: RunDirectory, template: str, should_stop: Callable[[], bool]) -> State:
    """Runs the program of a study for one run, to its end or until `should_stop()`, then as SIGTERM leaves it.

    Returns:
        `done`, `diverged` (a loss that is not finite) or `pending` (stopped, to be started again).

    Raises:
        RunError: the program failed, or ended without a final held-out loss.
        ConfigError: a name in braces that is not known.
    """
    words = fill(template, values_of(run))
    output = run.path / "attempts" / str(run.state().get("attempt", 1)) / "output.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    steps = run.config()["run"]["steps"]
    environment = {**os.environ, "ISOFLOP_RUN_DIR": str(run.path)}
    _cut_torn_line(losses_file(run))
    with output.open("ab") as file, _start(words, file, environment) as process:
        stopped = _wait(process, run, steps, should_stop)
    rows = _rows(run)
    if any(not math.isfinite(row["loss"]) for row in rows):
        _keep(run, rows)
        run.set_state("diverged", f"a loss in {losses_file(run).name} is not finite")
        return "diverged"
    if stopped:
        run.set_state("pending", "stopped; its program resumes by itself", **_progress(rows))
        return "pending"
    if process.returncode:
        raise RunError(f"{words[0]} failed with {process.returncode}: {_last_words(output)}; see {output}")
    metric = run.config()["metric"]
    final = [row for row in rows if (row["split"], row["kind"]) == (metric["set"], metric["kind"])]
    if not final or final[-1]["step"] != steps:
        raise RunError(
            f"{losses_file(run)}: the program ended without a loss of split {metric['set']}, kind {metric['kind']}, "
            f"step {steps}"
        )
    _keep(run, rows)
    run.mark_done()
    run.set_state("done", steps=steps, **_progress(rows))
    return "done"


def values_of(run: RunDirectory) -> dict[str, Any]:
    """What can stand in braces: the run's plan and shape, and its paths."""
    config = run.config()
    shape = ModelShape(**config["identity"]["shape"])
    sizes = {name: getattr(shape, name) for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")}
    plan = config["run"]
    return {
        **plan,
        **sizes,
        "vocab_size": shape.vocab_size,
        "seq_len": shape.seq_len,
        "tokens": plan["batch_size"] * shape.seq_len * plan["steps"],
        "params_total": shape.params_total,
        "run_dir": run.path,
        "data_dir": run.path.parent.parent / "data" / config["data"],
        "losses": losses_file(run),
    }


def fill(template: str, values: dict[str, Any]) -> list[str]:
    """The words of a command, with the values in their places.

    Raises:
        ConfigError: a name that is not known, or quotes that don't close.
    """
    try:
        return [word.format_map(values) for word in shlex.split(template)]
    except (KeyError, IndexError, AttributeError) as problem:
        raise ConfigError(
            f"train.trainer: {{{problem.args[0]}}} is not known; in braces can stand {', '.join(values)} "
            "(write {{ for a brace)"
        ) from None
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"train.trainer: can't be read as a command ({problem})") from None


def losses_file(run: RunDirectory) -> Path:
    """Where the program writes its losses: `losses.csv` where it has made that, else `losses.jsonl`."""
    table = run.path / "losses.csv"
    return table if table.exists() else run.path / "losses.jsonl"


@contextlib.contextmanager
def _start(words: list[str], output: IO[bytes], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program's keeper, in a process group with all that it starts; the group is gone when the block ends, and
    when this process does.

    Raises:
        RunError: a program that can't be started.
    """
    reads, writes = os.pipe()
    command = [sys.executable, "-I", "-S", keeper.__file__, str(writes), *words]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True,
            pass_fds=(writes,),
        )  # fmt: skip
    finally:
        os.close(writes)
    try:
        with open(reads, "rb") as report:
            if problem := report.read().decode():
                raise RunError(f"{words[0]}: can't be started ({problem}); see train.trainer")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # whatever it has started itself ends with it
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _wait(process: subprocess.Popen[bytes], run: RunDirectory, steps: int, should_stop: Callable[[], bool]) -> bool:
    """Waits for the program, and reports its progress; whether it was asked to stop."""
    told = 0.0
    while process.poll() is None:
        if should_stop():
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return True
        if time.monotonic() - told > HEARTBEAT_S:
            told = time.monotonic()
            run.set_state("running", steps=steps, **_progress(_rows(run)))
        time.sleep(POLL_S)
    return False


def _rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The losses written so far, in order of steps, the last of each; a torn last line does not count."""
    file = losses_file(run)
    if not file.exists():
        return []
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    for record in _records(file):
        try:
            row = {
                "split": "train",
                "kind": "all",
                **{key: value for key, value in record.items() if value not in ("", None)},
            }
            row |= {"step": int(row["step"]), "loss": float(row["loss"])}
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{file}: a line without step and loss: {str(record)[:100]}") from None
        found[row["step"], row["split"], row["kind"]] = row
    return [found[key] for key in sorted(found)]


def _records(file: Path) -> Iterable[dict[str, Any]]:
    whole, _, _ = file.read_text(errors="replace").rpartition("\n")
    if file.suffix == ".csv":
        yield from csv.DictReader(whole.splitlines())
        return
    for line in filter(None, map(str.strip, whole.splitlines())):
        try:
            record = json.loads(line)
        except ValueError:
            raise RunError(f"{file}: not JSON: {line[:100]}") from None
        yield record if isinstance(record, dict) else {"step": record}


def _cut_torn_line(file: Path) -> None:
    """Ends the losses of a program that was killed while it wrote a line with the line before, to be written on."""
    if file.exists():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def _keep(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Writes the program's losses as the run's loss log."""
    config = run.config()
    plan, shape = config["run"], ModelShape(**config["identity"]["shape"])
    run.cut_log(0)
    run.append_log([log_row(shape, plan["batch_size"], **row) for row in rows])


def _progress(rows: list[dict[str, Any]]) -> dict[str, Any]:
    train = [row for row in rows if row["split"] == "train"] or rows
    return {"step": train[-1]["step"], "loss": train[-1]["loss"]} if train else {}


def _last_words(output: Path) -> str:
    lines = output.read_bytes()[-4 * LAST_WORDS :].decode(errors="replace").strip().splitlines()
    return lines[-1][-LAST_WORDS:] if lines else "it wrote nothing"
