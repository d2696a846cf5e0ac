"""Loss logs become a row a run: the rule of the final loss, what is left out, what a table beside adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, read_table, simulate_isoflop
from isoflop.fitting.tables.final_loss import FinalRule, final_loss, is_held_out, rule_for
from isoflop.runs.collect import read_runs

STUDY = Path(__file__).parents[3] / "analysis" / "pocket-64"


def curve(
    rows: int, shape: float = 1.0, drop: float = 0.06
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the run, loss without noise and learning rate of a warm-up-stable-decay schedule (decay of 20 %).

    The loss falls by `drop` over the decay, as 1 - lr^shape.
    """
    share = np.arange(1, rows + 1) / rows
    rate = np.minimum(share / 0.01, 1.0) * (1.0 - np.clip((share - 0.8) / 0.2, 0.0, 1.0))
    stable = 2.0 + 0.3 * (share + 0.002) ** -0.3
    return share, stable * np.where(share > 0.8, 1.0 - drop * (1.0 - rate**shape), 1.0), rate


def log(
    run: str = "r", rows: int = 200, level: float = 1.0, noise: float = 0.0, **columns: Any
) -> pd.DataFrame:
    share, loss, rate = curve(rows)
    error = np.random.default_rng(len(run)).normal(0.0, noise, rows)
    table = {
        "run": run,
        "step": np.arange(1, rows + 1) * 10,
        "tokens": share * 1e9,
        "lr": rate * 3e-4,
    }
    return pd.DataFrame(
        {
            **table,
            "loss": level * loss * np.exp(error),
            "params": 1e7,
            "flops": share * 6e16,
            **columns,
        }
    )


@pytest.mark.parametrize("shape", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("rows", [200, 2000])
def test_a_line_is_less_biased_than_a_mean_on_a_decaying_schedule(rows: int, shape: float):
    share, loss, _ = curve(rows, shape)
    bias = {rule: final_loss(share, loss, rule) / loss[-1] - 1.0 for rule in ("line", "mean")}
    assert abs(bias["line"]) < 0.003
    assert bias["mean"] > 0.002
    assert abs(bias["line"]) < 1.2 * bias["mean"]
    noisy = np.random.default_rng(0).normal(0.0, 0.02, (300, rows))
    drawn = {
        r: np.std([final_loss(share, loss * np.exp(e), r) for e in noisy])
        for r in ("line", "mean", "last")
    }
    assert drawn["line"] < 1.7 * drawn["mean"]
    assert drawn["line"] < 0.5 * drawn["last"]


def test_training_logs_of_the_committed_study_end_where_its_held_out_losses_do():
    runs = read_runs(STUDY).set_index("run_id")
    ends = {}
    rules: tuple[FinalRule, ...] = ("line", "mean")
    for rule in rules:
        table = read_table(
            STUDY / "losses.parquet", split="train", beside=STUDY / "runs.parquet", final=rule
        )
        ends[rule] = np.log(table.frame.set_index("run_id")["loss"] / runs["loss"])
    assert len(ends["line"]) == 80
    assert abs(ends["line"].mean()) < 0.003
    assert ends["mean"].mean() > 0.005


def test_held_out_logs_of_the_committed_study_give_its_law():
    logs = read_table(STUDY / "losses.parquet", beside=STUDY / "runs.parquet")
    assert logs.hash == read_table(STUDY).hash
    assert (
        "69,996 rows of 80 loss logs; final 'loss' of heldout: the last value (80)" in logs.reading
    )


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("val_loss", True),
        ("eval/loss", True),
        ("heldout", True),
        ("train/loss", False),
        ("loss", False),
        ("value", False),
    ],
)
def test_what_is_held_out(name: str, held_out: bool):
    assert is_held_out(name) is held_out


@pytest.mark.parametrize(
    ("rows", "rule", "held_out", "taken"),
    [
        (200, "auto", False, "line"),
        (200, "auto", True, "last"),
        (20, "auto", False, "last"),
        (20, "mean", True, "mean"),
    ],
)
def test_which_rule_is_taken(rows: int, rule: FinalRule, held_out: bool, taken: str):
    assert rule_for(np.arange(1.0, rows + 1), rule, held_out) == taken


