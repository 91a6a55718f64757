"""The few types that every part of kd shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


UNLABELLED = -100  # what torch's losses ignore by default


def per_sample(values: Tensor) -> Tensor:
    """Return the mean over all but the first dimension, [B]: of pixels [B, H, W] an image's; [B] and [] as they are."""
    return values if values.dim() < 2 else values.flatten(1).mean(1)


class Batch(NamedTuple):
    """What a training step learns from; all tensors on one device, B samples."""

    images: Tensor  # [B, C, H, W] float, augmented and normalised
    # [B] int64, the class (data-free: the teacher's prediction when the image was made); of segmentation [B, H, W],
    # with UNLABELLED where a pixel counts for nothing
    labels: Tensor
    index: Tensor  # [B] int64, position in the training subset or slot of the replay buffer
    weight: Tensor  # [B] float, importance-sampling weight; 1 for real data


class Output(NamedTuple):
    """What a network says about a batch of B images."""

    logits: Tensor  # [B, K] for K classes; of segmentation [B, K, H, W]
    feature: Tensor  # [B, D] penultimate feature, what the last linear layer sees
    maps: tuple[Tensor, ...] = ()  # intermediate maps [B, C, H, W], the stem's and each stage's; empty unless asked for
    signed: tuple[Tensor, ...] = ()  # the same maps before the ReLU that ends a stage; empty unless asked for


@dataclass(frozen=True)
class LossContext:
    """What a loss with state may be built from. Losses never ask for layer widths in the configuration."""

    student_dim: int  # D of the student's penultimate feature
    teacher_dim: int  # D of the teacher's
    labels: Tensor  # [M] int64 on the training device: the class of each of the M training samples
    num_classes: int
    generator: torch.Generator  # on the training device; the only source of randomness, checkpointed by the loop
    student_maps: tuple[tuple[int, int, int], ...] = ()  # (C, H, W) of each of the student's intermediate maps
    teacher_maps: tuple[tuple[int, int, int], ...] = ()  # of the teacher's
    teacher: nn.Module | None = None  # for losses that reuse parts of it
