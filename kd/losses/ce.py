"""Cross entropy with the labels: what a student learns without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output


def ce(student: Output, teacher: Output | None, batch: Batch) -> Tensor:
    """Return the cross entropy of the student's logits [B, K] against the labels [B], per sample: [B].

    The teacher is not used. Half-precision logits are raised to float32 first.
    """
    logits = student.logits
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.labels, reduction="none")
