"""`sweep-plan --expect` and `isoflop extend`: output, files, and that only new runs are trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.cli import sweep_plan
from isoflop.config.sweep_file import to_yaml
from isoflop.launching.local import LocalPool
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker.simulated_trainer import simulate
from isoflop.planning.plan import plan
from isoflop.runs.run_directory import RunDirectory

Output = tuple[int, str, str]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOFLOP_ROOT", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {
        "budgets": [3e18, 9e18],
        "extra": [{"budget": 3e19, "width": w} for w in (640, 896, 1152)],
    }
    sweep = plan("soda", {**changes, "train.trainer": {"simulated": "soda"}})
    directory = make_directory(sweep, tmp_path_factory.mktemp("simulated") / "runs")
    for run in sweep.runs:
        simulate(RunDirectory(directory / run.run_id), "soda")
    return directory


@pytest.fixture
def study(simulated: Path, root: Path) -> Path:
    """Return a simulated study of 19 runs at two budgets and more at a third."""
    return shutil.copytree(simulated, root / simulated.name)


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    def planned(*arguments: str) -> Output:
        with pytest.raises(SystemExit) as stop:
            sweep_plan(arguments)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return planned


# sweep-plan --expect


def test_the_intervals_to_expect_follow_the_plan(planned: Callable[..., Output]) -> None:
    code, out, _ = planned("soda", "--expect", "soda", "--target", "1.3e22")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert (
        lines[68]
        == "if soda's law is true and runs scatter by 0.3% (95% intervals, 59 degrees of freedom):"
    )
    assert lines[70] == "a 0.3909 0.3686 0.4133 0.0112"
    budgets = [line.split()[2] for line in lines if line.startswith("loss at ")]
    assert budgets == ["3e21", "1.3e22"]
    assert "a differs from 0.5 in 100% of such studies" in lines
    assert sum(line.startswith("without ") for line in lines) == 5
    assert "without 3e20-w640 +5.76% 3e20" in lines
    assert sum(line.startswith("one more of ") for line in lines) == 5


def test_expectations_in_json(planned: Callable[..., Output]) -> None:
    document = json.loads(
        planned("soda", "--expect", "chinchilla", "--noise", "0.006", "--json")[1]
    )
    expected = document["expected"]
    assert expected["law"]["name"] == "chinchilla"
    assert expected["intervals"]["a"]["sd"] == pytest.approx(2 * 0.01063, rel=1e-3)
    assert [row["run_id"] for row in expected["configurations"]] == [
        run["run_id"] for run in document["runs"]
    ]
    assert "expected" not in json.loads(planned("soda", "--json")[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--expect", "sodda"],
            "isoflop: error: sodda: no law of that name and no such file; did you mean soda?",
        ),
        (["--noise", "0.01"], "isoflop: error: --noise: needs a law; add --expect LAW"),
        (["--target", "1e22"], "isoflop: error: --target: needs a law; add --expect LAW"),
        (
            ["--expect", "soda", "--noise", "2"],
            "isoflop: error: --noise: expected a number from 1e-9 to 1, got 2",
        ),
    ],
)
def test_expectations_that_are_refused(
    planned: Callable[..., Output], arguments: list[str], says: str
) -> None:
    code, out, err = planned("soda", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(says)
    assert err.count("\n") == 1


# extend


def test_only_what_is_new_is_run(isoflop: Callable[..., Output], study: Path, root: Path) -> None:
    code, out, err = isoflop("extend", str(study), "--max-flops", "1e20", "--runs", "8")
    assert code == 0
    assert (
        f"{study}: its losses are simulated (train.trainer), so the gain of new runs is too" in err
    )
    before, after = plan(study / "sweep.yaml"), plan("soda-extended.yaml")
    new = {run.run_id for run in after.runs} - {run.run_id for run in before.runs}
    assert len(after.runs) == len(before.runs) + len(new)
    assert 1 <= len(new) <= 8
    assert "repair" in out
    assert f"{len(new)} runs added to soda" in out
    assert err.endswith(
        "wrote soda-extended.yaml\ntrain the new runs: isoflop run soda-extended.yaml\n"
    )
    directory = make_directory(after, root)
    assert directory == study
    assert {run.run_id for run in LocalPool(directory, after, 1).remaining} == new


def test_extension_in_json(isoflop: Callable[..., Output], study: Path) -> None:
    document = json.loads(
        isoflop("extend", str(study), "--runs", "4", "--json", "--output", "more.yaml")[1]
    )
    assert document["file"] == "more.yaml"
    assert document["caps"]["runs"] == 4
    assert document["for"]["quantity"] == "a"
    assert sum(pick["runs"] for pick in document["picks"]) == len(document["runs"]) <= 4
    assert document["half_interval"]["expected"] < document["half_interval"]["now"]
    loss = json.loads(
        isoflop("extend", str(study), "--target", "1e21", "--json", "--output", "loss.yaml")[1]
    )
    assert loss["for"] == {"quantity": "loss", "value": loss["for"]["value"], "flops": 1e21}


def test_a_kept_result_is_extended(isoflop: Callable[..., Output], study: Path) -> None:
    """A committed study has a table but no run directories."""
    committed = Path(__file__).parents[2] / "analysis" / "pocket-64"
    code, out, err = isoflop("extend", str(committed), "--runs", "3")
    assert code == 0
    assert "3 runs added to pocket-64" in out
    assert err.endswith(
        "has a table but no run directories: running the new file there would train all "
        "runs again\n"
    )
    warning = "the law used for the selection: Residuals exceed the noise between seeds"
    assert f"isoflop: warning: {warning}" in err
    assert len(plan("pocket-64-extended.yaml").runs) == len(plan("pocket-64").runs) + 3


def test_the_hint_finds_a_study_elsewhere(
    isoflop: Callable[..., Output], study: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "renamed"
    other.parent.mkdir()
    study.rename(other)
    _, _, err = isoflop("extend", str(other), "--runs", "4")
    assert err.endswith(
        f"train the new runs: ISOFLOP_ROOT={other.parent} isoflop run soda-extended.yaml "
        f"name=renamed\n"
    )


def test_nothing_to_add(isoflop: Callable[..., Output], study: Path) -> None:
    code, out, err = isoflop("extend", str(study), "--max-flops", "1e15")
    assert (code, out) == (0, "")
    assert err.splitlines()[-1].startswith(
        "soda: nothing to add: no run within the caps narrows the interval enough for its compute"
    )
    assert not Path("soda-extended.yaml").exists()


@pytest.mark.parametrize("option", ["--max-flops", "--target", "--until"])
@pytest.mark.parametrize("value", ["0", "-5", "nan", "inf", "1e300"])
def test_numbers_that_no_extension_can_have(
    isoflop: Callable[..., Output], study: Path, option: str, value: str
) -> None:
    code, out, err = isoflop("extend", str(study), option, value)
    if (option, value) == ("--until", "0"):  # its default: all that the caps allow
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert option in err
    assert not Path("soda-extended.yaml").exists()


def test_extensions_that_are_refused(
    isoflop: Callable[..., Output], study: Path, tmp_path: Path
) -> None:
    Path("soda-extended.yaml").write_text("mine")
    for arguments, says in (
        (
            [str(tmp_path)],
            f"{tmp_path}: has no sweep.yaml; only a study that isoflop planned can be extended",
        ),
        (
            [str(study), "--for", "exponents", "--target", "1e22"],
            "--target: the exponents do not depend on compute; leave it out, or use --for loss",
        ),
        (
            [str(study)],
            "soda-extended.yaml: exists already; replace it with --force, or choose another with "
            "--output",
        ),
    ):
        code, out, err = isoflop("extend", *arguments)
        assert (code, out) == (2, "")
        assert f"isoflop: error: {says}\n" in err
    assert Path("soda-extended.yaml").read_text() == "mine"
    assert isoflop("extend", str(study), "--force")[0] == 0
    assert to_yaml(plan("soda-extended.yaml").sweep) != "mine"
