"""Wide residual networks, Zagoruyko and Komodakis 2016 (arXiv 1605.07146), without dropout."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kd.models.classifier import Classifier, init_convolutions


class Block(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU: [B, C, H, W] -> [B, width, H/stride, W/stride].

    If the width changes, the shortcut is a 1x1 convolution of the normalised input, without another normalisation;
    otherwise it is the raw input.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if in_width != width else None

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """Return the block's sum; `active` is the input after normalisation and ReLU, if that is known already."""
        if active is None:
            active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideResNet(Classifier):
    """WRN-depth-width: depth = 6n + 4 means three stages of n blocks, 16, 32 and 64 times `width` channels wide.

    Maps at 32x32: 16 x 32 x 32, then the sum that leaves each stage, before normalisation and ReLU:
    16w x 32 x 32, 32w x 16 x 16, 64w x 8 x 8. Signed maps: these after the normalisation that follows, before its ReLU.
    Penultimate feature: 64w.
    """

    maps_are_signed = True

    def __init__(self, *, depth: int, width: int, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        blocks = (depth - 4) // 6
        if blocks < 1 or depth != 6 * blocks + 4:
            raise ValueError(f"depth {depth} of a wide residual network; it must be 10, 16, 22, ... (6n + 4)")
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.body = nn.ModuleList()
        for stage in range(3):
            first = Block(widths[stage], widths[stage + 1], stride=1 if stage == 0 else 2)
            others = [Block(widths[stage + 1], widths[stage + 1], stride=1) for _ in range(blocks - 1)]
            self.body.append(nn.Sequential(first, *others))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.head.bias)

    def stages(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.body:
            maps.append(stage(maps[-1]))
        return maps

    def signed_stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps, signed = [self.stem(images)], []
        for first, *others in self.body:
            signed.append(first.bn1(maps[-1]))  # once a step: running statistics move with every call
            x = first(maps[-1], F.relu(signed[-1]))
            for block in others:
                x = block(x)
            maps.append(x)
        return maps, [*signed, self.norm(maps[-1])]

    def pool(self, last: Tensor) -> Tensor:
        return self.pool_signed(last, self.norm(last))

    def pool_signed(self, last: Tensor, signed: Tensor) -> Tensor:
        return F.relu(signed).mean(dim=(2, 3))
