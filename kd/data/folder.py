"""A tree of image files: root/{train,test}/<class>/*.png, .jpg, .jpeg or .webp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kd.data.raw import RawData, Source, chosen
from kd.runtime.messages import ConfigError, name_as_text
from kd.settings.shapes import Dataset

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SPLITS = ("train", "test")


def load(dataset: Dataset, source: Source) -> RawData:
    """Return all images as RGB, cut to a square around their centre and resized to `dataset.image_size`.

    The tree is `source.root` or, where that is not given, the run's own `dataset.root`. The sorted names of the folders
    in train/ are the classes. Raises ConfigError for a tree of another shape or a file that cannot be decoded.
    """
    return read_tree(source.root or Path(dataset.root), dataset)


def is_tree(root: Path) -> bool:
    """Return whether a folder has both splits."""
    return all((root / split).is_dir() for split in SPLITS)


def read_tree(root: Path, dataset: Dataset) -> RawData:
    """Return the images below `root`; raises ConfigError as `load` does."""
    if not is_tree(root):
        raise ConfigError(
            f"dataset.root: got {str(root)!r}; needed: a folder with train/<class>/ and test/<class>/ in it, "
            f"images ending in {', '.join(ENDINGS)}"
        )
    found = {split: _folders(root / split) for split in SPLITS}
    if odd := sorted(set(found["train"]) ^ set(found["test"])):
        lacking = "train" if odd[0] in found["test"] else "test"
        raise ConfigError(
            f"dataset.root: class {odd[0]!r} has no folder in {root / lacking}; give both splits all classes"
        )
    if len(found["train"]) < 2:
        raise ConfigError(f"dataset.root: {root / 'train'} has {len(found['train'])} class folders; needed: 2 or more")
    classes = chosen(list(found["train"]), dataset.classes)
    arrays = []
    for split in SPLITS:
        files = [_images(found[split][name]) for name in classes]
        arrays += [
            _decode([file for of_class in files for file in of_class], dataset.image_size),
            np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files]),
        ]
    return RawData(*arrays, classes)


def _folders(folder: Path) -> dict[str, Path]:
    """Return the class folders by the names that tables and figures can show."""
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {name_as_text(entry.name): entry for entry in entries}


def _images(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
    if not found:
        raise ConfigError(f"dataset.root: {folder} holds no image; needed: files ending in {', '.join(ENDINGS)}")
    return found


def _decode(files: list[Path], size: int) -> np.ndarray:
    """Return images [N, size, size, 3] uint8, read one after the other: threads cost more than they save here."""
    images = np.empty((len(files), size, size, 3), np.uint8)
    for place, file in enumerate(files):
        images[place] = _square(file, size)
    return images


def _square(file: Path, size: int) -> Image.Image:
    try:
        with Image.open(file) as image:
            upright = _rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"dataset.root: {file} cannot be decoded ({error}); mend or remove it") from None
    return upright if upright.size == (size, size) else ImageOps.fit(upright, (size, size), Image.BILINEAR)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, where Pillow's own conversion turns all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
