"""Progress of a study: plain lines, and live bars on a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from isoflop.launching.local import Progress
from isoflop.reporting.terminal.progress_text import StudyProgress

RUNS = {"a": 100, "b": 200}


def progress(share: float, seconds: float | None = None, **states: dict[str, Any]) -> Progress:
    return Progress(states, share, seconds)


def test_plain_lines_report_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(RUNS) as display:
        display.show_data(1_200_000, 3e6)
        display.show_data(1_300_000, 3e6)  # too soon for another line
        display.show_data(3_100_000, 3e6)
        running = {"state": "running", "step": 50, "loss": 4.5}
        display.show_runs(progress(0.2, None, a=running, b={"state": "pending"}))
        display.show_runs(progress(0.5, 300.0, a={"state": "done", "loss": 4.25}, b=running))
        failed = {"state": "failed", "reason": "no luck"}
        display.show_runs(progress(1.0, 0.0, a={"state": "done", "loss": 4.25}, b=failed))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "corpus: 1.20M of 3.00M tokens",
        "corpus: 3.10M tokens",
        "[1/2] a done, training loss 4.250, 5 min left",
        "[2/2] b failed: no luck, 0 s left",
    ]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"state": "done", "loss": 4.25}, "done, training loss 4.250"),
        ({"state": "done", "loss": 4.25, "loss_split": "train"}, "done, training loss 4.250"),
        ({"state": "done", "loss": 4.25, "loss_split": "heldout"}, "done, held-out loss 4.250"),
        ({"state": "diverged", "loss": 4.25, "loss_split": "dev"}, "diverged, held-out loss 4.250"),
        (
            {"state": "diverged", "reason": "it is not finite", "loss": float("nan")},
            "diverged: it is not finite",
        ),
        ({"state": "failed", "loss": None}, "failed"),
    ],
)
def test_a_loss_has_its_split(
    capsys: pytest.CaptureFixture[str], state: dict[str, Any], text: str
) -> None:
    with StudyProgress(RUNS) as display:
        display.show_runs(progress(0.0, None, a={"state": "running"}))
        display.show_runs(progress(1.0, None, a=state))
    assert capsys.readouterr().err.splitlines()[-1] == f"[1/1] a {text}"


def test_ends_of_an_earlier_call_are_not_reported_again(capsys: pytest.CaptureFixture[str]) -> None:
    done = {"state": "done", "loss": 4.25}
    with StudyProgress(RUNS) as display:
        display.show_runs(progress(0.4, None, a=done, b={"state": "running"}))
        display.show_runs(progress(1.0, 0.0, a=done, b=done))
    assert capsys.readouterr().err.splitlines() == [
        "40% of the work, 1 of 2 runs",
        "[2/2] b done, training loss 4.250, 0 s left",
    ]


def test_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "150")
    with StudyProgress(RUNS) as display:
        display.show_data(1_000_000, 2e6)
        display.show_data(2_000_000, 2e6)
        display.show_runs(
            progress(
                0.3, 40.0, a={"state": "running", "step": 25, "loss": 4.5}, b={"state": "pending"}
            )
        )
        display.live.refresh()
        display.show_runs(
            progress(0.5, 30.0, a={"state": "done", "loss": 4.0}, b={"state": "pending"})
        )
    out, err = capsys.readouterr()
    assert out == ""
    for text in (
        "25%",
        "loss 4.500",
        "all runs",
        "0 of 2 runs, 40 s left",
        "[1/2] a done, training loss 4.000",
    ):
        assert text in err


def test_a_warning_is_reported_once_and_not_by_a_later_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = (
        {"state": "running", "warning": "old"},
        {"state": "running", "warning": "went back to step 20"},
    )
    with StudyProgress(RUNS) as display:
        display.show_runs(progress(0.0, None, a=old, b={"state": "running"}))
        display.show_runs(progress(0.0, None, a=old, b=new))
        display.show_runs(progress(0.0, None, a=old, b=new))
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [
        "isoflop: warning: b: went back to step 20"
    ]