def test_a_log_becomes_a_row_a_run():
    runs = pd.concat([log("a", noise=0.01), log("b", level=1.1, noise=0.01)]).sample(
        frac=1.0, random_state=0
    )
    table = read_table(runs, final="last")
    assert table.frame["run_id"].tolist() == ["a", "b"]
    assert table.array("tokens").tolist() == [1e9, 1e9]
    assert table.array("flops").tolist() == [6e16, 6e16]
    last = runs[runs["step"] == 2000].set_index("run")["loss"]
    np.testing.assert_allclose(table.array("loss"), last[["a", "b"]])
    line = read_table(runs).array("loss")
    np.testing.assert_allclose(line / curve(200)[1][-1], [1.0, 1.1], rtol=0.015)
    assert (
        "400 rows of 2 loss logs; final 'loss': the end of a straight line through the log loss of the last 10%"
        in (read_table(runs).reading)
    )


def test_a_later_row_replaces_an_earlier_one_of_its_step():
    first = log("a").iloc[:150].assign(loss=9.0)
    table = read_table(pd.concat([first, log("a")]))
    assert table.array("loss")[0] == pytest.approx(read_table(log("a")).array("loss")[0])
    assert ("log_repeats", "150 rows of the logs repeat a step of their run") in [
        (f["code"], f["message"].partition(",")[0]) for f in table.findings
    ]


CUT = log("cut").iloc[:160]
GONE = {
    "diverged": (
        log("bad", loss=np.linspace(3.0, 6.0, 200)),
        "diverged: the loss ends more than 20% above",
    ),
    "nan": (
        log("bad", loss=[3.0] * 150 + [np.nan] * 50),
        "no finite loss in the last 5 % of the log",
    ),
    "inf": (log("bad", loss=[3.0] * 150 + [np.inf] * 50), "diverged: the loss ends infinite"),
    "inf at last": (log("bad", loss=[3.0] * 199 + [np.inf]), "diverged: the loss ends infinite"),
    "inf, then nan": (
        log("bad", loss=[3.0] * 198 + [np.inf, np.nan]),
        "diverged: the loss ends infinite",
    ),
    "no loss": (log("bad", loss=np.nan), "no loss in the log"),
    "stopped": (
        log("bad", steps=2000).iloc[:190],
        "stopped before its planned steps (column 'steps')",
    ),
    "undecayed": (
        log("bad", lr=3e-4),
        "its learning rate did not decay (it ends above 50% of its peak)",
    ),
    "cut": (log("bad").iloc[:170], "its learning rate did not decay"),
    "failed": (log("bad", state="failed"), "state is failed, not done"),
}


@pytest.mark.parametrize("case", GONE)
def test_runs_whose_end_is_no_end_are_left_out(case: str):
    bad, why = GONE[case]
    good = [log(name, steps=2000, state="finished") for name in ("a", "b")]
    table = read_table(pd.concat([*good, bad]))
    assert table.frame["run_id"].tolist() == ["a", "b"]
    ((what, reason),) = table.dropped
    assert what == "run bad"
    assert why in reason
    with pytest.raises(FitError, match="no run"):
        read_table(bad if case not in ("stopped", "undecayed", "cut") else bad.assign(loss=np.nan))


def ending(lost: float, rows: int, every: int = 1) -> pd.DataFrame:
    """A held-out loss at every so many rows of a log, whose last ones are lost."""
    runs = log("bad").assign(val_loss=lambda table: table["loss"])
    runs.loc[[k for k in range(200) if (k + 1) % every], "val_loss"] = np.nan
    runs.loc[range(200 - rows, 200), "val_loss"] = lost
    return runs


@pytest.mark.parametrize("loss", ["val_loss", "loss"])
def test_a_run_that_lost_its_last_losses_is_left_out(loss: str):
    bad = ending(np.nan, 5).drop(columns="loss").rename(columns={"val_loss": loss})
    good = [log(name).rename(columns={"loss": loss}) for name in ("a", "b")]
    runs = pd.concat([*good, bad])
    table = read_table(runs.assign(split="train" if loss == "loss" else "heldout"), loss=loss)
    ((what, reason),) = table.dropped
    assert what == "run bad"
    assert "its last rows have no finite loss, though almost all before have" in reason
    assert not table.findings


