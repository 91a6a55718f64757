"""The weighted sum of losses that a student minimises."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.registry.losses import LOSSES, OF_TERMS
from kd.runtime.messages import ConfigError


class Objective(nn.Module):
    """Sum over losses of weight * loss, one value per sample [B].

    A loss with two stages has `first_epochs` and a `first_stage`, which answers as the loss does. In that stage these
    alone are summed, without weights. A term's `warmup` is the number of epochs, counted after that stage, over which
    its weight rises in a straight line: the e-th has min(1, e / warmup) of it.

    Losses with state (memory banks, embeddings) are submodules: their parameters learn with the student's optimiser
    and all of their state is part of a checkpoint.

    Raises ConfigError where a loss refuses its settings, the networks or the data.
    """

    def __init__(self, terms: dict[str, dict[str, Any]], context: LossContext | None):
        super().__init__()
        self.maps = context is not None  # with data and a teacher, losses may ask for intermediate maps
        self.weights = {name: settings["weight"] for name, settings in terms.items()}
        self.warmups = {name: settings.get("warmup", 0) for name, settings in terms.items()}
        self.losses: dict[str, Any] = {}
        self.first, self.risen = False, 0
        for name, settings in sorted(terms.items()):  # the order of a sum changes its last bits
            own = {key: value for key, value in settings.items() if key not in OF_TERMS}
            try:
                loss = build_loss(name, context, **own)
            except ValueError as error:
                raise ConfigError(f"objective.{name}: {str(error).removeprefix(f'{name}: ')}") from error
            self.losses[name] = loss
            if isinstance(loss, nn.Module):
                self.add_module(name, loss)
        self.signed = any(getattr(loss, "signed", False) for loss in self.losses.values())  # costs memory

    def begin(self, epoch: int) -> None:
        """To be called as an epoch, counted from 0, begins: which stage it is, and how far weights have risen."""
        self.first, self.risen = epoch < self.first_epochs, epoch - self.first_epochs + 1

    def weight(self, name: str) -> float:
        """The weight of a term in this epoch."""
        return self.weights[name] * min(1.0, self.risen / self.warmups[name] if self.warmups[name] else 1.0)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        total = torch.zeros(len(batch.index), device=batch.index.device)
        for name, loss in self.losses.items():
            if not self.first:
                total = total + self.weight(name) * loss(student, teacher, batch)
            elif _first_epochs(loss):
                total = total + loss.first_stage(student, teacher, batch)
        return total

    def answers(self, student: Output) -> Tensor:
        """The logits [B, K] that count: the student's, or those of a loss that classifies in its place."""
        return next((loss.logits for loss in self.losses.values() if hasattr(loss, "logits")), student.logits)

    def adopt(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        """The network that the student has become: itself, or what a loss makes of it."""
        for loss in self.losses.values():
            if hasattr(loss, "adopt"):
                return loss.adopt(student, teacher)
        return student

    @property
    def first_epochs(self) -> int:
        """Epochs of the first stage; 0 where no loss has one."""
        return max(map(_first_epochs, self.losses.values()), default=0)

    @property
    def first_lr(self) -> float | None:
        """The lowest learning rate that a loss asks for in its first stage."""
        return min((loss.first_lr for loss in self.losses.values() if hasattr(loss, "first_lr")), default=None)

    def logged(self) -> dict[str, Tensor]:
        """What losses noted of their last answer beside it, [] each, for the curves."""
        noted = {name: getattr(loss, "logged", {}) for name, loss in self.losses.items()}
        return {f"{name}_{key}": value for name, values in noted.items() for key, value in values.items()}


class EnsembleObjective(nn.Module):
    """The mean over teachers of an objective each, [B] (Tian et al., CRD, ICLR 2020, section 4.3).

    Every teacher has losses of its own: embeddings, memory banks, regressors. Raises ConfigError for a loss by which
    the student takes over parts of its teacher.
    """

    maps = True

    def __init__(self, objectives: list[Objective]):
        super().__init__()
        for name, loss in objectives[0].losses.items():
            if hasattr(loss, "adopt"):
                raise ConfigError(f"objective.{name}: takes over the classifier of one teacher; got {len(objectives)}")
        self.members = nn.ModuleList(objectives)

    def begin(self, epoch: int) -> None:
        for member in self.members:
            member.begin(epoch)

    @property
    def signed(self) -> bool:
        return self.members[0].signed

    @property
    def first(self) -> bool:
        return self.members[0].first

    @property
    def first_epochs(self) -> int:
        return self.members[0].first_epochs

    @property
    def first_lr(self) -> float | None:
        return self.members[0].first_lr

    def answers(self, student: Output) -> Tensor:
        return student.logits

    def adopt(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        return student

    def logged(self) -> dict[str, Tensor]:
        """Means over the teachers."""
        noted = [member.logged() for member in self.members]
        return {name: torch.stack([each[name] for each in noted]).mean() for name in noted[0]}

    def forward(self, student: Output, teachers: list[Output], batch: Batch) -> Tensor:
        losses = [member(student, teacher, batch) for member, teacher in zip(self.members, teachers, strict=True)]
        return torch.stack(losses).mean(0)


def _first_epochs(loss: Any) -> int:
    return getattr(loss, "first_epochs", 0)


def build_loss(name: str, context: LossContext | None, **settings: Any) -> Any:
    """A loss by its name in LOSSES. Raises TypeError for a setting that it does not know."""
    module, attribute = LOSSES[name].split(":")
    loss = getattr(importlib.import_module(module), attribute)
    return loss(context, **settings) if isinstance(loss, type) else partial(loss, **settings)
