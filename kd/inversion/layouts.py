"""What a teacher of segmentation is asked for: maps of classes, drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

COARSE = 6  # a map's regions are made of that many random values along each side
PREFERENCE = 1.5  # how much an image prefers some classes, next to values of deviation 1: few classes, unequal regions


def draw_layouts(count: int, size: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return `count` maps of classes, [count, size, size] int64, each with a few smooth regions.

    In each pixel it is the class with the highest score; a score is a coarse field of normal numbers, enlarged
    bilinearly, plus how much the image prefers the class. Over many maps all classes are equally frequent.
    """
    device = generator.device
    scores = torch.randn(count, num_classes, COARSE, COARSE, generator=generator, device=device)
    prefers = torch.randn(count, num_classes, 1, 1, generator=generator, device=device)
    smooth = F.interpolate(scores, size=(size, size), mode="bilinear", align_corners=False)
    return (smooth + PREFERENCE * prefers).argmax(1)
