"""Fast's meta-generator: images from a trained teacher, one batch an epoch, with a meta-update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import kd.runtime.quick_optimisers  # noqa: F401
from kd.inversion.modulation import modulation
from kd.inversion.priors import BatchStatistics, Statistics, adversarial_loss, batchnorm_loss, blend, class_loss
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, Source, SourceContext
from kd.models.classifier import frozen
from kd.models.generator import Generator

BETAS = (0.5, 0.999)  # of every Adam in the inversion (Fang et al., AAAI 2022)


class MetaGenerator(Source):
    """The common generator, its optimiser and the remembered BatchNorm statistics.

    Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022. Each epoch starts an inner copy of the
    common generator on fresh noise z and classes y, which takes `steps` steps down

        bn * L_BN + oh * mean(phi * L_Task) + adv * L_adv

    The gradient of the common generator is the sum of the inner gradients of all steps (`maml`, first order), or the
    difference between its parameters and the inner copy's after the last step (`reptile`). Its Adam (learning rate
    lr_generator * steps) steps once per epoch. L_adv is left out until the student has trained for an epoch.

    Raises ConfigError for a teacher without BatchNorm2d layers.
    """

    remedy_diverged = "lower inversion.generator.lr_generator or inversion.generator.bn"
    remedy_alike = "lower inversion.generator.lr_generator, or raise inversion.generator.bn"
    remedy_images = "inversion.generator.bn, inversion.generator.oh"
    remedy_one_class = "raise inversion.generator.oh, set modulation.diversity: 1.0, or lower inversion.generator.adv"

    def __init__(
        self,
        context: SourceContext,
        *,
        batch_size: int = 256,
        warmup: int = 20,
        steps: int = 5,
        lr_generator: float = 0.003,
        lr_noise: float = 0.01,
        bn: float = 10.0,
        oh: float = 0.4,
        adv: float = 1.1,
        bn_momentum: float = 0.9,
        meta: Literal["maml", "reptile"] = "maml",
        reset_epoch: int | None = 120,
        noise_dim: int = 256,
        width: int = 64,
    ):
        BatchStatistics(context.teacher)  # refuses a teacher without any
        data = context.data
        self.teacher, self.modulating, self.random = context.teacher, context.modulation, context.generator
        self.augment, self.num_classes = data.augment, len(data.classes)
        self.batch_size, self.warmup, self.steps, self.noise_dim = batch_size, warmup, steps, noise_dim
        self.lr_generator, self.lr_noise, self.meta, self.reset_epoch = lr_generator, lr_noise, meta, reset_epoch
        self.bn, self.oh, self.adv, self.bn_momentum = bn, oh, adv, bn_momentum
        self.work = {"generator_steps": steps, "images": batch_size}
        generator = Generator(noise_dim, width, data.image_size, data.channels)
        self.generator = generator.to(self.random.device, memory_format=torch.channels_last)
        self.inner = copy.deepcopy(self.generator)
        self.optimizer = _adam([(self.generator.parameters(), lr_generator * steps)])
        self.past: Statistics | None = None
        self.was_reset = False

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images | None:
        """Synthesise one batch and learn from it; return the images of the step with the lowest loss."""
        if learned == self.reset_epoch and not self.was_reset:
            self.generator.reset_first_layer(self.random)  # against stale images
            self.was_reset = True
        adversarial, before, device = learned > 0, self.random.get_state(), self.random.device
        noise = torch.randn(self.batch_size, self.noise_dim, generator=self.random, device=device)
        noise.requires_grad_()
        targets = torch.randint(self.num_classes, (self.batch_size,), generator=self.random, device=device)
        common, inner = list(self.generator.parameters()), list(self.inner.parameters())
        self.inner.load_state_dict(self.generator.state_dict())
        optimizer = _adam([(inner, self.lr_generator), ([noise], self.lr_noise)])
        meta = [torch.zeros_like(parameter) for parameter in common]
        best: dict[str, Tensor] = {"loss": torch.full((), torch.inf, device=device)}
        with frozen(student), BatchStatistics(self.teacher) as statistics:
            for _ in range(self.steps):
                if interrupted():
                    self.random.set_state(before)
                    return None
                images = self.inner(noise)
                found, batch_statistics = self._losses(
                    images, targets, student if adversarial else None, buffer, statistics
                )
                optimizer.zero_grad(set_to_none=True)
                found["loss"].backward()
                if self.meta == "maml":
                    torch._foreach_add_(meta, [parameter.grad for parameter in inner])
                optimizer.step()
                best = _better(best, {**found, "images": images})
        if self.meta == "reptile":
            meta = torch._foreach_sub([parameter.detach() for parameter in common], [p.detach() for p in inner])
        for parameter, gradient in zip(common, meta, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.past = blend(self.past, batch_statistics, self.bn_momentum)
        images = best.pop("images").mul(255)
        best["image_std"] = images.std(0).mean()
        samples = (best.pop(name) for name in ("classes", "phi", "confidences"))
        return Images(images.round().to(torch.uint8), *samples, best)

    def _losses(
        self,
        images: Tensor,
        targets: Tensor,
        student: nn.Module | None,
        buffer: ReplayBuffer,
        statistics: BatchStatistics,
    ) -> tuple[dict[str, Tensor], Statistics]:
        """Return all terms on augmented images, and the pass's statistics; without a student, no adversarial term."""
        augmented = self.augment(images, self.random)
        logits = self.teacher(augmented).logits.float()
        batch_statistics = statistics.collect()
        probabilities = logits.softmax(1)
        classes = targets if self.modulating.class_of == "target" else logits.argmax(1)
        confidence = probabilities.gather(1, classes[:, None])[:, 0]
        phi = modulation(confidence, buffer.class_share(classes), self.modulating)
        terms = {
            "bn": batchnorm_loss(statistics.layers, batch_statistics, self.past, self.bn_momentum),
            "oh": (phi * class_loss(logits, targets)).mean(),
        }
        loss = self.bn * terms["bn"] + self.oh * terms["oh"]
        if student is not None and self.adv:
            terms["adv"] = adversarial_loss(logits, student(augmented).logits.float()).mean()
            loss = loss + self.adv * terms["adv"]
        terms |= {"confidence": confidence.mean(), "phi_mean": phi.mean()}
        samples = {"classes": classes, "phi": phi, "confidences": confidence}
        return {"loss": loss, **terms, **samples}, batch_statistics

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "past": self.past,
            "was_reset": self.was_reset,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.was_reset, device = state["was_reset"], self.random.device
        self.past = state["past"] and [tuple(part.to(device) for part in layer) for layer in state["past"]]


def _better(best: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the step with the lower loss, chosen on the device."""
    found = {name: value.detach() for name, value in found.items()}
    lower = found["loss"] < best["loss"]
    return {name: torch.where(lower, value, best.get(name, value)) for name, value in found.items()}


def _adam(groups: Iterable[tuple[Iterable[nn.Parameter], float]]) -> torch.optim.Adam:
    """Return Adam over groups of parameters, each with its learning rate."""
    return torch.optim.Adam([{"params": list(params), "lr": lr} for params, lr in groups], betas=BETAS, fused=True)
