"""Neuron selectivity transfer (NST).

Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017 (arXiv 1707.01219).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32, pool_to_smaller


def nst(student: Output, teacher: Output, batch: Batch) -> Tensor:
    """Return the squared maximum mean discrepancy between the channels' patterns, summed over stages: [B].

    The stem is left out. With s_c and t_c the channels of a stage's maps [B, C, H, W], each a unit vector over
    positions, the polynomial kernel k(a, b) = (a.b)^2, and means over all pairs of channels:

        L = sum over stages of  mean k(t_c, t_c') + mean k(s_c, s_c') - 2 mean k(s_c, t_c')

    The numbers of channels may differ. If the sizes do, the larger map is first averaged to the smaller size. The
    weight of CRD's study is 50.
    """
    student_maps, teacher_maps = student.maps[1:], teacher.maps[1:]
    with torch.autocast(student.logits.device.type, enabled=False):
        return sum(_stage(s, t) for s, t in zip(student_maps, teacher_maps, strict=True))


def _stage(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = pool_to_smaller(at_least_float32(student), at_least_float32(teacher))
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    return _mean_kernel(t, t) + _mean_kernel(s, s) - 2 * _mean_kernel(s, t)


def _mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (a_c.b_c')^2 over the pairs of channels: [B, C, N], [B, C', N] -> [B].

    The sum is |a b^T|^2 = <a^T a, b^T b>; the form with the smaller matrices is computed, because wide networks end in
    thousands of channels over a handful of positions.
    """
    pairs = a.shape[1] * b.shape[1]
    if a.shape[2] ** 2 < pairs:
        return ((a.mT @ a) * (b.mT @ b)).sum((1, 2)) / pairs
    return (a @ b.mT).square().mean((1, 2))
