"""A tree of photographs as ImageNet has them: JPEGs of odd sizes, and the few that are something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kd.settings.run import Run
from kd.settings.shapes import Dataset

SIZES = ((50, 38), (38, 51), (64, 20), (21, 60), (33, 33))  # width, height; two of them too narrow for most crops
NORMALISED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def photo(number: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return smooth colours that differ from picture to picture."""
    draws = np.random.default_rng(number)
    small = draws.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.BICUBIC).convert(mode)


def photo_tree(root: Path, classes: int = 3, train: int = 7, test: int = 4) -> Path:
    """Write train/<class>/ and test/<class>/, and return `root`; one is grey, one CMYK, one a PNG named .JPEG."""
    number = 0
    for split, each in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"n0000{label}"
            folder.mkdir(parents=True)
            for place in range(each):
                number += 1
                mode = {0: "L", 1: "CMYK"}.get(number - 1, "RGB")
                kind = "PNG" if number == 3 else "JPEG"
                photo(number, *SIZES[number % len(SIZES)], mode).save(folder / f"{label}_{place}.JPEG", kind)
    return root


def of_photos(root: Path, size: int = 16, **changes: Any) -> Dataset:
    """Return the settings of a tree that is streamed."""
    given = {"classes": None, "validation": 0.0, "pad": 2, "flip": True, **NORMALISED, **changes}
    return Dataset("folder", str(root), image_size=size, stream=True, **given)


def on_photos(run: Run, root: Path, **changes: Any) -> Run:
    """Return a run, and its teachers, on a tree instead of their own data."""
    dataset = of_photos(root, **changes)
    taught = tuple(replace(teacher, dataset=dataset) for teacher in run.teachers or ()) or None
    return replace(run, dataset=dataset, teachers=taught)
