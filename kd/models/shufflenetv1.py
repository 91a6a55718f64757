"""ShuffleNet, Zhang et al. 2018 (arXiv 1707.01083), three groups, for small images: a 1x1 stem and no max pool."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.models.classifier import Rectified


class Unit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 per channel, grouped 1x1: [B, C, H, W] -> [B, width, H, W], the input added.

    With `halve` it returns [B, width, H/2, W/2], and the input, averaged over 3x3 windows, is appended as channels.
    Unlike in the paper, and as in CRD's network, the 3x3 convolution is followed by a ReLU.
    """

    def __init__(self, in_width: int, width: int, groups: int, first_groups: int, halve: bool) -> None:
        super().__init__()
        out_width = width - in_width if halve else width
        inner = out_width // 4
        self.groups = first_groups
        self.conv1 = nn.Conv2d(in_width, inner, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 2 if halve else 1, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_width, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.signed(x))

    def signed(self, x: Tensor) -> Tensor:
        """Return the sum, or with `halve` the channels of both, before the last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = out.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)  # shuffle: channels of all groups mix
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.halve:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return out + x


class ShuffleNetV1(Rectified):
    """ShuffleNet with three groups: a stem of 24, then stages of 4, 8 and 4 units.

    The very first 1x1 convolution is not grouped, as in the paper. Weights keep torch's initialisation. Maps at 32x32,
    each after ReLU: 24 x 32 x 32 (stem), 240 x 16 x 16, 480 x 8 x 8, 960 x 4 x 4. Penultimate feature: 960.
    """

    def __init__(self, *, groups: int = 3, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        in_width = 24
        self.stem = nn.Sequential(nn.Conv2d(in_channels, in_width, 1, bias=False), nn.BatchNorm2d(in_width))
        self.body = nn.ModuleList()
        for width, units in ((240, 4), (480, 8), (960, 4)):
            first = Unit(in_width, width, groups, first_groups=1 if in_width == 24 else groups, halve=True)
            others = [Unit(width, width, groups, first_groups=groups, halve=False) for _ in range(units - 1)]
            self.body.append(nn.Sequential(first, *others))
            in_width = width
        self.head = nn.Linear(in_width, num_classes)
