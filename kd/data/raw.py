"""What a data set is made of before it is prepared, and where it comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.data.listing import Skipped
from kd.runtime.messages import ConfigError, suggest


class Tree(NamedTuple):
    """What was found in a folder of images."""

    root: Path
    train_files: list[Path]  # one per image, in their order
    test_files: list[Path]
    skipped: Skipped
    listing: str  # as kd.data.listing.listing returned it before the files were read


IGNORED = 255  # in a label map: the pixel is neither learned nor scored


class RawData(NamedTuple):
    """Images [N, H, W, C] uint8 and labels of both splits; a label is the position of its name.

    Labels are [N] int64, or, for segmentation, maps [N, H, W] uint8 in which IGNORED marks pixels without a class.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: list[str]
    tree: Tree | None = None  # where each image is a file of the user's
    palette: np.ndarray | None = None  # [K, 3] uint8, colours of the classes in figures


class Source(NamedTuple):
    """Where a data set is read from; it does not change the data."""

    root: Path | None  # the user's `dataset.root`
    downloads: Path  # folder for downloads
    download: bool  # whether downloading is allowed
    cores: int | None = None  # that decode images; None: all that this process may use


def chosen(names: list[str], classes: int | tuple[str, ...] | None) -> list[str]:
    """Return the classes that `dataset.classes` selects (all, the first n, or those named), in the order of `names`.

    Raises ConfigError for a class that does not exist.
    """
    if classes is None:
        return names
    if isinstance(classes, int):
        if classes > len(names):
            raise ConfigError(
                f"dataset.classes: got {classes}; allowed: at most {len(names)}, the data set has no more"
            )
        return names[:classes]
    if unknown := [name for name in classes if name not in names]:
        raise ConfigError(f"dataset.classes: got {unknown[0]!r}; {suggest(unknown[0], names)}")
    return [name for name in names if name in classes]


def subset(raw: RawData, classes: int | tuple[str, ...] | None) -> RawData:
    """Return only the data of the chosen classes, with labels counted from 0 again."""
    kept = chosen(raw.classes, classes)
    if kept == raw.classes:
        return raw
    if raw.train_labels.ndim > 1:
        return _fewer_in_maps(raw, kept)
    new_label = np.array([kept.index(name) if name in kept else -1 for name in raw.classes])
    train, test = (new_label[labels] for labels in (raw.train_labels, raw.test_labels))
    return RawData(raw.train_images[train >= 0], train[train >= 0], raw.test_images[test >= 0], test[test >= 0], kept)


def _fewer_in_maps(raw: RawData, kept: list[str]) -> RawData:
    """Return all images, the pixels of other classes IGNORED."""
    table = np.full(256, IGNORED, np.uint8)
    for label, name in enumerate(kept):
        table[raw.classes.index(name)] = label
    palette = None if raw.palette is None else raw.palette[[raw.classes.index(name) for name in kept]]
    maps = {"train_labels": table[raw.train_labels], "test_labels": table[raw.test_labels]}
    return raw._replace(**maps, classes=kept, palette=palette)


def in_canonical_order(raw: RawData) -> RawData:
    """Return both splits sorted by label, then by content: the same tensors, whatever files they were read from."""
    parts = []
    for images, labels in ((raw.train_images, raw.train_labels), (raw.test_images, raw.test_labels)):
        contents = [hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images]
        order = sorted(range(len(labels)), key=lambda i: (labels[i], contents[i]))
        parts += [images[order], labels[order]]
    return RawData(*parts, raw.classes)
