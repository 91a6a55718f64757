"""Simple knowledge distillation (SimKD): the student learns the teacher's last map and reuses its classifier.

Chen, Mei, Zhang, Wang, Feng, Chen, Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, conv, pool_to_smaller
from kd.models.classifier import Classifier, Reusing, evaluating
from kd.runtime.messages import ConfigError


class SimKD(Loss):
    """Squared error between the teacher's last map and the student's behind a projector, [B]:

        L = 1/(C H W) ||projector(F_s) - F_t||^2

    The projector (1x1, 3x3 and 1x1 convolution, each with batch normalisation and ReLU) stays part of the student,
    which classifies with the teacher's pooling and last layer: `adopt` returns that network, which is scored and saved.
    If the maps differ in size, the larger is averaged to the smaller size. The published objective is only this loss,
    with weight 1. Where no ReLU precedes the teacher's map (WRN, MobileNetV2), the projector has no last ReLU either.

    Args:
        context: shapes of the maps, the teacher, the generator of the initial weights.
        factor: the projector's inner width is the teacher's divided by this.

    Raises:
        ConfigError: the teacher's logits are not head(pool(last map)).
    """

    def __init__(self, context: LossContext, *, factor: int = 2) -> None:
        super().__init__()
        _require_that_head_and_pool_classify(context.teacher)
        width, teacher_width = context.student_maps[-1][0], context.teacher_maps[-1][0]
        inner, drawn = teacher_width // factor, {"generator": context.generator, "device": context.labels.device}
        layers: list[nn.Module] = []
        for kernel, before, after in ((1, width, inner), (3, inner, inner), (1, inner, teacher_width)):
            layers += [conv(before, after, kernel, padding=kernel // 2, bias=False, **drawn)]
            layers += [nn.BatchNorm2d(after, device=context.labels.device), nn.ReLU()]
        if context.teacher.maps_are_signed:
            layers.pop()
        self.projector = nn.Sequential(*layers)
        self._teacher = (context.teacher,)  # no part of this loss's state
        self.logits: Tensor | None = None

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B]. Set `logits` to those of the teacher's classifier, without gradient."""
        with torch.autocast(batch.index.device.type, enabled=False):
            mine, theirs = (at_least_float32(output.maps[-1]) for output in (student, teacher))
            mine, theirs = pool_to_smaller(mine, theirs)
            projected = self.projector(mine)
            with torch.no_grad():
                self.logits = self._teacher[0].head(self._teacher[0].pool(projected))
        return (projected - theirs).square().mean((1, 2, 3))

    def adopt(self, student: Classifier, teacher: Classifier) -> Classifier:
        """Return the student with its projector and the teacher's classifier."""
        return Reusing(student, self.projector, teacher)


def _require_that_head_and_pool_classify(teacher: Classifier) -> None:
    """Refuse a teacher whose logits are not head(pool(last map)): others end in layers that no student takes over."""
    like = next(teacher.parameters())
    shape = (1, teacher.in_channels, teacher.image_size, teacher.image_size)
    image = torch.linspace(-1, 1, math.prod(shape), dtype=like.dtype, device=like.device).view(shape)
    with evaluating(teacher):
        output = teacher.forward(
            image, maps=True
        )  # skips hooks: the image already has the channels that the teacher's view leaves
        try:
            agrees = torch.allclose(teacher.head(teacher.pool(output.maps[-1])), output.logits, rtol=1e-3, atol=1e-4)
        except RuntimeError:  # shapes that do not fit
            agrees = False
    if not agrees:
        raise ConfigError(
            "simkd: the teacher's logits are not those of its head for its last map, pooled; choose a teacher of kd's "
            "own, or one whose head follows the mean over positions of its last map, such as torchvision:resnet18"
        )
