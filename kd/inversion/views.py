"""Random views of images in inversion that the augmentation of training does not have; gradients flow through both."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jittered(images: Tensor, pixels: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return images [B, C, H, W] rolled by up to `pixels` down and sideways; with `flip`, mirrored half of the time.

    All images of the batch are moved alike (Yin et al., Dreaming to Distill, CVPR 2020).
    """
    device = images.device
    shift = torch.randint(-pixels, pixels + 1, (2,), generator=generator, device=device)
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=device) - shift[0]) % height
    columns = (torch.arange(width, device=device) - shift[1]) % width
    if flip:
        mirror = torch.randint(0, 2, (1,), generator=generator, device=device, dtype=torch.bool)
        columns = torch.where(mirror, columns.flip(0), columns)
    return images.index_select(2, rows).index_select(3, columns)


def resized_crop(images: Tensor, flip: bool, generator: torch.Generator, smallest: float = 0.25) -> Tensor:
    """Return a random part of each of the images [B, C, S, S], enlarged to the whole; with `flip`, half are mirrored.

    A part has `smallest` to 1 of the area, and 3/4 to 4/3 as many columns as rows, as far as they fit. The enlargement
    is bilinear, a matrix product for rows and one for columns: its gradient is the same whenever it is computed.
    """
    batch, size, device = len(images), images.shape[-1], images.device
    area, ratio, *place = torch.rand(4, batch, generator=generator, device=device)
    area = smallest + (1 - smallest) * area
    ratio = ((2 * ratio - 1) * math.log(4 / 3)).exp()
    lengths = ((area / ratio).sqrt().clamp_max(1), (area * ratio).sqrt().clamp_max(1))
    rows, columns = (_enlarging(length * size, at, size) for length, at in zip(lengths, place, strict=True))
    if flip:
        mirror = torch.randint(0, 2, (batch, 1, 1), generator=generator, device=device, dtype=torch.bool)
        columns = torch.where(mirror, columns.flip(1), columns)
    return rows[:, None] @ images @ columns[:, None].mT


def _enlarging(length: Tensor, place: Tensor, size: int) -> Tensor:
    """Return bilinear weights [B, size, size] that enlarge a part of this length [B] to `size` values.

    place: [B], from 0, the part lies at the beginning, to 1, at the end.
    """
    positions = torch.arange(size, device=length.device)
    centres = (place * (size - length))[:, None] + (positions + 0.5) * (length / size)[:, None] - 0.5
    return (1 - (centres.clamp(0, size - 1)[:, :, None] - positions).abs()).clamp_min(0)
