"""Data sets of segmentation as settings describe them, and where they are read from."""

from __future__ import annotations

from kd.data.raw import Source
from kd.settings.shapes import Dataset


def described(name: str, **changes) -> Dataset:
    given = {"root": None, "classes": None, "image_size": 16, "validation": 0.0, "pad": 2, "flip": True, **changes}
    return Dataset(name=name, **given)


def source(root):
    return Source(root, root / "downloads", download=False, cores=1)
