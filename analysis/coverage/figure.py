"""Draw the coverages of study.py: coverage.png beside this file."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from isoflop.plotting.style import INK, MUTED

FOLDER = Path(__file__).parent
TRUE = {
    "parametric_a": "parametric: a",
    "parametric_size": "parametric: N*",
    "parametric_loss": "parametric: loss",
    "joint_a": "joint: a",
    "joint_size": "joint: N*",
    "parabola_a": "parabolas: a",
    "parabola_size": "parabolas: N*",
}
WRONG = {
    "parametric_size": "parametric: N*",
    "parametric_loss": "parametric: loss",
    "joint_size": "joint: N*",
}


def main() -> None:
    """Write the figure."""
    true, wrong = (pd.read_csv(FOLDER / name) for name in ("true.csv", "wrong.csv"))
    wrong = wrong[wrong["wrong"] != "true"]
    figure, (true_axes, wrong_axes) = plt.subplots(
        1, 2, figsize=(11, 4.2), width_ratios=(1.1, 1.0), layout="constrained"
    )
    rows = [(label, true[f"{name}_covered"], INK) for name, label in TRUE.items()]
    _draw_rows(true_axes, rows, f"Where the law is true ({len(true)} cells)")
    rows = []
    for name, label in WRONG.items():
        rows.append((f"{label}, statistical", wrong[f"{name}_statistical"], MUTED))
        rows.append((f"{label}, with model error", wrong[f"{name}_with_model_error"], INK))
    _draw_rows(wrong_axes, rows, f"Where it is wrong ({len(wrong)} cells, 0.3% noise)")
    figure.savefig(FOLDER / "coverage.png", dpi=130)


def _draw_rows(ax, rows: list[tuple[str, pd.Series, str]], title: str) -> None:
    """Draw each quantity as a row of points; the target coverage is shaded."""
    rng = np.random.default_rng(0)
    ax.axvspan(0.93, 0.97, color="#d9ead3", zorder=0)
    ax.axvline(0.95, color=MUTED, linewidth=0.8, zorder=1)
    for k, (_, values, colour) in enumerate(rows):
        y = k + rng.uniform(-0.22, 0.22, len(values))
        ax.plot(values, y, "o", markersize=3, alpha=0.55, color=colour, zorder=2)
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("share of 95% intervals that hold the truth")
    ax.set_title(title, loc="left", fontsize=10.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
