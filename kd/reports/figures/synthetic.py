"""What data-free runs synthesised: images, classes and confidences, and their course over the epochs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.reports.figures.drawing import COLOURS, colours, legend, plain_numbers, pyplot, short
from kd.runs.folder import HISTORY, RECORD, array_file
from kd.runtime.files import read_json


def draw_images(folders: dict[str, Path]) -> Any:
    """Return the figure of stored images, label -> folder of a data-free run."""
    return image_grid(_arrays(folders))


def draw_histograms(folders: dict[str, Path]) -> Any:
    """Return the figure of classes and confidences; the first run names the classes."""
    return histograms(_arrays(folders), read_json(next(iter(folders.values())) / RECORD)["classes"])


def draw_course(folders: dict[str, Path]) -> Any:
    """Return the figure of the synthetic set over the epochs."""
    return course(_arrays(folders), {label: pd.read_csv(folder / HISTORY) for label, folder in folders.items()})


def _arrays(folders: dict[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    return {label: dict(np.load(folder / array_file("synthetic"))) for label, folder in folders.items()}


def image_grid(sets: dict[str, dict[str, np.ndarray]]) -> Any:
    """Return a figure of stored synthetic images, a panel per run, sorted by the teacher's class."""
    columns = math.ceil(math.sqrt(len(sets)))
    rows = -(-len(sets) // columns)
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(3.6 * columns, 3.9 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (label, arrays) in zip(axes.flat, sets.items(), strict=False):
        axis.imshow(_tiles(arrays["images"]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(short(label), fontsize=9)
    return figure


def _tiles(images: np.ndarray) -> np.ndarray:
    """Lay images [n, C, S, S] uint8 out in one picture, [H, W] or [H, W, 3], of 8 columns with white lines between."""
    count, channels, size, _ = images.shape
    across = min(8, count)
    down = -(-count // across)
    picture = np.full((down * (size + 1) - 1, across * (size + 1) - 1, channels), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // across * (size + 1), number % across * (size + 1)
        picture[top : top + size, left : left + size] = image.transpose(1, 2, 0)
    return picture[..., 0] if channels == 1 else picture


def histograms(sets: dict[str, dict[str, np.ndarray]], classes: list[str]) -> Any:
    """Return histograms of the classes and confidences that the teacher sees in the synthetic sets, a line per run."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    shown = {}
    for colour, (label, arrays) in zip(colours(len(sets)), sets.items(), strict=True):
        share = 100 * arrays["class_counts"] / arrays["class_counts"].sum()
        [shown[label]] = left.plot(np.arange(len(share)), share, marker="o", markersize=4, linewidth=1, color=colour)
        counts = arrays["confidence_counts"]
        right.stairs(100 * counts / counts.sum(), np.linspace(0, 1, len(counts) + 1), color=colour, linewidth=1.6)
    shown["balanced"] = left.axhline(100 / len(classes), color="0.5", linestyle="--", linewidth=1)
    left.set_xlabel("class")
    if len(classes) <= 20:
        names = [short(name, 24) for name in classes]
        left.set_xticks(range(len(names)), names, rotation=90 if len("".join(names)) > 50 else 0)
    left.set_ylabel("share of the synthetic set, %")
    left.set_ylim(bottom=0)
    legend(left, shown)
    right.set_xlabel("teacher's confidence")
    right.set_ylabel("share of the synthetic set, %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure


def course(sets: dict[str, dict[str, np.ndarray]], histories: dict[str, pd.DataFrame], most: int = 6) -> Any:
    """Return a figure with a column per run, of the first `most` runs that synthesised anything.

    From top to bottom: share of each class in the buffer; the teacher's confidence in the images just made; priorities
    in the buffer (median, quartiles, extremes); the student's divergence from the teacher on samples as stored and as
    drawn.
    """
    shown = [label for label, arrays in sets.items() if "class_counts_by_epoch" in arrays][:most]
    if not shown:
        return pyplot().figure(figsize=(4, 1))
    figure, axes = pyplot().subplots(
        4,
        len(shown),
        figsize=(1.5 + 3.1 * len(shown), 10),
        layout="constrained",
        squeeze=False,
        sharex="col",
        sharey="row",
    )
    for column, label in zip(axes.T, shown, strict=True):
        classes, confidence, priorities, gap = column
        arrays, history = sets[label], histories[label]
        epochs = np.arange(1, len(arrays["priorities_by_epoch"]) + 1)
        _heat(classes, arrays["class_counts_by_epoch"], (0, arrays["class_counts_by_epoch"].shape[1]))
        _heat(confidence, arrays["confidence_counts_by_epoch"], (0, 1))
        low, first, median, third, high = arrays["priorities_by_epoch"].T
        priorities.fill_between(epochs, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        priorities.fill_between(epochs, first, third, color=COLOURS[0], alpha=0.35, linewidth=0)
        priorities.plot(epochs, median, color=COLOURS[0])
        priorities.set_yscale("symlog", linthresh=1e-3)
        plain_numbers(priorities.yaxis)
        if "gap_stored" in history:
            for name, colour in (("stored", COLOURS[2]), ("drawn", COLOURS[1])):
                values = history[["epoch", f"gap_{name}"]].dropna()
                gap.plot(values["epoch"], values[f"gap_{name}"], marker=".", color=colour, label=f"as {name}")
            gap.set_yscale("log")
            plain_numbers(gap.yaxis)
            gap.legend(fontsize=8)
        classes.set_title(short(label), fontsize=9)
        gap.set_xlabel("epoch")
    for axis, name in zip(
        axes[:, 0],
        ("class, share in the buffer", "teacher's confidence", "priority", "KL(teacher || student)"),
        strict=True,
    ):
        axis.set_ylabel(name)
    return figure


def _heat(axis: Any, counts: np.ndarray, extent: tuple[float, float]) -> None:
    """Show counts [epochs, bins] as shares of each epoch; darker is more."""
    share = (counts / counts.sum(1, keepdims=True)).T
    axis.imshow(share, origin="lower", aspect="auto", cmap="Blues", vmin=0, extent=(0.5, share.shape[1] + 0.5, *extent))
