"""Figures of a search: its course, which settings matter, and the objective over two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import COLOURS, GREY, finish, plain_numbers, pyplot, save, short
from kd.studies.search import Tuning, figures_of, plane_of

MARKERS = {"COMPLETE": ("o", COLOURS[0]), "PRUNED": ("v", COLOURS[4]), "FAIL": ("x", COLOURS[1])}
WORDS = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def draw(folder: Path, trials: pd.DataFrame, tuning: Tuning, importances: dict[str, float]) -> None:
    """Write the figures that `figures_of` lists. trials: a row per trial, as in trials.csv."""
    drawn = {
        "history": lambda: draw_history(trials, tuning),
        "importances": lambda: draw_importances(trials, tuning, importances),
        "plane": lambda: draw_plane(trials, tuning),
    }
    for name in figures_of(tuning.space):
        save(drawn[name](), folder / f"{name}.png")


def draw_history(trials: pd.DataFrame, tuning: Tuning) -> Any:
    """Return a figure of every trial's value, and of the best so far; failed ones stand below at the edge."""
    figure, axis = pyplot().subplots(figsize=(7.5, 4.2), layout="constrained")
    complete = trials[trials["state"] == "COMPLETE"]
    best = complete[tuning.objective].cummax()
    shown = {"best so far": axis.step(complete["trial"], best, where="post", color=GREY, linewidth=1.5, zorder=1)[0]}
    bottom = trials[tuning.objective].min() if trials[tuning.objective].notna().any() else 0.0
    for state, rows in trials.groupby("state"):
        marker, colour = MARKERS[state]
        label = f"{WORDS[state]} (n = {len(rows)})"
        values = rows[tuning.objective].fillna(bottom)
        shown[label] = axis.scatter(rows["trial"], values, marker=marker, color=colour, s=36, zorder=2)
    axis.set(xlabel="trial", ylabel=f"{tuning.measured}, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    finish(figure, f"{tuning.name}: {len(trials)} trials", "Pruned trials at the last value that they reported.", shown)
    return figure


def draw_importances(trials: pd.DataFrame, tuning: Tuning, importances: dict[str, float]) -> Any:
    """Return a figure of each setting's share in how the objective varies."""
    shares = {key: importances.get(key, 0.0) for key in tuning.space}
    keys = sorted(shares, key=shares.get)
    figure, axis = pyplot().subplots(figsize=(7.5, 1.6 + 0.36 * len(keys)), layout="constrained")
    bars = axis.barh([short(key) for key in keys], [shares[key] for key in keys], color=COLOURS[0])
    axis.bar_label(bars, [f"{shares[key]:.2f}" for key in keys], padding=3, fontsize=8)
    axis.set(xlabel=f"share in the variance of {tuning.measured} (fANOVA)", xlim=(0, 1.08))
    if not importances:
        axis.text(0.54, 0.5, "too few complete trials that differ", transform=axis.transAxes, ha="center", va="center")
    complete = (trials["state"] == "COMPLETE").sum()
    finish(figure, f"{tuning.name}: which settings matter", f"n = {complete} complete trials, one seed each.")
    return figure


def draw_plane(trials: pd.DataFrame, tuning: Tuning) -> Any:
    """Return a figure of the objective over two settings: the trials, and behind them what lies between them."""
    across, up = plane_of(tuning.space)
    figure, axis = pyplot().subplots(figsize=(7.0, 5.2), layout="constrained")
    for setting, name in ((across, "x"), (up, "y")):
        low, high, log = (tuning.space[setting].get(key) for key in ("low", "high", "log"))
        getattr(axis, f"set_{name}lim")(*((low / 1.1, high * 1.1) if log else _widened(low, high)))
        if log:
            getattr(axis, f"set_{name}scale")("log")
            plain_numbers(getattr(axis, f"{name}axis"))
    complete = trials[trials["state"] == "COMPLETE"]
    values = complete[tuning.objective]
    scale = {"cmap": "viridis", "vmin": values.min(), "vmax": max(values.max(), values.min() + 0.1)}
    means = complete.groupby([across, up])[tuning.objective].mean().reset_index()
    if _spans_a_plane(means[across], means[up]):
        levels = np.linspace(scale["vmin"], scale["vmax"], 9)
        axis.tricontourf(means[across], means[up], means[tuning.objective], levels, alpha=0.45, **scale)
    points = axis.scatter(complete[across], complete[up], c=values, s=60, edgecolors="black", linewidths=0.6, **scale)
    pruned, shown = trials[trials["state"] == "PRUNED"], {}
    if len(pruned):
        marks = {"marker": "v", "s": 30, "facecolors": "none", "edgecolors": "black"}
        shown[f"pruned (n = {len(pruned)})"] = axis.scatter(pruned[across], pruned[up], **marks)
    winner = complete.loc[values.idxmax()]
    label = f"best: trial {winner['trial']}, {winner[tuning.objective]:.2f} %"
    star = {"marker": "*", "s": 260, "color": COLOURS[1], "edgecolors": "black"}
    shown[label] = axis.scatter([winner[across]], [winner[up]], **star)
    figure.colorbar(points, ax=axis, label=f"{tuning.measured}, %")
    axis.set(xlabel=across, ylabel=up)
    note = f"Colour: {len(complete)} complete trials, linear in between. Other settings vary, too."
    finish(figure, f"{tuning.name}: {short(across)} and {short(up)}", note, shown)
    return figure


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return a range with room for the points at its ends."""
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _spans_a_plane(across: pd.Series, up: pd.Series) -> bool:
    """Whether there are enough points, not all on one line, to draw what lies between them."""
    if len(across) < 12:
        return False
    centred = np.stack([across - across.mean(), up - up.mean()])
    return bool(np.linalg.matrix_rank(centred / np.maximum(np.abs(centred).max(1, keepdims=True), 1e-12), 1e-6) == 2)
