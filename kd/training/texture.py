"""How noisy synthetic images are, next to real ones: total variation and spectrum.

SSD-KD (Liu et al., CVPR 2024) says of its images on NYUv2 that they show better texture and less noise than Fast10's.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 1_000  # images of either kind that are compared


def texture(synthetic: Tensor, real: Tensor) -> dict[str, float]:
    """Return how far the texture of images [N, C, S, S] uint8 is from that of real ones [M, C, S, S], in decibels:

    - `tv_distance`: |20 log10(TV / TV_real)|, TV the mean absolute difference of neighbouring pixels;
    - `spectrum_distance`: the mean over frequencies from 1 to S/2 of |10 log10(P / P_real)|, P the mean power of the
      images' luminance at that distance from frequency 0.

    0 means: as real images are. Spread over both sets, at most MOST images are compared.
    """
    kinds = [_luminance(_some(images)) for images in (synthetic, real)]
    variations, powers = zip(*((_total_variation(each), _spectrum(each)) for each in kinds), strict=True)
    return {
        "tv_distance": (20 * (variations[0] / variations[1]).log10()).abs().item(),
        "spectrum_distance": (10 * (powers[0] / powers[1]).log10()).abs().mean().item(),
    }


def _some(images: Tensor) -> Tensor:
    return images[torch.linspace(0, len(images) - 1, min(MOST, len(images))).round().long().to(images.device)]


def _luminance(images: Tensor) -> Tensor:
    """Return the mean of the colours, [N, S, S] float64 in [0, 1]."""
    return images[:, :3].double().mean(1) / 255


def _total_variation(grey: Tensor) -> Tensor:
    return grey.diff(dim=1).abs().mean() + grey.diff(dim=2).abs().mean()


def _spectrum(grey: Tensor) -> Tensor:
    """Return the mean power at the distances 1, 2, ..., S // 2 from frequency 0, [S // 2]; edges are faded out."""
    size = grey.shape[-1]
    fade = torch.hann_window(size, periodic=False, dtype=grey.dtype, device=grey.device)
    seen = (grey - grey.mean(dim=(1, 2), keepdim=True)) * fade * fade[:, None]
    power = torch.fft.fft2(seen).abs().square().mean(0)
    frequency = torch.fft.fftfreq(size, 1 / size, dtype=grey.dtype, device=grey.device)
    ring = (frequency[:, None].square() + frequency.square()).sqrt().round().long().flatten()
    rings = torch.zeros(int(ring.max()) + 1, dtype=grey.dtype, device=grey.device)
    total, count = rings.index_add(0, ring, power.flatten()), rings.index_add(0, ring, torch.ones_like(power).flatten())
    return (total / count)[1 : size // 2 + 1].clamp_min(1e-12)
