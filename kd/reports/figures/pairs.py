"""Paired differences to the first method over pairs of networks: the view `pairs` of an experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import colours, legend, pyplot, row_labels, set_title, short

CAPTION = (
    "How far each method is from the first one, a point per pair of networks. Differences are paired by seed, error "
    "bars are their standard error, the upright bar is the mean over pairs; right of the line is better."
)


def draw(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Return a figure of each method's paired difference to the first: a point per pair of networks, a bar for the
    mean."""
    first = summary.iloc[0]
    rest = summary[summary["difference"].notna()] if "difference" in summary else summary.iloc[:0]
    methods = list(dict.fromkeys(row_labels(rest.assign(teacher="", student=""))))
    rest = rest.assign(label=row_labels(rest.assign(teacher="", student="")))
    pairs = list(dict.fromkeys(zip(rest["teacher"], rest["student"], strict=True)))
    figure, axis = pyplot().subplots(figsize=(9, 1.8 + 0.36 * len(methods)), layout="constrained")
    apart = [0.0] if len(pairs) == 1 else np.linspace(0.25, -0.25, len(pairs))  # pairs of a method next to each other
    shown = {}
    for colour, pair, shift in zip(colours(len(pairs)), pairs, apart, strict=True):
        rows = rest[(rest["teacher"] == pair[0]) & (rest["student"] == pair[1])]
        places = [len(methods) - 1 - methods.index(label) + shift for label in rows["label"]]
        shown[" → ".join(pair)] = axis.errorbar(
            rows["difference"], places, xerr=rows["difference_se"], fmt="o", color=colour
        )
    for place, method in enumerate(reversed(methods)):
        mean = rest.loc[rest["label"] == method, "difference"].mean()
        axis.plot(mean, place, "|", color="black", markersize=18, markeredgewidth=2)
    axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(methods)), map(short, methods[::-1]))
    axis.set_ylim(-0.6, max(len(methods), 1) - 0.4)
    score = summary.attrs.get("score", "accuracy")
    axis.set_xlabel(
        f"paired difference in {score} to {first['method']}, points (± standard error; bar: mean over pairs)"
    )
    axis.grid(axis="x", alpha=0.3)
    if shown:
        legend(axis, shown)
    set_title(figure, title)
    return figure
