"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28 in ten classes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from kd.data.downloads import torchvision_splits
from kd.data.raw import RawData, Source
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load(dataset: Dataset, source: Source) -> RawData:
    """Return the images of the four .gz files in `source.root`, of Debian's package, or else of torchvision."""
    for folder in filter(None, (source.root, DEBIAN)):
        if all((folder / name).is_file() for name in FILES):
            train_images, train_labels, test_images, test_labels = (_read(folder / name) for name in FILES)
            break
    else:
        train, test = torchvision_splits("FashionMNIST", source)
        train_images, train_labels, test_images, test_labels = (
            tensor.numpy() for split in (train, test) for tensor in (split.data, split.targets)
        )
    if len(set(np.bincount(train_labels))) > 1:
        raise ConfigError("dataset.root: the classes differ in size, so this is MNIST; give the files of Fashion-MNIST")
    return RawData(
        train_images[..., None],
        train_labels.astype(np.int64),
        test_images[..., None],
        test_labels.astype(np.int64),
        CLASSES,
    )


def _read(file: Path) -> np.ndarray:
    """Return the array of an IDX file: two zero bytes, type 8 (uint8), number of axes, lengths (big-endian), values.

    Raises ConfigError for a damaged file.
    """
    try:
        content = gzip.decompress(file.read_bytes())
        axes = content[3]
        shape = np.frombuffer(content, ">i4", axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()  # torch wants to own it
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:
        raise ConfigError(f"dataset.root: {file} cannot be read ({error}); replace it by the original") from None
