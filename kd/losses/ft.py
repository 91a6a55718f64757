"""Factor transfer (FT).

Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.maps import at_least_float32, conv, pool_to_smaller


class FT(Loss):
    """The difference between student and teacher, translated and paraphrased into factors of their last maps, [B].

    First stage: the paraphraser, an autoencoder of three convolutions and three transposed ones, learns the teacher's
    map F_t for `first_epochs` by

        L = 1/(C H W) ||decoder(encoder(F_t)) - F_t||^2

    without the student, which is in eval mode. Main stage: the paraphraser is frozen, translator and student learn from

        L = 1/(H W) sum_hw |q(translator(F_s)) - q(encoder(F_t))|_hw        q(F) = v / ||v||_2,  v = mean_c F_c^2

    Factors that differ in size are average-pooled to the smaller size. The paper normalises the factor itself; v is
    what CRD's code normalises, which the published weight 200 belongs to. That code trains the first stage at a
    learning rate of 0.01 for residual students on CIFAR, the default here, otherwise at the main stage's first one.

    Args:
        context: the shapes of the maps, the generator of the initial weights.
        first_epochs: epochs of the first stage.
        first_lr: learning rate of the first stage.
        factor_rate: channels of the factors, as a share of the teacher's.
    """

    trains_student = False

    def __init__(
        self, context: LossContext, *, first_epochs: int = 30, first_lr: float = 0.01, factor_rate: float = 0.5
    ) -> None:
        super().__init__()
        self.first_epochs, self.first_lr = first_epochs, first_lr
        width, teacher_width = context.student_maps[-1][0], context.teacher_maps[-1][0]
        factors = int(teacher_width * factor_rate)
        down, up = (teacher_width, teacher_width, factors, factors), (factors, factors, teacher_width, teacher_width)
        self.encoder = _convolutions(down, context)
        self.decoder = _convolutions(up, context, transposed=True)
        self.translator = _convolutions((width, width, factors, factors), context, norm=True)

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B], of the paraphraser."""
        with torch.autocast(batch.index.device.type, enabled=False):
            teacher_map = at_least_float32(teacher.maps[-1])
            return (self.decoder(self.encoder(teacher_map)) - teacher_map).pow(2).flatten(1).mean(1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B], of the student and the translator."""
        with torch.autocast(batch.index.device.type, enabled=False):
            with torch.no_grad():
                target = self.encoder(at_least_float32(teacher.maps[-1]))
            student_factor, target = pool_to_smaller(self.translator(at_least_float32(student.maps[-1])), target)
            return (_normalised(student_factor) - _normalised(target)).abs().mean(1)


def _normalised(factor: Tensor) -> Tensor:
    """Return the mean square over channels, L2-normalised over positions: [B, C, H, W] -> [B, H W]."""
    return F.normalize(factor.pow(2).mean(1).flatten(1))


def _convolutions(
    widths: tuple[int, ...], context: LossContext, *, norm: bool = False, transposed: bool = False
) -> nn.Sequential:
    """Return convolutions 3x3 that keep the size, each followed by normalisation (with `norm`) and LeakyReLU 0.1."""
    drawn = {"generator": context.generator, "device": context.labels.device}
    layers = nn.Sequential()
    for c_in, c_out in pairwise(widths):
        layers.append(conv(c_in, c_out, 3, padding=1, transposed=transposed, **drawn))
        if norm:
            layers.append(nn.BatchNorm2d(c_out, device=context.labels.device))
        layers.append(nn.LeakyReLU(0.1))
    return layers
