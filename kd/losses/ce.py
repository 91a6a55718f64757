"""Cross entropy with the labels: what a student learns without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.dense import labelled


def ce(student: Output, teacher: Output | None, batch: Batch) -> Tensor:
    """Return the cross entropy of the student's logits [B, K] against the labels [B], per sample: [B].

    Of segmentation, [B, K, H, W] against [B, H, W], it is [B, H, W], and only labelled pixels count. The teacher is not
    used. Half-precision logits are raised to float32 first.
    """
    logits = student.logits.to(torch.promote_types(student.logits.dtype, torch.float32))
    return labelled(F.cross_entropy(logits, batch.labels, reduction="none"), batch.labels)
