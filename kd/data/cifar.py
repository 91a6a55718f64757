"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32, fine labels.

Read from torchvision's files or from a tree of lossless image files; both give the same tensors.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kd.data.downloads import torchvision_splits
from kd.data.folder import is_tree, read_tree
from kd.data.raw import RawData, Source, in_canonical_order
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

SIZES = (50_000, 10_000)
CLASS_COUNT = {"cifar10": 10, "cifar100": 100}


def load(dataset: Dataset, source: Source) -> RawData:
    """Return the images below `source.root`: train/ and test/ with a folder per class, or torchvision's files.

    Raises ConfigError if they are missing or incomplete.
    """
    if source.root is not None and is_tree(source.root):
        raw = read_tree(source.root, replace(dataset, image_size=32, classes=None), source.cores)
    else:
        splits = torchvision_splits({"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[dataset.name], source)
        arrays = [array for split in splits for array in (split.data, np.array(split.targets))]
        raw = RawData(*arrays, list(splits[0].classes))
    sizes, count = (len(raw.train_labels), len(raw.test_labels)), CLASS_COUNT[dataset.name]
    if sizes != SIZES or len(raw.classes) != count:
        raise ConfigError(
            f"dataset.root: {source.root} holds {sizes[0]:,} + {sizes[1]:,} images of {len(raw.classes)} classes; "
            f"{dataset.name} has {SIZES[0]:,} + {SIZES[1]:,} of {count}; complete it, or name it `folder`"
        )
    if len(set(np.bincount(raw.train_labels))) > 1:
        raise ConfigError(f"dataset.root: {source.root}: the classes differ in size; those of {dataset.name} do not")
    return in_canonical_order(raw)
