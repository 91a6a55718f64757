"""The modulating function phi of SSD-KD: how much the task loss of a new sample counts."""

from __future__ import annotations

import torch
from torch import Tensor

from kd.settings.shapes import Modulation


def modulation(confidence: Tensor, class_share: Tensor, settings: Modulation) -> Tensor:
    """Return phi per sample, [B] (Liu et al., Small Scale Data-Free Knowledge Distillation, CVPR 2024; our reading):

        phi = (1 - diversity * class_share) * (1 - confidence)^gamma

    confidence: [B], the teacher's probability of the sample's class; class_share: [B], the share of that class in the
    replay buffer (0 while the buffer is empty). Classes that fill the buffer and easy samples count less; diversity 0
    and gamma 0 switch either factor off.
    """
    if not settings.gradient:
        confidence = confidence.detach()
    difficulty = (1 - confidence).clamp_min(1e-12) ** settings.gamma  # a power of 0 has no gradient
    phi = (1 - settings.diversity * class_share) * difficulty
    return phi / phi.detach().mean().clamp_min(torch.finfo(phi.dtype).tiny) if settings.normalise else phi
