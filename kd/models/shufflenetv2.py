"""ShuffleNet V2, Ma et al. 2018 (arXiv 1807.11164), at width 1, for small images: a 1x1 stem and no max pool."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.models.classifier import Rectified


def pointwise(in_width: int, width: int) -> list[nn.Module]:
    """Return a 1x1 convolution, batch normalisation and a ReLU."""
    return [nn.Conv2d(in_width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def per_channel(width: int, stride: int) -> list[nn.Module]:
    """Return a 3x3 convolution within each channel and batch normalisation."""
    return [nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)]


class Unit(nn.Module):
    """Two branches of half the width, joined and shuffled.

    Without `halve`, [B, width, H, W] -> the same shape: one half of the channels passes unchanged, the other
    half is convolved. With it, [B, C, H, W] -> [B, width, H/2, W/2]: both branches see all channels.
    """

    def __init__(self, in_width: int, width: int, halve: bool) -> None:
        super().__init__()
        half = width // 2
        self.halve = halve
        self.left = nn.Sequential(*per_channel(in_width, 2), *pointwise(in_width, half)) if halve else nn.Identity()
        self.right = nn.Sequential(
            *pointwise(in_width if halve else half, half), *per_channel(half, 2 if halve else 1), *pointwise(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._joined(x, self.left, self.right)

    def signed(self, x: Tensor) -> Tensor:
        """Return the same before the branches' last ReLU; an unchanged half had its own ReLU in an earlier unit."""
        return self._joined(x, self.left[:-1] if self.halve else self.left, self.right[:-1])

    def _joined(self, x: Tensor, left: nn.Module, right: nn.Module) -> Tensor:
        a, b = (x, x) if self.halve else x.chunk(2, dim=1)
        return torch.stack([left(a), right(b)], dim=2).flatten(1, 2)  # shuffle: left, right, left, ...


class ShuffleNetV2(Rectified):
    """ShuffleNet V2 at width 1: a stem of 24, then stages of 4, 8 and 4 units and a last 1x1 convolution.

    Weights keep torch's initialisation. Maps at 32x32: 24 x 32 x 32 (stem), 116 x 16 x 16, 232 x 8 x 8, 464 x 4 x 4.
    Penultimate feature: 1024.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        in_width = 24
        self.stem = nn.Sequential(nn.Conv2d(in_channels, in_width, 1, bias=False), nn.BatchNorm2d(in_width))
        self.body = nn.ModuleList()
        for width, units in ((116, 4), (232, 8), (464, 4)):
            first = Unit(in_width, width, halve=True)
            self.body.append(nn.Sequential(first, *(Unit(width, width, halve=False) for _ in range(units - 1))))
            in_width = width
        self.last = nn.Sequential(*pointwise(in_width, 1024))
        self.head = nn.Linear(1024, num_classes)

    def pool(self, last: Tensor) -> Tensor:
        return self.last(last).mean(dim=(2, 3))
