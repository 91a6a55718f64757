"""What data-free runs synthesised: images, classes and confidences at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd.reports.figures.drawing import COLOURS, GREY, SMALL, class_ticks, finish, panels, pyplot, short
from kd.reports.figures.segmentation import colours, overlaid, pictures, strips_of
from kd.runs.folder import RECORD, array_file, arrays_in
from kd.runtime.files import read_json

ACROSS = 8  # images in a row of a panel
Arrays = dict[str, np.ndarray]  # of a run's synthetic.npz


def draw_images(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return the figure of stored images, label -> folder of a data-free run."""
    sets, classes = read_arrays(folders), classes_of(folders)
    if counted(sets) == "pixels":
        return images_and_maps(sets, classes, title, note)
    return image_grid(sets, classes, title, note)


def draw_histograms(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return the figure of classes and confidences."""
    return histograms(read_arrays(folders), classes_of(folders), title, note)


def read_arrays(folders: dict[str, Path]) -> dict[str, Arrays]:
    """Return the arrays of the runs, by label."""
    return {label: arrays_in(folder / array_file("synthetic")) for label, folder in folders.items()}


def counted(sets: dict[str, Arrays]) -> str:
    """Return what counts of classes are of: `images`, or of segmentation `pixels`."""
    return "pixels" if next(iter(sets.values()))["image_classes"].ndim > 1 else "images"


def classes_of(folders: dict[str, Path]) -> list[str]:
    """Return the names of the classes, from the first run."""
    return read_json(next(iter(folders.values())) / RECORD)["classes"]


def image_grid(sets: dict[str, Arrays], classes: list[str], title: str, note: str) -> Any:
    """Return a figure of stored synthetic images, a panel per run, sorted by the teacher's class."""
    names = {label: _rows(arrays["image_classes"], classes) for label, arrays in sets.items()}
    beside = 0.07 * max(len(name) for rows in names.values() for name in rows)  # inches
    figure, axes = panels(len(sets), 3.2 + beside, 3.6)
    for axis, (label, arrays) in zip(axes, sets.items(), strict=True):
        images = arrays["images"]
        axis.imshow(_tiles(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{short(label)}\n{len(images)} of {arrays['class_counts'].sum():,} images", fontsize=9)
        axis.spines[:].set_visible(False)
        axis.set_xticks([])
        size = images.shape[2]
        middles = [size / 2 - 0.5 + (size + 1) * number for number in range(len(names[label]))]
        axis.set_yticks(middles, names[label], fontsize=7)
        axis.tick_params(left=False)
    order = "Spread over the buffer, sorted by the teacher's class of the image as stored, which stands left of a row."
    finish(figure, title, f"{note} {order}")
    return figure


def images_and_maps(sets: dict[str, Arrays], classes: list[str], title: str, note: str) -> Any:
    """Return a figure of stored images with the teacher's map of each below it, two strips per run."""
    table, strips = colours(len(classes), next(iter(sets.values())).get("palette")), []
    for label, arrays in sets.items():
        chosen = np.linspace(0, len(arrays["images"]) - 1, min(ACROSS, len(arrays["images"]))).round().astype(int)
        images = arrays["images"][chosen]
        strips.append((short(label, 24), pictures(images)))
        strips.append(("teacher's map", overlaid(images, arrays["image_classes"][chosen], table)))
    return strips_of(strips, classes, table, title, f"{note} Below each image is what the teacher sees in it.")


def _rows(image_classes: np.ndarray, classes: list[str]) -> list[str]:
    """Return the first and last class of each row of images: names where classes are few, else numbers."""
    names = [short(name, 8) if len(classes) <= 20 else str(number) for number, name in enumerate(classes)]
    rows = [image_classes[start : start + ACROSS] for start in range(0, len(image_classes), ACROSS)]
    return ["–".join(dict.fromkeys((names[row[0]], names[row[-1]]))) for row in rows]


def _tiles(images: np.ndarray) -> np.ndarray:
    """Lay images [n, C, S, S] uint8 out in one picture, [H, W] or [H, W, 3], in rows with white lines between."""
    count, channels, size, _ = images.shape
    across = min(ACROSS, count)
    down = -(-count // across)
    picture = np.full((down * (size + 1) - 1, across * (size + 1) - 1, channels), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // across * (size + 1), number % across * (size + 1)
        picture[top : top + size, left : left + size] = image.transpose(1, 2, 0)
    return picture[..., 0] if channels == 1 else picture


def histograms(sets: dict[str, Arrays], classes: list[str], title: str, note: str) -> Any:
    """Return histograms of the synthetic sets, two panels per run: classes, and the teacher's confidence."""
    across = 1 if len(sets) <= 3 else 2  # runs in a row
    rows = -(-len(sets) // across)
    figure, axes = pyplot().subplots(
        rows, 2 * across, figsize=(10, 0.4 + 1.5 * rows), layout="constrained", squeeze=False, sharex="col"
    )
    places = axes.reshape(-1, 2)
    for axis in places[len(sets) :].flat:
        axis.set_visible(False)
    shown: dict[str, Any] = {}
    unit = counted(sets)
    for (left, right), (label, arrays) in zip(places, sets.items(), strict=False):
        left.sharey(places[0][0])
        right.sharey(places[0][1])
        left.set_title(f"{short(label)}: {arrays['class_counts'].sum():,} {unit}", fontsize=SMALL, loc="left")
        shown |= _classes(left, arrays, classes, unit)
        counts = arrays["confidence_counts"]
        edges = np.linspace(0, 1, len(counts) + 1)
        right.bar(edges[:-1], shares(counts), width=edges[1], align="edge", color=COLOURS[0])
        for axis in (left, right):
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
            axis.tick_params(labelsize=7)
        below = class_ticks(left.xaxis, classes, 70 if across == 1 else 32)
    figure.set_figheight(figure.get_figheight() + below)
    for left, right in places[max(0, len(sets) - across) : len(sets)]:  # nothing is below them
        for axis, name in ((left, "class"), (right, "teacher's confidence")):
            axis.set_xlabel(name, fontsize=SMALL)
            axis.tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel(f"% of {unit}", fontsize=SMALL)
        if unit == "pixels":
            row[1].set_ylabel("% of images", fontsize=SMALL)
    if unit == "pixels":
        note += " Classes are counted per pixel; a confidence is the mean over an image's pixels."
    note += (
        " Bars count as the figure of images does, dashes as that of the course: the teacher may name another class "
        "once an image is stored, in 8 bits and not augmented."
    )
    finish(figure, title, note, shown)
    return figure


def _classes(axis: Any, arrays: Arrays, classes: list[str], unit: str) -> dict[str, Any]:
    """Draw both counts of a run's classes; return what is shown."""
    numbers = np.arange(len(classes))
    shown = {f"class of {unit} as stored": axis.bar(numbers, shares(arrays["class_counts"]), color=COLOURS[0])}
    if "class_counts_by_epoch" in arrays:
        made = shares(arrays["class_counts_by_epoch"][-1])
        size = max(3.0, min(12.0, 150 / len(classes)))
        style = {"color": COLOURS[1], "markersize": size, "markeredgewidth": 2}
        [shown[f"class of {unit} when made"]] = axis.plot(numbers, made, "_", **style)
    shown["all classes equally often"] = axis.axhline(100 / len(classes), color=GREY, linestyle=":", linewidth=1)
    return shown


def shares(counts: np.ndarray) -> np.ndarray:
    """Return counts [..., bins] in per cent of their sum."""
    return 100 * counts / counts.sum(-1, keepdims=True)
