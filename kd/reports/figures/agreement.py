"""How well data-free students follow what they are shown, over the epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kd.reports.figures.drawing import COLOURS, finish, label_outside, panels, short
from kd.runs.folder import HISTORY


def draw(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return a figure with a panel per run, label -> folder: agreement with the teacher on drawn samples, by epoch.

    Behind each curve is that of its method's first run, in grey. Curves are means over a twentieth of the epochs.
    """
    curves = {label: _curve(pd.read_csv(folder / HISTORY)) for label, folder in folders.items()}
    figure, axes = panels(len(curves), 2.5, 1.9, most=5, sharex=True, sharey=True)
    first: dict[str, pd.Series] = {}  # by method, which a label begins with
    for axis, (label, curve) in zip(axes, curves.items(), strict=True):
        behind = first.setdefault(label.split(" (")[0], curve)
        axis.plot(behind.index, behind, color="0.75", linewidth=2.5)
        axis.plot(curve.index, curve, color=COLOURS[0], linewidth=1.3)
        axis.set_title(f"{short(label, 34)}\nat the end {curve.iloc[-1]:.1f} %", fontsize=8)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    label_outside(axes, "epoch", "agreement on\ndrawn samples, %")
    several = " Grey: the first run of the same method." if len(first) < len(curves) else ""
    finish(figure, title, f"{note} Means over a twentieth of the epochs.{several}")
    return figure


def _curve(history: pd.DataFrame) -> pd.Series:
    agreement = 100 * history.set_index("epoch")["agreement"].dropna()
    return agreement.rolling(max(1, len(agreement) // 20)).mean()
