"""Correlation congruence (CC).

Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, Correlation Congruence for Knowledge Distillation, ICCV 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, linear


class CC(Loss):
    """Differences between the embedded penultimate features, correlated between neighbours in the batch, a scalar:

        d_i = |e_s(f_s,i) - e_t(f_t,i)|        L = 1/(B - 1) sum_i d_i . d_{i+1}

    Both embeddings are linear, learned with the student, and not normalised. This is the form in CRD's code, which the
    paper's authors contributed and which the published weight 0.02 belongs to; the paper itself compares the two
    networks' matrices of Gaussian kernels between samples. For a batch of one sample, without neighbours, it is 0.

    Args:
        context: both feature widths, the generator of the initial weights.
        feat_dim: width of the embeddings.
    """

    def __init__(self, context: LossContext, *, feat_dim: int = 128) -> None:
        super().__init__()
        drawn = {"generator": context.generator, "device": context.labels.device}
        self.student_embedding = linear(context.student_dim, feat_dim, **drawn)
        self.teacher_embedding = linear(context.teacher_dim, feat_dim, **drawn)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss of the batch, []."""
        with torch.autocast(batch.index.device.type, enabled=False):
            student_embedded = self.student_embedding(at_least_float32(student.feature))
            teacher_embedded = self.teacher_embedding(at_least_float32(teacher.feature))
            difference = (student_embedded - teacher_embedded).abs()
            return (difference[:-1] * difference[1:]).sum() / max(1, len(difference) - 1)
