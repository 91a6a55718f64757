"""Images from a trained teacher: one epoch of the generator with its meta-update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.data.augment import Augment
from kd.inversion.modulation import modulation
from kd.inversion.priors import BatchStatistics, Statistics, adversarial_loss, batchnorm_loss, blend, class_loss
from kd.inversion.replay import ReplayBuffer
from kd.models.classifier import frozen
from kd.models.generator import Generator
from kd.settings.run import Inversion, Modulation
from kd.training.optimisers import adam

BETAS = (0.5, 0.999)  # of every Adam in the inversion (Fang et al., AAAI 2022)


class Synthetic(NamedTuple):
    """One epoch's batch, not augmented."""

    images: Tensor  # [B, C, S, S] uint8
    classes: Tensor  # [B] int64, by the setting `class_of`
    phi: Tensor  # [B] modulation values
    confidence: Tensor  # [B] the teacher's, in that class
    losses: dict[str, Tensor]  # [] each, of the step that was kept


class Synthesis:
    """The common generator with its optimiser and the remembered BatchNorm statistics; it never trains the student.

    Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022. Each epoch starts an inner copy of the
    common generator on fresh noise z and classes y. `maml`: the inner gradients of all steps add up to the gradient
    of the common generator (first order); `reptile`: the way that the inner copy has gone is its gradient. The common
    Adam (learning rate lr_generator * steps) steps once per epoch.
    """

    def __init__(
        self,
        generator: Generator,
        settings: Inversion,
        modulating: Modulation,
        augment: Augment,
        num_classes: int,
        random: torch.Generator,
    ):
        self.generator, self.settings, self.modulating = generator, settings, modulating
        self.augment, self.num_classes, self.random = augment, num_classes, random
        self.inner = copy.deepcopy(generator)
        groups = [{"params": list(generator.parameters()), "lr": settings.lr_generator * settings.steps}]
        self.optimizer = adam(groups, BETAS)
        self.past: Statistics | None = None

    def epoch(
        self,
        teacher: nn.Module,
        student: nn.Module,
        buffer: ReplayBuffer,
        adversarial: bool,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Synthetic | None:
        """Synthesise one batch and learn from it; of all steps' images those with the lowest loss are returned.

        When `interrupted()` turns true, everything is left as it was before and None is returned.
        """
        settings, before = self.settings, self.random.get_state()
        device = self.random.device
        noise = torch.randn(settings.batch_size, settings.noise_dim, generator=self.random, device=device)
        noise.requires_grad_()
        targets = torch.randint(self.num_classes, (settings.batch_size,), generator=self.random, device=device)
        common, inner = list(self.generator.parameters()), list(self.inner.parameters())
        self.inner.load_state_dict(self.generator.state_dict())
        groups = [{"params": inner, "lr": settings.lr_generator}, {"params": [noise], "lr": settings.lr_noise}]
        optimizer = adam(groups, BETAS)
        meta = [torch.zeros_like(parameter) for parameter in common]
        best: dict[str, Tensor] = {"loss": torch.full((), torch.inf, device=device)}
        with frozen(student), BatchStatistics(teacher) as statistics:
            for _ in range(settings.steps):
                if interrupted():
                    self.random.set_state(before)
                    return None
                images = self.inner(noise)
                found, batch_statistics = self._losses(
                    images, targets, teacher, student if adversarial else None, buffer, statistics
                )
                optimizer.zero_grad(set_to_none=True)
                found["loss"].backward()
                if settings.meta == "maml":
                    torch._foreach_add_(meta, [parameter.grad for parameter in inner])
                optimizer.step()
                best = _better(best, {**found, "images": images})
        if settings.meta == "reptile":
            meta = torch._foreach_sub([parameter.detach() for parameter in common], [p.detach() for p in inner])
        for parameter, gradient in zip(common, meta, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.past = blend(self.past, batch_statistics, settings.bn_momentum)
        images = best.pop("images").mul(255)
        best["image_std"] = images.std(0).mean()
        samples = (best.pop(name) for name in ("classes", "phi", "confidences"))
        return Synthetic(images.round().to(torch.uint8), *samples, best)

    def _losses(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: nn.Module,
        student: nn.Module | None,
        buffer: ReplayBuffer,
        statistics: BatchStatistics,
    ) -> tuple[dict[str, Tensor], Statistics]:
        """All terms on augmented images, and the statistics of this forward pass; no student, no adversarial term."""
        settings = self.settings
        augmented = self.augment(images, self.random)
        logits = teacher(augmented).logits.float()
        batch_statistics = statistics.take()
        probabilities = logits.softmax(1)
        classes = targets if self.modulating.class_of == "target" else logits.argmax(1)
        confidence = probabilities.gather(1, classes[:, None])[:, 0]
        phi = modulation(confidence, buffer.class_share(classes), self.modulating)
        terms = {
            "bn": batchnorm_loss(statistics.layers, batch_statistics, self.past, settings.bn_momentum),
            "oh": (phi * class_loss(logits, targets)).mean(),
        }
        loss = settings.bn * terms["bn"] + settings.oh * terms["oh"]
        if student is not None and settings.adv:
            terms["adv"] = adversarial_loss(logits, student(augmented).logits.float()).mean()
            loss = loss + settings.adv * terms["adv"]
        terms |= {"confidence": confidence.mean(), "phi_mean": phi.mean()}
        samples = {"classes": classes, "phi": phi, "confidences": confidence}
        return {"loss": loss, **terms, **samples}, batch_statistics

    def reset_first_layer(self) -> None:
        """Draw the common generator's first layer anew, against stale images (once, at `reset_epoch`)."""
        self.generator.reset_first_layer(self.random)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "past": self.past,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.random.device
        self.past = state["past"] and [tuple(part.to(device) for part in layer) for layer in state["past"]]


def _better(best: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The step with the lower loss, chosen on the device."""
    found = {name: value.detach() for name, value in found.items()}
    lower = found["loss"] < best["loss"]
    return {name: torch.where(lower, value, best.get(name, value)) for name, value in found.items()}
