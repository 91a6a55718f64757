"""What the meta-generator, DeepInversion, CMI and NAYER have in common: several steps down a loss for every batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import kd.runtime.quick_optimisers  # noqa: F401
from kd.batch import UNLABELLED, per_sample
from kd.data.dataset import targets
from kd.inversion.layouts import draw_layouts
from kd.inversion.modulation import modulation
from kd.inversion.priors import BatchStatistics, Statistics, adversarial_loss, batchnorm_loss, blend, class_loss
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, Source, SourceContext
from kd.models.classifier import frozen


class Descent(Source):
    """Takes `steps` steps down a loss for every batch, and returns the images of the step with the lowest loss.

        bn * L_BN + oh * mean(phi * L_Task) + adv * mean(L_adv) + what a subclass adds

    L_adv begins with the student's first epoch. A subclass writes `_begin`, the start of a batch with its `targets`,
    and `_step`, which changes tensors only in place and ends with `_keep_better`; `_end`, if it remembers something of
    a batch. A batch that is interrupted is undone.

    Raises ConfigError for a teacher without BatchNorm2d layers.
    """

    precision = "float32"  # or bf16: in which the networks are computed

    def __init__(
        self, context: SourceContext, batch_size: int, warmup: int, steps: int, bn: float, oh: float, adv: float
    ):
        self.teacher, self.statistics = context.teacher, BatchStatistics(context.teacher)
        self.modulating, self.random, self.run = context.modulation, context.generator, context.run
        self.augment, self.num_classes = context.data.augment, len(context.data.classes)
        self.device, self.batch_size, self.warmup, self.steps = self.random.device, batch_size, warmup, steps
        self.bn, self.oh, self.adv = bn, oh, adv
        self.adv_weight: float | Tensor = adv  # in this batch
        self.work = {"generator_steps": steps, "images": batch_size}
        maps = 2 * (context.data.image_size,) if context.teacher.dense else ()  # [S, S], a class for every pixel
        self.targets = torch.zeros(batch_size, *maps, dtype=torch.int64, device=self.device)
        self.targets_from = "random"  # or own: what the teacher predicts itself
        self.best: dict[str, Tensor] = {"loss": torch.zeros((), device=self.device)}

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images | None:
        """Return the images of the step with the lowest loss; None, and all is as before, once interrupted."""
        before = self._changeable(), self.random.get_state()
        self._begin(learned)
        self.best["loss"].fill_(torch.inf)
        adversary = student if self._is_adversarial(learned) else None
        name = "inversion step with the adversary" if adversary is not None else "inversion step"
        for _ in range(self.steps):
            if interrupted():
                self._undo(before[0])
                self.random.set_state(before[1])
                return None
            self.run(name, lambda: self._step(adversary, buffer))
        self._end()
        return self._found(adversary is not None)

    def _begin(self, learned: int) -> None:
        """Start a batch: draw what it begins with, and the classes that it is asked for."""
        raise NotImplementedError

    def _step(self, adversary: nn.Module | None, buffer: ReplayBuffer) -> None:
        """Take one step down."""
        raise NotImplementedError

    def _end(self) -> None:
        """Remember something of the batch; here nothing."""

    def _is_adversarial(self, learned: int) -> bool:
        """Return whether a batch of this epoch has the adversarial term."""
        return self.adv > 0 and learned >= 0

    def _changeable(self) -> Any:
        """Return a copy of what `_begin` and `_step` change of the state; here all of it."""
        return copy.deepcopy(self.state_dict())

    def _undo(self, before: Any) -> None:
        """Restore what `_changeable` returned."""
        self.load_state_dict(before)

    def _draw_targets(self) -> None:
        """Ask for a random class each, or, of segmentation, for a random map of classes."""
        if self.targets.dim() > 1:
            drawn = draw_layouts(*self.targets.shape[:2], self.num_classes, self.random)
        else:
            drawn = torch.randint(self.num_classes, self.targets.shape, generator=self.random, device=self.device)
        self.targets.copy_(drawn)

    def _draw_balanced_targets(self) -> None:
        """Ask for every class equally often, in rounds of all classes; the last round may be a random part of them."""
        classes = torch.randperm(self.num_classes, generator=self.random, device=self.device)
        self.targets.copy_(classes.repeat(-(-self.batch_size // self.num_classes))[: self.batch_size])

    def _augmented(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, C, S, S], augmented and normalised, and what is asked of them; maps are moved alike."""
        if self.targets.dim() < 2:
            return self.augment(images, self.random), self.targets
        seen, asked = self.augment.pair(images, self.targets, self.random)
        return seen, targets(asked)

    def _judge(
        self, seen: Tensor, adversary: nn.Module | None, buffer: ReplayBuffer, asked: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Show normalised images [B, C, S, S] to the teacher and, where there is one, the adversary.

        asked: the targets of these images, where they have been moved. Return the loss and its terms, [] each, with
        each sample's class (of segmentation the map [B, S, S] of what is seen), phi and confidence, [B] each; and the
        teacher's penultimate feature [B, D].
        """
        lower = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with self.statistics, lower:
            output = self.teacher(seen)
        logits = output.logits.float()
        predicted = logits.argmax(1)
        asked = predicted if self.targets_from == "own" else self.targets if asked is None else asked
        classes = predicted
        if self.modulating.class_of == "target":
            classes = torch.where(asked == UNLABELLED, predicted, asked)  # where padding is seen nothing is asked
        confidence = per_sample(logits.softmax(1).gather(1, classes[:, None])[:, 0])
        phi = modulation(confidence, buffer.class_share(classes), self.modulating)
        terms = {
            "bn": batchnorm_loss(self.statistics.layers, self._compared(self.statistics.collect())),
            "oh": (phi * class_loss(logits, asked)).mean(),
        }
        loss = self.bn * terms["bn"] + self.oh * terms["oh"]
        if adversary is not None:
            with frozen(adversary), lower:
                other = adversary(seen).logits.float()
            terms["adv"] = self._agreement(logits, other).mean()
            loss = loss + self.adv_weight * terms["adv"]
        terms |= {"confidence": confidence.mean(), "phi_mean": phi.mean()}
        return {"loss": loss, **terms, "classes": classes, "phi": phi, "confidences": confidence}, output.feature

    def _compared(self, statistics: Statistics) -> Statistics:
        """Return the statistics of a batch as the BatchNorm prior compares them with the running ones."""
        return statistics

    def _agreement(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return L_adv per sample, [B], for logits [B, K] each."""
        return adversarial_loss(teacher_logits, student_logits)

    def _keep_better(self, images: Tensor, found: dict[str, Tensor]) -> None:
        """Keep images [B, C, S, S], in [0, 1], and what was found of them if their loss is the lowest so far.

        It is chosen on the device. An optimiser that changes the images in place may do so afterwards.
        """
        lower = found["loss"].detach() < self.best["loss"]
        for name, value in {**found, "images": images}.items():
            value = value.detach()
            best = self.best.setdefault(name, torch.zeros_like(value))
            best.copy_(torch.where(lower, value, best))

    def _found(self, adversarial: bool) -> Images:
        """Return what was kept; the losses are the terms without their weights, and the spread of the images."""
        kept = {name: value for name, value in self.best.items() if name != "adv" or adversarial}
        images = kept["images"].mul(255)
        losses = {name: value.clone() for name, value in kept.items() if not value.ndim}
        losses["image_std"] = images.std(0).mean()
        samples = (kept[name].clone() for name in ("classes", "phi", "confidences"))
        return Images(images.round().to(torch.uint8), *samples, losses)


class RememberingDescent(Descent):
    """A descent whose BatchNorm prior compares the batch's statistics blended with past ones (Fang et al., AAAI 2022):

        bn_momentum * past + (1 - bn_momentum) * batch

    The past is the last step's blend of the batch before; the first batch has none.
    """

    def __init__(self, *given: Any, bn_momentum: float):
        super().__init__(*given)
        self.bn_momentum = bn_momentum
        self.past: Statistics = [
            (torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var))
            for layer in self.statistics.layers
        ]
        self.seen: Statistics = copy.deepcopy(self.past)  # of the last step, blended with the past
        self.momentum = torch.zeros((), dtype=torch.float64, device=self.device)  # 0 until there is a past

    def _compared(self, statistics: Statistics) -> Statistics:
        blended = blend(self.past, statistics, self.momentum)
        for kept, new in zip(self.seen, blended, strict=True):
            torch._foreach_copy_(kept, [value.detach() for value in new])
        return blended

    def _end(self) -> None:
        """Remember the last step's statistics."""
        for kept, new in zip(self.past, self.seen, strict=True):
            torch._foreach_copy_(kept, new)
        self.momentum.fill_(self.bn_momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"past": self.past, "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momentum.copy_(state["momentum"])
        for kept, saved in zip(self.past, state["past"], strict=True):
            torch._foreach_copy_(kept, list(saved))


def adam(groups: Iterable[tuple[Iterable[Tensor], float]], betas: tuple[float, float]) -> torch.optim.Adam:
    """Return Adam over groups of parameters, each with its learning rate, for steps that a GPU may capture."""
    listed = [{"params": list(params), "lr": lr} for params, lr in groups]
    on_gpu = listed[0]["params"][0].device.type == "cuda"
    return torch.optim.Adam(listed, betas=betas, fused=True, capturable=on_gpu)


def restart(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser go on as if it had not taken a step; its tensors stay where they are."""
    for state in optimizer.state.values():
        for moment in state.values():
            moment.zero_()
