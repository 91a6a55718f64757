"""A tree of image files, looked at without opening one: root/{train,test}/<class>/*.png, .jpg, ... (ENDINGS).

Imports neither torch nor Pillow, so that `kd status` may look, too.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd.registry.datasets import CLASSES_FILE
from kd.runtime.messages import ConfigError, bearable

SPLITS = ("train", "test")
ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
OTHER = "other endings"
OUTSIDE = "outside of train/ and test/"


class Skipped:
    """Files of a tree that are not read, and why."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}  # why -> paths

    def add(self, why: str, *files: str) -> None:
        if files:
            self.files.setdefault(why, []).extend(files)

    def below(self, folder: Path) -> Skipped:
        """Return what was skipped in one folder."""
        part = Skipped()
        for why, files in self.files.items():
            if inside := [file for file in files if file.startswith(f"{folder}{os.sep}")]:
                part.add(why, *inside)
        return part

    def counts(self) -> dict[str, int | dict[str, int]]:
        """Return the number of files per reason, of other endings per ending, the most frequent first."""
        numbers: dict[str, int | dict[str, int]] = {why: len(files) for why, files in sorted(self.files.items())}
        if OTHER in numbers:
            endings = Counter(_ending(file) or "none" for file in sorted(self.files[OTHER]))
            numbers[OTHER] = dict(endings.most_common())
        return numbers

    def __str__(self) -> str:
        """Say the same in words, with the path of a first file; empty where nothing was skipped."""
        parts = []
        for why, counts in self.counts().items():
            if isinstance(counts, dict):
                named = ", ".join(f"{bearable(ending)} {count}" for ending, count in counts.items())
                parts.append(f"{sum(counts.values()):,} of {why} ({named})")
            else:
                parts.append(f"{counts:,} {why} ({bearable(min(self.files[why]))}{', ...' if counts > 1 else ''})")
        return ", ".join(parts)


def listing(root: Path) -> str:
    """Return sixteen hex digits that identify the image files of a tree by class, name and size.

    A copy of the tree has the same; a file that changes but keeps its name and size is not seen, but for the names of
    pairs (`CLASSES_FILE`), which are read. Empty where the tree is not there or cannot be read.
    """
    found = hashlib.sha256()
    try:
        if (names := root / CLASSES_FILE).is_file():
            found.update(names.read_bytes())
        for split in SPLITS:
            for name in class_names(root / split, Skipped()):
                found.update(os.fsencode(f"{split}/{name}/\n"))
                for file, size in image_files(root / split / name, Skipped()).items():
                    found.update(os.fsencode(f"{file}\0{size}\n"))
    except (ValueError, OSError):  # a ConfigError, or a path that no folder can have
        return ""
    return found.hexdigest()[:16]


def class_names(split: Path, skipped: Skipped) -> list[str]:
    """Return the sorted names of a split's class folders; note the files next to them in `skipped`.

    Raises ConfigError for a folder that cannot be read.
    """
    names = []
    with readable(split), os.scandir(split) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                skipped.add("hidden", entry.path)
            elif entry.is_dir():
                names.append(entry.name)
            else:
                skipped.add("outside of class folders", entry.path)
    return sorted(names)


def note_others(root: Path, skipped: Skipped, read: tuple[str, ...] = ()) -> None:
    """Note the files below a tree's root that belong to neither split; of a folder that cannot be read its name.

    read: names in the root that the data set reads as well.
    """
    with readable(root), os.scandir(root) as entries:
        for entry in entries:
            if entry.name not in (*SPLITS, *read):
                skipped.add(OUTSIDE, *_inside(entry))


def image_files(folder: Path, skipped: Skipped) -> dict[str, int]:
    """Return names and sizes in bytes of a class folder's image files, sorted; note all other files in `skipped`.

    Raises ConfigError for a folder that cannot be read and for a link to nothing.
    """
    sizes = {}
    with readable(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                skipped.add("hidden", entry.path)
            elif entry.is_dir():
                if deeper := list(_below(entry.path)):
                    skipped.add("in deeper folders", *deeper)
            elif _ending(entry.name) not in ENDINGS:
                skipped.add(OTHER, entry.path)
            elif stat.S_ISREG((status := entry.stat()).st_mode):
                sizes[entry.name] = status.st_size
            else:
                skipped.add("pipe, socket or device", entry.path)  # to open a pipe would wait for ever
    return dict(sorted(sizes.items()))


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Raise ConfigError, a line with path and remedy, where a file or folder cannot be read."""
    try:
        yield
    except OSError as error:
        place, why = bearable(str(error.filename or path)), error.strerror or " ".join(str(error).split())
        raise ConfigError(f"dataset.root: {place} cannot be read ({why}); mend, remove or make it readable") from None


def _inside(entry: os.DirEntry[str]) -> list[str]:
    try:
        return list(_below(entry.path)) if entry.is_dir() else [entry.path]
    except OSError:  # such as lost+found at the top of a disk: no reason to refuse the images
        return [entry.path]


def _below(folder: str) -> Iterator[str]:
    """Yield the files below a folder at any depth. Raises OSError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    for path, _, files in os.walk(folder, onerror=refuse):
        yield from (os.path.join(path, name) for name in files)


def _ending(file: str) -> str:
    return os.path.splitext(file)[1].lower()
