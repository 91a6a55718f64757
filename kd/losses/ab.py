"""Activation boundaries (AB).

Heo, Lee, Yun, Choi, Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, connector
from kd.models.classifier import frozen


class AB(Loss):
    """A hinge that puts the student's neurons on the teacher's side of the activation boundary, in a first stage, [B]:

        L = 3/1000 sum over stages i = 1..n of 2^(i - n) sum_chw max(0, m - b s)^2        b = 1 where t > 0, else -1

    with the margin m and the teacher's map t. s is the student's map F_s, or BN(conv(F_s)) behind a connector
    (`maps.connector`) where the two shapes differ. Both maps are taken before the stage's last ReLU (`Output.signed`).
    For `first_epochs`, the student up to its last map and the connectors learn only from it, at the first learning
    rate. What follows is in eval mode, WRN's last normalisation, too, whose output is a signed map. In the main stage
    the loss is 0, so its published weight, 1, has no effect unless `keep` is on. The stem's map is left out.

    Args:
        context: the shapes of the maps, the generator of the initial weights.
        first_epochs: epochs of the first stage.
        margin: m.
        connectors: only where the shapes are `unequal`, as in the code of CRD's study, or at `all` stages.
        keep: keep the loss in the main stage, with the connectors frozen as the first stage left them.
    """

    signed = True

    def __init__(
        self,
        context: LossContext,
        *,
        first_epochs: int = 30,
        margin: float = 1.0,
        connectors: Literal["all", "unequal"] = "unequal",
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.first_epochs, self.margin, self.keep = first_epochs, margin, keep
        drawn = {"generator": context.generator, "device": context.labels.device}
        self.connectors = nn.ModuleList(
            nn.Identity() if connectors == "unequal" and s == t else connector(s, t, **drawn)
            for s, t in zip(context.student_maps[1:], context.teacher_maps[1:], strict=True)
        )

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B], with gradients for the student and the connectors."""
        with torch.autocast(batch.index.device.type, enabled=False):
            stages = zip(student.signed[1:], teacher.signed[1:], self.connectors, strict=True)
            total = 0.0
            for student_map, teacher_map, connect in stages:
                connected = connect(at_least_float32(student_map))
                side = torch.where(teacher_map > 0, connected, -connected)
                total = total / 2 + F.relu(self.margin - side).pow(2).flatten(1).sum(1)
        return total * 3 / 1000

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return zeros, [B]; with `keep`, the loss per sample, [B], with gradients only for the student."""
        if not self.keep:
            return torch.zeros(len(batch.index), device=batch.index.device)
        with frozen(self.connectors):
            return self.first_stage(student, teacher, batch)
