"""A tree of image files: root/{train,test}/<class>/*.png, .jpg, ...; kd/data/listing.py says which files are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kd.data.decoding import decode
from kd.data.listing import ENDINGS, SPLITS, Skipped, class_names, image_files, listing, note_others
from kd.data.raw import RawData, Source, Tree, chosen
from kd.runtime.messages import ConfigError, bearable, name_as_text
from kd.settings.shapes import Dataset


def load(dataset: Dataset, source: Source) -> RawData:
    """Return all images as RGB, cut to a square around their centre and resized to `dataset.image_size`.

    The tree is `source.root` or, where that is not given, the run's own `dataset.root`. The sorted names of the folders
    in train/ are the classes. Raises ConfigError for a tree of another shape or a file that cannot be decoded.
    """
    return read_tree(source.root or Path(os.path.expanduser(dataset.root)), dataset, source.cores)


def is_tree(root: Path) -> bool:
    """Return whether a folder has both splits."""
    return all(os.path.isdir(root / split) for split in SPLITS)


def read_tree(root: Path, dataset: Dataset, cores: int | None = None) -> RawData:
    """Return the images below `root`, and what was found there; raises ConfigError as `load` does."""
    if not is_tree(root):
        raise ConfigError(
            f"dataset.root: got {str(root)!r}; needed: a readable folder with train/<class>/ and test/<class>/ in it, "
            f"images ending in {', '.join(ENDINGS)}"
        )
    before, skipped = listing(root), Skipped()  # what is added from here on is a change
    note_others(root, skipped)
    found = {split: _by_text(root / split, class_names(root / split, skipped)) for split in SPLITS}
    if odd := sorted(set(found["train"]) ^ set(found["test"])):
        lacking = "train" if odd[0] in found["test"] else "test"
        raise ConfigError(
            f"dataset.root: class {odd[0]!r} has no folder in {root / lacking}; give both splits all classes"
        )
    if len(found["train"]) < 2:
        raise ConfigError(f"dataset.root: {root / 'train'} has {len(found['train'])} class folders; needed: 2 or more")
    classes = chosen(list(found["train"]), dataset.classes)
    arrays, listed = [], []
    for split in SPLITS:
        files = [_images(root / split / found[split][name], skipped) for name in classes]
        listed.append([file for of_class in files for file in of_class])
        arrays += [
            decode(listed[-1], dataset.image_size, cores),
            np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files]),
        ]
    return RawData(*arrays, classes, Tree(root, *listed, skipped, before))


def _by_text(split: Path, names: list[str]) -> dict[str, str]:
    """Return class folders by the names that tables and figures show. Raises ConfigError where two look alike."""
    shown = [name_as_text(name) for name in names]
    if twice := sorted({name for name in shown if shown.count(name) > 1}):
        raise ConfigError(f"dataset.root: {split} has two class folders that are shown as {twice[0]!r}; rename one")
    return dict(zip(shown, names, strict=True))


def _images(folder: Path, skipped: Skipped) -> list[Path]:
    found = image_files(folder, skipped)
    if not found:
        others = str(skipped.below(folder))
        raise ConfigError(
            f"dataset.root: {bearable(str(folder))} holds no image{f', only {others}' if others else ''}; "
            f"needed: files ending in {', '.join(ENDINGS)}"
        )
    return [folder / name for name in found]
