"""`isoflop fit`, `predict` and `compare`: streams, exit codes and files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tiny_studies import LAW, find_run, finish_all, tiny_plan, write_corpus

from isoflop.cli import CLOSED_PIPE_EXIT_CODE, main
from isoflop.fitting import fit_isoflop, load_fit, simulate_isoflop

Output = tuple[int, str, str]
OWN = ("--params", "N", "--tokens", "D", "--loss", "bits", "--budget", "C", "--loss-unit", "bits")


# isoflop fit


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame = simulate_isoflop(points=7).rename(
        columns={"params": "N", "tokens": "D", "loss": "bits", "budget": "C"}
    )
    frame["bits"] /= np.log(2)
    file = tmp_path / "runs.csv"
    frame.drop(columns="train_flops").to_csv(file, index=False)
    return file


def test_a_table_with_names_of_its_own(isoflop: Callable[..., Output], table: Path) -> None:
    options = [
        *OWN,
        "--method",
        "isoflop",
        "--bootstrap",
        "200",
        "--seed",
        "7",
        "--confidence",
        "0.9",
        "--axis",
        "tokens",
    ]
    code, out, err = isoflop("fit", str(table), *options, "--use", "interior, edge")
    named = "params = N, tokens = D, loss = bits, budget = C, flops = (budget)"
    assert (code, err) == (0, f"read CSV with 49 rows: 49 runs at 7 budgets; {named}\n")
    assert "D*" in out
    document = json.loads(isoflop("fit", str(table), *options, "--json")[1])
    assert document.keys() >= {"schema", "source", "options", "data", "recipe", "fits"}
    assert (document["schema"], document["source"], document["recipe"]) == (1, str(table), None)
    assert document["data"].keys() >= {"hash", "rows"}
    assert document["data"]["rows"] == 49
    assert (document["options"]["seed"], document["options"]["confidence"]) == (7, 0.9)
    (fit,) = document["fits"]
    assert fit.keys() >= {"method", "exponents", "coefficients", "profiles", "diagnostics"}
    assert (fit["method"], fit["axis"]) == ("isoflop", "tokens")
    for name in ("a", "b"):
        interval = fit["exponents"][name]
        assert interval["low"] < interval["value"] < interval["high"]
    assert fit["exponents"]["a"]["value"] == pytest.approx(0.514, abs=0.03)
    keys = {"budget", "params_opt", "tokens_opt", "loss_opt", "low", "high", "status"}
    assert len(fit["profiles"]) == 7
    assert all(keys <= profile.keys() for profile in fit["profiles"])


@pytest.mark.slow
def test_a_sweep_is_fitted_as_its_runs_are_now(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path, *LAW)
    directory = finish_all(plan, root)
    by_loss = {}
    for loss in ("loss", "loss_text"):
        document = json.loads(
            isoflop("fit", str(directory), "--loss", loss, "--bootstrap", "0", "--json")[1]
        )
        assert (document["recipe"], document["fits"][0]["loss"], document["data"]["rows"]) == (
            "pocket",
            loss,
            20,
        )
        by_loss[loss] = [profile["loss_opt"] for profile in document["fits"][0]["profiles"]]
    np.testing.assert_allclose(by_loss["loss_text"], 0.8 * np.array(by_loss["loss"]), rtol=1e-9)
    find_run(root, plan).path.joinpath("DONE").unlink()
    find_run(root, plan).set_state("failed", "no luck")
    document = json.loads(isoflop("fit", str(directory), "--bootstrap", "0", "--json")[1])
    assert document["data"]["rows"] == 19
    assert not (directory / "fit.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.csv"], "absent.csv: no such file or directory"),
        (
            ["runs.csv"],
            "no column 'params' or 'params_total'; did you mean 'N'? --params N. No column",
        ),
        (["runs.csv", "--params", "n"], "no column 'n'"),
        (
            ["OK", "--use", "good"],
            "unknown status 'good': interior, shallow, edge, one_sided, concave, too_few or all",
        ),
        (["OK", "--confidence", "2"], "confidence is a share between 0 and 1, not 2"),
        (
            ["OK", "--method", "isoflop,ridge"],
            "unknown method 'ridge': isoflop, joint, parametric, envelope",
        ),
        (
            ["OK", "--huber-delta", "wide"],
            "unknown Huber delta 'wide': a number above 0, adaptive or chinchilla",
        ),
        (
            ["OK", "--drop-outliers", "0"],
            "drop_outliers is a number of robust standard deviations above 0, not 0",
        ),
        (
            ["OK", "--bootstrap", "5"],
            "5 resamples are too few for an interval: 100 or more, or 0 for none",
        ),
    ],
)
def test_a_table_that_can_not_be_fitted_is_one_line(
    isoflop: Callable[..., Output], table: Path, arguments: list[str], says: str
) -> None:
    if arguments[0] == "OK":
        arguments = [str(table), *OWN, *arguments[1:]]
    code, out, err = isoflop("fit", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("isoflop: error: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--axis", "flops"], ["--loss-unit", "bans"], ["--bootstrap", "-1"], ["--n", "x"]]
)
def test_an_option_that_is_none_of_its_values(
    isoflop: Callable[..., Output], table: Path, options: list[str]
) -> None:
    code, out, err = isoflop("fit", str(table), *options)
    assert (code, out) == (2, "")
    assert options[0] in err


def test_methods_stand_side_by_side_and_what_is_refused_says_why(
    isoflop: Callable[..., Output], tmp_path: Path
) -> None:
    runs = simulate_isoflop(budgets=np.geomspace(1e18, 1e20, 130).tolist(), points=3).drop(
        columns="budget"
    )
    runs[["tokens", "train_flops"]] *= np.random.default_rng(0).uniform(0.97, 1.03, (len(runs), 1))
    runs.to_csv(tmp_path / "runs.csv", index=False)
    code, out, err = isoflop(
        "fit", "runs.csv", "--method", "joint,parametric,envelope", "--bootstrap", "0"
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["law", "a", "[95%]", "b", "[95%]"]
    assert [line.split()[0] for line in lines[1:3]] == ["parametric", "envelope"]
    assert "x apart" in lines[4]
    assert out.count("Source:") == 2
    reading, warning = err.splitlines()
    assert reading.startswith("read CSV with 390 rows: 390 runs")
    assert warning.startswith(
        "isoflop: warning: joint can't be fitted: runs.csv: the FLOPs don't fall into budgets"
    )
    document = json.loads(
        isoflop("fit", "runs.csv", "--method", "joint,parametric", "--bootstrap", "0", "--json")[1]
    )
    assert [entry["method"] for entry in document["refused"]] == ["joint"]
    assert [fit["method"] for fit in document["fits"]] == ["parametric"]
    code, out, err = isoflop("fit", "runs.csv", "--method", "joint,isoflop")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_one_method_is_refused_and_the_reason_is_all_there_is(
    isoflop: Callable[..., Output], table: Path, tmp_path: Path
) -> None:
    lines = table.read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:6]) + "\n")
    code, out, err = isoflop("fit", "few.csv", *OWN)
    assert (code, out) == (2, "")
    assert "no method can be fitted. isoflop: 0 of 1 budgets can be used" in err
    assert "parametric: 5 configurations can't determine a law of 5 parameters" in err


def test_outliers_are_named_with_the_reason(isoflop: Callable[..., Output], tmp_path: Path) -> None:
    runs = simulate_isoflop(points=7)
    runs.loc[3, "loss"] *= 1.1
    runs.to_csv(tmp_path / "runs.csv", index=False)
    arguments = ("fit", "runs.csv", "--drop-outliers", "6", "--bootstrap", "0")
    code, out, _ = isoflop(*arguments)
    assert code == 0
    assert out.count("[rows_dropped] Left out: sim-0003: ") == 3
    (dropped,) = json.loads(isoflop(*arguments, "--json")[1])["data"]["dropped"]
    assert dropped["what"] == "sim-0003"
    assert "robust standard deviations off the law (limit 6)" in dropped["why"]


@pytest.mark.slow
def test_what_n_and_c_count_is_shown_where_there_is_a_choice(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path, table: Path
) -> None:
    directory = finish_all(tiny_plan(tmp_path, *LAW), root)
    out = isoflop("fit", str(directory), "--bootstrap", "0")[1]
    rows = out.partition("Exponents by the definition of N and C:")[2].strip().splitlines()
    assert len(rows) == 1 + 3 * 6
    document = json.loads(isoflop("fit", str(directory), "--bootstrap", "0", "--json")[1])
    assert len(document["sensitivity"]) == 18
    assert document["sensitivity"][0].keys() == {
        "method", "n", "c", "a", "a_low", "a_high", "b", "b_low", "b_high", "loss",
    }  # fmt: skip
    assert "decides the exponents" not in isoflop("fit", str(table), *OWN, "--bootstrap", "0")[1]


@pytest.mark.slow
def test_every_loss_side_by_side(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    directory = finish_all(tiny_plan(tmp_path, *LAW), root)
    arguments = (
        "fit",
        str(directory),
        "--loss",
        "all",
        "--method",
        "isoflop,joint",
        "--bootstrap",
        "0",
    )
    code, out, _ = isoflop(*arguments)
    assert code == 0
    losses = ["loss", "loss_text", "loss_semantic", "loss_acoustic"]
    rows = [line.split()[:2] for line in out.splitlines()[1:9]]
    assert rows == [[method, loss] for method in ("isoflop", "joint") for loss in losses]
    assert "Source:" not in out
    document = json.loads(isoflop(*arguments, "--json")[1])
    assert [fit["loss"] for fit in document["fits"]] == [loss for loss in losses for _ in range(2)]
    assert len(document["comparison"]["laws"]) == 8


def test_the_output_is_what_json_prints_and_predicts_as_the_fit(
    isoflop: Callable[..., Output], done_study: Path, tmp_path: Path
) -> None:
    arguments = ("fit", str(done_study), "--bootstrap", "200", "--seed", "3")
    code, _, err = isoflop(*arguments, "--output", "kept")
    assert (code, err.splitlines()[-1]) == (0, "wrote kept/fit.json")
    assert json.loads((tmp_path / "kept" / "fit.json").read_text()) == json.loads(
        isoflop(*arguments, "--json")[1]
    )
    saved = load_fit("kept")
    assert [fit.method for fit in saved] == ["isoflop", "joint", "parametric"]
    assert saved.sweep == tiny_plan(tmp_path, *LAW).sweep
    alone = fit_isoflop(done_study, bootstrap=200, seed=3)
    assert saved["isoflop"].predict(1e12).equals(alone.predict(1e12))


# isoflop predict


def test_a_budget_is_answered_by_each_law(isoflop: Callable[..., Output], done_study: Path) -> None:
    directory = str(done_study)
    isoflop("fit", directory, "--bootstrap", "0", "--output", directory)
    code, out, err = isoflop("predict", f"{directory}/fit.json", "--flops", "1e11")
    assert code == 0
    assert out.startswith("At 1e11 training FLOPs:\n")
    firsts = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert [name for name in firsts if name in ("isoflop", "joint", "parametric")] == [
        "isoflop",
        "joint",
        "parametric",
    ]
    for phrase in (
        "over all sizes",
        "x apart",
        "Within 0.1% of the least loss",
        "Within 1%",
        "1/4 N*",
        "2 N*",
    ):
        assert phrase in out
    assert "recipe: pocket" in out
    assert "warning: fits" not in err
    document = json.loads(
        isoflop("predict", directory, "--flops", "1e11,3e11", "--flops", "1e12", "--json")[1]
    )
    assert document.keys() == {"schema", "source", "predictions"}
    assert [prediction["flops"] for prediction in document["predictions"]] == [1e11, 3e11, 1e12]
    assert {"statistical", "with_model_error", "value"} == set(
        document["predictions"][0]["laws"][0]["params"]
    )


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["fit", "runs/tiny", "--bootstrap", "0"], "--output kept"),
        (["predict", "soda", "--flops", "1e20"], "--yaml kept"),
    ],
)
def test_a_reader_that_goes_away_costs_no_file(
    done_study: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], written: str
) -> None:
    options = [*written.split(), *(["--recipe", "soda"] if arguments[0] == "predict" else [])]
    reading, writing = os.pipe()
    os.close(reading)
    stdout = os.fdopen(writing, "w")
    for name, stream in (("stdout", stdout), ("stderr", sys.stderr)):  # click replaces both
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *options])
    with contextlib.suppress(BrokenPipeError):
        stdout.close()
    assert stop.value.code == CLOSED_PIPE_EXIT_CODE
    assert Path("kept").exists()


@pytest.mark.slow
def test_the_run_that_is_predicted_trains(
    isoflop: Callable[..., Output], root: Path, tmp_path: Path
) -> None:
    directory = finish_all(tiny_plan(tmp_path, *LAW), root)
    write_corpus(root, tiny_plan(tmp_path))
    isoflop("fit", str(directory), "--bootstrap", "0", "--output", str(directory))
    code, _, err = isoflop(
        "predict", str(directory), "--flops", "1e8", "--method", "isoflop", "--yaml", "best.yaml"
    )
    assert code == 0
    assert err.splitlines()[-2:] == ["wrote best.yaml", "plan it: sweep-plan best.yaml"]
    code, out, _ = isoflop("plan", "best.yaml", "--json")
    (run,) = json.loads(out)["runs"]
    assert code == 0
    assert run["budget"] == 1e8
    assert run["train_flops"] == pytest.approx(1e8, rel=0.01)
    code, out, err = isoflop("run", "best.yaml")
    assert code == 0, err
    assert "1 of 1 runs done" in err
    loss = float(out.removeprefix("loss "))
    state = json.loads((root / run["sweep"] / run["run_id"] / "state.json").read_text())
    assert (state["state"], state["step"]) == ("done", run["steps"])
    assert 0.0 < loss < 10.0


def test_a_known_law_needs_no_file(isoflop: Callable[..., Output]) -> None:
    code, out, err = isoflop("predict", "soda", "--flops", "1.32e22", "--json")
    (law,) = json.loads(out)["predictions"][0]["laws"]
    assert code == 0
    assert law["over_sizes"]["params"]["value"] == pytest.approx(9.8e9, rel=5e-3)
    assert law["params"]["statistical"] == [None, None]
    assert (
        err == "isoflop: warning: soda: published without an uncertainty, so it has no intervals\n"
    )
    assert isoflop("predict", "chinchilla", "--flops", "1e21", "--recipe", "soda")[0] == 0
    assert (
        "there is no training configuration; give --recipe"
        in isoflop("predict", "chinchilla", "--flops", "1e21")[2]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["absent.json", "--flops", "1e20"],
            "absent.json: no such file; write one with: isoflop fit SOURCE --output",
        ),
        (
            ["soda", "--flops", "many"],
            "--flops: expected a number of FLOPs such as 1.3e22, got 'many'",
        ),
        (["soda", "--flops", "-1"], "a budget is a number of FLOPs above 0"),
        (
            ["soda", "--flops", "1e20", "--method", "joint"],
            "there is no law by 'joint'; there is parametric",
        ),
        (
            ["soda", "--flops", "1e20", "--recipe", "sodda"],
            "sodda: no such file; did you mean soda",
        ),
        (
            ["soda", "--flops", "1e20", "--confidence", "95"],
            "confidence is a share between 0 and 1, not 95",
        ),
        (["soda", "--flops", "1e20,1e21", "--yaml", "x.yaml"], "--yaml: a run has one budget"),
        (
            ["chinchilla", "--flops", "1e20", "--yaml", "x.yaml"],
            "needs a recipe: give --recipe soda, or a sweep file",
        ),
    ],
)
def test_what_can_not_be_predicted_is_one_line(
    isoflop: Callable[..., Output], tmp_path: Path, arguments: list[str], says: str
) -> None:
    code, _, err = isoflop("predict", *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith("isoflop: error: ")
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "x.yaml").exists()


# isoflop compare


@pytest.fixture
def arms(isoflop: Callable[..., Output], tmp_path: Path) -> list[str]:
    """Return fits of three studies, the last with a different law."""
    from isoflop.fitting import SURFACES

    for seed, (name, law) in enumerate(
        {"text-5": "chinchilla", "text-20": "chinchilla", "music": "soda"}.items()
    ):
        simulate_isoflop(SURFACES[law], seed=seed).to_csv(tmp_path / f"{name}.csv", index=False)
        isoflop(
            "fit",
            f"{name}.csv",
            "--method",
            "joint,parametric",
            "--bootstrap",
            "0",
            "--output",
            name,
        )
    return ["text-5", "text-20", "music"]


def test_arms_side_by_side(isoflop: Callable[..., Output], arms: list[str]) -> None:
    code, out, err = isoflop("compare", *arms)
    assert code == 0
    assert [line.partition("fit.json: ")[2][:24] for line in err.splitlines()] == [
        "All losses are simulated"
    ] * 3
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [
        [arm, m] for arm in arms for m in ("joint", "parametric")
    ]
    verdicts = {line.split("  ")[0]: line.rpartition("  ")[2] for line in lines[-5:]}
    assert verdicts["text-20 parametric"] == "no significant difference"
    assert verdicts["music parametric"].startswith("differ in a, b")
    assert verdicts["text-5 parametric"] == "not tested: the same runs, so not independent"
    document = json.loads(
        isoflop("compare", *arms, "--method", "parametric", "--flops", "1e23", "--json")[1]
    )
    assert (document["schema"], document["flops"], len(document["laws"])) == (1, 1e23, 3)
    assert [(p["first"], p["second"]) for p in document["pairs"]] == [
        ("text-5 parametric", "text-20 parametric"),
        ("text-5 parametric", "music parametric"),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.json"], "absent.json: no such file"),
        (
            ["soda"],
            "the budgets of these laws are not known; name one to compare at, e.g. --flops 1e22",
        ),
        (["soda", "--method", "joint"], "--method: no fit is by joint"),
        (["soda", "--method", "ridge"], "unknown method 'ridge'"),
        (
            ["soda", "--flops", "1e20", "--confidence", "0"],
            "confidence is a share between 0 and 1, not 0",
        ),
        (["soda", "--flops", "x"], "--flops: expected a number of FLOPs"),
    ],
)
def test_what_can_not_be_compared_is_one_line(
    isoflop: Callable[..., Output], arguments: list[str], says: str
) -> None:
    code, out, err = isoflop("compare", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("isoflop: error: ")
    assert says in err
