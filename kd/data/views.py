"""What a network sees of an image: its colours, their luminance or chrominance, or its depth (cross-modal transfer).

Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, section 4.2 transfers from luminance to
chrominance in Lab; here it is the linear YCbCr of ITU-R BT.601.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.data.augment import Augment
from kd.runtime.messages import ConfigError

# rows over (R, G, B), and the spread of natural images along them relative to that of a colour
MIXES = {
    "luminance": (((0.299, 0.587, 0.114),), 1.0),
    "chrominance": (((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)), 0.25),
}
WITH_DEPTH = 4  # channels: colours and depth


def channels(view: str, of_image: int) -> int:
    """Return the number of channels of the view. Raises ConfigError for a view that the images do not have.

    `rgb` are all channels but the depth; grey images have no other view.
    """
    if view == "rgb":
        return min(of_image, 3)
    if view == "depth" and of_image != WITH_DEPTH:
        raise ConfigError(f"view: got {view!r}; images of {of_image} channel(s) have none: set dataset.channels: 4")
    if of_image < 3:
        raise ConfigError(f"view: got {view!r}; images of {of_image} channel(s) have no colours: take view: rgb")
    return 1 if view == "depth" else len(MIXES[view][0])


def weights(view: str, std: Tensor) -> Tensor:
    """Return the matrix [C, channels] that maps images normalised by `std` to their view, of mean 0 and std about 1."""
    every = torch.eye(len(std), device=std.device)
    if view in ("rgb", "depth"):
        return every[3:] if view == "depth" else every[:3]
    rows, spread = MIXES[view]
    return torch.tensor(rows, device=std.device) * (std[:3] / (std[:3].mean() * spread)) @ every[:3]


def mix(images: Tensor, weight: Tensor) -> Tensor:
    """Return the view [B, C, H, W] of normalised images [B, 3 or 4, H, W]."""
    mixed = torch.einsum("dc,bchw->bdhw", weight, images)
    return mixed.contiguous(memory_format=torch.channels_last)


def look_through(view: str, network: nn.Module, augment: Augment) -> None:
    """Make the network convert every batch to its view first; its state dict does not change."""
    weight = weights(view, augment.std)
    network.register_forward_pre_hook(lambda module, inputs: (mix(inputs[0], weight), *inputs[1:]))
