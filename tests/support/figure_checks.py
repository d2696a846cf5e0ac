"""Fits that tests draw, and what they ask of Axes and of the tables of a page."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path

from isoflop.fitting import fit_envelope, fit_isoflop, fit_joint, fit_parametric, simulate_isoflop
from isoflop.fitting.results.base import Fit

RUNS = simulate_isoflop(points=7)
FITS: dict[str, Fit] = {
    "isoflop": fit_isoflop(RUNS, bootstrap=200),
    "joint": fit_joint(RUNS),
    "parametric": fit_parametric(RUNS, bootstrap=0),
    "envelope": fit_envelope(RUNS),
}
"""One study by every method."""


def xy(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata(), dtype=np.float64), np.asarray(
        line.get_ydata(), dtype=np.float64
    )


def marked(ax: Axes, marker: str) -> list[Line2D]:
    """Lines with points of a kind; those for the legend alone have none."""
    return [line for line in ax.lines if line.get_marker() == marker and len(xy(line)[0])]


def named(ax: Axes, label: str) -> Any:
    """The line, band or patch that the legend calls so."""
    return next(a for a in (*ax.lines, *ax.collections, *ax.patches) if a.get_label() == label)


def corners(path: Path) -> np.ndarray:
    return np.asarray(path.vertices, dtype=np.float64)


def band(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest y of a band at each x."""
    x, y = corners(named(ax, label).get_paths()[0]).T
    places = np.unique(x)
    return np.array([y[x == v].min() for v in places]), np.array([y[x == v].max() for v in places])


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    assert found is not None
    return [t.get_text() for t in found.get_texts()]


def axes_in_axes_out(draw: Callable[..., Axes], x_scale: str = "log") -> None:
    """The axes given are drawn on; labels are there and can be read; nothing global changes."""
    before = dict(matplotlib.rcParams)
    given = Figure().add_subplot()
    assert draw(ax=given) is given
    own = draw()
    assert isinstance(own, Axes)
    assert own.get_xscale() == x_scale
    assert own.get_xlabel()
    own.figure.canvas.draw()
    texts = [t for t in (*own.get_xticklabels(), *own.get_yticklabels()) if t.get_text()]
    assert min(float(t.get_fontsize()) for t in texts) >= 9
    assert (
        2
        <= sum(
            own.get_xlim()[0] <= t.get_position()[0] <= own.get_xlim()[1]
            for t in own.get_xticklabels()
        )
        <= 9
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert dict(matplotlib.rcParams) == before


def cells(page: str) -> list[list[str]]:
    """The rows of all tables, as text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, flags=re.S)
    return [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in rows
    ]
