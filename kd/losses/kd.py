"""Knowledge distillation on softened logits.

Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, NIPS Deep Learning Workshop 2014.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.dense import labelled


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(t/T) || softmax(s/T)), summed over the K classes, per sample: [B, K], [B, K] -> [B].

    Logits [B, K, H, W] give a value per pixel, [B, H, W].

    It is computed in log space, so values and gradients (the teacher's too) stay finite at huge logits.
    """
    log_teacher = _log_softmax(teacher_logits, temperature)
    log_student = _log_softmax(student_logits, temperature)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def kd(student: Output, teacher: Output, batch: Batch, *, temperature: float = 4.0) -> Tensor:
    """Return T² KL(softmax(t/T) || softmax(s/T)) per sample, [B]; T² makes the gradient equally large at every T.

    Of segmentation it is per pixel, [B, H, W], and only labelled pixels count.
    """
    return labelled(temperature**2 * kl_divergence(teacher.logits, student.logits, temperature), batch.labels)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / T), [B, K], with half-precision logits raised to float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=1)
