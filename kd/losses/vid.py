"""Variational information distillation (VID).

Ahn, Hu, Damianou, Lawrence, Dai, Variational Information Distillation for Knowledge Transfer, CVPR 2019.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, conv, pool_to_smaller


class VID(Loss):
    """Minus a lower bound on the mutual information of each stage's maps, without its constant, [B]:

        L = sum over stages of 1/(C H W) sum_chw 1/2 ( (F_t - mu(F_s))^2_chw / sigma^2_c + log sigma^2_c )
        sigma^2_c = log(1 + exp(a_c)) + eps

    mu, three 1x1 convolutions with ReLUs between, and the variance of each of the teacher's channels are learned with
    the student. If the two maps differ in size, the larger is average-pooled first. The stem's map is left out. The
    published weight is 1.

    Args:
        context: the shapes of the maps, the generator of the initial weights.
        init_pred_var: initial sigma^2 of every channel.
        eps: the smallest sigma^2.
    """

    def __init__(self, context: LossContext, *, init_pred_var: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        student_maps, teacher_maps = context.student_maps[1:], context.teacher_maps[1:]
        self.eps = eps
        self.means, self.scales = nn.ModuleList(), nn.ParameterList()
        softplus = init_pred_var - eps
        scale = softplus + math.log(-math.expm1(-softplus))
        for (channels, _, _), (teacher_channels, _, _) in zip(student_maps, teacher_maps, strict=True):
            widths = (channels, teacher_channels, teacher_channels, teacher_channels)
            first, second, third = (
                conv(c_in, c_out, 1, bias=False, generator=context.generator, device=context.labels.device)
                for c_in, c_out in pairwise(widths)
            )
            self.means.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third))
            self.scales.append(nn.Parameter(torch.full((teacher_channels,), scale, device=context.labels.device)))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B]; negative where the variances are small."""
        with torch.autocast(batch.index.device.type, enabled=False):
            stages = zip(student.maps[1:], teacher.maps[1:], self.means, self.scales, strict=True)
            return sum(self._stage(at_least_float32(s), at_least_float32(t), mean, a) for s, t, mean, a in stages)

    def _stage(self, student_map: Tensor, teacher_map: Tensor, mean: nn.Module, scale: Tensor) -> Tensor:
        student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
        variance = (F.softplus(scale) + self.eps)[:, None, None]
        likelihood = (teacher_map - mean(student_map)).pow(2) / variance + variance.log()
        return likelihood.flatten(1).mean(1) / 2
