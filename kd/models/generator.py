"""The generator of data-free distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UpsampledConv(nn.Conv2d):
    """A 3x3 convolution of maps that are doubled in size first (nearest): [B, C, H, W] -> [B, C', 2H, 2W].

    An output pixel depends on only 2x2 pixels of the small maps. So a 2x2 convolution of these for each parity of the
    output's row and column, with sums of the 3x3 weights, computes the same with 4/9 of the work.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        fold = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # parity, small pixel, big pixel
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        batch, _, height, width = maps.shape
        with torch.autocast(maps.device.type, enabled=False):  # sums of weights are rounded to bf16 only once
            weight = torch.einsum("ayk,bxl,oikl->aboiyx", self.fold, self.fold, self.weight).flatten(0, 2)
        parts = F.conv2d(maps, weight.contiguous(memory_format=torch.channels_last), padding=1)
        parts = parts.permute(0, 2, 3, 1).unflatten(3, (2, 2, self.out_channels))  # [B, H + 1, W + 1, a, b, C']
        rows = [
            torch.stack([parts[:, a : a + height, b : b + width, a, b] for b in (0, 1)], dim=3)  # [B, H, W, b, C']
            for a in (0, 1)
        ]
        return torch.stack(rows, dim=2).view(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def _doubled(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [UpsampledConv(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2)]


class Generator(nn.Module):
    """Noise [B, noise_dim] -> images [B, channels, image_size, image_size] in [0, 1].

    The network of Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022, which SSD-KD follows:
    a linear layer to maps a quarter of the image's size, then two steps that double it. By default it has 2,328,899
    parameters. Larger images need more `doublings`: the linear layer shrinks by four with each.

    Raises ValueError unless `image_size` is a positive multiple of 2^doublings.
    """

    def __init__(
        self, noise_dim: int = 256, width: int = 64, image_size: int = 32, channels: int = 3, doublings: int = 2
    ) -> None:
        super().__init__()
        factor = 2**doublings
        if image_size < factor or image_size % factor:
            raise ValueError(
                f"the generator doubles its maps {doublings} times, so image_size must be a multiple of {factor}, not "
                f"{image_size}; resize or pad the images to {max(factor, -(-image_size // factor) * factor)}"
            )
        self.noise_dim = noise_dim
        start = image_size // factor
        self.first = nn.Linear(noise_dim, 2 * width * start * start)
        self.body = nn.Sequential(
            nn.Unflatten(1, (2 * width, start, start)),
            nn.BatchNorm2d(2 * width),
            *(layer for _ in range(doublings - 1) for layer in _doubled(2 * width, 2 * width)),
            *_doubled(2 * width, width),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.body(self.first(noise)).float().sigmoid()  # bf16 has fewer steps near 1 than an 8-bit image

    @torch.no_grad()
    def reset_first_layer(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights of the linear layer and of the normalisation after it from N(0, 0.02); biases become 0.

        Fast's code does so once. `generator` is on their device.
        """
        for layer in (self.first, self.body[1]):
            layer.weight.normal_(0.0, 0.02, generator=generator)
            layer.bias.zero_()
