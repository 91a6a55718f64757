"""scikit-learn's 1,797 handwritten digits (8x8, 16 grey levels), which come inside the package."""

from __future__ import annotations

import numpy as np

from kd.data.raw import RawData, Source
from kd.settings.shapes import Dataset

TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the split belongs to the data set, not to a run


def load(dataset: Dataset, source: Source) -> RawData:
    """Return 1,437 training and 360 test images, stratified by class, in one fixed split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)  # [N, 8, 8, 1]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=SPLIT_SEED
    )
    names = [str(name) for name in digits.target_names]
    return RawData(images[train], labels[train], images[test], labels[test], names)
