"""Relational knowledge distillation (RKD).

Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32

EPS = 1e-12  # smallest squared distance between two samples


def rkd(
    student: Output, teacher: Output, batch: Batch, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Return the difference between both networks' distances and angles within the batch's features, [].

    Over features f [B, D], with d_ij = |f_i - f_j| divided by its mean over i != j, e_ij = (f_j - f_i) / |f_j - f_i|,
    and h Huber's loss (threshold 1):

        L = distance_weight * mean over i, j of h(d_ij)  +  angle_weight * mean over i, j, k of h(e_ij . e_ik)

    where h compares the student's value with the teacher's. Both means run over all indices, equal ones included,
    where distance and direction are 0. Widths may differ. The weight of CRD's study is 1.

    Samples whose features coincide (closer than 1e-6) have no direction either, which keeps the gradient finite.
    """
    with torch.autocast(student.logits.device.type, enabled=False):
        distances, angles = _relations(at_least_float32(student.feature))
        with torch.no_grad():
            teacher_distances, teacher_angles = _relations(at_least_float32(teacher.feature))
    distance_loss = F.smooth_l1_loss(distances, teacher_distances)
    return distance_weight * distance_loss + angle_weight * F.smooth_l1_loss(angles, teacher_angles)


def _relations(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for features [B, D], distances [B, B] of mean 1 and cosines [B, B, B] of the angle at the first index."""
    size = len(feature)
    differences = feature[None] - feature[:, None]  # [i, j] points from i to j
    squared = differences.square().sum(2)  # not by |a|^2 + |b|^2 - 2ab, which loses the digits of near samples
    lengths = squared.clamp(min=EPS).sqrt()
    directions = torch.where((squared > EPS)[:, :, None], differences / lengths[:, :, None], 0)

    itself = torch.eye(size, dtype=torch.bool, device=feature.device)
    lengths = lengths.masked_fill(itself, 0)
    mean = lengths.sum() / max(size * (size - 1), 1)
    return lengths / mean.clamp(min=EPS**0.5), directions @ directions.mT
