"""DeepInversion and Adaptive DeepInversion: the pixels of every batch are found by thousands of steps, from noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.inversion.image_priors import competition_loss, pixel_norm, total_variation_l1, total_variation_l2
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.descent import Descent, adam, restart
from kd.inversion.views import jittered

BETAS = (0.9, 0.999)


class DeepInversion(Descent):
    """Optimises pixels directly (Yin et al., Dreaming to Distill, CVPR 2020, eqs. 1 to 8), in normalised colours:

        oh * mean(phi * L_Task) + bn * L_BN + tv_l2 * R_TV + tv_l1 * R_TV1 + l2 * R_l2 + adv * mean(R_compete)

    The images start as normal noise and are moved a little, all alike, before every step. Adam's steps end inside the
    colours that an image can have. R_compete, of Adaptive DeepInversion, begins with the student's first epoch. Nothing
    is remembered from batch to batch.
    """

    remedy_diverged = "lower inversion.deepinversion.lr or inversion.deepinversion.bn"
    remedy_alike = "raise inversion.deepinversion.bn, or lower tv_l2, tv_l1 and l2 there"
    remedy_images = "inversion.deepinversion.bn, inversion.deepinversion.steps"
    remedy_one_class = "raise inversion.deepinversion.oh, or lower inversion.deepinversion.adv"

    def __init__(
        self,
        context: SourceContext,
        *,
        batch_size: int = 256,
        warmup: int = 0,
        steps: int = 2000,
        lr: float = 0.05,
        bn: float = 10.0,
        oh: float = 1.0,
        tv_l2: float = 0.000025,
        tv_l1: float = 0.0,
        l2: float = 0.0,
        adv: float = 0.0,
        adv_temperature: float = 3.0,
        jitter: int = 2,
        flip: bool = False,
    ):
        super().__init__(context, batch_size, warmup, steps, bn, oh, adv)
        data = context.data
        self.tv_l2, self.tv_l1, self.l2, self.adv_temperature = tv_l2, tv_l1, l2, adv_temperature
        self.jitter, self.flip = jitter, flip
        self.mean, self.std = (values[:, None, None] for values in (data.augment.mean, data.augment.std))
        shape = (batch_size, data.channels, data.image_size, data.image_size)
        self.pixels = torch.zeros(shape, device=self.device, requires_grad=True)  # normalised
        self.optimizer = adam([([self.pixels], lr)], BETAS)

    def _begin(self, learned: int) -> None:
        noise = torch.randn(self.pixels.shape, generator=self.random, device=self.device)
        self.pixels.detach().copy_(noise)
        self._clip()
        self._draw_balanced_targets()
        restart(self.optimizer)

    def _step(self, adversary: nn.Module | None, buffer: ReplayBuffer) -> None:
        seen = jittered(self.pixels, self.jitter, self.flip, self.random)
        found, _ = self._judge(seen.contiguous(memory_format=torch.channels_last), adversary, buffer)
        priors = {"tv_l2": total_variation_l2(seen), "tv_l1": total_variation_l1(seen), "l2": pixel_norm(seen)}
        for name, prior in priors.items():
            if weight := getattr(self, name):
                found["loss"] = found["loss"] + weight * prior
                found[name] = prior
        self.optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        self._keep_better(self.pixels.detach() * self.std + self.mean, found)
        self.optimizer.step()
        self._clip()

    @torch.no_grad()
    def _clip(self) -> None:
        """Move pixels that no image can have to the nearest that one can."""
        self.pixels.copy_(self.pixels.clamp(-self.mean / self.std, (1 - self.mean) / self.std))

    def _agreement(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        return competition_loss(teacher_logits, student_logits, self.adv_temperature)
