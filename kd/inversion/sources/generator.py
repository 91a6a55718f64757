"""Fast's meta-generator: images from a trained teacher, one batch a round, with a meta-update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
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

    Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022. Each round starts an inner copy of the
    common generator on fresh noise z and classes y, which takes `steps` steps down

        bn * L_BN + oh * mean(phi * L_Task) + adv * L_adv

    The gradient of the common generator is the sum of the inner gradients of all steps (`maml`, first order), or the
    difference between its parameters and the inner copy's after the last step (`reptile`). Its Adam (learning rate
    lr_generator * steps) steps once per round. L_adv begins in the last epoch of the warm-up, as in
    the reference code.

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
        adv_with_lr: bool = False,
        adv_until: float = 1.0,
        until: float = 1.0,
        bn_momentum: float = 0.9,
        meta: Literal["maml", "reptile"] = "maml",
        reset_epoch: int | None = 120,
        noise_dim: int = 256,
        width: int = 64,
        precision: Literal["float32", "bf16"] = "float32",
    ):
        self.teacher, self.statistics = context.teacher, BatchStatistics(context.teacher)
        data, self.modulating, self.random, self.run = context.data, context.modulation, context.generator, context.run
        self.augment, self.num_classes, device = data.augment, len(data.classes), context.generator.device
        self.batch_size, self.warmup, self.steps, self.precision = batch_size, warmup, steps, precision
        self.meta, self.reset_epoch, self.was_reset = meta, reset_epoch, False
        self.bn, self.oh, self.adv, self.bn_momentum = bn, oh, adv, bn_momentum
        self.adv_epochs, self.epochs = round(adv_until * context.epochs), round(until * context.epochs)
        self.relative_lr = context.relative_lr if adv_with_lr else lambda learned: 1.0
        self.work = {"generator_steps": steps, "images": batch_size}
        generator = Generator(noise_dim, width, data.image_size, data.channels)
        self.generator = generator.to(device, memory_format=torch.channels_last)
        self.inner = copy.deepcopy(self.generator)
        self.noise = torch.zeros(batch_size, noise_dim, device=device, requires_grad=True)
        self.targets = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.optimizer = _adam([(self.generator.parameters(), lr_generator * steps)])
        self.inner_optimizer = _adam([(self.inner.parameters(), lr_generator), ([self.noise], lr_noise)])
        for parameter in self.generator.parameters():
            parameter.grad = torch.zeros_like(parameter)  # the meta-gradient
        self.past: Statistics = [
            (torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var))
            for layer in self.statistics.layers
        ]
        self.seen: Statistics = copy.deepcopy(self.past)  # of the last step, blended with the past
        self.momentum = torch.zeros((), dtype=torch.float64, device=device)  # 0 until there is a past
        self.adv_weight = torch.zeros((), device=device)  # in this epoch
        self.best: dict[str, Tensor] = {"loss": torch.zeros((), device=device)}

    def brings(self, epoch: int) -> bool:
        """Return whether the epoch lies in the warm-up or in the first part of the student's training, `until`."""
        return epoch < self.warmup + self.epochs

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images | None:
        """Synthesise one batch and learn from it; return the images of the step with the lowest loss."""
        if learned + 1 == self.reset_epoch and not self.was_reset:
            self.generator.reset_first_layer(self.random)  # against stale images
            self.was_reset = True
        before = self.random.get_state()
        self._begin()
        adversary = student if self.adv and -1 <= learned < self.adv_epochs else None
        self.adv_weight.fill_(self.adv * self.relative_lr(max(0, learned)))
        name = "inversion step with the adversary" if adversary is not None else "inversion step"
        for _ in range(self.steps):
            if interrupted():
                self.random.set_state(before)
                return None
            self.run(name, lambda: self._step(adversary, buffer))
        self._learn()
        found = dict(self.best) if adversary is not None else {k: v for k, v in self.best.items() if k != "adv"}
        images = found.pop("images").mul(255)
        found["image_std"] = images.std(0).mean()
        samples = (found.pop(name) for name in ("classes", "phi", "confidences"))
        return Images(images.round().to(torch.uint8), *samples, found)

    def _begin(self) -> None:
        """Start the inner copy, on fresh noise and classes, as the common generator is now."""
        size, device = self.batch_size, self.random.device
        self.noise.detach().copy_(torch.randn(self.noise.shape, generator=self.random, device=device))
        self.targets.copy_(torch.randint(self.num_classes, (size,), generator=self.random, device=device))
        self.inner.load_state_dict(self.generator.state_dict())
        for state in self.inner_optimizer.state.values():
            for moment in state.values():
                moment.zero_()
        torch._foreach_zero_([parameter.grad for parameter in self.generator.parameters()])
        self.best["loss"].fill_(torch.inf)

    def _step(self, adversary: nn.Module | None, buffer: ReplayBuffer) -> None:
        """Move the inner copy and the noise one step down; what is to last is copied into this source's tensors."""
        inner = list(self.inner.parameters())
        with frozen(adversary) if adversary is not None else nullcontext(), self.statistics:
            with torch.autocast(self.random.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                images = self.inner(self.noise)
                augmented = self.augment(images, self.random)
                logits = self.teacher(augmented).logits.float()
                other = None if adversary is None else adversary(augmented).logits.float()
            statistics = blend(self.past, self.statistics.collect(), self.momentum)
            found = self._losses(logits, other, statistics, buffer)
            self.inner_optimizer.zero_grad(set_to_none=True)
            found["loss"].backward()
        if self.meta == "maml":
            meta = [parameter.grad for parameter in self.generator.parameters()]
            torch._foreach_add_(meta, [parameter.grad for parameter in inner])
        self.inner_optimizer.step()
        for kept, new in zip(self.seen, statistics, strict=True):
            torch._foreach_copy_(kept, [value.detach() for value in new])
        self._keep_better({**found, "images": images})

    def _losses(
        self, logits: Tensor, other: Tensor | None, statistics: Statistics, buffer: ReplayBuffer
    ) -> dict[str, Tensor]:
        """Return the loss and its terms, [] each, and each sample's class, phi and confidence.

        logits, other: [B, K] of the teacher and of the student on augmented images; without the latter there is no
        adversarial term.
        """
        classes = self.targets if self.modulating.class_of == "target" else logits.argmax(1)
        confidence = logits.softmax(1).gather(1, classes[:, None])[:, 0]
        phi = modulation(confidence, buffer.class_share(classes), self.modulating)
        terms = {
            "bn": batchnorm_loss(self.statistics.layers, statistics),
            "oh": (phi * class_loss(logits, self.targets)).mean(),
        }
        loss = self.bn * terms["bn"] + self.oh * terms["oh"]
        if other is not None:
            terms["adv"] = adversarial_loss(logits, other).mean()
            loss = loss + self.adv_weight * terms["adv"]
        terms |= {"confidence": confidence.mean(), "phi_mean": phi.mean()}
        return {"loss": loss, **terms, "classes": classes, "phi": phi, "confidences": confidence}

    def _keep_better(self, found: dict[str, Tensor]) -> None:
        """Keep the step with the lower loss, chosen on the device."""
        lower = found["loss"].detach() < self.best["loss"]
        for name, value in found.items():
            value = value.detach()
            best = self.best.setdefault(name, torch.zeros_like(value))
            best.copy_(torch.where(lower, value, best))

    def _learn(self) -> None:
        """Update the common generator and remember the last step's statistics."""
        if self.meta == "reptile":
            for parameter, inner in zip(self.generator.parameters(), self.inner.parameters(), strict=True):
                parameter.grad.copy_(parameter.detach() - inner.detach())
        self.optimizer.step()
        for kept, new in zip(self.past, self.seen, strict=True):
            torch._foreach_copy_(kept, new)
        self.momentum.fill_(self.bn_momentum)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "past": self.past,
            "momentum": self.momentum,
            "was_reset": self.was_reset,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.was_reset = state["was_reset"]
        self.momentum.copy_(state["momentum"])
        for kept, saved in zip(self.past, state["past"], strict=True):
            for one, other in zip(kept, saved, strict=True):
                one.copy_(other)


def _adam(groups: Iterable[tuple[Iterable[nn.Parameter], float]]) -> torch.optim.Adam:
    """Return Adam over groups of parameters, each with its learning rate."""
    listed = [{"params": list(params), "lr": lr} for params, lr in groups]
    on_gpu = listed[0]["params"][0].device.type == "cuda"
    return torch.optim.Adam(listed, betas=BETAS, fused=True, capturable=on_gpu)
