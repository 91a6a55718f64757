"""A tree of image files: root/{train,test}/<class>/*.png, .jpg, ...; kd/data/listing.py says which files are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd.data.listing import ENDINGS, SPLITS, Skipped, class_names, image_files, listing, note_others, readable
from kd.data.raw import RawData, Source, Tree, chosen
from kd.runtime.messages import ConfigError, bearable, name_as_text
from kd.settings.shapes import Dataset

# Whatever a file's ending: Pillow runs Ghostscript for EPS and opens other containers that are no pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def load(dataset: Dataset, source: Source) -> RawData:
    """Return all images as RGB, cut to a square around their centre and resized to `dataset.image_size`.

    The tree is `source.root` or, where that is not given, the run's own `dataset.root`. The sorted names of the folders
    in train/ are the classes. Raises ConfigError for a tree of another shape or a file that cannot be decoded.
    """
    return read_tree(source.root or Path(os.path.expanduser(dataset.root)), dataset)


def is_tree(root: Path) -> bool:
    """Return whether a folder has both splits."""
    return all(os.path.isdir(root / split) for split in SPLITS)


def read_tree(root: Path, dataset: Dataset) -> RawData:
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
            _decode(listed[-1], dataset.image_size),
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


def _decode(files: list[Path], size: int) -> np.ndarray:
    """Return images [N, size, size, 3] uint8, read one after the other: threads cost more than they save here."""
    images = np.empty((len(files), size, size, 3), np.uint8)
    for place, file in enumerate(files):
        images[place] = _square(file, size)
    return images


def _square(file: Path, size: int) -> Image.Image:
    place = bearable(str(file))
    with readable(file):
        try:
            with Image.open(file, formats=FORMATS) as image:
                upright = _rgb(image)
        except UnidentifiedImageError:
            raise ConfigError(f"dataset.root: {place} is no {', '.join(FORMATS)} image; remove it") from None
        except OSError:  # of the disk, or a file that is cut off
            raise
        except Exception as error:  # Pillow's readers raise anything for a broken file
            why = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"dataset.root: {place} cannot be decoded ({why}); mend or remove it") from None
    return upright if upright.size == (size, size) else ImageOps.fit(upright, (size, size), Image.BILINEAR)


def _rgb(image: Image.Image) -> Image.Image:
    """Return the first frame, upright, as RGB. Raises ValueError for pixels whose range is not known."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its pixels are of 32 bits, of which nothing says what is white: save it with 8 or 16")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, where Pillow's own conversion turns all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns of the direct way
        image = image.convert("RGBA")
    return image.convert("RGB")
