"""Similarity-preserving distillation (SP).

Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32


def sp(student: Output, teacher: Output, batch: Batch) -> Tensor:
    """Return the difference between both networks' similarities of the batch's samples, [].

    With A [B, CHW] the last stage's map, flattened, and G the matrix A A^T whose rows are divided by their L2 norms:

        L = ||G_t - G_s||_F^2 / B^2

    Numbers of channels and sizes may differ. The weight of the paper and of CRD's study is 3000.
    """
    with torch.autocast(student.logits.device.type, enabled=False):
        return (_similarity(teacher.maps[-1]) - _similarity(student.maps[-1])).square().mean()


def _similarity(map_: Tensor) -> Tensor:
    """Return the similarities of maps [B, C, H, W]: [B, B], rows of length 1."""
    flat = at_least_float32(map_).flatten(1)
    return F.normalize(flat @ flat.T)
