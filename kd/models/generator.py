"""The generator of data-free distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Noise [B, noise_dim] -> images [B, channels, image_size, image_size] in [0, 1].

    The network of Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022, which SSD-KD follows:
    a linear layer to maps a quarter of the image's size, then two steps that double it. It has 2,328,899 parameters
    as it stands.

    Raises ValueError unless `image_size` is a positive multiple of 4.
    """

    def __init__(self, noise_dim: int = 256, width: int = 64, image_size: int = 32, channels: int = 3) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(
                f"the generator doubles its maps twice, so image_size must be a multiple of 4, not {image_size}; "
                f"resize or pad the images to {max(4, -(-image_size // 4) * 4)}"
            )
        self.noise_dim = noise_dim
        start = image_size // 4
        self.first = nn.Linear(noise_dim, 2 * width * start * start)
        self.body = nn.Sequential(
            nn.Unflatten(1, (2 * width, start, start)),
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.body(self.first(noise))

    @torch.no_grad()
    def reset_first_layer(self, generator: torch.Generator | None = None) -> None:
        """Start the linear layer anew, in place: weights N(0, 0.02), biases 0. `generator` is on the layer's device."""
        self.first.weight.normal_(0.0, 0.02, generator=generator)
        self.first.bias.zero_()
