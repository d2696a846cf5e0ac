"""The CSV of a W&B chart, a column a run, as rows of a loss log."""

from __future__ import annotations

import pandas as pd

_LOW, _HIGH, _BETWEEN = "__MIN", "__MAX", " - "


def unpivot(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of `run`, the chart's x column and its metric, where columns are `<run> - <metric>` with `__MIN`, `__MAX`.

    Other tables are left as they are.
    """
    names = [c for c in frame.columns if isinstance(c, str)]
    charted = [c for c in names if _BETWEEN in c and {c + _LOW, c + _HIGH} <= set(names)]
    if not charted:
        return frame
    x = frame.columns[0]
    parts = []
    for name in charted:
        run, _, metric = name.rpartition(_BETWEEN)
        part = pd.DataFrame({"run": run, x: frame[x], metric: frame[name]})
        parts.append(part.loc[part[metric].notna().to_numpy(dtype=bool)])
    return pd.concat(parts, ignore_index=True)
