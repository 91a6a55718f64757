"""The thin residual networks of He et al. 2016 for CIFAR (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from torch import nn

from kd.models.classifier import Rectified, init_convolutions
from kd.models.resnet import BasicBlock


class ResNetCifar(Rectified):
    """ResNet of depth 6n + 2: three stages of n basic blocks; the shortcut is a 1x1 convolution where widths change.

    Maps at 32x32, each after ReLU: 16 x 32 x 32 (stem), 16 x 32 x 32, 32 x 16 x 16, 64 x 8 x 8. Penultimate feature:
    64. The x4 networks of the distillation papers have a stem of 32 and stages four times as wide, 64, 128 and 256.
    """

    def __init__(
        self,
        *,
        depth: int,
        stem: int = 16,
        widths: tuple[int, int, int] = (16, 32, 64),
        num_classes: int,
        in_channels: int,
        image_size: int,
    ) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        blocks = (depth - 2) // 6
        if blocks < 1 or depth != 6 * blocks + 2:
            raise ValueError(f"depth {depth} of a CIFAR residual network; it must be 8, 14, 20, ... (6n + 2)")
        self.stem = nn.Sequential(nn.Conv2d(in_channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.body = nn.ModuleList()
        in_width = stem
        for width, stride in zip(widths, (1, 2, 2), strict=True):
            first = BasicBlock(in_width, width, stride)
            self.body.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1))))
            in_width = width
        self.head = nn.Linear(in_width, num_classes)
        init_convolutions(self)
