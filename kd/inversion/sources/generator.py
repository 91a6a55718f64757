"""Fast's meta-generator: images from a trained teacher, one batch a round, with a meta-update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, SourceContext
from kd.inversion.sources.descent import RememberingDescent, adam, restart
from kd.models.generator import Generator

BETAS = (0.5, 0.999)  # of every Adam in the inversion (Fang et al., AAAI 2022)


class MetaGenerator(RememberingDescent):
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
        doublings: int = 2,
        targets: Literal["random", "own"] = "random",
        precision: Literal["float32", "bf16"] = "float32",
    ):
        super().__init__(context, batch_size, warmup, steps, bn, oh, adv, bn_momentum=bn_momentum)
        data = context.data
        self.targets_from = targets
        self.precision, self.meta, self.reset_epoch, self.was_reset = precision, meta, reset_epoch, False
        self.adv_epochs, self.epochs = round(adv_until * context.epochs), round(until * context.epochs)
        self.relative_lr = context.relative_lr if adv_with_lr else lambda learned: 1.0
        self.adv_weight = torch.zeros((), device=self.device)
        generator = Generator(noise_dim, width, data.image_size, data.channels, doublings)
        self.generator = generator.to(self.device, memory_format=torch.channels_last)
        self.inner = copy.deepcopy(self.generator)
        self.noise = torch.zeros(batch_size, noise_dim, device=self.device, requires_grad=True)
        self.optimizer = adam([(self.generator.parameters(), lr_generator * steps)], BETAS)
        self.inner_optimizer = adam([(self.inner.parameters(), lr_generator), ([self.noise], lr_noise)], BETAS)
        for parameter in self.generator.parameters():
            parameter.grad = torch.zeros_like(parameter)  # the meta-gradient

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
        self.adv_weight.fill_(self.adv * self.relative_lr(max(0, learned)))
        return super().batch(learned, student, buffer, interrupted)

    def _is_adversarial(self, learned: int) -> bool:
        return self.adv > 0 and -1 <= learned < self.adv_epochs

    def _changeable(self) -> None:
        """Return nothing: until the end of a batch only the inner copy moves."""

    def _undo(self, before: None) -> None:
        """Leave everything as it is."""

    def _begin(self, learned: int) -> None:
        """Start the inner copy, on fresh noise and classes, as the common generator is now."""
        self.noise.detach().copy_(torch.randn(self.noise.shape, generator=self.random, device=self.device))
        self._draw_targets()
        self.inner.load_state_dict(self.generator.state_dict())
        restart(self.inner_optimizer)
        torch._foreach_zero_([parameter.grad for parameter in self.generator.parameters()])

    def _step(self, adversary: nn.Module | None, buffer: ReplayBuffer) -> None:
        """Move the inner copy and the noise one step down; what is to last is copied into this source's tensors."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            images = self.inner(self.noise)
            augmented, asked = self._augmented(images)
        found, _ = self._judge(augmented, adversary, buffer, asked)
        self.inner_optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        if self.meta == "maml":
            meta = [parameter.grad for parameter in self.generator.parameters()]
            torch._foreach_add_(meta, [parameter.grad for parameter in self.inner.parameters()])
        self.inner_optimizer.step()
        self._keep_better(images, found)

    def _end(self) -> None:
        """Update the common generator and remember the last step's statistics."""
        if self.meta == "reptile":
            for parameter, inner in zip(self.generator.parameters(), self.inner.parameters(), strict=True):
                parameter.grad.copy_(parameter.detach() - inner.detach())
        self.optimizer.step()
        super()._end()

    def state_dict(self) -> dict[str, Any]:
        own = {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**own, "was_reset": self.was_reset, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.was_reset = state["was_reset"]
