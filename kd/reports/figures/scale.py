"""Score and seconds against the data scale: the view `scale` of an experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import (
    GREY,
    counted,
    finish,
    in_common,
    over_seeds,
    pyplot,
    series,
    side_by_side,
)
from kd.reports.tables import plus_minus
from kd.studies.labels import row_labels

CAPTION = (
    "The student's score and its computing time against the data scale, a line per method. Points are means over "
    "seeds, error bars one standard deviation; the dashed grey line is the teacher."
)
PHASES = ("inversion", "distillation")


def draw(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Return a figure of score and seconds against the data scale, a line per pair, method and ablation.

    Where students learn without data, two more panels show the seconds of its two phases.
    """
    phases = [name for name in PHASES if summary.get(f"seconds_{name}", pd.Series(dtype=float)).notna().any()]
    rows = 2 if phases else 1
    figure, axes = pyplot().subplots(
        rows, 2, figsize=(10, 2.9 * rows), layout="constrained", squeeze=False, sharex=True
    )
    score, *times = axes.flat
    for axis, name in zip(times, ("in all", *(f"of them {name}" for name in PHASES)), strict=False):
        axis.set_ylabel(f"seconds, {name}")
        axis.sharey(times[0])
    score.set_ylabel(f"{summary.attrs.get('score', 'accuracy')}, %")
    ticks = sorted({100 * scale for scale in summary["scale"]})
    shown = _draw_curves(summary, axes, 0.25 * min(np.diff(np.log(ticks)), default=0.4))
    teachers = results.reindex(columns=["teacher", "teacher_accuracy"]).groupby("teacher").mean()["teacher_accuracy"]
    for accuracy in teachers.dropna():
        line = score.axhline(accuracy, color=GREY, linestyle=(0, (6, 3)), linewidth=1)
        shown["teacher" if len(teachers) == 1 else "teachers"] = line
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("data scale, % of the training set")
    times[0].set_ylim(bottom=0)
    note = f"{in_common(results)} Points: means, {over_seeds(summary['n'], results['seed'])}."
    note += " Error bars: ± one standard deviation." if (summary["n"] > 1).any() else ""
    note += " Points of one scale stand side by side." if len(shown) > 2 else ""
    finish(figure, title, note, shown)
    return figure


def _draw_curves(summary: pd.DataFrame, axes: np.ndarray, width: float) -> dict[str, Any]:
    """Draw a line per row label into each panel, their points side by side on the logarithmic axis; return them."""
    curves = list(summary.assign(label=row_labels(summary, scale=False)).groupby("label", sort=False))
    named = summary["n"].nunique() > 1
    shown = {}
    for style, shift, (label, curve) in zip(series(len(curves)), side_by_side(len(curves), width), curves, strict=True):
        curve = curve.sort_values("scale")
        percent = 100 * curve["scale"] * np.exp(shift)
        label = f"{label}, {counted(curve['n'])}" if named else label
        shown[label] = axes[0, 0].errorbar(percent, curve["accuracy"], curve["accuracy_std"], capsize=3, **style)
        for axis, column in zip(axes.flat[1:], ("seconds", *(f"seconds_{name}" for name in PHASES)), strict=False):
            if column in curve:
                axis.plot(percent, curve[column], **style)
        if len(curves) == 1:
            _name_points(axes[0, 0], curve, percent)
    return shown


def _name_points(axis: Any, curve: pd.DataFrame, percent: pd.Series) -> None:
    """Write mean and standard deviation of each point of a curve above the panel, where they hide nothing."""
    for x, (_, row) in zip(percent, curve.iterrows(), strict=True):
        text = plus_minus(row["accuracy"], row["accuracy_std"]).replace(" ±", "\n±")
        axis.text(x, 1.02, text, transform=axis.get_xaxis_transform(), ha="center", va="bottom", fontsize=7)
