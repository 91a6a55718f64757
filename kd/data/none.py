"""No images at all: what the teacher of a data-free run was trained on, as the study describes it."""

from __future__ import annotations

import numpy as np

from kd.data.raw import RawData, Source
from kd.settings.shapes import Dataset


def load(dataset: Dataset, source: Source) -> RawData:
    """Return no training and no test images [0, S, S, C]; classes are those named, or numbers from 0."""
    images = np.empty((0, dataset.image_size, dataset.image_size, dataset.channels), np.uint8)
    labels = np.empty(0, np.int64)
    names = dataset.classes if isinstance(dataset.classes, tuple) else map(str, range(dataset.classes))
    return RawData(images, labels, images, labels, list(names))
