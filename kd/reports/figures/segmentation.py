"""What segmenting networks say of images, and how well of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd.reports.figures.drawing import SMALL, finish, pyplot, short
from kd.runs.folder import METRICS, RECORD, array_file, arrays_in
from kd.runtime.files import read_json
from kd.settings.run import Run

COLOUR = 0.7  # of an overlay; the rest is the image
PREDICTIONS = array_file("predictions")


def colours(count: int, palette: np.ndarray | None = None) -> np.ndarray:
    """Return a colour of each of `count` classes and, last, black for pixels without one, [count + 1, 3] uint8."""
    if palette is None:
        hues = np.arange(count) * 0.381966  # of the golden angle: neighbours differ, and it never repeats
        light = np.where(np.arange(count) % 2, 0.95, 0.65)
        hsv = np.stack([hues % 1, np.full(count, 0.75), light], axis=1)
        palette = (255 * pyplot().matplotlib.colors.hsv_to_rgb(hsv)).round().astype(np.uint8)
    return np.concatenate([palette, np.zeros((1, 3), np.uint8)])


def pictures(images: np.ndarray) -> np.ndarray:
    """Return the colours of images [n, C, S, S] uint8 as figures show them, [n, S, S, 3]; a depth is left out."""
    return np.broadcast_to(images[:, :3].transpose(0, 2, 3, 1), (len(images), *images.shape[2:], 3))


def overlaid(images: np.ndarray, maps: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return label maps [n, S, S], in the colours of `colours`, over grey images [n, C, S, S]: [n, S, S, 3] uint8."""
    grey = pictures(images).mean(3, keepdims=True)
    return (COLOUR * table[np.minimum(maps, len(table) - 1)] + (1 - COLOUR) * grey).round().astype(np.uint8)


def draw_predictions(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return the figure of images, label maps and what each run's network says, label -> folder of the run.

    Runs without the file (kept teachers) are left out.
    """
    found = {label: arrays_in(file) for label, file in _files(folders) if file.exists()}
    if not found:
        return _nothing(title)
    first = next(iter(found.values()))
    classes = read_json(folders[next(iter(found))] / RECORD)["classes"]
    table = colours(len(classes), first.get("palette"))
    maps = {"labels": first["labels"]}
    taught = next((arrays["taught"] for arrays in found.values() if "taught" in arrays), None)
    if taught is not None:
        maps["teacher"] = taught
    for label, arrays in found.items():
        maps[f"{short(label, 24)}\n{read_json(folders[label] / METRICS)['accuracy']:.1f} %"] = arrays["predicted"]
    images = first["images"]
    rows = [("image", pictures(images)), *((name, overlaid(images, each, table)) for name, each in maps.items())]
    return strips_of(rows, classes, table, title, note)


def _files(folders: dict[str, Path]) -> list[tuple[str, Path]]:
    return [(label, folder / PREDICTIONS) for label, folder in folders.items()]


def _nothing(title: str) -> Any:
    figure = pyplot().figure(figsize=(6, 1), layout="constrained")
    finish(figure, title, "No run has kept its predictions.")
    return figure


def strips_of(rows: list[tuple[str, np.ndarray]], classes: list[str], table: np.ndarray, title: str, note: str) -> Any:
    """Return a figure with a strip of pictures [n, S, S, 3] per row, its name at its left, and the classes' colours."""
    beside = 0.075 * max(len(part) for name, _ in rows for part in name.split("\n"))  # inches
    wide = (9 - beside) / len(rows[0][1])
    size = (9.2, (wide + 0.08) * len(rows))
    figure, axes = pyplot().subplots(len(rows), 1, figsize=size, layout="constrained", squeeze=False)
    for axis, (name, shown) in zip(axes[:, 0], rows, strict=True):
        gap = np.full((shown.shape[1], max(1, shown.shape[2] // 24), 3), 255, np.uint8)
        axis.imshow(np.concatenate([part for each in shown for part in (each, gap)][:-1], axis=1))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.set_anchor("E")
    patches = {
        name: pyplot().Rectangle((0, 0), 1, 1, color=colour / 255) for name, colour in zip(classes, table, strict=False)
    }
    finish(figure, title, note, patches if len(classes) <= 40 else None)
    return figure


def _of_teacher(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Return the scores of the first teacher of a run, where they are kept and are of real images."""
    for folder in folders.values():
        try:
            run = Run.from_dict(read_json(folder / RECORD)["settings"])
        except (ValueError, KeyError, TypeError):  # of another version of kd
            continue
        for teacher in run.teachers or ():
            root = folder.parents[len(Path(run.path).parts) - 1]
            file = root / teacher.path / METRICS
            return {"teacher": read_json(file)} if file.exists() and "accuracy" in read_json(file) else {}
    return {}


def draw_iou(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return a table of intersection over union, rows: the teacher, runs by label; columns: classes and their mean."""
    classes = read_json(next(iter(folders.values())) / RECORD)["classes"]
    numbers = _of_teacher(folders) | {label: read_json(folder / METRICS) for label, folder in folders.items()}
    values = np.array(
        [
            [own.get(f"iou_{number}", np.nan) for number in range(len(classes))] + [own["accuracy"]]
            for own in numbers.values()
        ]
    )
    size = (1.6 + 0.42 * values.shape[1], 0.5 + 0.34 * len(values))
    figure, axes = pyplot().subplots(figsize=size, layout="constrained")
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    if len(classes) <= 40:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = "white" if value > 60 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=dark)
    names = [short(name, 14) for name in classes]
    axes.set_xticks(range(len(names) + 1), [*names, "mean"], rotation=90, fontsize=7)
    axes.set_yticks(range(len(numbers)), [short(label, 34) for label in numbers], fontsize=7)
    axes.axvline(len(names) - 0.5, color="white", linewidth=3)
    figure.set_figheight(figure.get_figheight() + 0.07 * max(map(len, names)))
    finish(figure, title, note)
    return figure
