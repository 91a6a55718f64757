"""Knowledge review (ReviewKD).

Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, conv

Size = tuple[int, int]  # H, W


def hierarchical_context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return HCL, the squared error over a pyramid of average pools, per sample: [B, C, H, W] twice -> [B].

    Mean squared errors of the maps themselves and of their pools to 4x4, 2x2 and 1x1, where these are smaller,
    weighted 1, 1/2, 1/4, ... by their order and divided by the sum of the weights.
    """
    height = student_map.shape[2]
    total, weights, weight = _squared_error(student_map, teacher_map), 1.0, 1.0
    for size in (4, 2, 1):
        if size < height:
            weight /= 2
            pooled = (F.adaptive_avg_pool2d(map_, size) for map_ in (student_map, teacher_map))
            total = total + weight * _squared_error(*pooled)
            weights += weight
    return total / weights


class ReviewKD(Loss):
    """The difference between each level of the teacher and the student's level fused with all deeper ones, [B].

    The levels are the stages' maps, without the stem's, and the penultimate feature as a map of 1x1. The teacher's maps
    are taken before the stage's last ReLU (`Output.signed`), the student's after it. From the deepest on,
    attention-based fusion (`Fusion`) joins a level with the fused deeper ones and brings it to the teacher's shape; the
    loss is the sum of `hierarchical_context_loss` over the levels. The fusions learn with the student, in batches of at
    least two.

    The published weights are, with cross entropy at weight 1: ResNet-56 to 20 0.6; ResNet-110 to 32 1; ResNet-32x4 to
    ShuffleNetV2 8; WRN-40-2 and ResNet-32x4 to their other students 5. There the weight also rises linearly over
    the first 20 epochs (`warmup: 20`).

    Args:
        context: shapes of maps and features, the generator of the initial weights.
        max_mid_width: the fused maps are as wide as the student's feature, but at most this wide.
    """

    signed = True

    def __init__(self, context: LossContext, *, max_mid_width: int = 512) -> None:
        super().__init__()
        student_maps, teacher_maps = context.student_maps[1:], context.teacher_maps[1:]
        mid_width = min(max_mid_width, context.student_dim)
        self.fusions = nn.ModuleList()
        widths = [*(c for c, _, _ in student_maps), context.student_dim]
        levels = [*teacher_maps, (context.teacher_dim, 1, 1)]
        for width, (out_width, *out_size) in reversed(list(zip(widths, levels, strict=True))):
            deepest = not len(self.fusions)
            self.fusions.append(Fusion(width, mid_width, out_width, tuple(out_size), context, deepest=deepest))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B]."""
        with torch.autocast(batch.index.device.type, enabled=False):
            total, fused = 0.0, None
            levels, targets = _levels(student.feature, student.maps), _levels(teacher.feature, teacher.signed)
            for level, target, fusion in zip(levels, targets, self.fusions, strict=True):
                reviewed, fused = fusion(level, fused)
                total = total + hierarchical_context_loss(reviewed, target)
        return total


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a level x with the fused map y of the deeper levels.

        x' = BN(conv1x1(x))        (a, b) = sigmoid(conv1x1([x', y]))        fused = a x' + b y
        out = BN(conv3x3(fused))

    y is resized to the size of x, fused to `out_size`, both to the nearest neighbour; a and b are maps of one channel.
    The deepest level has no y: fused = x'.
    """

    def __init__(
        self, width: int, mid_width: int, out_width: int, out_size: Size, context: LossContext, *, deepest: bool
    ) -> None:
        super().__init__()
        device, drawn = context.labels.device, {"generator": context.generator, "device": context.labels.device}
        self.out_size = out_size
        self.transform = conv(width, mid_width, 1, bias=False, **drawn)
        self.transform_norm = nn.BatchNorm2d(mid_width, device=device)
        self.attention = None if deepest else conv(2 * mid_width, 2, 1, **drawn)
        self.out = conv(mid_width, out_width, 3, padding=1, bias=False, **drawn)
        self.out_norm = nn.BatchNorm2d(out_width, device=device)
        with torch.no_grad():  # torch's ±1/sqrt(fan in) becomes the authors' ±sqrt(3 / fan in)
            for layer in (self.transform, self.out):
                layer.weight.mul_(math.sqrt(3))

    def forward(self, level: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return out and fused, of `out_size`, for a level [B, C, H, W] and the deeper ones fused [B, mid, H', W']."""
        fused = self.transform_norm(self.transform(level))
        if self.attention is not None:
            deeper = _resize(deeper, level.shape[2:])
            attention = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = attention[:, :1] * fused + attention[:, 1:] * deeper
        fused = _resize(fused, self.out_size)
        return self.out_norm(self.out(fused)), fused


def _levels(feature: Tensor, maps: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the penultimate feature as a map, then the stages' maps, the deepest first."""
    return [at_least_float32(level) for level in (feature[:, :, None, None], *maps[:0:-1])]


def _resize(x: Tensor, size: Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared error per sample: [B]."""
    return (a - b).pow(2).flatten(1).mean(1)
