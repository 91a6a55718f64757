"""What a network sees of a colour image: the whole image, its luminance, or its chrominance (cross-modal transfer).

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


def channels(view: str, of_image: int) -> int:
    """Return the number of channels of the view. Raises ConfigError for a view other than rgb of a grey image."""
    if view == "rgb":
        return of_image
    if of_image != 3:
        raise ConfigError(f"view: got {view!r}; images of {of_image} channel(s) have no colours: take view: rgb")
    return len(MIXES[view][0])


def weights(view: str, std: Tensor) -> Tensor:
    """Return the matrix [C, 3] that maps images normalised by `std` [3] to their view, of mean 0 and std about 1."""
    rows, spread = MIXES[view]
    return torch.tensor(rows, device=std.device) * (std / (std.mean() * spread))


def mix(images: Tensor, weight: Tensor) -> Tensor:
    """Return the view [B, C, H, W] of normalised colour images [B, 3, H, W]."""
    mixed = torch.einsum("dc,bchw->bdhw", weight, images)
    return mixed.contiguous(memory_format=torch.channels_last)


def look_through(view: str, network: nn.Module, augment: Augment) -> None:
    """Make the network convert every batch to its view first; its state dict does not change."""
    weight = weights(view, augment.std)
    network.register_forward_pre_hook(lambda module, inputs: (mix(inputs[0], weight), *inputs[1:]))
