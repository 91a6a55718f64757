"""What a data set is made of before it is prepared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RawData(NamedTuple):
    """Images [N, H, W, C] uint8 and labels [N] int64 of both splits; `classes` are names, the label is the position."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: list[str]
