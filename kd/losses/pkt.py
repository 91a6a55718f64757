"""Probabilistic knowledge transfer (PKT).

Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32

EPS = 1e-7  # of the norms and of the logarithm


def pkt(student: Output, teacher: Output, batch: Batch) -> Tensor:
    """Return the divergence between the neighbourhoods of the batch's samples in both feature spaces, [].

    Row i of P [B, B] is a distribution over the batch (i included), proportional to (1 + cos(f_i, f_j)) / 2:

        L = mean over i, j of  P_t log( (P_t + eps) / (P_s + eps) )

    The mean over B^2 entries is tiny: the weight of CRD's study is 30000.
    """
    with torch.autocast(student.logits.device.type, enabled=False):
        p_student, p_teacher = _neighbours(student.feature), _neighbours(teacher.feature)
    return (p_teacher * ((p_teacher + EPS) / (p_student + EPS)).log()).mean()


def _neighbours(feature: Tensor) -> Tensor:
    """Return, for features [B, D], each sample's distribution over the batch: [B, B]."""
    feature = at_least_float32(feature)
    norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)  # its gradient at 0 is 0; that of a square root, NaN
    unit = feature / (norm + EPS)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
