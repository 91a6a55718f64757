"""FitNet: a hint on one intermediate map.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, FitNets: Hints for Thin Deep Nets, ICLR 2015.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, connector


class FitNet(Loss):
    """Mean squared error between the regressed map of the student and the teacher's, [B]:

        L = 1/(C H W) ||relu(BN(conv(F_s))) - F_t||^2

    The regressor is learned with the student; its convolution follows from the two shapes (`maps.connector`). The
    published weight is 100. It belongs to CRD's code, which is followed here: hint and cross entropy are minimised
    together (the paper trains on the hint first), and the regressor ends in a ReLU, so that it cannot reach negative
    values in a teacher's map (wide residual networks).

    Args:
        context: the shapes of the maps, the generator of the initial weights.
        layer: which map, counted from 0, the stem's.
    """

    def __init__(self, context: LossContext, *, layer: int = 2) -> None:
        super().__init__()
        self.layer = layer
        shapes = context.student_maps[layer], context.teacher_maps[layer]
        self.regressor = connector(*shapes, generator=context.generator, device=context.labels.device)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B]."""
        with torch.autocast(batch.index.device.type, enabled=False):
            regressed = F.relu(self.regressor(at_least_float32(student.maps[self.layer])))
            return (regressed - at_least_float32(teacher.maps[self.layer])).pow(2).flatten(1).mean(1)
