"""Ends of loss logs: repeated steps, runs left out with their reason, doubtful final losses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support.training_logs import make_log

from isoflop.errors import FitError
from isoflop.fitting import read_table


def test_a_later_row_replaces_an_earlier_one_of_its_step():
    first = make_log("a").iloc[:150].assign(loss=9.0)
    table = read_table(pd.concat([first, make_log("a")]))
    assert table.array("loss")[0] == pytest.approx(read_table(make_log("a")).array("loss")[0])
    assert ("log_repeats", "150 rows of the logs repeat a step of their run") in [
        (f["code"], f["message"].partition(",")[0]) for f in table.findings
    ]


LEFT_OUT = {
    "diverged": (
        make_log("bad", loss=np.linspace(3.0, 6.0, 200)),
        "diverged: the loss ends more than 20% above",
    ),
    "nan": (
        make_log("bad", loss=[3.0] * 150 + [np.nan] * 50),
        "no finite loss in the last 5% of the log",
    ),
    "inf": (make_log("bad", loss=[3.0] * 150 + [np.inf] * 50), "diverged: the loss ends infinite"),
    "inf at last": (
        make_log("bad", loss=[3.0] * 199 + [np.inf]),
        "diverged: the loss ends infinite",
    ),
    "inf, then nan": (
        make_log("bad", loss=[3.0] * 198 + [np.inf, np.nan]),
        "diverged: the loss ends infinite",
    ),
    "no loss": (make_log("bad", loss=np.nan), "no loss in the log"),
    "stopped": (
        make_log("bad", steps=2000).iloc[:190],
        "stopped before its planned steps (column 'steps')",
    ),
    "undecayed": (
        make_log("bad", lr=3e-4),
        "its learning rate did not decay (it ends above 50% of its peak)",
    ),
    "cut": (make_log("bad").iloc[:170], "its learning rate did not decay"),
    "failed": (make_log("bad", state="failed"), "state is failed, not done"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_unfinished_and_diverged_runs_are_left_out(case: str):
    bad, expected = LEFT_OUT[case]
    good = [make_log(name, steps=2000, state="finished") for name in ("a", "b")]
    table = read_table(pd.concat([*good, bad]))
    assert table.frame["run_id"].tolist() == ["a", "b"]
    ((run, reason),) = table.dropped
    assert run == "run bad"
    assert expected in reason
    with pytest.raises(FitError, match="no run"):
        read_table(bad if case not in ("stopped", "undecayed", "cut") else bad.assign(loss=np.nan))


def lose_last_losses(value: float, rows: int, every: int = 1) -> pd.DataFrame:
    """Return a log with a held-out loss at every so many rows, and a value in the last rows."""
    runs = make_log("bad").assign(val_loss=lambda table: table["loss"])
    runs.loc[[k for k in range(200) if (k + 1) % every], "val_loss"] = np.nan
    runs.loc[range(200 - rows, 200), "val_loss"] = value
    return runs


@pytest.mark.parametrize("loss", ["val_loss", "loss"])
def test_a_run_without_its_last_losses_is_left_out(loss: str):
    bad = lose_last_losses(np.nan, 5).drop(columns="loss").rename(columns={"val_loss": loss})
    good = [make_log(name).rename(columns={"loss": loss}) for name in ("a", "b")]
    runs = pd.concat([*good, bad])
    table = read_table(runs.assign(split="train" if loss == "loss" else "heldout"), loss=loss)
    ((run, reason),) = table.dropped
    assert run == "run bad"
    assert "its last rows have no finite loss, though almost all earlier rows have one" in reason
    assert not table.findings


@pytest.mark.parametrize(
    ("runs", "share"),
    [
        (lose_last_losses(np.nan, 1), "0.5%"),  # as the row of a logger's summary
        (lose_last_losses(np.nan, 0, every=10), ""),
        (lose_last_losses(np.nan, 10, every=10), "5%"),
        (lose_last_losses(np.nan, 0, every=11), "1%"),  # the interval of the measurements
        (lose_last_losses(np.nan, 0), ""),
    ],
)
def test_a_final_loss_before_the_end_is_reported(runs: pd.DataFrame, share: str):
    good = make_log("a").assign(val_loss=lambda table: table["loss"])
    table = read_table(pd.concat([good, runs]), loss="val_loss")
    assert not table.dropped
    messages = [f["message"] for f in table.findings if f["code"] == "early_loss"]
    expected = (
        f"Run bad: the final loss is the last one logged, up to {share} of the run before its end."
    )
    assert messages == [expected] * bool(share)


def test_a_study_without_last_losses_is_read_with_a_finding():
    logs = [lose_last_losses(np.nan, 2).assign(run=name) for name in ("a", "b")]
    table = read_table(pd.concat(logs), loss="val_loss")
    assert len(table) == 2
    assert [f["code"] for f in table.findings] == ["no_last_loss", "early_loss"]


def test_a_study_without_decay_is_read_with_a_finding():
    table = read_table(pd.concat([make_log("a", lr=1e-3), make_log("b", lr=1e-3)]))
    assert len(table) == 2
    assert [f["code"] for f in table.findings] == ["undecayed"]
