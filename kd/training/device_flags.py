"""How torch computes on a GPU where that changes a run's numbers."""

from __future__ import annotations

import torch


def set_flags() -> None:
    """Let cuDNN choose deterministic algorithms, always the same ones: two runs of one seed then agree."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
