"""The report page: self-contained, escaped, with a mark for simulated runs."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from support.figure_checks import cells

from isoflop.errors import FitError
from isoflop.fitting import (
    SURFACES,
    IsoflopFit,
    ParametricFit,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    simulate_isoflop,
)
from isoflop.reporting import figures, write_report
from isoflop.reporting import report_page as html
from isoflop.reporting.figures import FIGURE_NAMES, inline_svg, write_figures
from isoflop.text import count_text

RUNS = simulate_isoflop(points=7)
RENDER = figures._render
NASTY = '<script>alert("x")</script>&'


class Balance(HTMLParser):
    """Collect tags that are closed but were never opened, and tags that stay open."""

    VOID = frozenset(
        {"meta", "br", "link", "img", "path", "use", "rect", "circle", "stop", "image", "line"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def profiles() -> IsoflopFit:
    return fit_isoflop(RUNS, bootstrap=200)


@pytest.fixture(scope="module")
def surface() -> ParametricFit:
    return fit_parametric(RUNS, bootstrap=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the page of a study with all figures, and its text; only its SVG is rendered."""
    runs = RUNS.assign(state="done", reason="", epochs=1.5)
    runs.loc[3, ["state", "loss", "reason"]] = ["diverged", np.nan, NASTY]
    runs.loc[4, "run_id"] = NASTY
    share = np.geomspace(0.01, 1.0, 20)
    curves = pd.concat(
        pd.DataFrame({"train_flops": row["budget"] * share, "loss": row["loss"] / share**0.1})
        .assign(run_id=row["run_id"], budget=row["budget"])
        .assign(split="dev", kind="all")
        for row in RUNS.to_dict("records")
    )
    directory = tmp_path_factory.mktemp("sweep")
    metadata = {"name": f"soda {NASTY}", "wall_hours": 3.25, "recipe": NASTY, "empty": None}
    fits = [fit_isoflop(runs, bootstrap=200), fit_joint(runs), fit_parametric(runs, bootstrap=0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            figures, "_render", lambda figure, kind: RENDER(figure, kind) if kind == "svg" else b""
        )
        path = write_report(directory, runs, fits[0], curves, metadata, more_fits=fits[1:])
    return path, path.read_text()


def test_files(written):
    path, _ = written
    names = {p.name for p in (path.parent / "figures").iterdir()}
    stems = {
        "profiles",
        "law_params",
        "law_tokens",
        "overview",
        "surface",
        "law_loss",
        "rollout",
        "residuals",
    }
    stems.add("loss_curves")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert sorted(p.name for p in path.parent.iterdir()) == ["figures", "report.html"]


def test_page_needs_nothing_from_outside(written):
    _, page = written
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page.replace('xlink:href="#', 'href="#'))
    assert "url(http" not in page
    assert "@import" not in page
    assert page.count("<svg") == 8


def test_everything_from_outside_is_escaped(written):
    _, page = written
    assert NASTY not in page
    assert "&lt;script&gt;" in page
    parser = Balance()
    parser.feed(page)
    assert parser.wrong == []
    assert parser.open == []


def test_page_gives_laws_and_runs(written):
    _, page = written
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    for phrase in (
        "Optimal model size and data grow at about the same pace",
        "C<sup>0.5",
        "48 done",
        "<dd>3.2 h<",
        "1e18 to 1e21 FLOPs",
        "Simulated runs",
        "diverged",
        "<b>interior</b>",
        "noise can&#x27;t be separated from misfit",
        "data hash",
        "How to read this",
    ):
        assert phrase in text
    assert not re.search(r">\s*(nan|inf|None)\b", text)


def test_figures_of_an_earlier_study_go(tmp_path: Path):
    for name in ("mine.png", "surface.txt"):
        (tmp_path / name).write_text("")
    write_figures(tmp_path, {name: Figure() for name in FIGURE_NAMES})
    assert len(list(tmp_path.iterdir())) == 2 * len(FIGURE_NAMES) + 2
    write_figures(tmp_path, {"profiles": Figure()})
    assert {p.name for p in tmp_path.iterdir()} == {
        "mine.png",
        "surface.txt",
        "profiles.png",
        "profiles.svg",
    }
    assert (tmp_path / "profiles.png").read_bytes().startswith(b"\x89PNG")


