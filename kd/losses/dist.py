"""Distillation from a stronger teacher (DIST).

Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32

EPS = 1e-8  # added to the product of two norms


def dist(
    student: Output,
    teacher: Output,
    batch: Batch,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Return the lack of Pearson correlation between both networks' predictions, [].

    With p = softmax(z / T) [B, K] and r(a, b) the Pearson correlation of two vectors:

        L = T² ( beta (1 - mean over samples of r(p_s[i, :], p_t[i, :]))
               + gamma (1 - mean over classes of r(p_s[:, c], p_t[:, c])) )

    A vector without variance correlates with nothing. The first term compares the classes of a sample, the second the
    samples of the batch. The paper's weight is 2, next to cross entropy of weight 1, with T = 4 on CIFAR-100 and T = 1
    on ImageNet.
    """
    p_student = torch.softmax(at_least_float32(student.logits) / temperature, dim=1)
    p_teacher = torch.softmax(at_least_float32(teacher.logits) / temperature, dim=1)
    inter = 1 - _correlation(p_student, p_teacher).mean()
    intra = 1 - _correlation(p_student.T, p_teacher.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of row with row: [N, M], [N, M] -> [N]."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + EPS)
