"""Paired differences to the first method over pairs of networks: the view `pairs` of an experiment."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kd.reports.figures.drawing import (
    SMALL,
    counted,
    finish,
    in_common,
    over_seeds,
    pyplot,
    series,
    short,
    side_by_side,
)
from kd.reports.tables import plus_minus
from kd.studies.labels import row_labels

CAPTION = (
    "How far each method is from the first one, a point per pair of networks. Differences are paired by seed, error "
    "bars are their standard error; an upright bar is the mean over several pairs. Right of the dashed line is better."
)


def draw(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Return a figure of each method's paired difference to the first: a point per pair of networks, a bar for the
    mean."""
    rest = summary[summary["difference"].notna()] if "difference" in summary else summary.iloc[:0]
    rest = rest.assign(label=row_labels(rest.assign(teacher="", student=""), scale=False))
    methods = list(dict.fromkeys(rest["label"]))
    pairs = list(dict.fromkeys(zip(rest["teacher"], rest["student"], strict=True)))
    row = max(0.36, 0.11 * len(pairs))  # inches
    figure, axis = pyplot().subplots(figsize=(9, 0.8 + row * len(methods)), layout="constrained")
    shown = {}
    apart = -side_by_side(len(pairs), 0.7)  # the first one on top
    for style, pair, shift in zip(series(len(pairs)), pairs, apart, strict=True):
        rows = rest[(rest["teacher"] == pair[0]) & (rest["student"] == pair[1])]
        places = [len(methods) - 1 - methods.index(label) + shift for label in rows["label"]]
        shown[" → ".join(pair)] = axis.errorbar(
            rows["difference"], places, xerr=rows["difference_se"], **style | {"linestyle": ""}, markersize=5
        )
    named = rest.get("difference_n", pd.Series(dtype=float)).nunique() > 1
    names = []
    for place, method in enumerate(reversed(methods)):
        of_method = rest[rest["label"] == method]
        if len(pairs) > 1:
            axis.plot([of_method["difference"].mean()] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
        else:
            text = plus_minus(of_method["difference"].iloc[0], of_method["difference_se"].iloc[0], sign=True)
            axis.text(1.01, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=SMALL)
        if place % 2:
            axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
        names.append(short(method) + (f", {counted(of_method['difference_n'])}" if named else ""))
    axis.axvline(0, color="0.3", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(methods)), names)
    axis.set_ylim(-0.5, max(len(methods), 1) - 0.5)
    score = summary.attrs.get("score", "accuracy")
    axis.set_xlabel(f"{score} minus that of {short(row_labels(summary.iloc[:1])[0])}, percentage points")
    axis.grid(axis="x", alpha=0.3)
    note = "Nothing to compare yet."
    if pairs:
        numbers = over_seeds(rest["difference_n"], results["seed"])
        note = f"{in_common(results)} Points: differences paired by seed, {numbers}."
        bars = "Error bars" if len(pairs) > 1 else "Error bars and ±"
        note += f" {bars}: standard error." if (rest["difference_n"] > 1).any() else ""
        note += " Upright bar: mean over pairs of networks." if len(pairs) > 1 else ""
    finish(figure, title, note, shown if len(pairs) > 1 else {})
    return figure
