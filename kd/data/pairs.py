"""A folder of images and label maps: root/{train,test}/images/NAME.jpg with root/{train,test}/labels/NAME.png.

`root/classes.yaml` names the classes:

    names: {0: sky, 1: building, 4: road}   # the value in a label map -> its class; or a list, from 0 on
    ignore: [11]                            # values of pixels that are neither learned nor scored
    palette: {sky: [128, 128, 128], ...}    # colours of all classes, for figures and for label maps that are RGB
                                            # images; other colours of these may be ignored: [[0, 0, 0]]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from kd.data.decoding import decode, opened
from kd.data.listing import ENDINGS, SPLITS, Skipped, image_files, listing, note_others
from kd.data.raw import IGNORED, RawData, Source, Tree
from kd.registry.datasets import CLASSES_FILE
from kd.runtime.messages import ConfigError, bearable, kind_of, shown
from kd.runtime.yaml_files import read_yaml
from kd.settings.shapes import Dataset

PARTS = ("images", "labels")
ORIENTATION = 0x0112  # EXIF's tag of how an image is turned to be seen
TURNED, SIDEWAYS = range(2, 9), range(5, 9)  # its values that ask for anything, and those that swap width and height
MOST = 255  # classes: a label is a byte, and 255 is ignored


class Classes(NamedTuple):
    """What classes.yaml says."""

    names: list[str]  # in the order of their values; a label is the position of its name
    table: np.ndarray  # [256] int64: value in a label map -> label, IGNORED, or -1 where it is not named
    palette: np.ndarray | None  # [K, 3] uint8
    ignored: np.ndarray  # [n, 3] uint8, colours without a class


def load(dataset: Dataset, source: Source) -> RawData:
    """Return all images as RGB and their label maps [N, S, S] uint8, both cut to a square around their centre.

    Images are resized bilinearly, label maps to the nearest pixel. Raises ConfigError for a folder of another shape, a
    file that cannot be decoded, an image without its label map, and a label that classes.yaml does not name.
    """
    root = source.root or Path(os.path.expanduser(dataset.root))
    before, skipped, arrays, listed = listing(root), Skipped(), [], []  # what is added from here on is a change
    classes = read_classes(root / CLASSES_FILE)
    note_others(root, skipped, read=(CLASSES_FILE,))
    for split in SPLITS:
        files = _pairs(root / split, skipped)
        arrays.append(decode([image for image, _ in files], dataset.image_size, source.cores))
        arrays.append(np.stack([label_map(labels, image, classes, dataset.image_size) for image, labels in files]))
        listed.append([image for image, _ in files])
    return RawData(*arrays, classes.names, Tree(root, *listed, skipped, before), classes.palette)


def read_classes(file: Path) -> Classes:
    """Read classes.yaml. Raises ConfigError, with what is wrong in which key."""
    content = read_yaml(file)
    if unknown := sorted(set(content) - {"names", "ignore", "palette"}, key=str):
        raise ConfigError(f"{file}: unknown key {shown(unknown[0])}; allowed: names, ignore, palette")
    names = content.get("names")
    by_value = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(by_value, dict) or not 2 <= len(by_value) <= MOST:
        came = kind_of(names) if not isinstance(by_value, dict) else f"{len(by_value)} of them"
        raise ConfigError(f"{file}: names: got {came}; needed: 2 to 255 names by their values, 0 to 255")
    for value, name in by_value.items():
        if not _is_byte(value):
            raise ConfigError(f"{file}: names: got the value {shown(value)}; needed: integers from 0 to 255")
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"{file}: names: {value}: got {shown(name)}; needed: a name, in quotes if YAML reads it otherwise"
            )
    by_value = dict(sorted(by_value.items()))
    if len(set(by_value.values())) < len(by_value):
        raise ConfigError(f"{file}: names: a class is named twice; give each value a name of its own")
    ignore = content.get("ignore", [])
    ignore = ignore if isinstance(ignore, list) else [ignore]
    colours = [value for value in ignore if _is_colour(value)]
    values = [value for value in ignore if value not in colours]
    if wrong := [value for value in values if not _is_byte(value) or value in by_value]:
        raise ConfigError(
            f"{file}: ignore: got {shown(wrong[0])}; needed: values from 0 to 255 that `names` lacks, or colours "
            "[red, green, blue]"
        )
    table = np.full(256, -1)
    table[list(by_value)] = np.arange(len(by_value))
    table[values] = IGNORED
    listed = list(by_value.values())
    palette = _palette(file, content.get("palette"), listed)
    return Classes(listed, table, palette, np.array(colours, np.uint8).reshape(-1, 3))


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_byte(part) for part in value)


def _palette(file: Path, palette: Any, names: list[str]) -> np.ndarray | None:
    """Return the colours of all classes, [K, 3]."""
    if palette is None:
        return None
    if not isinstance(palette, dict) or set(palette) != set(names):
        came = kind_of(palette)
        if isinstance(palette, dict):
            unknown, lacking = (
                sorted(one - other, key=str) for one, other in ((set(palette), set(names)), (set(names), set(palette)))
            )
            came = f"{shown(unknown[0])}, which is no class" if unknown else f"none for {shown(lacking[0])}"
        raise ConfigError(f"{file}: palette: got {came}; needed: a colour [red, green, blue] of every class")
    for name, colour in palette.items():
        if not _is_colour(colour):
            raise ConfigError(f"{file}: palette: {name}: got {kind_of(colour)}; needed: three integers from 0 to 255")
    if len({tuple(colour) for colour in palette.values()}) < len(names):
        raise ConfigError(f"{file}: palette: two classes have one colour; give each a colour of its own")
    return np.array([palette[name] for name in names], np.uint8)


def _pairs(split: Path, skipped: Skipped) -> list[tuple[Path, Path]]:
    """Return each image with its label map, by name. Raises ConfigError where one is missing, or has two files."""
    images, labels = (_by_name(split / part, skipped) for part in PARTS)
    if not images:
        raise ConfigError(
            f"dataset.root: {split / 'images'} holds no image; needed: files ending in {', '.join(ENDINGS)}"
        )
    if lonely := sorted(set(images) ^ set(labels)):
        there, lacking = PARTS if lonely[0] in images else PARTS[::-1]
        raise ConfigError(
            f"dataset.root: {bearable(lonely[0])} is in {split / there} and not in {split / lacking} "
            f"({len(lonely)} such in all); image and label map have the same name before the ending"
        )
    return [(split / "images" / name, split / "labels" / labels[stem]) for stem, name in images.items()]


def _by_name(folder: Path, skipped: Skipped) -> dict[str, str]:
    """Return the files of a folder by their names before the ending."""
    found: dict[str, str] = {}
    for file in image_files(folder, skipped):
        if (before := found.setdefault(Path(file).stem, file)) != file:
            raise ConfigError(
                f"dataset.root: {folder} has both {bearable(before)} and {bearable(file)}; images and label maps are "
                "paired by the name before the ending: remove or rename one"
            )
    return found


def label_map(file: Path, image: Path, classes: Classes, size: int) -> np.ndarray:
    """Return a label map [size, size] uint8.

    Raises ConfigError for a value or colour that no class has, and for a map of another size than its image as it is
    seen: EXIF data may turn an image, and only another size tells whether the map is of the turned one.
    """
    with opened(image) as shown_image, opened(file) as labels:
        turned = shown_image.getexif().get(ORIENTATION)
        upright = shown_image.size[::-1] if turned in SIDEWAYS else shown_image.size
        if turned in TURNED and not labels.size == upright != shown_image.size:
            raise ConfigError(f"dataset.root: {image} is turned by its EXIF data; save it and {file} upright")
        if labels.size != upright:
            raise ConfigError(
                f"dataset.root: {file} is {labels.size} pixels large and its image {upright}; make them equally large"
            )
        values = np.asarray(labels.convert("RGB") if labels.mode in ("RGBA", "RGB") else labels)
        if values.ndim == 3 and values.shape[2] != 3:
            raise ConfigError(f"{file}: has pixels of kind {labels.mode}; save them as single values or as RGB colours")
    found = _of_colours(values, file, classes) if values.ndim == 3 else _of_values(values, file, classes)
    return np.asarray(ImageOps.fit(Image.fromarray(found.astype(np.uint8)), (size, size), Image.NEAREST))


def _of_values(values: np.ndarray, file: Path, classes: Classes) -> np.ndarray:
    """Return the labels of values [H, W], of 1, 8, 16 or 32 bits."""
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise ConfigError(f"{file}: its values are {values.dtype}; save them as integers")
    bytes_ = values.astype(np.uint8)
    if (odd := values[(values != bytes_) | (classes.table[bytes_] < 0)]).size:
        raise ConfigError(
            f"{file}: value {int(odd[0])} is neither in `names` nor in `ignore` of {CLASSES_FILE}; add it there"
        )
    return classes.table[bytes_]


def _of_colours(values: np.ndarray, file: Path, classes: Classes) -> np.ndarray:
    """Return the labels of colours [H, W, 3]."""
    if classes.palette is None:
        raise ConfigError(f"{file}: is a colour image; give `palette` in {CLASSES_FILE}, or save the values themselves")
    known = _as_numbers(np.concatenate([classes.palette, classes.ignored]))
    labels = np.concatenate([np.arange(len(classes.palette)), np.full(len(classes.ignored), IGNORED)])
    order = known.argsort()
    numbers = _as_numbers(values)
    place = order[np.searchsorted(known, numbers, sorter=order).clip(max=len(known) - 1)]
    if (odd := values[known[place] != numbers]).size:
        raise ConfigError(
            f"{file}: colour {odd[0].tolist()} is neither in `palette` nor in `ignore` of {CLASSES_FILE}; add it there"
        )
    return labels[place]


def _as_numbers(colours: np.ndarray) -> np.ndarray:
    """Return a number for each colour [..., 3]."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
