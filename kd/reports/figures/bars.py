"""Accuracy of every seed and seconds, a row per method: the views `methods` and `modules` of an experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import colours, pyplot, row_labels, set_title, short
from kd.reports.tables import GROUP, plus_minus

CAPTION = (
    "The student's score (left) and its computing time (right), a row per method. Points are seeds, the upright bar "
    "is their mean, error bars are one standard deviation."
)


def draw(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Return a figure of every seed's accuracy with its mean, and of seconds, a row per method and ablation."""
    labels = row_labels(summary, scale=summary["scale"].nunique() > 1)
    height = 1.6 + 0.42 * len(summary)
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(10, height), layout="constrained", sharey=True, width_ratios=[2, 1]
    )
    places = np.arange(len(summary))[::-1]
    for colour, place, (_, row) in zip(colours(len(summary)), places, summary.iterrows(), strict=True):
        seeds = results[np.logical_and.reduce([results[name] == row[name] for name in GROUP])]
        left.plot(seeds["accuracy"], [place] * len(seeds), "o", color=colour, alpha=0.45, markersize=6)
        left.plot(row["accuracy"], place, "|", color=colour, markersize=18, markeredgewidth=3)
        left.annotate(
            plus_minus(row["accuracy"], row["accuracy_std"]),
            (row["accuracy"], place),
            textcoords="offset points",
            xytext=(0, 10),
            ha="center",
            fontsize=8,
        )
        right.barh(place, row["seconds"], color=colour, height=0.55)
        right.annotate(f" {row['seconds']:.0f}", (row["seconds"], place), va="center", fontsize=8)
    left.set_yticks(places, map(short, labels))
    left.set_ylim(-0.6, len(summary) - 0.2)
    left.margins(x=0.12)
    left.set_xlabel(f"{summary.attrs.get('score', 'accuracy')}, % (points: seeds, bar: mean)")
    right.set_xlabel("seconds")
    right.margins(x=0.15)
    left.grid(axis="x", alpha=0.3)
    set_title(figure, title)
    return figure
