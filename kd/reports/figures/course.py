"""How the synthetic sets of data-free runs change over the epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import COLOURS, SMALL, class_ticks, finish, plain_numbers, pyplot, short
from kd.reports.figures.synthetic import Arrays, classes_of, counted, read_arrays, shares
from kd.runs.folder import HISTORY


def draw(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return the figure of the synthetic set over the epochs, label -> folder of a data-free run."""
    histories = {label: pd.read_csv(folder / HISTORY) for label, folder in folders.items()}
    return course(read_arrays(folders), histories, classes_of(folders), title, note)


def course(
    sets: dict[str, Arrays],
    histories: dict[str, pd.DataFrame],
    classes: list[str],
    title: str,
    note: str,
    most: int = 6,
) -> Any:
    """Return a figure with a column per run, of the first `most` runs that synthesised anything.

    From top to bottom: share of each class in the buffer, counted when its images were made; the teacher's confidence
    in the images just made; priorities in the buffer (median, quartiles, extremes); the student's divergence from the
    teacher on samples as stored and as drawn.
    """
    made = [label for label, arrays in sets.items() if "class_counts_by_epoch" in arrays]
    shown = made[:most]
    if not shown:
        figure = pyplot().figure(figsize=(5, 0.3), layout="constrained")
        finish(figure, title, f"{note} These runs synthesised nothing.")
        return figure
    size = (2 + 3 * len(shown), 9.5)
    shared = {"squeeze": False, "sharex": "col", "sharey": "row"}
    figure, axes = pyplot().subplots(4, len(shown), figsize=size, layout="constrained", **shared)
    _heat(
        axes[0],
        [sets[label]["class_counts_by_epoch"] for label in shown],
        (-0.5, len(classes) - 0.5),
        "the buffer" if counted(sets) == "images" else "its pixels",
    )
    _heat(axes[1], [sets[label]["confidence_counts_by_epoch"] for label in shown], (0, 1), "the new images")
    curves: dict[str, Any] = {}
    for column, label in zip(axes.T, shown, strict=True):
        top, _, priorities, gap = column
        top.set_title(short(label, 40), fontsize=9)
        curves |= _priorities(priorities, sets[label]["priorities_by_epoch"])
        curves |= _gaps(gap, histories[label])
        gap.set_xlabel("epoch", fontsize=SMALL)
    class_ticks(axes[0, 0].yaxis, classes)
    names = (
        f"class of {counted(sets)} when made",
        "teacher's confidence",
        "priority in the buffer",
        "KL(teacher || student), nats",
    )
    for axis in axes.flat:
        axis.tick_params(which="both", labelsize=7)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=SMALL)
    left_out = f" The first {len(shown)} of {len(made)} runs." if len(made) > len(shown) else ""
    finish(figure, title, f"{note}{left_out}", curves)
    return figure


def _heat(axes: np.ndarray, counts: list[np.ndarray], extent: tuple[float, float], of: str) -> None:
    """Show counts [epochs, bins] of each run as shares of each epoch, all on one scale; darker is more."""
    parts = [shares(each).T for each in counts]
    most = max(part.max() for part in parts)
    for axis, part in zip(axes, parts, strict=True):
        place = (0.5, part.shape[1] + 0.5, *extent)
        options = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "cmap": "Blues"}
        shown = axis.imshow(part, extent=place, vmin=0, vmax=most, **options)
    bar = axis.figure.colorbar(shown, ax=list(axes), pad=0.01)
    bar.set_label(f"% of {of}", fontsize=SMALL)
    bar.ax.tick_params(labelsize=7)


def _priorities(axis: Any, quantiles: np.ndarray) -> dict[str, Any]:
    """Draw priorities [epochs, 5]: minimum, quartiles and maximum of each epoch."""
    epochs = np.arange(1, len(quantiles) + 1)
    low, first, median, third, high = quantiles.T
    curves = {
        "all priorities": axis.fill_between(epochs, low, high, color=COLOURS[0], alpha=0.15, linewidth=0),
        "half of them": axis.fill_between(epochs, first, third, color=COLOURS[0], alpha=0.4, linewidth=0),
        "their median": axis.plot(epochs, median, color=COLOURS[0])[0],
    }
    axis.set_yscale("symlog", linthresh=1e-3)
    plain_numbers(axis.yaxis)
    axis.grid(alpha=0.3)
    return curves


def _gaps(axis: Any, history: pd.DataFrame) -> dict[str, Any]:
    """Draw the student's divergence on samples as stored, broad, and as drawn over it: they may be equal."""
    if "gap_stored" not in history:
        return {}
    styles = {
        "stored": {"color": "0.75", "linewidth": 5},
        "drawn": {"color": COLOURS[3], "marker": ".", "linewidth": 1},
    }
    curves = {}
    for name, style in styles.items():
        values = history[["epoch", f"gap_{name}"]].dropna()
        [curves[f"divergence on samples as {name}"]] = axis.plot(values["epoch"], values[f"gap_{name}"], **style)
    axis.set_yscale("log")
    plain_numbers(axis.yaxis)
    axis.grid(alpha=0.3)
    return curves
