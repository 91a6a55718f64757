"""Residual networks, He et al. 2016 (arXiv 1512.03385), for small images: a 3x3 stem of stride 1 and no max pool."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kd.models.classifier import Rectified, init_convolutions


def shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    """Return the identity if the shapes agree, otherwise a 1x1 convolution with batch normalisation."""
    if stride == 1 and in_width == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, C, H, W] -> [B, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.signed(x))

    def signed(self, x: Tensor) -> Tensor:
        """Return the sum before the last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.shortcut(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [B, C, H, W] -> [B, 4 * width, H/stride, W/stride].

    The stride is in the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut(in_width, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.signed(x))

    def signed(self, x: Tensor) -> Tensor:
        """Return the sum before the last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


# depth -> block, blocks in each of the four stages
DEPTHS = {18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)), 50: (Bottleneck, (3, 4, 6, 3))}


class ResNet(Rectified):
    """ResNet-18, -34 or -50 (`depth`): four stages, 64, 128, 256 and 512 channels wide, times 4 with bottlenecks.

    Maps of ResNet-50 at 32x32, each after ReLU: 64 x 32 x 32 (stem), 256 x 32 x 32, 512 x 16 x 16, 1024 x 8 x 8,
    2048 x 4 x 4. Penultimate feature: 512, or 2048 for ResNet-50.

    ResNet-18 and -34, those of the data-free papers, start from torch's own initial weights, as in their code (the
    deviation of most convolutions is 2.4 times smaller); ResNet-50, CRD's, by fan out.
    """

    def __init__(self, *, depth: int, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        block, lengths = DEPTHS[depth]
        in_width = 64
        self.stem = nn.Sequential(nn.Conv2d(in_channels, in_width, 3, padding=1, bias=False), nn.BatchNorm2d(in_width))
        self.body = nn.ModuleList()
        for width, length, stride in zip((64, 128, 256, 512), lengths, (1, 2, 2, 2), strict=True):
            stage = nn.Sequential()
            for index in range(length):
                stage.append(block(in_width, width, stride if index == 0 else 1))
                in_width = width * block.expansion
            self.body.append(stage)
        self.head = nn.Linear(in_width, num_classes)
        if block is Bottleneck:
            init_convolutions(self)
