"""How well data-free students follow what they are shown, over the epochs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from kd.reports.figures.drawing import COLOURS, pyplot, short
from kd.runs.folder import HISTORY


def draw(folders: dict[str, Path]) -> Any:
    """Return a figure with a panel per run, label -> folder: agreement with the teacher on drawn samples, by epoch.

    Behind each curve is that of its method's first run, in grey. Curves are means over a twentieth of the epochs.
    """
    curves = {label: _curve(pd.read_csv(folder / HISTORY)) for label, folder in folders.items()}
    columns = min(5, math.ceil(math.sqrt(len(curves))))
    rows = -(-len(curves) // columns)
    size = (0.6 + 2.5 * columns, 0.5 + 1.9 * rows)
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = pyplot().subplots(rows, columns, figsize=size, layout="constrained", **shared)
    first: dict[str, pd.Series] = {}  # by method, which a label begins with
    for axis, (label, curve) in zip(axes.flat, curves.items(), strict=False):
        behind = first.setdefault(label.split(" (")[0], curve)
        axis.plot(behind.index, behind, color="0.75", linewidth=1.5)
        axis.plot(curve.index, curve, color=COLOURS[0], linewidth=1.5)
        axis.set_title(short(label, 34), fontsize=9)
        axis.grid(alpha=0.3)
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < len(curves))
        axis.tick_params(labelbottom=number + columns >= len(curves))  # nothing below
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("agreement on drawn samples, %", fontsize=9)
    return figure


def _curve(history: pd.DataFrame) -> pd.Series:
    agreement = 100 * history.set_index("epoch")["agreement"].dropna()
    return agreement.rolling(max(1, len(agreement) // 20)).mean()
