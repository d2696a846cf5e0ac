"""`sweep-plan` and `isoflop plan`: streams and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.cli import main, sweep_plan
from isoflop.planning.plan import plan
from isoflop.reporting.terminal.console import print_table, table_lines

Output = tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    def run(*arguments: str, program: Callable[..., object] = sweep_plan) -> Output:
        with pytest.raises(SystemExit) as stop:
            program(arguments)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def shell(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", code.replace("PYTHON", sys.executable)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_table_has_a_line_a_run_and_totals(run: Callable[..., Output]) -> None:
    code, out, err = run("soda")
    lines = out.splitlines()
    assert code == 0
    cells = [" ".join(line.split()) for line in lines]
    assert cells[0] == "budget width layers heads batch steps lr beta2 params tokens epochs"
    assert "9e18 768 8 6 32 48,244 0.00243 0.9950 298M 6.32B 0.02" in cells
    assert lines[65:] == [
        "",
        "64 runs, 7 budgets, 77.2M to 2.62B parameters, 5.15e21 training FLOPs",
    ]
    assert (
        err == "21 candidates dropped (11 for batch, 10 for steps); list them: sweep-plan soda "
        "--dropped\n"
    )
    assert "\t" not in out
    assert "\x1b" not in out


def test_isoflop_plan_is_the_same_program(run: Callable[..., Output]) -> None:
    assert run("plan", "soda", program=main)[1] == run("soda")[1]
    assert "isoflop plan soda --dropped" in run("plan", "soda", program=main)[2]


def test_seeds_have_a_column_where_there_are_several(run: Callable[..., Output]) -> None:
    _, out, err = run("soda", "seeds=[0,1]")
    assert out.split()[:3] == ["budget", "width", "seed"]
    assert "128 runs, 7 budgets" in out
    assert "sweep-plan soda 'seeds=[0,1]' --dropped" in err


def test_dropped_candidates_with_reasons(run: Callable[..., Output]) -> None:
    _, out, err = run("soda", "--dropped")
    assert "3e18      128  721,519 steps not under max_steps 400,000" in out.splitlines()
    assert "3e18     1152  batch 4 under min_batch 8" in out.splitlines()
    assert out.endswith("21 candidates dropped (11 for batch, 10 for steps)\n")
    assert err == ""
    assert "no candidates dropped" in run("soda", "--dropped", "min_batch=1", "max_steps=null")[1]


def test_json(run: Callable[..., Output]) -> None:
    laid_out = plan("soda")
    document = json.loads(run("soda", "--json")[1])
    assert document == {
        "schema": 1,
        "sweep": "soda",
        "runs": laid_out.rows(),
        "totals": laid_out.totals(),
    }
    dropped = json.loads(run("soda", "--json", "--dropped")[1])["dropped"]
    assert dropped[0] == {
        "budget": 3e18,
        "width": 128,
        "reason": "steps",
        "detail": "721,519 steps not under max_steps 400,000",
    }


def test_files(run: Callable[..., Output], tmp_path: Path) -> None:
    table, csv = tmp_path / "plan.parquet", tmp_path / "plan.csv"
    _, _, err = run("soda", "--parquet", str(table), "--csv", str(csv))
    assert table.exists()
    assert len(csv.read_text().splitlines()) == 65
    assert err.endswith(f"wrote {csv}\nwrote {table}\n")


def test_a_pipe_is_written_into(run: Callable[..., Output], tmp_path: Path) -> None:
    receiver, sender = os.pipe()  # as of sweep-plan --csv >(...)
    code, _, err = run(
        "soda", "--csv", f"/dev/fd/{sender}", "--parquet", str(tmp_path / "plan.parquet")
    )
    os.close(sender)
    assert code == 0, err
    with os.fdopen(receiver) as file:
        assert len(file.read().splitlines()) == 65


def test_a_sweep_from_a_pipe() -> None:
    program = "PYTHON -c 'from isoflop.cli import sweep_plan; sweep_plan()'"
    done = shell(
        f"{program} <(PYTHON -c 'from isoflop.config.config_file import *; "
        f'print(find_source("soda", "sweeps").text)\')'
    )
    assert done.stdout.splitlines()[-1].startswith("64 runs, 7 budgets, "), done.stderr


# On a cluster


def test_a_bill_follows_the_table(run: Callable[..., Output]) -> None:
    code, out, err = run("soda", "--cluster", "h100")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[-3:] == ["gpus", "hours", "gpu_hours"]
    bill = [line.partition(": ") for line in lines[67:]]
    assert [name for name, _, _ in bill] == [
        "cost",
        "finish",
        "critical",
        "restarts",
        "memory",
        "disk",
    ]
    gpu_hours = sum(float(line.split()[-1].replace(",", "")) for line in lines[1:65])
    match = re.match(
        r"([\d,]+) GPU-hours on h100, ([\d,]+) at 2.5 a GPU-hour \(speed: prior\)", bill[0][2]
    )
    assert match is not None
    assert float(match[1].replace(",", "")) == pytest.approx(gpu_hours, rel=1e-3)
    assert float(match[2].replace(",", "")) == pytest.approx(2.5 * gpu_hours, rel=1e-3)
    assert re.match(
        r"[\d.]+ days after submission on 64 GPUs, longest runs first; on 32: [\d.]+ days, "
        r"3,\d+ GPU-hours; "
        r"on 128: [\d.]+ h, 4,\d+ GPU-hours$",
        bill[1][2],
    )
    assert err.count("\n") == 1
    assert "small budgets first" in run("soda", "--cluster", "h100", "--order", "budget")[1]


def test_a_bill_in_json(run: Callable[..., Output]) -> None:
    document = json.loads(run("soda", "--cluster", "h100", "--json", "--interruptions", "2")[1])
    assert document["totals"]["gpu_hours"] == pytest.approx(
        sum(row["est_gpu_hours"] for row in document["runs"])
    )
    assert (
        document["totals"]["finish_hours"] > max(row["est_hours"] for row in document["runs"]) > 0
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["--cluster", "h100", "--max-gpu-hours", "10"],
            3,
            "isoflop: error: the study needs about 3,",
        ),
        (
            ["--max-gpu-hours", "10"],
            2,
            "isoflop: error: --max-gpu-hours: only a cluster gives GPU-hours",
        ),
        (["--submit"], 2, "isoflop: error: --submit: needs a cluster; add --cluster PROFILE"),
        (
            ["--order", "budget"],
            2,
            "isoflop: error: --order: needs a cluster; add --cluster PROFILE",
        ),
        (
            ["--interruptions", "0"],
            2,
            "isoflop: error: --interruptions: needs a cluster; add --cluster PROFILE",
        ),
        *(
            (
                ["--cluster", "h100", "--interruptions", rate],
                2,
                "isoflop: error: --interruptions: expected 0 to 10,000",
            )
            for rate in ("inf", "1e308")
        ),
        *(
            (
                ["--expect", "soda", "--target", text],
                2,
                "isoflop: error: --target: expected a number above 0 to 1e40",
            )
            for text in ("nan", "inf", "0", "-1e20", "1e300")
        ),
        *(
            (
                ["--expect", "soda", "--noise", text],
                2,
                "isoflop: error: --noise: expected a number from 1e-9 to 1, got",
            )
            for text in ("nan", "0", "1e-300", "-1", "2")
        ),
        (
            ["--cluster", "local"],
            2,
            "isoflop: error: local: gpu: missing; a cost estimate needs the GPUs of the nodes",
        ),
        (["--cluster", "h1000"], 2, "isoflop: error: h1000: no such file; did you mean h100"),
    ],
)
def test_a_bill_that_is_refused(
    run: Callable[..., Output], arguments: list[str], code: int, says: str
) -> None:
    stopped, out, err = run("soda", *arguments)
    assert (stopped, out) == (code, "")
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_interruptions_go_on_to_the_submission(
    run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "isoflop.cli.plan_commands.submit", lambda *_, **options: asked.append(options)
    )
    arguments = [
        "soda",
        "--cluster",
        "h100",
        "--submit",
        "--interruptions",
        "2",
        "--order",
        "budget",
    ]
    assert run(*arguments)[0] == 0
    assert [(call["interruptions"], call["order"], call["cluster"]) for call in asked] == [
        (2.0, "budget", "h100")
    ]


def test_warnings_go_to_stderr(run: Callable[..., Output]) -> None:
    _, out, err = run("soda", "data.max_epochs=1")
    assert err.startswith(
        "isoflop: warning: 1 of 64 runs pass over a source more than 1 times (data.max_epochs)"
    )
    assert "warning" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.yaml"], "isoflop: error: absent.yaml: no such file; shipped ones: "),
        (
            ["soda", "seq_lne=3"],
            "isoflop: error: soda (shipped), override seq_lne=3: seq_lne: unknown key; did you",
        ),
        (["soda", "max_steps=2", "extra=[]"], "isoflop: error: soda: no runs are left: "),
        (["soda", "--csv", "."], "isoflop: error: .: can't be written (Is a directory)"),
        (["soda", "--csv", ""], "isoflop: error: .: can't be written (Is a directory)"),
        (["soda", "--parquet", "/"], "isoflop: error: /: can't be written (Is a directory)"),
        (
            ["soda", "--csv", "/dev/null/plan.csv"],
            "isoflop: error: /dev/null/plan.csv: can't be written (",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Callable[..., Output], arguments: list[str], says: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_a_recipe_that_fails_is_one_line(
    run: Callable[..., Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_recipes.py").write_text(
        "from isoflop.recipes import SODA\n"
        "class Odd:\n"
        "    name, version, shape = 'odd', 1, staticmethod(SODA.shape)\n"
        "    def solve(self, budget, shape, limits):\n"
        "        return SODA.solve(budget, shape, limits)\n"
        "odd = Odd()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = run("soda", "recipe=failing_recipes:odd")
    assert (code, out) == (2, "")
    assert err.startswith(
        "isoflop: error: soda: recipe: failing_recipes:odd: solve of 3e18 at width 128: TypeError ("
    )
    assert "unexpected keyword argument 'lr_scale'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["soda", "--nonsense"], ["soda", "--csv"]])
def test_bad_usage_is_exit_code_2(run: Callable[..., Output], arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: sweep-plan" in err or err.startswith("Error: ")


def test_interruption_is_exit_code_130(
    run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isoflop.planning.plan.plan", interrupted)
    code, out, err = run("soda")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_help_begins_with_an_example(run: Callable[..., Output]) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert run("-h")[1] == out
    assert run("plan", "-h", program=main)[1] == run("plan", "--help", program=main)[1]
    assert (
        out.split("\n\n")[1].strip()
        == "Example: sweep-plan sweeps/soda.yaml seq_len=2048 --dropped"
    )
    assert re.search(r"plan +List the runs of a sweep\.", run("--help", program=main)[1])
    assert run("--version", program=main)[1].strip()


def test_the_package_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", "-h"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: isoflop [OPTIONS] COMMAND")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom isoflop.cli import main\n"
        "try:\n    main(['plan', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'omegaconf', 'rich', 'matplotlib', "
        "'pyarrow'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: isoflop plan")
    assert done.stderr == "set()\n"


def test_a_reader_that_stops_is_quiet() -> None:
    program = "PYTHON -c 'from isoflop.cli import sweep_plan; sweep_plan()' soda"
    assert (
        shell(f"{program} --json | head -1").stderr.count("\n") <= 1
    )  # the hint on what was dropped


def test_a_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            sweep_plan(["soda"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "isoflop: error: standard output: the disk is full\n"


# Tables and numbers


def test_plain_tables_are_aligned() -> None:
    lines = list(
        table_lines(["name", "steps"], [["a", "1,000"], ["long name", "5"]], text=["name"])
    )
    assert lines == ["name       steps", "a          1,000", "long name      5"]


def test_tables_on_a_terminal_are_styled_unless_they_are_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_table(["budget", "width"], [["3e18", "256"], ["3e18", "384"]], text=["budget"])
    styled = capsys.readouterr().out
    assert "\x1b[" in styled
    assert "384" in styled
    print_table(["budget", "width"], [["3e18", "256"]] * 2000)
    assert "\x1b[" not in capsys.readouterr().out
