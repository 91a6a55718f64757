"""Flow of solution procedure (FSP).

Yim, Joo, Bae, Kim, A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning,
CVPR 2017.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, pool_to_smaller


def fsp_matrix(bottom: Tensor, top: Tensor) -> Tensor:
    """Return the mean over positions of the products of channels: maps [B, C, H, W] and [B, C', H', W'] -> [B, C', C].

    If the maps differ in size, the larger is average-pooled first.
    """
    bottom, top = (x.flatten(2) for x in pool_to_smaller(bottom, top))
    return top @ bottom.mT / bottom.shape[2]


class FSP(Loss):
    """Squared difference of the matrices G between neighbouring maps, the stem's included, in a first stage, [B]:

        L = sum over i of 1/(C_i C_{i+1}) || G(F_s,i, F_s,i+1) - G(F_t,i, F_t,i+1) ||^2

    For `first_epochs`, the student learns only from it, at the first learning rate, up to its last map. In the main
    stage the loss is 0, as in the paper and CRD's code, so its published weight, 50, has no effect unless `keep` is on.
    It has no parameters.

    Args:
        context: the shapes of the maps.
        first_epochs: epochs of the first stage.
        keep: keep the loss in the main stage.
    """

    def __init__(self, context: LossContext, *, first_epochs: int = 30, keep: bool = False) -> None:
        super().__init__()
        self.first_epochs, self.keep = first_epochs, keep

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B]."""
        with torch.autocast(batch.index.device.type, enabled=False):
            flows = zip(_flows(student.maps), _flows(teacher.maps), strict=True)
            return sum((s - t).pow(2).mean(dim=(1, 2)) for s, t in flows)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return zeros, [B]; with `keep`, the loss per sample, [B]."""
        if not self.keep:
            return torch.zeros(len(batch.index), device=batch.index.device)
        return self.first_stage(student, teacher, batch)


def _flows(maps: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the matrices of neighbouring maps, each [B, C_{i+1}, C_i]."""
    raised = [at_least_float32(map_) for map_ in maps]
    return [fsp_matrix(bottom, top) for bottom, top in pairwise(raised)]
