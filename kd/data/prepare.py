"""A data set, decoded once into one file of tensors that every run reads."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kd.config import Dataset
from kd.data import DATASETS
from kd.files import write_atomically


def prepare(dataset: Dataset, path: Path) -> None:
    """Load the data set, resize it, and write images [N, C, S, S] uint8, labels, class names, mean and std to `path`.

    Mean and std are per channel over the training images, in units of the full range [0, 1].
    """
    module, function = DATASETS[dataset.name].split(":")
    raw = getattr(importlib.import_module(module), function)(dataset)
    train = _resize(_channels_first(raw.train_images), dataset.image_size)
    test = _resize(_channels_first(raw.test_images), dataset.image_size)
    std, mean = torch.std_mean(train.double() / 255, dim=(0, 2, 3), correction=0)
    content = {
        "train_images": train,
        "train_labels": torch.from_numpy(raw.train_labels),
        "test_images": test,
        "test_labels": torch.from_numpy(raw.test_labels),
        "classes": raw.classes,
        "mean": mean.float(),
        "std": std.float(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(content, file))


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _resize(images: Tensor, size: int, chunk: int = 4096) -> Tensor:
    """Bilinear, antialiased when shrinking; untouched when the size already fits."""
    if images.shape[-2:] == (size, size):
        return images
    resized = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True) for part in images.split(chunk)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in resized])
