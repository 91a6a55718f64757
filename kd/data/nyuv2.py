"""NYU Depth v2 (Silberman et al., ECCV 2012): 795 + 654 indoor scenes with 13 classes per pixel, and depth.

Read from the official labelled file and two small ones: the split, and the 40 classes of Gupta et al. (CVPR 2013). The
13 classes of Couprie et al. (ICLR 2013) are made of these 40.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kd.data.raw import IGNORED, RawData, Source
from kd.registry.datasets import NYU_13
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

LABELLED, SPLIT, CLASSES_40 = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
WHERE = {
    LABELLED: "the labelled data set (2.8 GB) of https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    SPLIT: "the train/test split of the same page",
    CLASSES_40: "https://github.com/ankurhanda/nyuv2-meta-data",
}
FARTHEST = 10.0  # metres, of a depth of 255
# the class of 13 of each of the 40, both counted from 1 (class13Mapping.mat of nyuv2-meta-data)
OF_40 = (
    *(12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5),
    *(7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7),
)


def load(dataset: Dataset, source: Source) -> RawData:
    """Return the images cut to a square around their centre and resized, with label maps [N, S, S] uint8.

    Images are RGB; with `dataset.channels: 4` the fourth channel is the depth, 255 at 10 metres. One scene is in
    memory at a time. Raises ConfigError for a file that is missing, damaged or of another layout.
    """
    root = source.root or source.downloads / "nyuv2"
    if missing := [name for name in WHERE if not (root / name).is_file()]:
        raise ConfigError(f"dataset.root: {root / missing[0]} is missing; it is {WHERE[missing[0]]}: put it there")
    table = _table(root / CLASSES_40)
    splits = _mat(root / SPLIT, "trainNdxs", "testNdxs")
    with _hdf5(root / LABELLED) as file:
        arrays = []
        for numbers in splits:
            arrays += _scenes(file, root / LABELLED, numbers.ravel().astype(int) - 1, table, dataset)
    return RawData(*arrays, list(NYU_13))


def _scenes(file: Any, path: Path, numbers: np.ndarray, table: np.ndarray, dataset: Dataset) -> list[np.ndarray]:
    """Return images [n, S, S, C] and label maps [n, S, S] of these scenes; MATLAB's files hold columns first."""
    size, depth = dataset.image_size, dataset.channels == 4
    images = np.empty((len(numbers), 3 + depth, size, size), np.uint8).transpose(0, 2, 3, 1)  # prepared without a copy
    labels = np.empty((len(numbers), size, size), np.uint8)
    for place, number in enumerate(numbers):
        try:
            images[place, ..., :3] = _square(file["images"][number].transpose(2, 1, 0), size, Image.BILINEAR)
            values = _square(file["labels"][number].T.astype(np.int32), size, Image.NEAREST)
            if depth:
                metres = _square(file["depths"][number].T.astype(np.float32), size, Image.BILINEAR)
                images[place, ..., 3] = (255 * metres / FARTHEST).round().clip(0, 255)
        except (KeyError, ValueError, IndexError, OSError) as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"{path}: scene {number + 1} cannot be read ({why}); needed: {WHERE[LABELLED]}") from None
        labels[place] = table[values]
    return [images, labels]


def _square(values: np.ndarray, size: int, how: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(Image.fromarray(values), (size, size), how))


def _table(file: Path) -> np.ndarray:
    """Return the label of each of the 894 raw classes, after 0, which is unlabelled: [895] uint8."""
    (of_raw,) = _mat(file, "mapClass")
    of_raw = of_raw.ravel()
    if of_raw.min() < 1 or of_raw.max() > len(OF_40):
        raise ConfigError(f"{file}: mapClass: values from {of_raw.min()} to {of_raw.max()}; needed: 1 to {len(OF_40)}")
    return np.array([IGNORED, *(OF_40[label - 1] - 1 for label in of_raw)], np.uint8)


def _mat(file: Path, *names: str) -> list[np.ndarray]:
    """Return arrays of a small MATLAB file."""
    from scipy.io import loadmat

    try:
        content = loadmat(file, variable_names=names)
        return [content[name] for name in names]
    except Exception as error:  # scipy raises anything for what is no such file
        raise ConfigError(f"{file}: cannot be read ({error!r}); needed: {WHERE[file.name]}") from None


def _hdf5(file: Path) -> Any:
    try:
        import h5py

        return h5py.File(file, "r")
    except ModuleNotFoundError:
        raise ConfigError("dataset.name: nyuv2 needs h5py, which is not installed: pip install h5py") from None
    except OSError as error:
        raise ConfigError(f"{file}: is no whole HDF5 file ({error}); needed: {WHERE[LABELLED]}") from None
