"""Accuracy and seconds against the data scale: the view `scale` of an experiment."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kd.reports.figures.drawing import colours, legend, pyplot, row_labels, set_title

CAPTION = (
    "The student's score (left) and its computing time (right) against the data scale, a line per method. Points are "
    "means over seeds, error bars one standard deviation."
)


def draw(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Return a figure of accuracy and seconds against the data scale, a line per pair, method and ablation."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    curves = summary.assign(label=row_labels(summary)).groupby("label", sort=False)
    shown = {}
    for colour, (label, curve) in zip(colours(len(curves)), curves, strict=True):
        curve = curve.sort_values("scale")
        percent = 100 * curve["scale"]
        shown[label] = left.errorbar(
            percent, curve["accuracy"], curve["accuracy_std"], marker="o", capsize=3, color=colour
        )
        right.plot(percent, curve["seconds"], marker="o", color=colour)
        for phase, style in (("inversion", ":"), ("distillation", "--")):
            if curve.get(f"seconds_{phase}", pd.Series(dtype=float)).notna().any():
                right.plot(percent, curve[f"seconds_{phase}"], marker=".", linestyle=style, color=colour)
    if results.get("teacher_accuracy", pd.Series(dtype=float)).notna().any():
        shown["teacher"] = left.axhline(results["teacher_accuracy"].max(), color="0.5", linestyle="--", linewidth=1)
    ticks = sorted({100 * scale for scale in summary["scale"]})
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("data scale, % of the training set")
        axis.grid(alpha=0.3)
    left.set_ylabel(f"{summary.attrs.get('score', 'accuracy')}, %")
    legend(left, shown)
    phases = " (dotted: inversion, dashed: distillation)" if "seconds_inversion" in summary else ""
    right.set_ylabel(f"seconds{phases}")
    right.set_ylim(bottom=0)
    set_title(figure, title)
    return figure
