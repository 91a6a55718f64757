"""A tree of image files: root/{train,test}/<class>/*.png, .jpg, ...; kd/data/listing.py says which files are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

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


class Listed(NamedTuple):
    """The image files of a tree, none of which was opened."""

    classes: list[str]
    files: dict[str, list[tuple[Path, list[str]]]]  # per split, in the order of the classes: folder, sorted names in it
    skipped: Skipped
    listing: str  # of all classes, as kd.data.listing.listing returned it before

    def labels(self, split: str) -> np.ndarray:
        """Return the class of each image of a split, [N] int64."""
        return np.repeat(np.arange(len(self.classes)), [len(names) for _, names in self.files[split]])


def read_tree(root: Path, dataset: Dataset, cores: int | None = None) -> RawData:
    """Return the images below `root`, and what was found there; raises ConfigError as `load` does."""
    listed = list_tree(root, dataset.classes)
    arrays, files = [], []
    for split in SPLITS:
        files.append([folder / name for folder, names in listed.files[split] for name in names])
        arrays += [decode(files[-1], dataset.image_size, cores), listed.labels(split)]
    return RawData(*arrays, listed.classes, Tree(root, *files, listed.skipped, listed.listing))


def list_tree(root: Path, chosen_classes: int | tuple[str, ...] | None) -> Listed:
    """Return the files of the classes that `dataset.classes` asks for; raises ConfigError as `load` does."""
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
    classes = chosen(list(found["train"]), chosen_classes)
    folders = {split: [root / split / found[split][name] for name in classes] for split in SPLITS}
    files = {split: [(folder, _images(folder, skipped)) for folder in folders[split]] for split in SPLITS}
    return Listed(classes, files, skipped, before)


def _by_text(split: Path, names: list[str]) -> dict[str, str]:
    """Return class folders by the names that tables and figures show. Raises ConfigError where two look alike."""
    shown = [name_as_text(name) for name in names]
    if twice := sorted({name for name in shown if shown.count(name) > 1}):
        raise ConfigError(f"dataset.root: {split} has two class folders that are shown as {twice[0]!r}; rename one")
    return dict(zip(shown, names, strict=True))


def _images(folder: Path, skipped: Skipped) -> list[str]:
    found = image_files(folder, skipped)
    if not found:
        others = str(skipped.below(folder))
        raise ConfigError(
            f"dataset.root: {bearable(str(folder))} holds no image{f', only {others}' if others else ''}; "
            f"needed: files ending in {', '.join(ENDINGS)}"
        )
    if empty := [name for name, size in found.items() if not size]:
        raise ConfigError(f"dataset.root: {bearable(str(folder / empty[0]))} is empty; mend or remove it")
    return list(found)
