"""Reports of sweep directories."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.config.sweep_file import load_sweep, to_yaml
from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, fit_parametric, simulate_isoflop, write_fit
from isoflop.reporting import report_page as html
from isoflop.reporting import report_sweep
from isoflop.reporting.figures import FIGURE_NAMES
from isoflop.reporting.sweep_report import loss_curves
from isoflop.runs.loss_log import LOG_COLUMNS


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write pages without drawing figures, which takes seconds (test_report_page.py draws)."""
    monkeypatch.setattr(html, "study_figures", lambda *_: dict.fromkeys(FIGURE_NAMES))
    monkeypatch.setattr(
        html, "write_figures", lambda _, figures: dict.fromkeys(figures, "<svg></svg>")
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    runs = (
        simulate_isoflop(points=5, spread=8.0)
        .rename(columns={"params": "params_total"})
        .assign(state="done")
    )
    runs["loss_text"] = runs["loss"] * 0.8
    runs.to_parquet(folder / "runs.parquet")
    for row in runs.iloc[:10].to_dict("records"):
        steps = np.arange(1, 11)
        for number in (0, 1):
            log = folder / str(row["run_id"]) / "loss"
            log.mkdir(parents=True, exist_ok=True)
            step = steps[number * 5 : number * 5 + 5]
            columns = dict.fromkeys(LOG_COLUMNS, 0.1) | {
                "step": step,
                "tokens": step * 10,
                "train_flops": row["budget"] * step / 10,
                "loss": row["loss"],
            }
            pd.DataFrame(columns).assign(split="dev", kind="all").to_parquet(
                log / f"{number}.parquet"
            )
    return folder


@pytest.fixture
def sweep(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


def test_report_repeats_the_fit_that_was_written(sweep: Path):
    fits = [
        fit_isoflop(sweep, loss=name, bootstrap=300, seed=5, confidence=0.9)
        for name in ("loss_text", "loss")
    ]
    write_fit(sweep, fits, recipe="soda")
    page = report_sweep(sweep).read_text()
    row = fits[0].intervals().loc["a"]
    assert f"{row['low']:.4f} to {row['high']:.4f}" in page
    assert "90% interval" in page
    assert "<td>300, 5</td>" in page.replace(' class="text"', "")
    assert ">soda<" in page
    assert ">loss<" in page
    assert "Loss while training" in page
    assert "has changed since" not in page


def test_changed_runs_are_named(sweep: Path):
    write_fit(sweep, [fit_isoflop(sweep, bootstrap=200)])
    runs = pd.read_parquet(sweep / "runs.parquet")
    runs.iloc[1:].to_parquet(sweep / "runs.parquet")
    assert "has changed since fit.json was written" in report_sweep(sweep).read_text()


def test_without_a_fit_the_defaults_are_taken_and_a_refusal_is_shown(sweep: Path):
    assert "4000, 0<" in report_sweep(sweep, {"name": "mine"}).read_text()
    runs = pd.read_parquet(sweep / "runs.parquet")
    runs[runs["budget"] < 5e18].to_parquet(sweep / "runs.parquet")
    assert "2 of 2 budgets can be used, 3 are needed" in report_sweep(sweep).read_text()
    runs.assign(state="failed").to_parquet(sweep / "runs.parquet")
    assert "no run is done" in report_sweep(sweep).read_text()


def test_methods_missing_from_fit_json_are_fitted_too(sweep: Path):
    surface = fit_parametric(sweep, bootstrap=0, huber_delta=1e-3, confidence=0.9)
    write_fit(sweep, [surface])
    page = report_sweep(sweep).read_text()
    a = surface.exponents.loc["a"]
    assert f"<td>{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]</td>" in page
    assert "IsoFLOP profiles, jointly</td>" in page
    assert page.index("IsoFLOP profiles</td>") < page.index("L = E + A / N^alpha + B / D^beta</td>")


def test_loss_curves_gather_all_parts(sweep: Path):
    curves = loss_curves(sweep, pd.read_parquet(sweep / "runs.parquet"))
    assert curves is not None
    assert len(curves) == 100
    assert {"run_id", "budget", "train_flops", "split", "kind", "loss"} <= set(curves.columns)
    assert loss_curves(sweep, pd.DataFrame({"run_id": ["none"], "budget": [1.0]})) is None


def test_a_damaged_log_has_no_curve(sweep: Path):
    next(sweep.glob("*/loss/0.parquet")).write_bytes(b"PAR1")
    curves = loss_curves(sweep, pd.read_parquet(sweep / "runs.parquet"))
    assert curves is not None
    assert len(curves) == 90
    (sweep / "losses.parquet").write_bytes(b"PAR1")
    with pytest.raises(FitError, match=r"losses\.parquet: can't be read"):
        loss_curves(sweep, pd.read_parquet(sweep / "runs.parquet"))


def test_the_loss_that_the_sweep_fits_is_drawn(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[set[str], str]] = []

    def note(fits: object, curves: pd.DataFrame, kind: str) -> dict[str, None]:
        drawn.append((set(curves["split"]), kind))
        return dict.fromkeys(FIGURE_NAMES)

    monkeypatch.setattr(html, "study_figures", note)
    for kind in ("all", "acoustic"):
        definition = load_sweep("soda", [f"metric.kind={kind}", "metric.set=dev"])
        (sweep / "sweep.yaml").write_text(to_yaml(definition))
        page = report_sweep(sweep).read_text()
        assert ("loss (acoustic)<" in page) is (kind == "acoustic")
    assert drawn == [({"dev"}, "all"), ({"dev"}, "acoustic")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a mapping"),
        ('{"fits": 3}', "fits: expected a list of fits"),
        ('{"fits": [3]}', "fits: expected a list of fits"),
        ('{"fits": null}', "fits: expected a list of fits"),
        ('{"fits": [{"method": "joint", "loss": [1]}]}', r"fits\[0\].loss: expected a name"),
        ('{"fits": [{"method": ["joint"]}]}', r"fits\[0\].method: expected a name"),
        ('{"data": 3}', "data: expected a mapping"),
        ('{"options": 3}', "options: expected a mapping"),
        ('{"options": {"columns": [1]}}', "options.columns: expected a mapping of names"),
        ('{"options": {"columns": {"params": 1}}}', "options.columns: expected a mapping of names"),
        ('{"options": {"n": []}}', "options.n: expected a name"),
        ('{"options": {"bootstrap": "many"}}', "options.bootstrap: can't be 'many'"),
        ('{"options": {"confidence": [0.9]}}', r"options.confidence: can't be \[0.9\]"),
    ],
)
def test_broken_files_are_named(sweep: Path, content: str, message: str):
    (sweep / "fit.json").write_text(content)
    with pytest.raises(FitError, match=message) as problem:
        report_sweep(sweep)
    assert str(problem.value).startswith(f"{sweep}/fit.json: ")
    assert str(problem.value).endswith(
        f"; delete it, or replace it with: isoflop fit {sweep} --output {sweep}"
    )
    assert "\n" not in str(problem.value)


def test_a_missing_sweep_is_named(sweep: Path):
    with pytest.raises(FitError, match="no such file"):
        report_sweep(sweep / "nothing")
