"""Data-free distillation written down directly, the way a first version of it looks: what kd is measured against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kd.data.augment import random_crop_flip
from kd.models.generator import Generator

CLASSES, PAD, GAMMA = 10, 4, 1.0
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def normalisations(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


class LiteralHook:
    """Mean and biased variance of one BatchNorm layer's input, at every forward pass from now on."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.layer = layer
        layer.register_forward_hook(self.note)

    def note(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        self.mean = x.mean([0, 2, 3])
        self.variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)


def hooks_of(teacher: nn.Module) -> list[LiteralHook]:
    return [LiteralHook(layer) for layer in normalisations(teacher)]


class LiteralGenerator(nn.Sequential):
    """Fang et al.'s generator, layer after layer."""

    def __init__(self, like: Generator) -> None:
        layers: list[nn.Module] = [nn.Linear(256, 128 * 8 * 8), nn.Unflatten(1, (128, 8, 8)), nn.BatchNorm2d(128)]
        for width in (128, 64):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(128, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(64, 3, 3, padding=1), nn.Sigmoid())
        self.take(like)

    @torch.no_grad()
    def take(self, like: Generator) -> None:
        """Weights and running statistics of another."""
        for mine, theirs in zip(self.parameters(), like.parameters(), strict=True):
            mine.copy_(theirs)
        for mine, theirs in zip(normalisations(self), normalisations(like), strict=True):
            mine.load_state_dict(theirs.state_dict())


class LiteralInversion:
    """One epoch of Fang et al.'s meta-generator with SSD-KD's phi, step by step."""

    def __init__(
        self, generator: nn.Module, settings: SimpleNamespace, class_share: Tensor, draws: torch.Generator
    ) -> None:
        self.generator, self.settings, self.class_share, self.draws = generator, settings, class_share, draws
        rate = settings.lr_generator * settings.steps
        self.optimizer = self.adam([{"params": list(generator.parameters()), "lr": rate}])
        self.past: list[tuple[Tensor, Tensor]] | None = None

    @staticmethod
    def adam(groups: list[dict[str, Any]]) -> torch.optim.Adam:
        return torch.optim.Adam(groups, betas=(0.5, 0.999), foreach=False)

    def bn_loss(self, hooks: list[LiteralHook]) -> Tensor:
        total = torch.zeros(())
        momentum = self.settings.bn_momentum
        for number, hook in enumerate(hooks):
            mean, variance = hook.mean, hook.variance
            if self.past is not None:
                mean = momentum * self.past[number][0] + (1 - momentum) * mean
                variance = momentum * self.past[number][1] + (1 - momentum) * variance
            total = total + torch.norm(hook.layer.running_mean - mean, 2)
            total = total + torch.norm(hook.layer.running_var - variance, 2)
        return total

    def epoch(self, teacher: nn.Module, hooks: list[LiteralHook], student: nn.Module) -> tuple[Tensor, float, Tensor]:
        """Images, lowest loss, the meta-gradient in one row."""
        settings = self.settings
        noise = torch.randn(settings.batch_size, settings.noise_dim, generator=self.draws).requires_grad_()
        targets = torch.randint(CLASSES, (settings.batch_size,), generator=self.draws)
        inner = copy.deepcopy(self.generator)
        optimizer = self.adam(
            [
                {"params": list(inner.parameters()), "lr": settings.lr_generator},
                {"params": [noise], "lr": settings.lr_noise},
            ]
        )
        self.optimizer.zero_grad()
        student.eval()
        lowest, best = float("inf"), torch.empty(0)
        for _ in range(settings.steps):
            images = inner(noise)
            moved = random_crop_flip(images, PAD, True, self.draws)
            normalised = (moved - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
            teacher_logits = teacher(normalised).logits
            probability, prediction = teacher_logits.softmax(1).max(1)
            phi = (1 - self.class_share[prediction]) * (1 - probability.detach()) ** GAMMA
            task = (phi * F.cross_entropy(teacher_logits, targets, reduction="none")).mean()
            student_logits = student(normalised).logits
            agree = (student_logits.argmax(1) == prediction).float()
            divergence = F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="none").sum(1)
            adversarial = -(divergence * agree).mean()
            loss = settings.bn * self.bn_loss(hooks) + settings.oh * task + settings.adv * adversarial
            optimizer.zero_grad()
            loss.backward()
            for common, own in zip(self.generator.parameters(), inner.parameters(), strict=True):
                common.grad = own.grad.clone() if common.grad is None else common.grad + own.grad
            optimizer.step()
            if loss.item() < lowest:
                lowest, best = loss.item(), images.detach()
        meta = torch.cat([parameter.grad.flatten() for parameter in self.generator.parameters()])
        self.optimizer.step()
        student.train()
        momentum, before = settings.bn_momentum, self.past
        self.past = [(hook.mean.detach(), hook.variance.detach()) for hook in hooks]
        if before is not None:
            self.past = [
                (momentum * old[0] + (1 - momentum) * new[0], momentum * old[1] + (1 - momentum) * new[1])
                for old, new in zip(before, self.past, strict=True)
            ]
        return best, lowest, meta


class Folder(torch.utils.data.Dataset):
    """PNG files with torchvision's transforms, opened when asked for."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.files = sorted(folder.glob("*.png"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        with Image.open(self.files[number]) as image:
            return self.transform(image.convert("RGB")), number
