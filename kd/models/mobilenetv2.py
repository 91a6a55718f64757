"""MobileNetV2, Sandler et al. 2018 (arXiv 1801.04381), in the two forms that the distillation papers use."""

from __future__ import annotations

from torch import Tensor, nn

from kd.models.classifier import Classifier, init_convolutions


def convolution(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a padded convolution and its batch normalisation."""
    return [
        nn.Conv2d(in_width, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]


class InvertedResidual(nn.Module):
    """Widen by 1x1, 3x3 per channel, narrow by 1x1 without activation: [B, C, H, W] -> [B, width, H/stride, W/stride].

    The input is added if the shapes agree. Without `widen`, the first convolution is omitted (the width is then C).
    """

    def __init__(self, in_width: int, width: int, stride: int, factor: int, widen: bool, activation: type) -> None:
        super().__init__()
        inner = in_width * factor
        layers = [*convolution(in_width, inner, 1), activation()] if widen else []
        layers += [*convolution(inner, inner, 3, stride, groups=inner), activation(), *convolution(inner, width, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_width == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(Classifier):
    """MobileNetV2 at a `width` multiplier, with the `strides` of the stem and of the paper's seven rows of blocks.

    `widen_first` adds a 1x1 convolution to the first row, too, whose factor is 1; `relu6` caps the ReLUs at 6.
    The data-free papers use the network as printed (width 1); CRD uses half the width, one halving less, `widen_first`
    and plain ReLUs. The data-free papers' code has dropout of 0.2 before the head, CRD's has none; here neither form
    has any. Maps of CRD's at 32x32: 16 x 16 x 16 (stem), 12 x 16 x 16, 16 x 8 x 8, 48 x 4 x 4, 160 x 2 x 2, the last
    four without activation. Penultimate feature: 1280, after a last 1x1 convolution.
    """

    maps_are_signed = True
    # expansion factor, width, blocks: table 2 of the paper
    ROWS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # the rows behind each intermediate map

    def __init__(
        self,
        *,
        width: float = 1.0,
        strides: tuple[int, ...] = (2, 1, 2, 2, 2, 1, 2, 1),
        widen_first: bool = False,
        relu6: bool = True,
        num_classes: int,
        in_channels: int,
        image_size: int,
    ) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        activation = nn.ReLU6 if relu6 else nn.ReLU
        in_width = int(32 * width)
        self.stem = nn.Sequential(*convolution(in_channels, in_width, 3, strides[0]), activation())
        self.body = nn.ModuleList()
        for rows in self.STAGES:
            stage = nn.Sequential()
            for row in rows:
                factor, row_width, blocks = self.ROWS[row]
                for index in range(blocks):
                    out_width, stride = int(row_width * width), strides[row + 1] if index == 0 else 1
                    widen = factor > 1 or widen_first
                    stage.append(InvertedResidual(in_width, out_width, stride, factor, widen, activation))
                    in_width = out_width
            self.body.append(stage)
        self.last = nn.Sequential(*convolution(in_width, 1280, 1), activation())
        self.head = nn.Linear(1280, num_classes)
        init_convolutions(self)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)

    def stages(self, images: Tensor) -> list[Tensor]:
        return self._from(self.stem(images))

    def signed_stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        stem = self.stem[:-1](images)
        maps = self._from(self.stem[-1](stem))
        return maps, [stem, *maps[1:]]  # only the stem has an activation

    def _from(self, stem: Tensor) -> list[Tensor]:
        """Return all maps, computed from the stem's."""
        maps = [stem]
        for stage in self.body:
            maps.append(stage(maps[-1]))
        return maps

    def pool(self, last: Tensor) -> Tensor:
        return self.last(last).mean(dim=(2, 3))
