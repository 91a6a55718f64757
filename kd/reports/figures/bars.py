"""Score of every seed and seconds, a row per method: the views `methods` and `modules` of an experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import (
    COLOURS,
    GREY,
    SMALL,
    finish,
    in_common,
    over_seeds,
    pyplot,
    short,
    side_by_side,
)
from kd.reports.tables import GROUP, plus_minus
from kd.studies.labels import row_labels

CAPTION = (
    "The student's score (left) and its computing time (right), a row per method. Circles are seeds, the upright bar "
    "is their mean, the line through it one standard deviation to either side."
)


def draw(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Return a figure of every seed's score with mean and standard deviation, and of seconds, a row per method and
    ablation."""
    labels = row_labels(summary)
    height = 0.8 + 0.32 * len(summary)
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(10, height), layout="constrained", sharey=True, width_ratios=[2, 1]
    )
    places = np.arange(len(summary))[::-1]
    named = summary["n"].nunique() > 1
    several = (summary["n"] > 1).any()
    for place, (_, row) in zip(places, summary.iterrows(), strict=True):
        seeds = results[np.logical_and.reduce([results[name] == row[name] for name in GROUP])]
        left.errorbar(row["accuracy"], place, xerr=row["accuracy_std"], color=COLOURS[0], capsize=3, linewidth=1)
        beside = place + side_by_side(len(seeds), 0.3)  # equal scores do not cover each other
        left.plot(seeds["accuracy"], beside, "o", color=COLOURS[3], markerfacecolor="none", markersize=5)
        left.plot(row["accuracy"], place, "|", color=COLOURS[0], markersize=15, markeredgewidth=3)
        text = plus_minus(row["accuracy"], row["accuracy_std"]) + (f", n = {row['n']}" if named else "")
        left.text(1.01, place, text, transform=left.get_yaxis_transform(), va="center", fontsize=SMALL)
        right.barh(place, row["seconds"], color=COLOURS[0], height=0.5)
        digits = 1 if row["seconds"] < 10 else 0
        right.annotate(f" {row['seconds']:,.{digits}f}", (row["seconds"], place), va="center", fontsize=SMALL)
    left.set_yticks(places, map(short, labels))
    left.set_ylim(-0.6, len(summary) - 0.4)
    left.set_xlabel(f"{summary.attrs.get('score', 'accuracy')}, %")
    right.set_xlabel("seconds")
    right.margins(x=0.18)
    left.grid(axis="x", alpha=0.3)
    note = f"{in_common(results)} Circles: seeds. Upright bar: mean, {over_seeds(summary['n'], results['seed'])}."
    if several:
        note += " Line through it and ±: one standard deviation."
    if len(summary[["teacher", "student", "scale"]].drop_duplicates()) == 1 < len(summary):
        left.axvline(summary["accuracy"].iloc[0], color=GREY, linestyle=":", linewidth=1, zorder=0)
        note += f" Dotted: mean of {labels[0]}."
    finish(figure, title, note)
    return figure
