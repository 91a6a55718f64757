"""Attention transfer (AT).

Zagoruyko, Komodakis, Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
via Attention Transfer, ICLR 2017. The treatment of stages of unequal size, and means instead of sums, are those of the
study of Tian, Krishnan, Isola (CRD), ICLR 2020, whose weight for it is 1000.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32, pool_to_smaller


def at(student: Output, teacher: Output, batch: Batch, *, p: int = 2) -> Tensor:
    """Return the squared difference between attention maps, summed over the stages without the stem: [B].

    A map A [B, C, H, W] has the attention Q = mean over channels of |A|^p, divided by its L2 norm over positions:

        L = sum over stages of mean over positions of (Q_s - Q_t)^2

    The numbers of channels may differ. If the sizes do, the larger map is first averaged to the smaller size.
    """
    student_maps, teacher_maps = student.maps[1:], teacher.maps[1:]
    return sum(_stage(s, t, p) for s, t in zip(student_maps, teacher_maps, strict=True))


def attention(map_: Tensor, p: int = 2) -> Tensor:
    """Return where a map [B, C, H, W] is active, as unit vectors over its positions: [B, HW]."""
    return F.normalize(map_.abs().pow(p).mean(1).flatten(1))


def _stage(student: Tensor, teacher: Tensor, p: int) -> Tensor:
    student, teacher = pool_to_smaller(at_least_float32(student), at_least_float32(teacher))
    return (attention(student, p) - attention(teacher, p)).square().mean(1)
