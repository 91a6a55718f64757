"""Decoupled knowledge distillation (DKD).

Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.kd import kl_divergence
from kd.losses.maps import at_least_float32


def dkd(
    student: Output,
    teacher: Output,
    batch: Batch,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Return the divergence of the target class and that of the other classes, weighted separately: [B].

    With p = softmax(z / T) over the K classes and y the label:

        L = T² ( alpha KL(b_t || b_s) + beta KL(q_t || q_s) )

    where b = (p_y, 1 - p_y), and q = softmax(z / T) over the K - 1 classes other than y. Distillation on all classes
    at once (`kd`) is alpha = 1 and beta = 1 - p_y of the teacher.

    The authors choose beta by pair. On CIFAR-100 it is 8, but 6 from VGG-13 and from WRN-40-2 to another WRN, and 2
    from ResNet-56 and ResNet-110; the weight is 1, next to cross entropy of weight 1. They raise the weight linearly
    over the first 20 epochs (`warmup: 20`).
    """
    target_student, others_student = _decouple(student.logits, batch.labels, temperature)
    target_teacher, others_teacher = _decouple(teacher.logits, batch.labels, temperature)
    target = kl_divergence(target_teacher, target_student, 1.0)
    others = kl_divergence(others_teacher, others_student, 1.0)
    return temperature**2 * (alpha * target + beta * others)


def _decouple(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return logits of target against all others [B, 2] and of the others [B, K - 1], divided by the temperature."""
    logits = at_least_float32(logits) / temperature
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, column + (column >= labels[:, None]))  # skips the label
    return torch.stack([logits.gather(1, labels[:, None]).squeeze(1), others.logsumexp(1)], dim=1), others
