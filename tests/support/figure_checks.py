"""Fits for tests of figures, and readers of Axes and of the tables of a page."""

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
from support.fits import Fits

RUNS = simulate_isoflop(points=7)
FITS = Fits(
    isoflop=lambda: fit_isoflop(RUNS, bootstrap=200),
    joint=lambda: fit_joint(RUNS),
    parametric=lambda: fit_parametric(RUNS, bootstrap=0),
    envelope=lambda: fit_envelope(RUNS),
)
"""One study fitted by every method."""


def xy(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata(), dtype=np.float64), np.asarray(
        line.get_ydata(), dtype=np.float64
    )


def marked(ax: Axes, marker: str) -> list[Line2D]:
    """Return lines with a marker and points; lines for the legend alone have no points."""
    return [line for line in ax.lines if line.get_marker() == marker and len(xy(line)[0])]


def named(ax: Axes, label: str) -> Any:
    """Return the line, band or patch with a label."""
    return next(a for a in (*ax.lines, *ax.collections, *ax.patches) if a.get_label() == label)


def corners(path: Path) -> np.ndarray:
    return np.asarray(path.vertices, dtype=np.float64)


def band(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest y of a band at each x."""
    x, y = corners(named(ax, label).get_paths()[0]).T
    at_x = [y[x == value] for value in np.unique(x)]
    return np.array([v.min() for v in at_x]), np.array([v.max() for v in at_x])


def legend(ax: Axes) -> list[str]:
    """Return the texts of the legend."""
    box = ax.get_legend()
    assert box is not None
    return [text.get_text() for text in box.get_texts()]


def axes_in_axes_out(draw: Callable[..., Axes], x_scale: str = "log") -> Axes:
    """Check that given axes are drawn on, labels are readable and global state is unchanged; return
    the axes that were made.
    """
    before = dict(matplotlib.rcParams)
    existing = Figure().add_subplot()
    assert draw(ax=existing) is existing
    ax = draw()
    assert isinstance(ax, Axes)
    assert ax.get_xscale() == x_scale
    assert ax.get_xlabel()
    ax.figure.canvas.draw()
    texts = [t for t in (*ax.get_xticklabels(), *ax.get_yticklabels()) if t.get_text()]
    assert min(float(t.get_fontsize()) for t in texts) >= 9
    low, high = ax.get_xlim()
    visible = [t for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert 2 <= len(visible) <= 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert dict(matplotlib.rcParams) == before
    return ax


def cells(page: str) -> list[list[str]]:
    """Return the rows of all tables as text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, flags=re.S)
    return [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in rows
    ]
