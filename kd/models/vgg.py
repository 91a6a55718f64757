"""VGG, Simonyan and Zisserman 2015 (arXiv 1409.1556), with batch normalisation and a single linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kd.models.classifier import Classifier, init_convolutions

# depth -> convolutions in each of the five stages; vgg8 is the small one of the distillation papers
DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Classifier):
    """VGG-8, -11, -13, -16 or -19 (`depth`): five stages, 64, 128, 256, 512 and 512 channels wide.

    Each of the first three stages is followed by a 2x2 max pool, for images from 64 pixels on the fourth as well.
    Maps at 32x32, after ReLU and before the pool: 64 x 32 x 32, 128 x 16 x 16, 256 x 8 x 8, 512 x 4 x 4, 512 x 4 x 4.
    Penultimate feature: 512.
    """

    def __init__(self, *, depth: int, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        self.pools = 4 if image_size >= 64 else 3
        self.body = nn.ModuleList()
        in_width = in_channels
        for width, length in zip((64, 128, 256, 512, 512), DEPTHS[depth], strict=True):
            stage = nn.Sequential()
            for _ in range(length):
                stage.extend([nn.Conv2d(in_width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
                in_width = width
            self.body.append(stage)
        self.head = nn.Linear(in_width, num_classes)
        init_convolutions(self)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)

    def stages(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = images
        for index, stage in enumerate(self.body):
            maps.append(stage(x))
            x = self._pooled(maps[-1], index)
        return maps

    def signed_stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps, signed = [], []
        x = images
        for index, stage in enumerate(self.body):
            signed.append(stage[:-1](x))
            maps.append(F.relu(signed[-1]))
            x = self._pooled(maps[-1], index)
        return maps, signed

    def _pooled(self, x: Tensor, index: int) -> Tensor:
        """Return a stage's map as the next stage's input."""
        return F.max_pool2d(x, 2) if index < self.pools else x