@pytest.mark.parametrize(
    ("runs", "share"),
    [
        (ending(np.nan, 1), "0.5%"),  # as the row of a logger's summary
        (ending(np.nan, 0, every=10), ""),
        (ending(np.nan, 10, every=10), "5.0%"),
        (ending(np.nan, 0, every=11), "1.0%"),  # measured so
        (ending(np.nan, 0), ""),
    ],
)
def test_a_loss_from_before_the_end_is_said(runs: pd.DataFrame, share: str):
    good = log("a").assign(val_loss=lambda table: table["loss"])
    table = read_table(pd.concat([good, runs]), loss="val_loss")
    assert not table.dropped
    said = [f["message"] for f in table.findings if f["code"] == "early_loss"]
    words = f"Run bad: the last loss, which is taken, lies up to {share} of the run before its end."
    assert said == [words] * bool(share)


def test_a_study_whose_logs_all_end_without_a_loss_is_read_with_a_finding():
    table = read_table(
        pd.concat([ending(np.nan, 2).assign(run=name) for name in ("a", "b")]), loss="val_loss"
    )
    assert len(table) == 2
    assert [f["code"] for f in table.findings] == ["no_last_loss", "early_loss"]


def test_a_study_without_decay_is_read_with_a_finding():
    table = read_table(pd.concat([log("a", lr=1e-3), log("b", lr=1e-3)]))
    assert len(table) == 2
    assert [f["code"] for f in table.findings] == ["undecayed"]


def test_a_table_beside_adds_what_the_log_lacks(tmp_path: Path):
    runs = pd.concat([log("a"), log("b"), log("c")]).drop(columns=["params", "flops"])
    beside = tmp_path / "shapes.csv"
    beside.write_text("run,params,budget\na,1e7,6e16\nb,2e7,6e16\nz,3e7,6e16\n")
    table = read_table(runs, beside=beside)
    assert table.array("params").tolist() == [1e7, 2e7]
    assert table.dropped == (("run c", "not in the table beside"),)
    with pytest.raises(FitError, match="no column 'run'"):
        read_table(runs, beside=pd.DataFrame({"params": [1e7]}))
    with pytest.raises(FitError, match="run a twice in 'run'"):
        read_table(runs, beside=pd.DataFrame({"run": ["a", "a"], "params": 1e7}))
    with pytest.raises(FitError, match="has none of the log's runs"):
        read_table(runs, beside=pd.DataFrame({"run": ["x"], "params": 1e7}))


def test_a_table_beside_fills_what_some_runs_lack(tmp_path: Path):
    runs = pd.concat(
        [
            log("a"),
            log("b", params=np.nan),
            log("c", params=3e7, tokens=np.nan),
            log("d", flops=np.nan),
        ]
    )
    runs.loc[(runs["run"] == "c").to_numpy(), "loss"] = (
        np.nan
    )  # its final loss is not that of the table
    beside = tmp_path / "runs.csv"
    beside.write_text(
        "run,params,tokens,flops,loss\na,9e9,9e9,9e19,9\nb,2e7,,,9\nc,9e9,5e8,,9\nd,9e9,,6e16,9\n"
    )
    table = read_table(runs, beside=beside, final="last")
    assert table.frame.set_index("run_id")["params"].to_dict() == {"a": 1e7, "b": 2e7, "d": 1e7}
    assert table.array("flops").tolist() == [6e16, 6e16, 6e16]
    assert table.array("loss").tolist() == [curve(200)[1][-1]] * 3
    assert ("run c", "no loss in the log") in table.dropped
    assert (
        f"; 'params' of 1 run, 'tokens' of 1 run, 'flops' of 1 run from {beside}: 3 runs"
        in table.reading
    )


@pytest.mark.parametrize(
    "named", [{"run": "name"}, {"split": "val"}, {"step": "stp"}, {"loss": "lss"}]
)
def test_what_is_missing_names_the_file_and_the_option(tmp_path: Path, named: dict[str, Any]):
    log().to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(FitError) as problem:
        read_table(tmp_path / "log.csv", **named)
    assert str(problem.value).startswith(f"{tmp_path / 'log.csv'}: no column ")
    assert f"--{next(iter(named))}" in str(problem.value)
    (tmp_path / "beside.csv").write_text("width\n8\n")
    with pytest.raises(FitError, match=f"^{tmp_path / 'beside.csv'}: no column 'run'; "):
        read_table(log(), beside=tmp_path / "beside.csv")


