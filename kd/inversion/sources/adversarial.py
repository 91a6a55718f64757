"""A generator that learns from step to step, against the teacher's outputs and the student: DAFL, ZSKT, DFQ."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import kd.runtime.quick_optimisers  # noqa: F401
from kd.inversion.output_priors import activation_loss, balance_loss, confidence_loss, divergence_loss
from kd.inversion.priors import BatchStatistics, batchnorm_loss
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, Source, SourceContext
from kd.models.classifier import frozen
from kd.models.generator import Generator

BETAS = (0.5, 0.999)  # of Adam, as in the common frame of these methods (the code of Fang et al., AAAI 2022)
SETTLED = 10  # student epochs; without a warm-up the first images, of an untrained generator, may be of one class


class Adversarial(Source):
    """The generator and its optimiser.

    A round is `steps` Adam steps, each on a batch of fresh noise, down

        adv * L_adv + oh * L_oh + activation * L_a + balance * L_ie + bn * L_BN

    (kd/inversion/output_priors.py, kd/inversion/priors.py), and then `batches` batches of fresh images for the buffer.
    A term of weight 0 is not computed. With `adv` alone it is Zero-shot Knowledge Transfer (Micaelli and Storkey,
    NeurIPS 2019); with `oh`, `activation` and `balance` Data-Free Learning (Chen et al., ICCV 2019); with `adv`, `oh`,
    `balance` and `bn` the source of Data-Free Quantization (Choi et al., CVPRW 2020).

    The student is in eval mode meanwhile; the networks see the images in float32, not augmented. A round is never
    interrupted: it takes a few steps. Raises ConfigError if `bn` is above 0 and the teacher has no BatchNorm2d layers.
    """

    remedy_diverged = "lower inversion.adversarial.lr"
    remedy_alike = "lower inversion.adversarial.lr, or raise inversion.adversarial.bn"
    remedy_one_class = "raise inversion.adversarial.balance, or lower inversion.adversarial.adv"
    remedy_images = "inversion.adversarial.balance, inversion.adversarial.bn"

    def __init__(
        self,
        context: SourceContext,
        *,
        batch_size: int = 256,
        batches: int = 1,
        steps: int = 1,
        lr: float = 0.001,
        adv: float = 1.0,
        oh: float = 0.0,
        activation: float = 0.0,
        balance: float = 0.0,
        bn: float = 0.0,
        noise_dim: int = 256,
        width: int = 64,
    ):
        self.teacher, self.random, self.run = context.teacher, context.generator, context.run
        data, device = context.data, context.generator.device
        self.augment, self.batch_size, self.steps = data.augment, batch_size, steps
        weights = {"adv": adv, "oh": oh, "activation": activation, "balance": balance, "bn": bn}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.settled = SETTLED if balance else math.inf  # an adversary may well stay with one class for a while
        self.statistics = BatchStatistics(context.teacher) if bn else None
        self.work = {"generator_steps": steps, "images": batches * batch_size}
        generator = Generator(noise_dim, width, data.image_size, data.channels)
        self.generator = generator.to(device, memory_format=torch.channels_last)
        options = {"lr": lr, "betas": BETAS, "fused": True, "capturable": device.type == "cuda"}
        self.optimizer = torch.optim.Adam(self.generator.parameters(), **options)
        curves = ("loss", *self.weights, "image_std", "confidence")
        self.found = {name: torch.zeros((), device=device) for name in curves}  # of the last step, the last images
        shape = (batches * batch_size, data.channels, data.image_size, data.image_size)
        self.images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.classes = torch.zeros(len(self.images), dtype=torch.int64, device=device)
        self.confidence = torch.zeros(len(self.images), device=device)

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images:
        """Let the generator take its steps; return images of fresh noise, with the teacher's classes."""
        for _ in range(self.steps):
            self.run("generator's step", lambda: self._step(student))
        self.run("drawing of images", self._draw)
        images, classes, confidence = (values.clone() for values in (self.images, self.classes, self.confidence))
        found = {name: value.clone() for name, value in self.found.items()}
        return Images(images, classes, torch.ones_like(confidence), confidence, found)

    def _noise(self) -> Tensor:
        shape = (self.batch_size, self.generator.noise_dim)
        return torch.randn(shape, generator=self.random, device=self.random.device)

    def _step(self, student: nn.Module) -> None:
        """Move the generator one step down on fresh noise."""
        with frozen(student), self.statistics or nullcontext():
            images = self.augment.normalise(self.generator(self._noise()))
            terms = self._terms(images, student)
            loss = sum(weight * terms[name] for name, weight in self.weights.items())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        for name, value in {"loss": loss, **terms}.items():
            self.found[name].copy_(value.detach())

    def _terms(self, images: Tensor, student: nn.Module) -> dict[str, Tensor]:
        """Return the terms of the loss, [] each, for normalised images [B, C, S, S]; only those that have a weight."""
        teacher = self.teacher(images)
        formulas: dict[str, Callable[[], Tensor]] = {
            "adv": lambda: divergence_loss(teacher.logits, student(images).logits),
            "oh": lambda: confidence_loss(teacher.logits),
            "activation": lambda: activation_loss(teacher.feature),
            "balance": lambda: balance_loss(teacher.logits),
            "bn": lambda: batchnorm_loss(self.statistics.layers, self.statistics.collect()),
        }
        return {name: formulas[name]() for name in self.weights}

    @torch.no_grad()
    def _draw(self) -> None:
        """Draw images of fresh noise, as 8-bit numbers, with the teacher's class and confidence."""
        drawn = (values.split(self.batch_size) for values in (self.images, self.classes, self.confidence))
        for images, classes, confidence in zip(*drawn, strict=True):
            images.copy_(self.generator(self._noise()).mul(255).round())
            most = self.teacher(self.augment.normalise(images)).logits.float().softmax(1).max(1)
            confidence.copy_(most.values)
            classes.copy_(most.indices)
        self.found["image_std"].copy_(images.float().std(0).mean())
        self.found["confidence"].copy_(self.confidence.mean())

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
