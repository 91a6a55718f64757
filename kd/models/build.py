"""Builds the network that a name of kd/registry/models.py stands for.

The network's module is looked up by name, never imported above: a run's code digest counts this file and the chosen
network, not all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kd.registry import models

if TYPE_CHECKING:
    from kd.models.classifier import Classifier

SMALLEST = 8  # pixels; VGG halves its maps three times


def build(name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> Classifier:
    """Return a freshly initialised network for images [B, in_channels, image_size, image_size].

    kd's own networks accept any size from 8 pixels on. Raises ValueError for a name that `models.check` refuses,
    a size that is no positive integer, smaller images, or images that one of torchvision's or your own networks
    cannot process.
    """
    models.check(name)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} of model {name!r} is {value!r}; give a positive integer")
    if ":" in name:
        return importlib.import_module(models.ADAPTERS).build(name, **sizes)
    if image_size < SMALLEST:
        raise ValueError(
            f"model {name!r} accepts images from {SMALLEST}x{SMALLEST} pixels on, not {image_size}x{image_size}"
        )
    entry = models.entry(name)
    module, _, cls = entry.code.partition(":")
    return getattr(importlib.import_module(module), cls)(**entry.settings, **sizes)