def test_seeds_with_one_name_are_runs_of_their_own():
    table = read_table(
        pd.concat([log("a", seed=0), log("a", seed=1, level=1.1), log("b", seed=0, params=2e7)])
    )
    assert table.frame["run_id"].tolist() == ["a seed 0", "a seed 1", "b seed 0"]
    assert table.configurations["seeds"].tolist() == [2, 1]
    assert not table.findings


def test_a_table_without_steps_takes_columns_from_the_one_beside():
    study = simulate_isoflop(points=5)
    beside = study.drop(columns=["loss", "train_flops"])
    losses = study.drop(columns=["params", "tokens", "budget", "train_flops"])
    table = read_table(losses.sample(frac=1.0, random_state=0), beside=beside)
    assert table.hash == read_table(study.drop(columns="train_flops")).hash


def test_splits_are_chosen():
    both = pd.concat(
        [log(split="train"), log(split="val", level=1.1).iloc[::50].assign(step=1, tokens=1e8)]
    )
    both = pd.concat([both, log(split="val", level=1.2).iloc[[-1]]])
    assert read_table(both).array("loss")[0] == pytest.approx(1.2 * curve(200)[1][-1])
    assert read_table(both, split="train").array("loss")[0] == pytest.approx(
        curve(200)[1][-1], rel=0.01
    )
    three = pd.concat([both, log(split="test")])
    with pytest.raises(
        FitError, match="column 'split' has test, train, val; choose one with split="
    ):
        read_table(three)
    with pytest.raises(FitError, match="has no 'dev'; it has test, train, val"):
        read_table(three, split="dev")


