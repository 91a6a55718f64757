"""Contrastive Model Inversion: a fresh generator for every batch, with images unlike each other and earlier ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.inversion.image_priors import contrastive_loss
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.descent import Descent, adam, restart
from kd.inversion.views import resized_crop
from kd.models.generator import Generator

BETAS, HEAD_BETAS = (0.5, 0.999), (0.9, 0.999)


class ContrastiveInversion(Descent):
    """A generator drawn anew, and its noise, for every batch (Fang et al., Contrastive Model Inversion, IJCAI 2021):

        bn * L_BN + oh * mean(phi * L_Task) + adv * mean(L_adv) + cr * L_cr

    L_cr, InfoNCE, tells by the projected penultimate feature of an image's local view, a resized crop, which global
    view, the augmented image, is of the same image: among those of the batch and of up to `negatives` earlier images,
    whose features lie in a bank. It is the mean over the batch plus the mean over the earlier images; these teach only
    the projection head, which lasts over the batches, as do its Adam and the bank.
    """

    remedy_diverged = "lower inversion.cmi.lr or inversion.cmi.bn"
    remedy_alike = "raise inversion.cmi.cr, or lower inversion.cmi.lr"
    remedy_images = "inversion.cmi.bn, inversion.cmi.steps"
    remedy_one_class = "raise inversion.cmi.oh, or lower inversion.cmi.adv"

    def __init__(
        self,
        context: SourceContext,
        *,
        batch_size: int = 256,
        warmup: int = 0,
        steps: int = 200,
        lr: float = 0.001,
        bn: float = 1.0,
        oh: float = 1.0,
        adv: float = 0.5,
        cr: float = 0.8,
        cr_temperature: float = 0.1,
        negatives: int = 4096,
        bank: int = 40960,
        head_dim: int = 256,
        noise_dim: int = 256,
        width: int = 64,
    ):
        super().__init__(context, batch_size, warmup, steps, bn, oh, adv)
        data, dim = context.data, context.teacher.feature_dim
        self.cr, self.cr_temperature, self.negatives = cr, cr_temperature, min(negatives, bank)
        generator = Generator(noise_dim, width, data.image_size, data.channels)
        self.generator = generator.to(self.device, memory_format=torch.channels_last)
        self.noise = torch.zeros(batch_size, noise_dim, device=self.device, requires_grad=True)
        self.optimizer = adam([(self.generator.parameters(), lr), ([self.noise], lr)], BETAS)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, head_dim)).to(self.device)
        self.head_optimizer = adam([(self.head.parameters(), lr)], HEAD_BETAS)
        self.bank = torch.zeros(bank, 2, dim, device=self.device)  # local and global feature of earlier images
        self.filled = torch.zeros((), dtype=torch.int64, device=self.device)  # rows in use
        self.place = 0  # row of the next image
        self.counted = torch.ones(batch_size, dtype=torch.bool, device=self.device)

    def _begin(self, learned: int) -> None:
        redraw(self.generator, self.random)
        self.noise.detach().copy_(torch.randn(self.noise.shape, generator=self.random, device=self.device))
        classes = torch.randint(self.num_classes, self.targets.shape, generator=self.random, device=self.device)
        self.targets.copy_(classes)
        restart(self.optimizer)

    def _step(self, adversary: nn.Module | None, buffer: ReplayBuffer) -> None:
        images = self.generator(self.noise)
        found, feature = self._judge(self.augment(images, self.random), adversary, buffer)
        if self.cr:
            part = resized_crop(images, self.augment.flip, self.random)
            local = self.teacher(self.augment.normalise(part)).feature
            found["cr"] = self._contrast(local, feature)
            found["loss"] = found["loss"] + self.cr * found["cr"]
            found["features"] = torch.stack([local, feature], 1)
        for optimizer in (self.optimizer, self.head_optimizer):
            optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        self._keep_better(images, found)
        self.optimizer.step()
        if self.cr:
            self.head_optimizer.step()

    def _contrast(self, local: Tensor, whole: Tensor) -> Tensor:
        """Return L_cr, [], for the features [B, D] of the local and the global views."""
        keys = torch.rand(len(self.bank), generator=self.random, device=self.device)
        unused = torch.arange(len(self.bank), device=self.device) >= self.filled
        index = (keys + unused).topk(self.negatives, largest=False).indices  # those in use first, in random order
        earlier, used = self.bank[index], ~unused[index]
        anchors = F.normalize(self.head(torch.cat([local, earlier[:, 0]])), dim=1)
        others = F.normalize(self.head(torch.cat([whole, earlier[:, 1]])), dim=1).detach()
        each = contrastive_loss(anchors, others, self.cr_temperature, torch.cat([self.counted, used]))
        now, before = each.split([len(local), len(used)])
        return now.mean() + (before * used).sum() / used.sum().clamp_min(1)

    def _end(self) -> None:
        """Put the features of the images that were kept into the bank, in place of the oldest."""
        if not self.cr:
            return
        features = self.best["features"][: len(self.bank)]
        rows = (torch.arange(len(features), device=self.device) + self.place) % len(self.bank)
        self.bank.index_copy_(0, rows, features)
        self.place = (self.place + len(features)) % len(self.bank)
        self.filled.add_(len(features)).clamp_max_(len(self.bank))

    def _changeable(self) -> dict[str, Any]:
        """Return a copy of the projection head and its Adam: the bank changes only at the end of a batch."""
        return copy.deepcopy({"head": self.head.state_dict(), "head_optimizer": self.head_optimizer.state_dict()})

    def _undo(self, before: dict[str, Any]) -> None:
        self.head.load_state_dict(before["head"])
        self.head_optimizer.load_state_dict(before["head_optimizer"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "head": self.head.state_dict(),
            "head_optimizer": self.head_optimizer.state_dict(),
            "bank": self.bank,
            "filled": self.filled,
            "place": self.place,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._undo(state)
        self.bank.copy_(state["bank"])
        self.filled.copy_(state["filled"])
        self.place = state["place"]


@torch.no_grad()
def redraw(network: nn.Module, random: torch.Generator) -> None:
    """Draw weights from N(0, 0.02), those of normalisations from N(1, 0.02); biases become 0, as in CMI's code."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            module.weight.normal_(float(isinstance(module, nn.BatchNorm2d)), 0.02, generator=random)
            if module.bias is not None:
                module.bias.zero_()
