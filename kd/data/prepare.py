"""A data set, decoded once into one file of tensors that every run reads."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kd.data.found import found
from kd.data.raw import IGNORED, RawData, Source, subset
from kd.registry.datasets import DATASETS
from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.settings.shapes import Dataset


def prepare(dataset: Dataset, path: Path, source: Source, say: Callable[[str], Any] = inform) -> dict[str, Any]:
    """Load the data set, resize it, and write images [N, C, S, S] uint8, labels, class names, mean and std to `path`.

    Label maps come in the size that is asked for, and may bring a palette, [K, 3] uint8.

    Mean and std are per channel over the training images, in units of the full range [0, 1]; the std of a channel that
    never changes is 1; without images they are 0 and 1. Returns what was read, as JSON holds it: `train` and `test`,
    each with its images (`used`) and how many of them repeat another (`duplicates`); `test_in_train`, the test images
    that are training images, too; `constant_channels`; of a folder the files `skipped`, by reason, and its `listing`,
    else {} and None; `lines`, which said the same.

    Raises ConfigError if the data is missing or has another shape.
    """
    module, function = DATASETS[dataset.name].split(":")
    raw = subset(getattr(importlib.import_module(module), function)(dataset, source), dataset.classes)
    _require_labels(raw)
    train, test = (
        _resize(_with_channels(_channels_first(images), dataset.channels), dataset.image_size)
        for images in (raw.train_images, raw.test_images)
    )
    mean, std = _mean_std(train)
    content = {
        "train_images": train,
        "train_labels": torch.from_numpy(raw.train_labels),
        "test_images": test,
        "test_labels": torch.from_numpy(raw.test_labels),
        "classes": raw.classes,
        "mean": mean.float(),
        "std": std.where(std > 0, 1).float(),
    }
    if raw.palette is not None:
        content["palette"] = torch.from_numpy(raw.palette)
    record = found(dataset.label, len(raw.classes), train, test, std, raw.tree)
    for line in record["lines"]:
        say(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(content, file))
    return record


def _require_labels(raw: RawData) -> None:
    """Raise ConfigError for label maps in which no pixel has a class."""
    for split, labels in (("training", raw.train_labels), ("test", raw.test_labels)):
        if labels.ndim > 1 and (labels == IGNORED).all():
            raise ConfigError(
                f"dataset.classes: no pixel of the {split} label maps is of any of {', '.join(raw.classes)}; name "
                "others, or look at the maps"
            )


def _mean_std(images: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Return mean [C] and std [C], exact in float64, from counts of the 256 values: images may fill the memory."""
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for part in images.split(chunk):
        for channel in range(channels):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)  # 0 where there are no images
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    return mean, (share * (values - mean[:, None]).pow(2)).sum(1).sqrt()


def _with_channels(images: Tensor, channels: int | None) -> Tensor:
    """Return images [N, C, H, W] with that many channels: grey ones are repeated. Raises ConfigError for others."""
    if channels in (None, images.shape[1]):
        return images
    if images.shape[1] != 1:
        raise ConfigError(
            f"dataset.channels: got {channels}; the images have {images.shape[1]}, and only grey ones can be repeated"
        )
    return images.expand(-1, channels, -1, -1).contiguous()


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _resize(images: Tensor, size: int, chunk: int = 4096) -> Tensor:
    """Return the images resized bilinearly, antialiased when shrinking; unchanged if they have the size already."""
    if images.shape[-2:] == (size, size):
        return images
    resized = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True) for part in images.split(chunk)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in resized])