@pytest.mark.parametrize(
    ("runs", "options", "words"),
    [
        (log().assign(params=np.arange(200) + 1e7), {}, "column 'params' changes within run r"),
        (log(), {"step": "stp"}, "no column 'stp'; did you mean 'step'?"),
        (log(), {"run": "name"}, "no column 'name'"),
        (log(), {"split": "val"}, "no column 'split'"),
        (log().assign(loss="high"), {}, "column 'loss' needs positive, finite numbers"),
        (log().drop(columns="params"), {}, "no column 'params' or 'params_total'"),
    ],
)
def test_logs_that_can_not_be_read(runs: pd.DataFrame, options: dict[str, Any], words: str):
    with pytest.raises(FitError) as caught:
        read_table(runs, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_with_one_row_each_are_no_log():
    runs = simulate_isoflop(points=5, seeds=2).rename(columns={"run_id": "run"}).assign(step=1000)
    assert "with 70 rows" in read_table(runs).reading
    shared = runs.assign(run=[f"w{i % 5}" for i in range(70)])  # a name of the size, not of the run
    assert "with 70 rows" in read_table(shared).reading


def nameless(**columns: Any) -> pd.DataFrame:
    """Logs of 35 runs under a name that no reader knows."""
    study = simulate_isoflop(points=5)
    rows = [
        study.assign(step=10 * k, tokens=study["tokens"] * k / 12, loss=study["loss"] * 12 / k)
        for k in range(13)
    ]
    logs = pd.concat(rows[1:]).rename(columns={"run_id": "experiment"})
    logs["train_flops"] *= logs["step"] / 120
    return logs.assign(**columns)


@pytest.mark.parametrize(
    ("runs", "options", "step"),
    [
        (nameless(), {}, "step"),
        (nameless(), {"budget": "budget", "params": "params"}, "step"),
        (nameless().drop(columns="budget"), {}, "step"),
        (nameless().drop(columns="budget"), {"flops": "6ND"}, "step"),
        (
            nameless().drop(columns="budget").assign(params=1e9),
            {},
            "step",
        ),  # steps of all runs, one size
        (
            nameless().rename(columns={"step": "iteration"}).astype({"iteration": str}),
            {},
            "iteration",
        ),
        (nameless(step="unknown"), {}, "step"),
        (nameless(step="unknown").drop(columns="budget"), {}, "step"),
        (nameless(seed=0, batch_size=8, lr=np.arange(420)), {}, "step"),
    ],
)
def test_a_log_that_names_no_runs_is_refused(
    runs: pd.DataFrame, options: dict[str, Any], step: str
):
    with pytest.raises(FitError) as caught:
        read_table(runs, **options)
    assert (
        f"column {step!r} says that this is a loss log, but no column names its runs; name it with run="
        in str(caught.value)
    )
    assert "\n" not in str(caught.value)


def test_a_log_whose_runs_are_named_needs_steps_that_are_numbers():
    assert len(read_table(nameless(), run="experiment")) == 35
    with pytest.raises(FitError, match="column 'step' needs positive, finite numbers"):
        read_table(nameless(step="unknown"), run="experiment")


SIZES = pd.concat([simulate_isoflop(budgets=(c,), points=5).assign(params=[1e8, 2e8, 3e8, 4e8, 5e8]) for c in
                   (1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21, 3e21)], ignore_index=True)  # fmt: skip
SIZES = SIZES.assign(
    tokens=SIZES["budget"] / 6 / SIZES["params"], step=(SIZES["budget"] / SIZES["params"]) // 6e5
)


@pytest.mark.parametrize(
    "runs",
    [
        SIZES,
        SIZES.drop(columns="budget"),  # the steps of a size are those of 8 budgets
        SIZES.drop(columns=["budget", "train_flops"]),
        SIZES.assign(step="last"),
        SIZES.drop(columns="budget").assign(step="last"),
        SIZES.rename(columns={"step": "steps"}),
        pd.concat([SIZES.assign(seed=s, loss=SIZES["loss"] * (1 + s / 1e3)) for s in range(4)]),
        pd.concat([SIZES.assign(batch_size=b, step=SIZES["step"] * 64 // b) for b in (16, 32, 64)]),
    ],
)
def test_finished_runs_without_names_may_have_steps(runs: pd.DataFrame):
    six = None if {"budget", "train_flops"} & set(runs.columns) else "6ND"
    assert len(read_table(runs.drop(columns="run_id"), flops=six)) == len(runs)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("layout", ["runs/{run}", "{run}/metrics"])
def test_a_folder_with_a_file_a_run(tmp_path: Path, kind: str, layout: str):
    for run in ("a", "b"):
        file = tmp_path / "logs" / f"{layout.format(run=run)}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = log(run, params=1e7 if run == "a" else 2e7).drop(columns="run")
        if kind == "csv":
            rows.to_csv(file)
        elif kind == "parquet":
            rows.to_parquet(file)
        else:
            file.write_text("\n".join(map(json.dumps, rows.to_dict("records"))))
    table = read_table(tmp_path / "logs")
    assert [name.removeprefix("runs/") for name in table.frame["run_id"]] == ["a", "b"]
    assert table.array("params").tolist() == [1e7, 2e7]


def test_one_broken_file_of_a_folder_is_left_out_with_its_reason(tmp_path: Path):
    log("a").to_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("")
    table = read_table(tmp_path)
    assert table.dropped == (("b.csv", "the file is empty"),)


def test_a_law_from_training_logs_is_the_true_one():
    study = simulate_isoflop(noise=0.0, points=7, budgets=(1e18, 1e19, 1e20, 1e21))
    share, shape, rate = curve(100)
    logs = []
    rng = np.random.default_rng(0)
    for row in study.to_dict("records"):
        loss = row["loss"] * shape / shape[-1] * np.exp(rng.normal(0.0, 0.004, 100))
        steps = {
            "step": np.arange(100),
            "tokens": share * row["tokens"],
            "train_flops": share * row["budget"],
        }
        logs.append(
            pd.DataFrame(
                {"run": row["run_id"], "params": row["params"], "lr": rate, "loss": loss, **steps}
            )
        )
    law = fit_isoflop(pd.concat(logs))
    assert len(law.profiles) == 4
    a = law.exponents.loc["a"]
    assert a["low"] < 0.5139 < a["high"]
    assert a["high"] - a["low"] < 0.1
