"""Real images instead of synthetic ones: SSD-KD's distillation on original samples (claim (a) of the paper)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kd.data.dataset import stratified
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, Source, SourceContext


class Original(Source):
    """Fills the buffer once, with a stratified random subset of the training images, drawn by the run's seed."""

    def __init__(self, context: SourceContext):
        self.data, self.capacity, self.seed = context.data, context.capacity, context.seed

    def brings(self, epoch: int) -> bool:
        return epoch == 0

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images:
        """Return the subset; no more than `capacity` images."""
        train = self.data.train
        chosen = stratified(train.labels, self.capacity / len(train), self.seed)[: self.capacity]
        real = train.subset(chosen.to(train.labels.device))
        return Images(real.images, real.labels, torch.ones(len(real), device=real.images.device))