def test_same_study_same_drawing(profiles: IsoflopFit):
    first, second = (inline_svg(cast(Figure, profiles.plot().figure)) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "<dc:date>" not in first


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write pages without rendering figures, which takes seconds."""
    monkeypatch.setattr(
        html, "write_figures", lambda _, figures: dict.fromkeys(figures, "<svg></svg>")
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch, unrendered: None) -> None:
    """Write pages without drawing figures, as if every study had all of them."""
    monkeypatch.setattr(html, "study_figures", lambda *_: dict.fromkeys(FIGURE_NAMES))


@pytest.mark.usefixtures("undrawn")
def test_real_runs_have_no_banner(tmp_path: Path, profiles: IsoflopFit):
    runs = RUNS.drop(columns="simulated")
    assert "Simulated runs" not in write_report(tmp_path / "a", runs, profiles).read_text()
    assert (
        "Simulated runs"
        in write_report(tmp_path / "b", runs, profiles, None, {"simulated": True}).read_text()
    )


@pytest.mark.usefixtures("undrawn")
def test_a_refused_fit_has_a_page(tmp_path: Path):
    page = write_report(
        tmp_path, RUNS, None, None, {"name": "x"}, refusal="2 of 4 budgets < 3"
    ).read_text()
    assert "No law could be fitted" in page
    assert "2 of 4 budgets &lt; 3" in page
    assert "All 49 runs" in page


@pytest.mark.usefixtures("undrawn")
def test_more_fits_are_listed(tmp_path: Path, profiles: IsoflopFit):
    runs = RUNS.assign(loss_text=RUNS["loss"] * 0.9)
    text = fit_isoflop(runs, loss="loss_text", bootstrap=200)
    page = write_report(tmp_path, runs, profiles, more_fits=[text]).read_text()
    assert ">loss_text<" in page


@pytest.mark.usefixtures("undrawn")
def test_methods_are_side_by_side(tmp_path: Path, profiles: IsoflopFit, surface: ParametricFit):
    fits = [profiles, fit_joint(RUNS), surface]
    page = write_report(
        tmp_path, RUNS, fits[0], more_fits=fits[1:], refused={"envelope": "x < y"}
    ).read_text()
    names = ("IsoFLOP profiles", "IsoFLOP profiles, jointly", "L = E + A / N^alpha + B / D^beta")
    for fit, name in zip(fits, names, strict=True):
        a = fit.exponents.loc["a"]
        (row,) = [r for r in cells(page) if r[:3] == [name, "loss", "total"]]
        assert row[3] == f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]"
        predicted = [r for r in cells(page) if len(r) == 6 and r[1] == name and r[2] == "D*"]
        assert [r[0] for r in predicted] == ["1e21", "1e22"]
        tokens = fit.predict(1e22).loc["tokens"]
        for prefix, text in (("statistical_", predicted[1][4]), ("", predicted[1][5])):
            low, high = tokens[f"{prefix}low"], tokens[f"{prefix}high"]
            assert text == f"{count_text(low)} to {count_text(high)}"
    assert [r[2] for r in cells(page) if len(r) == 6 and r[0] == "1e22"] == ["N*", "D*"] * 3 + [
        "loss"
    ]
    assert "lies in every interval" in page
    assert "Envelope: not fitted: x &lt; y" in page


def held_out(*shares: float) -> pd.DataFrame:
    """Return training curves, and held-out losses after some shares of the runs."""
    columns = ["run_id", "budget", "loss"]
    frames = [
        RUNS.loc[:, columns].assign(train_flops=RUNS["budget"] * share, split=split, kind=kind)
        for split, points in (("train", (0.1, 0.5, 1.0)), ("dev", shares))
        for share in points
        for kind in ("all", "text")
    ]
    return pd.concat(frames, ignore_index=True)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("kind", "shares", "caption"),
    [
        ("all", (0.5, 1.0), "by budget; the dot is the loss after the last step, which is fitted."),
        (
            "text",
            (0.5, 1.0),
            "by budget; the dot is the loss of text tokens after the last step, which is fitted.",
        ),
        (
            "all",
            (1.0,),
            "by budget: the loss on training batches; the dot is the held-out loss after the last "
            "step, which is fitted.",
        ),
        (
            "text",
            (1.0,),
            "by budget: the loss of text tokens on training batches; the dot is the held-out loss "
            "of text tokens after the last step, which is fitted.",
        ),
    ],
)
def test_the_loss_that_is_fitted_is_named(
    tmp_path: Path, profiles: IsoflopFit, kind: str, shares: tuple[float, ...], caption: str
):
    page = write_report(tmp_path, RUNS, profiles, held_out(*shares), kind=kind).read_text()
    assert caption in page
    assert {row[1] for row in cells(page) if row[0] == "IsoFLOP profiles"} == {
        "loss" if kind == "all" else "loss (text)"
    }
    assert ("The loss is that of text tokens." in page) is (kind == "text")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("budgets", [(1e18,), (1e18, 1e20)])
def test_a_law_needs_three_budgets(tmp_path: Path, budgets: tuple[float, ...]):
    runs = simulate_isoflop(budgets=budgets, points=9)
    page = write_report(tmp_path, runs, fit_parametric(runs, bootstrap=0)).read_text()
    assert "<h1>No law of compute from these runs</h1>" in page
    assert f"The runs are at {len(budgets)} budget" in page
    assert "faster" not in page
    assert "b / a</dt>" not in page


@pytest.mark.usefixtures("undrawn")
def test_a_fit_that_did_not_converge_is_no_headline(
    tmp_path: Path, profiles: IsoflopFit, surface: ParametricFit
):
    lost = dataclasses.replace(
        surface, diagnostics=[{"code": "not_converged", "message": "The fit did not converge: x."}]
    )
    page = write_report(tmp_path, RUNS, lost).read_text()
    assert "<h1>No law of compute from these runs</h1>" in page
    assert "The fit did not converge: x. The fits are listed below." in page
    page = write_report(tmp_path, RUNS, lost, more_fits=[profiles]).read_text()
    assert f"<h1>{profiles.headline().partition(': ')[0]}</h1>" in page


@pytest.mark.usefixtures("undrawn")
def test_findings_have_codes_and_shared_ones_appear_once(
    tmp_path: Path, profiles: IsoflopFit, surface: ParametricFit
):
    page = write_report(tmp_path, RUNS, profiles, more_fits=[surface]).read_text()
    assert page.count('<span class="badge">no replicates</span> No configuration') == 1
    assert page.count('<span class="badge">rollout</span>') == 2
    assert page.index("<h3>IsoFLOP profiles</h3>") < page.index("<h3>L = E + A")


@pytest.mark.usefixtures("undrawn")
def test_disagreement_of_methods_is_reported(tmp_path: Path, profiles: IsoflopFit):
    steep = simulate_isoflop(SURFACES["chinchilla"], drift=1.0).assign(run_id="x")
    other = fit_isoflop(steep.assign(params=steep["params"] ** 1.5), bootstrap=200)
    page = write_report(tmp_path, RUNS, profiles, more_fits=[other]).read_text()
    assert "The methods do not agree" in page


@pytest.mark.usefixtures("unrendered")
def test_a_page_about_a_surface_alone(tmp_path: Path, surface: ParametricFit):
    page = write_report(tmp_path, RUNS, surface).read_text()
    assert page.count("<svg") == 4
    assert "<h2>IsoFLOP profiles</h2>" not in page
    assert "<h2>The loss as a surface</h2>" in page


def test_a_directory_that_can_not_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FitError, match="can't be written"):
        write_report(tmp_path / "file", RUNS, None)
