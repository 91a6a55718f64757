"""Losses over pixels: which of them count."""

from __future__ import annotations

from torch import Tensor

from kd.batch import UNLABELLED


def labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Return values per pixel [B, H, W] with those of unlabelled pixels at 0 and the others scaled up, so that the mean
    is that over all labelled pixels of the batch; values per sample [B] as they are. labels: [B, H, W] or [B].

    A batch without a labelled pixel gives 0 everywhere.
    """
    if values.dim() < 2:
        return values
    counts = labels != UNLABELLED
    return values * counts * (counts.numel() / counts.sum().clamp_min(1))
